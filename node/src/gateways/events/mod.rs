//! The events door: `weft.v1.Events` over gRPC. Translates between clients' frames and the forward driver.

mod config;
mod credit;
mod metrics;
mod packing;
mod publish;
mod room;
mod stream;
mod subscribe;
mod subscription;

use std::sync::Arc;
use std::time::Duration;

use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use weft_cluster::caller::Caller;
use weft_cluster::registry::limits::FEATURE_LEVEL;
use weft_proto::internal::v1::{self as internal, RegistryCommand, TopicRecord, registry_command, registry_outcome};
use weft_proto::v1::events_server;
use weft_proto::v1::{
    Error, ErrorCode, OpenProducerRequest, OpenProducerResponse, PublishRequest, PublishResponse, PublishStreamRequest,
    PublishStreamResponse, SubscribeRequest, SubscribeResponse,
};

pub use config::EventsConfig;
pub use metrics::Metrics;

use metrics::Counted;
use room::Room;

use crate::drivers::forward::Forward;
use crate::drivers::registry::Registry;
use crate::host::{Host, Tasks};
use crate::wire::{self, checks};

/// Response messages that wait for a client on one stream.
const RESPONSES_WAITING_MAX: usize = 4;

/// How long a client may take to send a stream's first frame.
const FIRST_PATIENCE: Duration = Duration::from_secs(10);

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    inner: Arc<Inner>,
}

struct Inner {
    forward: Forward,
    registry: Registry,
    config: EventsConfig,
    metrics: Metrics,
    host: Arc<dyn Host>,
    tasks: Tasks,
    /// The node leaves: streams end in order.
    stop: CancellationToken,
    room: Room,
    /// Where the events without a key of the next unary publish go.
    turn: std::sync::atomic::AtomicU32,
}

impl Events {
    /// The service over these drivers; wrap it in an `EventsServer`. Once `stop` is cancelled its streams end with
    /// NOT_READY, when all that was taken is answered: their clients go on at another node.
    pub fn new(
        forward: Forward,
        registry: Registry,
        config: EventsConfig,
        host: Arc<dyn Host>,
        tasks: Tasks,
        stop: CancellationToken,
    ) -> Events {
        let room = Room::new(usize::try_from(config.publish_bytes_max.as_u64()).unwrap_or(usize::MAX));
        let (metrics, turn) = (Metrics::default(), Default::default());
        Events { inner: Arc::new(Inner { forward, registry, config, metrics, host, tasks, stop, room, turn }) }
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// What a stream ends with when the node leaves.
    fn leaving(&self) -> Status {
        wire::status(wire::error(ErrorCode::NotReady, "this node is stopping: go on at another one"))
    }

    /// A topic by name. One that this node does not know may be new: the registry is asked.
    async fn topic(&self, namespace: &str, name: &str) -> Result<TopicRecord, Error> {
        checks::topic(namespace, name)?;
        if let Some(topic) = self.inner.forward.view().registry.topic(namespace, name) {
            return Ok(topic.clone());
        }
        self.inner.registry.settled()?;
        let registry = self.inner.registry.read(self.inner.config.open_patience).await?;
        let unknown = || wire::error(ErrorCode::UnknownTopic, format!("there is no topic named {name:?}"));
        registry.topic(namespace, name).cloned().ok_or_else(unknown)
    }

    /// Runs a registry command of `caller` and returns its outcome.
    async fn propose(
        &self,
        caller: &Caller,
        command: registry_command::Command,
    ) -> Result<registry_outcome::Outcome, Error> {
        let command = RegistryCommand { level: FEATURE_LEVEL, command: Some(command) };
        let outcome = self.inner.registry.propose(caller, command, self.inner.config.open_patience).await?;
        match outcome.outcome {
            Some(registry_outcome::Outcome::Error(error)) => Err(error),
            Some(outcome) => Ok(outcome),
            None => Err(wire::error(ErrorCode::Internal, "the registry's outcome is empty")),
        }
    }

    async fn producer(&self, caller: &Caller, name: String) -> Result<OpenProducerResponse, Error> {
        if !name.is_empty() {
            checks::name("producer", &name)?;
        }
        self.inner.registry.settled()?;
        let command = registry_command::Command::OpenProducer(internal::OpenProducer { name });
        match self.propose(caller, command).await? {
            registry_outcome::Outcome::Producer(producer) => {
                Ok(OpenProducerResponse { producer_id: producer.id, producer_epoch: producer.epoch })
            }
            _ => Err(wire::error(ErrorCode::Internal, "the registry's outcome is not a producer")),
        }
    }
}

/// The first frame of a client's stream; `None` if there is none.
///
/// # Errors
/// The stream's, and `INVALID_ARGUMENT` when the frame does not come.
async fn first_frame<T>(requests: &mut Streaming<T>) -> Result<Option<T>, Status> {
    tokio::time::timeout(FIRST_PATIENCE, requests.message()).await.unwrap_or_else(|_| {
        let message = format!("no `open` came within {FIRST_PATIENCE:?}: it is the first frame of a stream");
        Err(wire::status(wire::error(ErrorCode::InvalidArgument, message)))
    })
}

/// An owner knows a topic that was deleted by its id alone; clients know its name.
fn named(error: Error, topic: &str) -> Error {
    match error.code() {
        ErrorCode::UnknownTopic => Error { message: format!("topic {topic} was deleted"), ..error },
        _ => error,
    }
}

#[tonic::async_trait]
impl events_server::Events for Events {
    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        self.inner.metrics.publishes.inc();
        publish::publish(self, request).await.map(Response::new).map_err(wire::status)
    }

    type PublishStreamStream = ReceiverStream<Result<PublishStreamResponse, Status>>;

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let (responses, responses_out) = tokio::sync::mpsc::channel(RESPONSES_WAITING_MAX);
        let (events, caller) = (self.clone(), wire::caller(&request));
        self.inner.tasks.spawn("publish stream", async move {
            let _counted = Counted::new(&events.inner.metrics.publish_streams);
            if let Err(status) = stream::serve(&events, caller, request.into_inner(), &responses).await {
                // A client that has gone does not want to know.
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(responses_out)))
    }

    async fn open_producer(
        &self,
        request: Request<OpenProducerRequest>,
    ) -> Result<Response<OpenProducerResponse>, Status> {
        self.producer(&wire::caller(&request), request.into_inner().name).await.map(Response::new).map_err(wire::status)
    }

    type SubscribeStream = ReceiverStream<Result<SubscribeResponse, Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (responses, responses_out) = tokio::sync::mpsc::channel(RESPONSES_WAITING_MAX);
        let (events, caller) = (self.clone(), wire::caller(&request));
        self.inner.tasks.spawn("subscription", async move {
            let _counted = Counted::new(&events.inner.metrics.subscriptions);
            if let Err(status) = subscribe::serve(&events, caller, request.into_inner(), &responses).await {
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(responses_out)))
    }
}
