//! What a service says of itself: its descriptors, by gRPC reflection.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use prost_reflect::{DescriptorPool, ServiceDescriptor};
use prost_types::FileDescriptorProto;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::super::failure::Failure;

/// Files that one service may need.
const FILES_MAX: usize = 1_000;

/// The descriptor of `service`, with all it refers to.
pub(in crate::cli) async fn describe(
    channel: Channel,
    service: &str,
    metadata: &MetadataMap,
) -> Result<ServiceDescriptor, Failure> {
    let mut asking = Asking::open(channel.clone(), metadata).await?;
    let found = asking.ask(MessageRequest::FileContainingSymbol(service.to_owned())).await?;
    let Found::Files(mut waiting) = found else {
        return Err(not_found(channel, metadata, service).await);
    };
    let mut files: BTreeMap<String, FileDescriptorProto> = BTreeMap::new();
    let mut asked = BTreeSet::new();
    while let Some(file) = waiting.pop() {
        for name in &file.dependency {
            if files.contains_key(name) || !asked.insert(name.clone()) {
                continue;
            }
            match known(name) {
                Some(file) => waiting.push(file),
                None => match asking.ask(MessageRequest::FileByFilename(name.clone())).await? {
                    Found::Files(files) => waiting.extend(files),
                    Found::Nothing(why) => return Err(Failure::failed(format!("its file {name} is missing: {why}"))),
                },
            }
        }
        files.insert(file.name().to_owned(), file);
        if files.len() > FILES_MAX {
            return Err(Failure::failed(format!("{service} needs more than {FILES_MAX} files")));
        }
    }
    let mut pool = DescriptorPool::new();
    let added = pool.add_file_descriptor_protos(files.into_values());
    added.map_err(|error| Failure::failed(format!("its descriptors do not fit together: {error}")))?;
    pool.get_service_by_name(service).ok_or_else(|| {
        let slash = with_slash(service, pool.services().map(|service| service.full_name().to_owned()));
        let hint = slash.map_or_else(String::new, |path| format!(": write {path}"));
        Failure::invalid(format!("{service} is the name of something, but of no service{hint}"))
    })
}

/// `shop.Cart.Get` as it should be written, if a service is called `shop.Cart`.
fn with_slash(name: &str, mut services: impl Iterator<Item = String>) -> Option<String> {
    let (service, method) = name.rsplit_once('.')?;
    services.any(|known| known == service).then(|| format!("{service}/{method}"))
}

/// The files that every protobuf implementation has.
fn known(name: &str) -> Option<FileDescriptorProto> {
    let file = DescriptorPool::global().get_file_by_name(name)?;
    Some(file.file_descriptor_proto().clone())
}

enum Found {
    Files(Vec<FileDescriptorProto>),
    Nothing(String),
}

/// One reflection stream: a question, an answer, the next question.
struct Asking {
    questions: mpsc::Sender<ServerReflectionRequest>,
    answers: Streaming<ServerReflectionResponse>,
}

impl Asking {
    async fn open(channel: Channel, metadata: &MetadataMap) -> Result<Asking, Failure> {
        let (questions, asked) = mpsc::channel(1);
        let mut request = tonic::Request::new(ReceiverStream::new(asked));
        *request.metadata_mut() = metadata.clone();
        let answers = ServerReflectionClient::new(channel).server_reflection_info(request).await;
        let answers = answers.map_err(|status| Failure::status(&status).context("reflection"))?;
        Ok(Asking { questions, answers: answers.into_inner() })
    }

    async fn response(&mut self, question: MessageRequest) -> Result<Option<MessageResponse>, Status> {
        let question = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let ended = || Status::unavailable("reflection ended before it answered");
        self.questions.send(question).await.map_err(|_| ended())?;
        Ok(self.answers.message().await?.ok_or_else(ended)?.message_response)
    }

    async fn ask(&mut self, question: MessageRequest) -> Result<Found, Failure> {
        let response = match self.response(question).await {
            Ok(response) => response,
            // Some servers end the stream where others answer with an error.
            Err(status) if status.code() == Code::NotFound => return Ok(Found::Nothing(status.message().to_owned())),
            Err(status) => return Err(Failure::status(&status).context("reflection")),
        };
        match response {
            Some(MessageResponse::FileDescriptorResponse(response)) => {
                let decode = |bytes: &Vec<u8>| FileDescriptorProto::decode(bytes.as_slice());
                let files: Result<Vec<_>, _> = response.file_descriptor_proto.iter().map(decode).collect();
                Ok(Found::Files(
                    files.map_err(|error| Failure::failed(format!("a descriptor is not readable: {error}")))?,
                ))
            }
            Some(MessageResponse::ErrorResponse(error)) if error.error_code == Code::NotFound as i32 => {
                Ok(Found::Nothing(error.error_message))
            }
            Some(MessageResponse::ErrorResponse(error)) => {
                Err(Failure::told(error.error_code, &error.error_message).context("reflection"))
            }
            _ => Err(Failure::failed("reflection gave another answer than was asked for")),
        }
    }
}

/// Says what there is instead of `service`.
async fn not_found(channel: Channel, metadata: &MetadataMap, service: &str) -> Failure {
    let mut names = Vec::new();
    if let Ok(mut asking) = Asking::open(channel, metadata).await
        && let Ok(Some(MessageResponse::ListServicesResponse(list))) =
            asking.response(MessageRequest::ListServices(String::new())).await
    {
        names = list.service.into_iter().map(|service| service.name).collect();
    }
    if names.iter().any(|name| name == service) {
        return Failure::failed(format!(
            "{service} is registered, but its instances tell of no gRPC service of that name by reflection: if it is an \
             alias, register it with --grpc-service NAME; else call it with a client that has its .proto files"
        ));
    }
    let hint = match with_slash(service, names.iter().cloned()) {
        Some(path) => format!("a method follows a slash: write {path}"),
        None if names.is_empty() => "none is registered".to_owned(),
        None => format!("there are {}", names.join(", ")),
    };
    Failure::unknown_service(format!("there is no service {service:?}; {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_before_a_method_is_a_slash() {
        let services = || ["shop.Cart".to_owned(), "shop.Orders".to_owned()].into_iter();
        assert_eq!(with_slash("shop.Cart.Get", services()).as_deref(), Some("shop.Cart/Get"));
        assert_eq!(with_slash("shop.Card.Get", services()), None);
        assert_eq!(with_slash("shop", services()), None);
    }
}
