//! The service that `weft dev` starts, so that there is something to call: an ordinary gRPC server.

use std::net::SocketAddr;
use std::pin::Pin;

use futures::Stream;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use weft_proto::demo::v1::greeter_server::{Greeter, GreeterServer};
use weft_proto::demo::v1::{CountDownRequest, CountDownResponse, DESCRIPTORS, GreetRequest, GreetResponse};

use super::args::loopback;
use super::failure::Failure;

/// The service's name.
pub(crate) const SERVICE: &str = "weft.demo.v1.Greeter";
/// The longest count-down.
const COUNT_MAX: u32 = 1_000;

/// Serves on a free port of loopback until the process ends; returns where.
pub(crate) async fn serve(instance: &str) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind(loopback(0)).await?;
    let address = listener.local_addr()?;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .build_v1()
        .map_err(|error| Failure::failed(format!("reflection of the demo: {error}")))?;
    let (health, checks) = tonic_health::server::health_reporter();
    health.set_service_status(SERVICE, tonic_health::ServingStatus::Serving).await;
    let greeter = GreeterServer::new(Demo { instance: instance.to_owned() });
    let server = Server::builder().add_service(greeter).add_service(checks).add_service(reflection);
    let serving = server.serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "the demo service failed");
        }
    });
    Ok(address)
}

struct Demo {
    instance: String,
}

#[tonic::async_trait]
impl Greeter for Demo {
    type CountDownStream = Pin<Box<dyn Stream<Item = Result<CountDownResponse, Status>> + Send>>;

    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<GreetResponse>, Status> {
        let name = request.into_inner().name;
        let name = if name.is_empty() { "world" } else { &name };
        Ok(Response::new(GreetResponse { greeting: format!("Hello, {name}!"), instance: self.instance.clone() }))
    }

    async fn count_down(&self, request: Request<CountDownRequest>) -> Result<Response<Self::CountDownStream>, Status> {
        let from = request.into_inner().from;
        if from > COUNT_MAX {
            return Err(Status::invalid_argument(format!("from is {from}: use at most {COUNT_MAX}")));
        }
        let numbers = (0..=from).rev().map(|number| Ok(CountDownResponse { number }));
        Ok(Response::new(Box::pin(futures::stream::iter(numbers))))
    }
}
