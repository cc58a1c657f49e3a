//! `weft call`: one call of a user's service, with JSON, by the service's own reflection.

mod codec;
pub(super) mod reflection;

use std::io::BufRead;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, MethodDescriptor, ServiceDescriptor};
use serde_json::Value;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use self::codec::Dynamic;
use super::args::Call;
use super::failure::Failure;
use super::output::Output;
use super::server::Target;

/// How long a connection to one node is tried.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// The largest message sent or received.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// The metadata that names the namespace of a call.
const NAMESPACE: &str = "weft-namespace";
/// Messages between stdin and the call.
const WAITING_MAX: usize = 16;

pub(crate) async fn run(call: Call, target: &Target, output: &mut Output) -> Result<(), Failure> {
    let path = call.method.trim_start_matches('/');
    let (service, method) = path.split_once('/').map_or((path, None), |(service, method)| (service, Some(method)));
    let metadata = metadata(&call.headers, &target.namespace)?;
    let channel = connect(&target.servers).await?;
    let described = reflection::describe(channel.clone(), service, &metadata);
    let described = tokio::time::timeout(call.timeout, described).await;
    let service = described.map_err(|_| Failure::late("its reflection did not answer", call.timeout))??;
    match method {
        None | Some("") => list(&service, output),
        Some(method) => {
            let method = find(&service, method)?;
            make(&call, &method, channel, metadata, output).await
        }
    }
}

/// The message of an error with those of its causes.
fn chain(error: tonic::transport::Error) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

/// Connects to the first node that answers.
pub(super) async fn connect(servers: &[String]) -> Result<Channel, Failure> {
    let mut failures = Vec::new();
    for server in servers {
        let endpoint = Endpoint::from_shared(format!("http://{server}"))
            .map_err(|_| Failure::invalid(format!("`{server}` is not host:port")))?;
        match endpoint.connect_timeout(CONNECT_PATIENCE).tcp_nodelay(true).connect().await {
            Ok(channel) => return Ok(channel),
            Err(error) => failures.push(weft_sdk::explain(server, &error)),
        }
    }
    Err(Failure::unreachable(failures.join("; ")))
}

pub(super) fn find(service: &ServiceDescriptor, name: &str) -> Result<MethodDescriptor, Failure> {
    service.methods().find(|method| method.name() == name).ok_or_else(|| {
        let known: Vec<String> = service.methods().map(|method| method.name().to_owned()).collect();
        Failure::invalid(format!("{} has no method {name:?}; it has {}", service.full_name(), known.join(", ")))
    })
}

fn list(service: &ServiceDescriptor, output: &mut Output) -> Result<(), Failure> {
    let side = |message: MessageDescriptor, streams: bool| {
        if streams { format!("stream {}", message.full_name()) } else { message.full_name().to_owned() }
    };
    let row = |method: MethodDescriptor| {
        vec![
            format!("{}/{}", service.full_name(), method.name()),
            side(method.input(), method.is_client_streaming()),
            side(method.output(), method.is_server_streaming()),
        ]
    };
    output.table(&["method", "takes", "answers"], service.methods().map(row).collect())
}

/// Makes the call and prints each message of the answer as one line of JSON.
async fn make(
    call: &Call,
    method: &MethodDescriptor,
    channel: Channel,
    metadata: MetadataMap,
    output: &mut Output,
) -> Result<(), Failure> {
    let (messages, requests) = tokio::sync::mpsc::channel(WAITING_MAX);
    // `--json` without a value asks for JSON of failures, and brings no message.
    let body = call.json.clone().filter(|text| !text.trim().is_empty()).unwrap_or_else(|| "{}".to_owned());
    let feeding = feed(body, method.clone(), messages);
    let mut request = tonic::Request::from_parts(metadata, http::Extensions::new(), ReceiverStream::new(requests));
    request.set_timeout(call.timeout);
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path = PathAndQuery::try_from(path).map_err(|error| Failure::invalid(error.to_string()))?;
    let calling = async {
        let mut client = tonic::client::Grpc::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        client.ready().await.map_err(|error| Failure::unreachable(chain(error)))?;
        let answer = client.streaming(request, path, Dynamic::new(method)).await.map_err(|it| Failure::status(&it))?;
        let mut answers = answer.into_inner();
        while let Some(message) = answers.message().await.map_err(|it| Failure::status(&it))? {
            let json = serde_json::to_value(&message);
            output.line(json.map_err(|error| Failure::failed(format!("the answer as JSON: {error}")))?)?;
            output.flush()?;
        }
        Ok(())
    };
    // What is wrong with the input ends the call; the end of the input does not.
    let feeding = async {
        match feeding.await {
            Ok(()) => std::future::pending().await,
            Err(failure) => Err(failure),
        }
    };
    let both = async {
        tokio::select! { biased; failed = feeding => failed, called = calling => called }
    };
    let ended = tokio::time::timeout(call.timeout, both).await;
    ended.unwrap_or_else(|_| Err(Failure::late("the call has not ended", call.timeout)))
}

/// Sends the messages of `body`, JSON values one after the other, or of stdin if it is `-`.
async fn feed(
    body: String,
    method: MethodDescriptor,
    messages: tokio::sync::mpsc::Sender<DynamicMessage>,
) -> Result<(), Failure> {
    let reading = tokio::task::spawn_blocking(move || {
        let (mut sent, streams) = (0, method.is_client_streaming());
        let mut send = |text: &str, place: &str| {
            for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
                let value = value.map_err(|error| Failure::invalid(format!("{place} is not JSON: {error}")))?;
                sent += 1;
                if sent > 1 && !streams {
                    return Err(Failure::invalid(format!("{} takes one message; {place} has more", method.name())));
                }
                let message = message(&method.input(), value).map_err(|error| error.context(place))?;
                if messages.blocking_send(message).is_err() {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        if body != "-" {
            return send(&body, "--json").map(drop);
        }
        let mut empty = true;
        for (number, line) in std::io::stdin().lock().lines().enumerate() {
            let line = line?;
            empty &= line.trim().is_empty();
            if !send(&line, &format!("line {} of stdin", number + 1))? {
                return Ok(());
            }
        }
        // A method that takes one message has to get one.
        if empty && !streams { send("{}", "an empty stdin").map(drop) } else { Ok(()) }
    });
    reading.await.map_err(|error| Failure::failed(error.to_string()))?
}

fn message(of: &MessageDescriptor, value: Value) -> Result<DynamicMessage, Failure> {
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    DynamicMessage::deserialize_with_options(of.clone(), value, &options)
        .map_err(|error| Failure::invalid(format!("not a {}: {error}", of.full_name())))
}

/// Metadata from NAME=VALUE; the value of a name that ends with -bin is base64.
pub(super) fn metadata(headers: &[String], namespace: &str) -> Result<MetadataMap, Failure> {
    let mut metadata = MetadataMap::new();
    if namespace != "default" {
        let value =
            namespace.parse().map_err(|_| Failure::invalid(format!("--namespace {namespace:?}: not a name")))?;
        metadata.insert(NAMESPACE, value);
    }
    for header in headers {
        let wrong = |why: &str| Failure::invalid(format!("--header {header}: {why}"));
        let (name, value) = header.split_once('=').ok_or_else(|| wrong("write NAME=VALUE"))?;
        let name = name.to_ascii_lowercase();
        if name.ends_with("-bin") {
            let key = MetadataKey::from_bytes(name.as_bytes()).map_err(|_| wrong("not a metadata name"))?;
            let bytes = super::encode::decode(value).map_err(|error| wrong(&error))?;
            metadata.append_bin(key, MetadataValue::from_bytes(&bytes));
        } else {
            let key = MetadataKey::from_bytes(name.as_bytes()).map_err(|_| wrong("not a metadata name"))?;
            let value = value.parse().map_err(|_| wrong("the value has characters that metadata cannot hold"))?;
            metadata.append(key, value);
        }
    }
    Ok(metadata)
}
