//! The door for clients: gRPC over HTTP/2 on the connections that the host's listener accepts.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytesize::ByteSize;
use futures::Stream;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::host::{AcceptMetrics, Acceptor, Connection, Io, Listener, Place, Tasks};

/// Limits of the door for clients: `[api]` in weft.toml.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiConfig {
    /// Connections open at once; one more waits in the system's backlog.
    pub connections_max: u32,
    /// Streams (calls) open at once on one connection.
    pub streams_max: u32,
    /// Bytes that a peer may send on one stream before it must wait for us.
    pub stream_window: ByteSize,
    /// Bytes that a peer may send on one connection before it must wait for us.
    pub connection_window: ByteSize,
    /// The largest HTTP/2 frame we take.
    pub frame_bytes_max: ByteSize,
    /// All headers of one request together.
    pub header_bytes_max: ByteSize,
    /// The largest message we take: a batch with its request around it.
    pub message_bytes_max: ByteSize,
    /// A connection that has been quiet for this long is pinged.
    #[serde(with = "humantime_serde")]
    pub keepalive_interval: Duration,
    /// A ping not answered for this long closes the connection.
    #[serde(with = "humantime_serde")]
    pub keepalive_timeout: Duration,
}

impl Default for ApiConfig {
    fn default() -> Self {
        ApiConfig {
            connections_max: 10_000,
            streams_max: 1_000,
            stream_window: ByteSize::mib(4),
            connection_window: ByteSize::mib(8),
            frame_bytes_max: ByteSize::kib(128),
            header_bytes_max: ByteSize::kib(32),
            message_bytes_max: ByteSize::mib(10),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// Serves `routes` on `listener` until `stop`; then lets calls in flight end.
///
/// # Errors
/// The transport's own; a failing connection ends alone.
pub async fn serve(
    listener: Box<dyn Listener>,
    routes: Routes,
    config: ApiConfig,
    metrics: AcceptMetrics,
    tasks: Tasks,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (sender, receiver) = mpsc::channel(1);
    let acceptor = Acceptor::new("api", listener, config.connections_max, metrics, stop.clone());
    tasks.spawn("api accept", accept(acceptor, sender));
    Server::builder()
        .max_concurrent_streams(config.streams_max)
        .initial_stream_window_size(window(config.stream_window))
        .initial_connection_window_size(window(config.connection_window))
        .max_frame_size(window(config.frame_bytes_max))
        .http2_max_header_list_size(window(config.header_bytes_max))
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .http2_keepalive_timeout(Some(config.keepalive_timeout))
        .add_routes(routes)
        .serve_with_incoming_shutdown(Incoming(receiver), stop.cancelled_owned())
        .await
}

fn window(size: ByteSize) -> Option<u32> {
    Some(u32::try_from(size.as_u64()).unwrap_or(u32::MAX >> 1).min(u32::MAX >> 1))
}

/// Hands connections on one at a time, so that none is taken that the server has no time for.
async fn accept(mut acceptor: Acceptor, connections: mpsc::Sender<ClientIo>) {
    while let Some((connection, place)) = acceptor.next().await {
        if connections.send(ClientIo::new(connection, place)).await.is_err() {
            return;
        }
    }
}

/// A client's connection, as tonic wants it.
struct ClientIo {
    io: Box<dyn Io>,
    remote: SocketAddr,
    _place: Place,
}

impl ClientIo {
    fn new(connection: Connection, place: Place) -> Self {
        ClientIo { io: connection.io, remote: connection.remote, _place: place }
    }
}

struct Incoming(mpsc::Receiver<ClientIo>);

impl Stream for Incoming {
    type Item = io::Result<ClientIo>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

impl Connected for ClientIo {
    type ConnectInfo = SocketAddr;

    fn connect_info(&self) -> SocketAddr {
        self.remote
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
