//! quinn and TCP over turmoil's sockets.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream, UdpSocket};
use weft_node::host::{Connection, Listener, Promise};

use crate::host::Control;
use crate::trace;

type Readable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// A QUIC socket on turmoil's UDP. It loses and doubles datagrams as its host's control says.
pub(crate) struct SimUdp {
    control: Arc<Control>,
    at: SocketAddr,
    open: Arc<Open>,
}

/// A bound socket. Its control keeps it too: a kernel closes the sockets of a dead process, whatever of that
/// process's memory still points to them here.
#[derive(Default)]
pub(crate) struct Open {
    state: Mutex<OpenState>,
}

#[derive(Default)]
struct OpenState {
    socket: Option<Arc<UdpSocket>>,
    readable: Option<Readable>,
}

impl Open {
    fn state(&self) -> MutexGuard<'_, OpenState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the socket. Call it on the simulated host to which the socket belongs.
    pub(crate) fn close(&self) {
        *self.state() = OpenState::default();
    }
}

impl SimUdp {
    pub(crate) async fn bind(control: Arc<Control>, at: SocketAddr) -> io::Result<Arc<Self>> {
        let socket = UdpSocket::bind(at).await?;
        let at = socket.local_addr()?;
        let open = Arc::new(Open::default());
        open.state().socket = Some(Arc::new(socket));
        control.opened(open.clone());
        Ok(Arc::new(Self { control, at, open }))
    }
}

impl std::fmt::Debug for SimUdp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "udp {}", self.at)
    }
}

/// turmoil's UDP has no back-pressure on sends.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for SimUdp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        // max_transmit_segments is 1, so a transmit is one datagram.
        let copies = if self.control.is_gone() { 0 } else { self.control.copies() };
        let Some(socket) = self.open.state().socket.clone() else { return Ok(()) };
        for _ in 0..copies {
            trace::sent("udp", &self.control.name, Some(transmit.destination), transmit.contents);
            match socket.try_send_to(transmit.contents, transmit.destination) {
                Ok(_) => {}
                // No route or nobody there is packet loss to QUIC, never a dead socket.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        buffers: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.open.state();
        let Some(socket) = state.socket.clone() else { return Poll::Pending };
        loop {
            // A pending `readable` holds turmoil's receive lock: it is polled to its end and dropped before
            // `try_recv_from`, which would otherwise report WouldBlock for ever.
            if let Some(readable) = state.readable.as_mut() {
                ready!(readable.as_mut().poll(cx))?;
                state.readable = None;
            }
            let mut count = 0;
            while count < buffers.len().min(meta.len()) {
                match socket.try_recv_from(&mut buffers[count]) {
                    Ok((len, addr)) => {
                        meta[count] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                        count += 1;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
            let socket = socket.clone();
            state.readable = Some(Box::pin(async move { socket.readable().await }));
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.at)
    }

    fn may_fragment(&self) -> bool {
        false // true turns MTU discovery off
    }
}

/// TCP of a simulated host.
pub(crate) struct SimListener {
    control: Arc<Control>,
    listener: TcpListener,
    at: SocketAddr,
}

impl SimListener {
    pub(crate) async fn bind(control: Arc<Control>, at: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(at).await?;
        let at = listener.local_addr()?;
        Ok(SimListener { control, listener, at })
    }
}

impl Listener for SimListener {
    fn local_addr(&self) -> SocketAddr {
        self.at
    }

    fn accept(&mut self) -> Promise<'_, io::Result<Connection>> {
        Box::pin(async {
            let (stream, remote) = self.listener.accept().await?;
            Ok(Connection { io: Box::new(SimTcp { control: Some(self.control.clone()), stream }), remote })
        })
    }
}

/// Opens a connection from the current host. `control` is that of a node; a client has none.
pub(crate) async fn connect(control: Option<Arc<Control>>, to: SocketAddr) -> io::Result<SimTcp> {
    Ok(SimTcp { control, stream: TcpStream::connect(to).await? })
}

/// A TCP stream whose writes are part of the trace.
pub struct SimTcp {
    control: Option<Arc<Control>>,
    stream: TcpStream,
}

impl SimTcp {
    pub(crate) fn remote(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }
}

impl AsyncRead for SimTcp {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for SimTcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.control.as_ref().is_some_and(|control| control.is_gone()) {
            return Poll::Pending;
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, data))?;
        let name = self.control.as_ref().map_or("client", |control| &control.name);
        trace::sent("tcp", name, None, &data[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
