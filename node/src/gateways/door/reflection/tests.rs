use std::collections::BTreeMap;
use std::sync::Mutex;

use weft_cluster::ids::NodeId;
use weft_cluster::registry::State;
use weft_proto::internal::v1::{RegistryState, ServiceRecord};

use super::*;

type Asked = Arc<Mutex<Vec<String>>>;

/// A conversation in a cluster with one user's service, whose instance answers every question with a file "theirs".
fn conversation() -> (Conversation, Asked) {
    let answer = ServerReflectionResponse { message_response: Some(found(b"theirs")), ..Default::default() };
    conversation_with(Ok(answer))
}

/// The same with another answer.
fn conversation_with(answer: Result<ServerReflectionResponse, weft_proto::v1::Error>) -> (Conversation, Asked) {
    let service = ServiceRecord {
        namespace: "default".into(),
        name: "shop".into(),
        grpc_services: vec!["shop.Cart".into()],
        ..Default::default()
    };
    let state = RegistryState { cluster_id: 1, shards_total: 1, services: vec![service], ..Default::default() };
    let view = ClusterView {
        me: NodeId(1),
        registry: Arc::new(State::from_proto(state).expect("a good state")),
        registry_leader: None,
        members: BTreeMap::new(),
        owners: BTreeMap::new(),
        cut_off: Default::default(),
    };
    let asked = Asked::default();
    let noted = asked.clone();
    let ask: Ask = Arc::new(move |question: Question| {
        noted.lock().unwrap().push(question.grpc_service);
        Box::pin(std::future::ready(answer.clone()))
    });
    let (_, view) = watch::channel(Arc::new(view));
    let reflection = Reflection::new(view, ask, CancellationToken::new()).expect("good descriptors");
    (Conversation::new(&reflection, &Request::new(())).expect("no bad metadata"), asked)
}

async fn ask(conversation: &mut Conversation, question: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    conversation.answer(request).await.message_response.expect("an answer")
}

#[tokio::test]
async fn own_and_users_services_are_listed_together() {
    let (mut conversation, _) = conversation();
    let MessageResponse::ListServicesResponse(list) =
        ask(&mut conversation, MessageRequest::ListServices(String::new())).await
    else {
        panic!("not a list");
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    let own: BTreeSet<_> = conversation.reflection.own.services().collect();
    assert!(own.iter().all(|name| super::super::own::is_service(name)), "the door's list lacks one of {own:?}");
    for name in ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "shop.Cart", "weft.v1.Events"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
}

#[tokio::test]
async fn symbols_are_found_where_they_are() {
    let (mut conversation, asked) = conversation();
    let symbol = |name: &str| MessageRequest::FileContainingSymbol(name.into());
    let file = |name: &str| MessageRequest::FileByFilename(name.into());
    for own in ["weft.v1.Events", "weft.v1.Events.Publish", "weft.v1.Event", "weft.v1.Event.key", "weft.v1.Ack"] {
        let MessageResponse::FileDescriptorResponse(found) = ask(&mut conversation, symbol(own)).await else {
            panic!("no file of {own}");
        };
        let file = prost_types::FileDescriptorProto::decode(&*found.file_descriptor_proto[0]).expect("a descriptor");
        assert_eq!(file.package(), "weft.v1");
    }
    assert!(matches!(ask(&mut conversation, file("shop.proto")).await, MessageResponse::ErrorResponse(_)));
    assert!(matches!(ask(&mut conversation, symbol("shop.Item")).await, MessageResponse::ErrorResponse(_)));
    assert!(asked.lock().unwrap().is_empty());

    let theirs = found(b"theirs");
    assert_eq!(ask(&mut conversation, symbol("shop.Cart.Get")).await, theirs);
    assert_eq!(ask(&mut conversation, file("shop.proto")).await, theirs);
    assert_eq!(ask(&mut conversation, symbol("shop.Item")).await, theirs);
    assert_eq!(*asked.lock().unwrap(), ["shop.Cart"; 3]);
    ask(&mut conversation, symbol("weft.v1.Events")).await;
    assert_ne!(ask(&mut conversation, file("weft/v1/errors.proto")).await, theirs, "own again");
}

#[tokio::test]
async fn a_failure_of_wefts_own_keeps_its_code() {
    let missing = wire::error(ErrorCode::NoInstance, "service default/shop has no instance to call");
    let (mut conversation, _) = conversation_with(Err(missing.clone()));
    let answer = ask(&mut conversation, MessageRequest::FileContainingSymbol("shop.Cart".into())).await;
    let MessageResponse::ErrorResponse(answer) = answer else { panic!("{answer:?}") };
    assert_eq!(wire::from_told(answer.error_code, &answer.error_message), Some(missing));
}

#[test]
fn both_versions_are_one_on_the_wire() {
    let asked = v1alpha::ServerReflectionRequest {
        host: "h".into(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::FileByFilename("f".into())),
    };
    let recast: ServerReflectionRequest = recast(&asked).expect("the same");
    assert_eq!(recast.message_request, Some(MessageRequest::FileByFilename("f".into())));
}
