//! The real world: the system's clock, dice, sockets and threads.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "this is where the world comes in")]

use std::io;
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ring::rand::{SecureRandom, SystemRandom};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use weft_cluster::ids::Millis;

use super::{Connection, Disk, Host, Listener, Promise, SocketBuffers, Work};

/// The host of a real process.
pub struct Production {
    disk: Arc<dyn Disk>,
    dice: SystemRandom,
}

impl Production {
    /// On the system's file system, through `disk`.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Production { disk, dice: SystemRandom::new() }
    }
}

/// Connections that wait to be accepted: when a node restarts, all its clients come at once. The system may allow fewer
/// (net.core.somaxconn).
const BACKLOG: u32 = 4_096;

/// A listening socket.
fn tcp(bind: SocketAddr) -> io::Result<TcpListener> {
    let socket = if bind.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A node that has just ended leaves connections behind that would keep its successor from its port.
    socket.set_reuseaddr(true)?;
    socket.bind(bind)?;
    socket.listen(BACKLOG)
}

impl Host for Production {
    fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    fn quic<'a>(
        &'a self,
        bind: SocketAddr,
        buffers: SocketBuffers,
        config: quinn::EndpointConfig,
        server: quinn::ServerConfig,
    ) -> Promise<'a, io::Result<(quinn::Endpoint, SocketBuffers)>> {
        Box::pin(async move {
            let (socket, granted) = udp(bind, buffers)?;
            let endpoint = quinn::Endpoint::new(config, Some(server), socket, Arc::new(quinn::TokioRuntime))?;
            Ok((endpoint, granted))
        })
    }

    fn listen<'a>(&'a self, bind: SocketAddr) -> Promise<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = tcp(bind)?;
            let local = listener.local_addr()?;
            Ok(Box::new(Tcp { listener, local }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, to: SocketAddr) -> Promise<'a, io::Result<Connection>> {
        Box::pin(async move {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            Ok(Connection { io: Box::new(stream), remote: to })
        })
    }

    fn resolve<'a>(&'a self, name: &'a str) -> Promise<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host(name).await?.collect()) })
    }

    fn wall(&self) -> Millis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn entropy(&self, buffer: &mut [u8]) {
        if self.dice.fill(buffer).is_err() {
            self.abort("the system gives no random bytes");
        }
    }

    fn blocking(&self, work: Work) -> Promise<'static, ()> {
        let running = tokio::task::spawn_blocking(work);
        Box::pin(async move {
            if let Err(error) = running.await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        })
    }

    fn spawn(&self, task: Promise<'static, ()>) -> tokio::task::JoinHandle<()> {
        tokio::spawn(task)
    }

    fn abort(&self, reason: &str) -> ! {
        tracing::error!(reason, "the node aborts");
        // The log may be buffered or off: this line must get out.
        let mut err = io::stderr().lock();
        let _ = writeln!(err, "weft: abort: {reason}");
        let _ = err.flush();
        std::process::abort()
    }
}

struct Tcp {
    listener: TcpListener,
    local: SocketAddr,
}

impl Listener for Tcp {
    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn accept(&mut self) -> Promise<'_, io::Result<Connection>> {
        Box::pin(async move {
            let (stream, remote) = self.listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Connection { io: Box::new(stream), remote })
        })
    }
}

/// Binds a UDP socket and asks for buffers; says what was granted.
fn udp(bind: SocketAddr, buffers: SocketBuffers) -> io::Result<(UdpSocket, SocketBuffers)> {
    let socket = Socket::new(Domain::for_address(bind), Type::DGRAM, Some(Protocol::UDP))?;
    if bind.is_ipv6() {
        // `[::]` serves IPv4 too where the system allows it.
        let _ = socket.set_only_v6(false);
    }
    // A refusal only means smaller buffers, which is reported below.
    let _ = socket.set_recv_buffer_size(buffers.receive_bytes);
    let _ = socket.set_send_buffer_size(buffers.send_bytes);
    socket.set_nonblocking(true)?;
    socket.bind(&bind.into())?;
    let granted = SocketBuffers {
        receive_bytes: usable(socket.recv_buffer_size()?),
        send_bytes: usable(socket.send_buffer_size()?),
    };
    Ok((socket.into(), granted))
}

/// Linux answers with twice what it grants: the other half is its own bookkeeping (socket(7)).
fn usable(reported: usize) -> usize {
    if cfg!(target_os = "linux") { reported / 2 } else { reported }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn many_clients_may_wait_to_be_accepted() {
        let listener = tcp(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let at = listener.local_addr().expect("it is bound");
        let connecting = async {
            let mut waiting = Vec::new();
            for _ in 0..400 {
                waiting.push(TcpStream::connect(at).await.expect("it is taken in"));
            }
            waiting
        };
        let waiting = tokio::time::timeout(Duration::from_secs(20), connecting).await.expect("none is left outside");
        assert_eq!(waiting.len(), 400);
    }
}
