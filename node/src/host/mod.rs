//! The one seam between Weft and the world. Production and simulation call the same `run` with
//! different hosts: `production` here, turmoil's in `sim-tests`.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

pub mod accept;
pub mod descriptors;
pub mod disk;
pub mod production;
pub mod tasks;
#[cfg(test)]
pub mod testing;
mod turn;

pub use accept::{AcceptMetrics, Acceptor, Place};
pub use tasks::Tasks;
pub use turn::Turn;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use weft_cluster::ids::Millis;

/// A boxed future, as the seam's methods return them.
pub type Promise<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A byte stream to a client or a server: TCP in production, turmoil's TCP in simulation.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A boxed byte stream with the address of its other end.
pub struct Connection {
    /// The bytes.
    pub io: Box<dyn Io>,
    /// The other end.
    pub remote: SocketAddr,
}

/// Accepts byte streams.
pub trait Listener: Send + 'static {
    /// The address bound, with the port that the system chose if 0 was asked for.
    fn local_addr(&self) -> SocketAddr;
    /// The next connection. Errors are transient (too many open files): back off and call again.
    fn accept(&mut self) -> Promise<'_, io::Result<Connection>>;
}

/// What a QUIC socket was asked for, and what the system granted.
#[derive(Clone, Copy, Debug)]
pub struct SocketBuffers {
    /// Bytes of the receive buffer.
    pub receive_bytes: usize,
    /// Bytes of the send buffer.
    pub send_bytes: usize,
}

/// Work that blocks a thread.
pub type Work = Box<dyn FnOnce() + Send>;

/// What a node needs from the world.
pub trait Host: Send + Sync + 'static {
    /// The file system.
    fn disk(&self) -> Arc<dyn Disk>;

    /// Binds a UDP socket and builds a QUIC endpoint on it.
    ///
    /// Returns what was granted of `buffers`. In simulation the endpoint's randomness is seeded by the
    /// host; `config` carries the stable reset key and connection ids in both worlds.
    fn quic<'a>(
        &'a self,
        bind: SocketAddr,
        buffers: SocketBuffers,
        config: quinn::EndpointConfig,
        server: quinn::ServerConfig,
    ) -> Promise<'a, io::Result<(quinn::Endpoint, SocketBuffers)>>;

    /// Binds a TCP listener.
    fn listen<'a>(&'a self, bind: SocketAddr) -> Promise<'a, io::Result<Box<dyn Listener>>>;

    /// Opens a TCP connection, without delay for small writes.
    fn connect<'a>(&'a self, to: SocketAddr) -> Promise<'a, io::Result<Connection>>;

    /// Resolves `host:port`.
    fn resolve<'a>(&'a self, name: &'a str) -> Promise<'a, io::Result<Vec<SocketAddr>>>;

    /// The wall clock. It may jump; it decides when, never who.
    fn wall(&self) -> Millis;

    /// Fills `buffer` with random bytes fit for ids and keys.
    fn entropy(&self, buffer: &mut [u8]);

    /// Runs work that blocks: on a thread in production, inline in simulation.
    fn blocking(&self, work: Work) -> Promise<'static, ()>;

    /// Spawns a task. Only `Tasks` calls it.
    fn spawn(&self, task: Promise<'static, ()>) -> tokio::task::JoinHandle<()>;

    /// Ends the process at once: after an I/O error or a hung disk nothing it says can be trusted.
    /// In simulation it crashes the simulated host.
    fn abort(&self, reason: &str) -> !;
}

impl dyn Host {
    /// A random u64, never 0.
    pub fn random_id(&self) -> u64 {
        let mut bytes = [0; 8];
        self.entropy(&mut bytes);
        u64::from_le_bytes(bytes).max(1)
    }

    /// Runs blocking work and returns its result.
    pub async fn run_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = tokio::sync::oneshot::channel();
        self.blocking(Box::new(move || drop(done.send(work())))).await;
        result.await.expect("blocking work runs to its end before its future resolves")
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// For reading; must exist.
    Read,
    /// For reading and writing; must exist.
    Write,
    /// For reading and writing; must not exist.
    Create,
    /// For reading and writing; made if it is missing, cut to 0 bytes if not.
    Replace,
}

/// A file system. Every call blocks; durability needs `sync_data` on the file and, after a creation,
/// rename or removal, `sync_dir` on its folder.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file.
    ///
    /// # Errors
    /// One of which `descriptors::is_out_of_descriptors` is true says nothing of the disk: nothing was done, and the same
    /// may be tried again. So for all calls here that open something: `list`, `sync_dir`, `lock`, `remove_dir_all`.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes a folder and those above it.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Renames, replacing `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder and all in it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names in a folder, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// Whether a file or folder is there.
    fn exists(&self, path: &Path) -> bool;
    /// Makes the entries of a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Bytes free for this process on the file system that holds `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Takes an exclusive lock on a file until the returned guard drops; `WouldBlock` if another has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
}

/// An open file. Reads and writes name their place; there is no cursor.
#[expect(clippy::len_without_is_empty, reason = "`len` asks the system and may fail; nobody asks for emptiness")]
pub trait DiskFile: Send + Sync + 'static {
    /// Reads at least one byte unless `at` is the end; returns how many.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes all of `data`.
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()>;
    /// Writes the parts one after the other.
    fn write_parts_at(&self, parts: &[io::IoSlice<'_>], mut at: u64) -> io::Result<()> {
        for part in parts {
            self.write_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }
    /// Makes data and length durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Cuts or extends with zeros.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Extends with zeros and has the file system set the space aside: writes below `bytes` meet no full disk then.
    ///
    /// # Errors
    /// `StorageFull`: there is not so much; the length may have changed.
    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
}

impl dyn DiskFile {
    /// Reads exactly `bytes` bytes from `at`; `UnexpectedEof` if the file is shorter.
    pub fn read_exact_at(&self, bytes: usize, at: u64) -> io::Result<Bytes> {
        let mut buffer = vec![0; bytes];
        let mut filled = 0;
        while filled < bytes {
            match self.read_at(&mut buffer[filled..], at + filled as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        Ok(buffer.into())
    }
}
