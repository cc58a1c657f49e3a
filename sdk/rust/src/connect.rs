//! Opens connections: the connector is injected, so that a simulation can use its own network.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint};

use crate::error::{Error, chain, inmost};

/// Flow-control window of one gRPC stream, bytes. With the tonic default bulk costs twice the CPU.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Flow-control window of a connection, bytes.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// How the sentence about a refused connection begins.
const REFUSED: &str = "nothing listens on";
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

/// `host:port` as it is meant: `http://` before it and a slash after it are taken off.
///
/// # Errors
/// `Invalid`: what is wrong, and what would be right.
pub fn server_address(text: &str) -> Result<String, Error> {
    let wrong = |why: &str| Error::invalid(format!("`{text}` {why}: write host:port, for example 127.0.0.1:7400"));
    if text.starts_with("https://") {
        return Err(wrong("asks for TLS, which the client port does not speak"));
    }
    let address = text.trim().strip_prefix("http://").unwrap_or(text.trim()).trim_end_matches('/');
    let Some((host, port)) = address.rsplit_once(':') else { return Err(wrong("has no port")) };
    if port.parse::<u16>().map_or(true, |port| port == 0) {
        return Err(wrong("has no port from 1 to 65535"));
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let bracketed = bare.len() < host.len();
    if bare.is_empty() || bare.contains(['/', '@', '[', ']', ' ', '?', '#']) || bare.contains(':') && !bracketed {
        return Err(wrong("is not host:port"));
    }
    Ok(address.to_owned())
}

/// Whether it is [`explain`]'s word for a refused connection.
pub(crate) fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Unreachable(why) if why.starts_with(REFUSED))
}

/// Why no connection came about, for a person who may have named the wrong address.
pub fn explain(address: &str, error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused) => {
                return format!("{REFUSED} {address}; a node's client port is 7400 unless it says otherwise");
            }
            Some(io::ErrorKind::TimedOut) => return format!("{address} does not answer"),
            Some(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) => {
                return format!(
                    "{address} closes the connection: it is no node's client port, or the node is stopping"
                );
            }
            _ => cause = error.source(),
        }
    }
    let text = chain(error);
    let inmost = inmost(error);
    if text.contains("lookup") || text.contains("resolve") {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        return format!("the name {host} does not resolve");
    }
    if text.contains("http2") || text.contains("h2 protocol") || text.contains("frame") {
        return format!("{address} answers, but not as a node's client port does (gRPC)");
    }
    format!("{address}: {inmost}")
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
        Ok(Err(error)) => Err(Error::Unreachable(explain(address, &error).into())),
        Err(_) => Err(Error::Unreachable(format!("{address}: no connection in {:?}", patience.connect).into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_they_are_meant() {
        for (text, address) in [
            ("127.0.0.1:7400", "127.0.0.1:7400"),
            ("http://node-1.example:7400/", "node-1.example:7400"),
            (" [::1]:7400", "[::1]:7400"),
        ] {
            assert_eq!(server_address(text).expect(text), address);
        }
        for (text, why) in [
            ("nonsense", "`nonsense` has no port"),
            ("https://a:1", "TLS"),
            ("a:b", "no port from 1 to 65535"),
            ("a:0", "no port from 1"),
            (":7400", "not host:port"),
            ("::1:7400", "not host:port"),
            ("http://a/b:7400", "not host:port"),
            ("", "has no port"),
        ] {
            let error = server_address(text).expect_err(text).to_string();
            assert!(error.contains(why) && error.contains("127.0.0.1:7400"), "{error}");
        }
    }

    #[test]
    fn wrong_addresses_are_explained() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(explain("a:1", &refused).starts_with("nothing listens on a:1"));
        assert_eq!(
            explain("a:1", &io::Error::other("http2 error")),
            "a:1 answers, but not as a node's client port does (gRPC)"
        );
        assert_eq!(
            explain("a:1", &io::Error::other("failed to lookup address information")),
            "the name a does not resolve"
        );
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(explain("a:1", &closed).starts_with("a:1 closes the connection"));
        assert_eq!(explain("a:1", &io::Error::other("odd")), "a:1: odd");
    }
}
