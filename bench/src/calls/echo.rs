//! An echo of bytes over gRPC, both sides by tonic, as an application would have it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use bytes::{Buf, BufMut, Bytes};
use futures::{Stream, StreamExt};
use http::uri::PathAndQuery;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{NamedService, StreamingService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

/// The service's name.
pub(crate) const SERVICE: &str = "bench.Echo";
const UNARY: &str = "/bench.Echo/Unary";
const CHAT: &str = "/bench.Echo/Chat";

/// Serves on a free port of loopback, prints it, and goes on until it is killed.
pub(crate) async fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("bind")?;
    println!("{}", listener.local_addr()?.port());
    // The server's own setting does not reach connections that it did not accept itself.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Ok(Server::builder().add_service(Echo).serve_with_incoming(incoming).await?)
}

/// A connection to an echo, or to a proxy before it.
pub(crate) async fn connect(address: &str) -> Result<Echoing> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    let channel = endpoint.connect().await.with_context(|| format!("connect to {address}"))?;
    Ok(Echoing(tonic::client::Grpc::new(channel)))
}

/// The client's side of one connection.
#[derive(Clone)]
pub(crate) struct Echoing(tonic::client::Grpc<Channel>);

impl Echoing {
    /// One call, there and back.
    pub(crate) async fn unary(&mut self, data: Bytes) -> Result<()> {
        self.0.ready().await?;
        let answer = self.0.unary(Request::new(data.clone()), PathAndQuery::from_static(UNARY), Raw).await?;
        anyhow::ensure!(answer.get_ref().len() == data.len(), "the echo is of another length");
        Ok(())
    }

    /// A stream: what is sent comes back.
    pub(crate) async fn chat(&mut self) -> Result<(mpsc::Sender<Bytes>, Streaming<Bytes>)> {
        let (send, messages) = mpsc::channel(4);
        self.0.ready().await?;
        let messages = Request::new(ReceiverStream::new(messages));
        let answers = self.0.streaming(messages, PathAndQuery::from_static(CHAT), Raw).await?;
        Ok((send, answers.into_inner()))
    }
}

#[derive(Clone, Copy)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = SERVICE;
}

impl tower::Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Raw);
            Ok(match request.uri().path() {
                CHAT => grpc.streaming(Echo, request).await,
                _ => grpc.unary(Echo, request).await,
            })
        })
    }
}

impl UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}

impl StreamingService<Bytes> for Echo {
    type Response = Bytes;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner().boxed())))
    }
}

/// Bytes as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, data: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(data);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
