//! A host whose connections are made of memory.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use super::PIPE_BYTES;
use crate::host::testing::{MemoryDisk, TestHost};
use crate::host::{Connection, Disk, Host, Listener, Promise, SocketBuffers, Work};

type Doors = Arc<Mutex<BTreeMap<SocketAddr, mpsc::UnboundedSender<DuplexStream>>>>;

/// A host whose connections are made of memory.
pub(in crate::gateways::proxy::tests) struct MemoryNet {
    host: Arc<TestHost>,
    doors: Doors,
}

impl MemoryNet {
    pub(in crate::gateways::proxy::tests) fn new() -> Arc<MemoryNet> {
        Arc::new(MemoryNet { host: TestHost::new(MemoryDisk::default(), 7), doors: Doors::default() })
    }

    /// Takes the connections made to a port; none are taken any more when the receiver is dropped.
    pub(in crate::gateways::proxy::tests) fn take(&self, port: u16) -> mpsc::UnboundedReceiver<DuplexStream> {
        let (door, taken) = mpsc::unbounded_channel();
        self.doors.lock().expect("no panic").insert(address(port), door);
        taken
    }
}

pub(in crate::gateways::proxy::tests) fn address(port: u16) -> SocketAddr {
    ([10, 0, 0, 1], port).into()
}

impl Host for MemoryNet {
    fn disk(&self) -> Arc<dyn Disk> {
        self.host.disk()
    }
    fn quic<'a>(
        &'a self,
        bind: SocketAddr,
        buffers: SocketBuffers,
        config: quinn::EndpointConfig,
        server: quinn::ServerConfig,
    ) -> Promise<'a, io::Result<(quinn::Endpoint, SocketBuffers)>> {
        self.host.quic(bind, buffers, config, server)
    }
    fn listen<'a>(&'a self, bind: SocketAddr) -> Promise<'a, io::Result<Box<dyn Listener>>> {
        self.host.listen(bind)
    }
    fn connect<'a>(&'a self, to: SocketAddr) -> Promise<'a, io::Result<Connection>> {
        let door = self.doors.lock().expect("no panic").get(&to).cloned();
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            let refused = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
            door.ok_or(()).and_then(|door| door.send(far).map_err(drop)).map_err(refused)?;
            Ok(Connection { io: Box::new(near), remote: to })
        })
    }
    fn resolve<'a>(&'a self, name: &'a str) -> Promise<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { name.parse().map(|address| vec![address]).map_err(io::Error::other) })
    }
    fn wall(&self) -> weft_cluster::ids::Millis {
        self.host.wall()
    }
    fn entropy(&self, buffer: &mut [u8]) {
        self.host.entropy(buffer);
    }
    fn blocking(&self, work: Work) -> Promise<'static, ()> {
        self.host.blocking(work)
    }
    fn spawn(&self, task: Promise<'static, ()>) -> tokio::task::JoinHandle<()> {
        self.host.spawn(task)
    }
    fn abort(&self, reason: &str) -> ! {
        self.host.abort(reason)
    }
}
