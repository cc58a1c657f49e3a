//! gRPC reflection, v1 and v1alpha: of this node's own API, and of users' services as their instances tell it.

mod descriptors;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt};
use prost::Message;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::server_reflection_server::{self, ServerReflectionServer};
use tonic_reflection::pb::v1::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest,
    ServerReflectionResponse, ServiceResponse,
};
use tonic_reflection::pb::v1alpha;
use tonic_reflection::pb::v1alpha::server_reflection_server as alpha_server;
use tonic_reflection::pb::v1alpha::server_reflection_server::ServerReflectionServer as AlphaServer;
use weft_cluster::caller::Caller;
use weft_cluster::view::ClusterView;
use weft_proto::v1::ErrorCode;

use self::descriptors::Descriptors;
use super::health;
use crate::host::Promise;
use crate::wire;

/// A question about a user's service, for one of its instances.
pub struct Question {
    /// Who asks.
    pub caller: Caller,
    /// How often the question has gone through Weft before.
    pub hops: u32,
    /// Of the service.
    pub namespace: String,
    /// The service's full gRPC name.
    pub grpc_service: String,
    /// What is asked, by reflection's own protocol.
    pub request: ServerReflectionRequest,
}

/// Asks an instance of a service, on the way of all calls.
pub type Ask =
    Arc<dyn Fn(Question) -> Promise<'static, Result<ServerReflectionResponse, weft_proto::v1::Error>> + Send + Sync>;

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Reflection {
    own: Arc<Descriptors>,
    view: watch::Receiver<Arc<ClusterView>>,
    ask: Ask,
    stop: CancellationToken,
}

impl Reflection {
    /// `view` names users' services, `ask` reaches their instances. Streams end at `stop`.
    ///
    /// # Errors
    /// The API's own descriptors cannot be read.
    pub fn new(
        view: watch::Receiver<Arc<ClusterView>>,
        ask: Ask,
        stop: CancellationToken,
    ) -> Result<Reflection, prost_reflect::DescriptorError> {
        Ok(Reflection { own: Arc::new(Descriptors::own()?), view, ask, stop })
    }

    /// The gRPC services: v1 and v1alpha.
    pub fn services(&self) -> (ServerReflectionServer<Reflection>, AlphaServer<Reflection>) {
        (ServerReflectionServer::new(self.clone()), AlphaServer::new(self.clone()))
    }

    /// The full names of all services that can be called through this node.
    fn names(&self, namespace: &str) -> Vec<ServiceResponse> {
        let view = self.view.borrow();
        let users = view.registry.services(namespace).flat_map(|service| &service.record().grpc_services);
        let names: BTreeSet<&str> = self.own.services().chain(users.map(String::as_str)).collect();
        names.into_iter().map(|name| ServiceResponse { name: name.to_owned() }).collect()
    }

    /// The registered gRPC service that a symbol is part of (itself, or a method of it).
    fn service_of(&self, namespace: &str, symbol: &str) -> Option<String> {
        let view = self.view.borrow();
        let parent = symbol.rsplit_once('.').map_or("", |(parent, _)| parent);
        let known = |name: &&str| view.registry.service_of_grpc(namespace, name).is_some();
        [symbol, parent].into_iter().find(known).map(str::to_owned)
    }
}

/// One client's questions.
struct Conversation {
    reflection: Reflection,
    caller: Caller,
    hops: u32,
    namespace: String,
    /// The service whose instance answered last: a file, or a type, is asked of it.
    last: Option<String>,
}

impl Conversation {
    fn new<T>(reflection: &Reflection, request: &Request<T>) -> Result<Conversation, Status> {
        let wrong = |message| wire::status(wire::error(ErrorCode::InvalidArgument, message));
        Ok(Conversation {
            reflection: reflection.clone(),
            caller: wire::caller(request),
            hops: wire::hops::read(request.metadata().as_ref()).map_err(wrong)?,
            namespace: health::namespace(request),
            last: None,
        })
    }

    async fn answer(&mut self, request: ServerReflectionRequest) -> ServerReflectionResponse {
        let answer = self.find(&request).await.unwrap_or_else(|status| {
            let (error_code, error_message) = (status.code() as i32, wire::told(&status));
            MessageResponse::ErrorResponse(ErrorResponse { error_code, error_message })
        });
        ServerReflectionResponse {
            valid_host: request.host.clone(),
            original_request: Some(request),
            message_response: Some(answer),
        }
    }

    async fn find(&mut self, request: &ServerReflectionRequest) -> Result<MessageResponse, Status> {
        let own = self.reflection.own.clone();
        let question = request.message_request.as_ref();
        match question.ok_or_else(|| Status::invalid_argument("the question is empty"))? {
            MessageRequest::ListServices(_) => {
                let service = self.reflection.names(&self.namespace);
                Ok(MessageResponse::ListServicesResponse(ListServiceResponse { service }))
            }
            MessageRequest::FileByFilename(name) => match own.file(name) {
                // An instance may have a file of the same name; who asked it last means its own.
                Some(file) if self.last.is_none() => Ok(found(file)),
                own => match self.ask_last(request, "file", name).await {
                    Ok(answer) => Ok(answer),
                    Err(status) => own.map(found).ok_or(status),
                },
            },
            MessageRequest::FileContainingSymbol(symbol) => {
                if let Some(file) = own.file_of(symbol) {
                    self.last = None;
                    return Ok(found(file));
                }
                match self.reflection.service_of(&self.namespace, symbol) {
                    Some(service) => self.ask(service, request).await,
                    None => self.ask_last(request, "symbol", symbol).await,
                }
            }
            MessageRequest::FileContainingExtension(extension) => {
                self.ask_last(request, "extension of", &extension.containing_type).await
            }
            MessageRequest::AllExtensionNumbersOfType(name) => {
                if own.file_of(name).is_some() {
                    let base_type_name = name.clone();
                    let numbers = ExtensionNumberResponse { base_type_name, extension_number: Vec::new() };
                    return Ok(MessageResponse::AllExtensionNumbersResponse(numbers));
                }
                self.ask_last(request, "type", name).await
            }
        }
    }

    async fn ask_last(
        &mut self,
        request: &ServerReflectionRequest,
        what: &str,
        name: &str,
    ) -> Result<MessageResponse, Status> {
        match self.last.clone() {
            Some(service) => self.ask(service, request).await,
            None => Err(Status::not_found(format!("this node knows no {what} {name:?}; ask for a service first"))),
        }
    }

    async fn ask(
        &mut self,
        grpc_service: String,
        request: &ServerReflectionRequest,
    ) -> Result<MessageResponse, Status> {
        let question = Question {
            caller: self.caller.clone(),
            hops: self.hops,
            namespace: self.namespace.clone(),
            grpc_service: grpc_service.clone(),
            request: request.clone(),
        };
        let answer = (self.reflection.ask)(question).await.map_err(wire::status)?;
        self.last = Some(grpc_service);
        answer.message_response.ok_or_else(|| Status::new(Code::Internal, "the instance's answer is empty"))
    }
}

fn found(file: &[u8]) -> MessageResponse {
    MessageResponse::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto: vec![file.to_vec()] })
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;
type Answer<T> = Result<Response<Answers<T>>, Status>;

/// Answers one question after the other.
fn converse<Q: Send + 'static, A: Send + 'static>(
    reflection: &Reflection,
    request: Request<Streaming<Q>>,
    question: fn(Q) -> Result<ServerReflectionRequest, Status>,
    answer: fn(ServerReflectionResponse) -> Result<A, Status>,
) -> Answer<A> {
    let conversation = Conversation::new(reflection, &request)?;
    let next = move |(mut conversation, mut questions): (Conversation, Streaming<Q>)| async move {
        let asked = match questions.message().await.transpose()?.and_then(question) {
            Ok(asked) => asked,
            Err(status) => return Some((Err(status), (conversation, questions))),
        };
        let answered = conversation.answer(asked).await;
        Some((answer(answered), (conversation, questions)))
    };
    let answers = stream::unfold((conversation, request.into_inner()), next);
    Ok(Response::new(answers.take_until(reflection.stop.clone().cancelled_owned()).boxed()))
}

#[tonic::async_trait]
impl server_reflection_server::ServerReflection for Reflection {
    type ServerReflectionInfoStream = Answers<ServerReflectionResponse>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        converse(self, request, Ok, Ok)
    }
}

#[tonic::async_trait]
impl alpha_server::ServerReflection for Reflection {
    type ServerReflectionInfoStream = Answers<v1alpha::ServerReflectionResponse>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<v1alpha::ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        converse(self, request, |question| recast(&question), |answer| recast(&answer))
    }
}

/// The two versions are the same on the wire.
fn recast<T: Message + Default>(message: &impl Message) -> Result<T, Status> {
    T::decode(&*message.encode_to_vec()).map_err(|error| Status::internal(error.to_string()))
}

#[cfg(test)]
mod tests;
