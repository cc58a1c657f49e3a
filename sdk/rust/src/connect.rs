//! Opens connections: the connector is injected, so that a simulation can use its own network.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint};

use crate::error::{Error, chain};

/// Flow-control window of one gRPC stream, bytes. With the tonic default bulk costs twice the CPU.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Flow-control window of a connection, bytes.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// The largest HTTP/2 frame, bytes: a whole batch in one.
const FRAME_BYTES: u32 = 128 << 10;

/// A byte stream to a node.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// Opens a byte stream to `host:port`.
#[derive(Clone)]
pub struct Connector(Arc<dyn Fn(String) -> Connecting + Send + Sync>);

impl Connector {
    /// A connector from a function of `host:port`.
    pub fn new<F, R, S>(connect: F) -> Connector
    where
        F: Fn(String) -> R + Send + Sync + 'static,
        R: Future<Output = io::Result<S>> + Send + 'static,
        S: Io,
    {
        Connector(Arc::new(move |address| {
            let connecting = connect(address);
            Box::pin(async move { Ok(Box::new(connecting.await?) as Box<dyn Io>) })
        }))
    }

    /// TCP of the operating system, without delay for small writes.
    pub fn tcp() -> Connector {
        Connector::new(|address| async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }
}

/// Times of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// To connect and shake hands.
    pub(crate) connect: Duration,
    /// Between HTTP/2 pings, idle or not.
    pub(crate) keep_alive: Duration,
}

/// Opens an HTTP/2 connection to `host:port`.
pub(crate) async fn open(connector: &Connector, address: &str, patience: Patience) -> Result<Channel, Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Error::invalid(format!("`{address}` is not host:port: {}", chain(&error))))?
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .http2_keep_alive_interval(patience.keep_alive)
        .keep_alive_timeout(patience.keep_alive)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    let connector = connector.clone();
    let target = address.to_owned();
    let service = tower::service_fn(move |_| {
        let connecting = (connector.0)(target.clone());
        async move { connecting.await.map(TokioIo::new) }
    });
    let opening = endpoint.connect_with_connector(service);
    match tokio::time::timeout(patience.connect, opening).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(Error::Unreachable(format!("{address}: {}", chain(&error)).into())),
        Err(_) => Err(Error::Unreachable(format!("{address}: no connection in {:?}", patience.connect).into())),
    }
}
