//! Calls of a service through any node, and its instances: ordinary HTTP/2 on both ends, that know nothing of Weft.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use rand::RngExt as _;
use tonic::Status;
use weft_node::wire::from_status;
use weft_proto::v1::{ErrorCode, Retry};

use super::{AGAIN, Phase, Shared};
use crate::history::{History, What};

/// The service, by its gRPC name.
pub const SERVICE: &str = "sim.Echo";
/// Where an instance listens.
pub const PORT: u16 = 50_051;
/// How long a client waits for one call whatever its deadline says: then it has lost the connection.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest that an instance thinks about most calls.
const WORK_MS_MAX: u64 = 30;
/// How long it thinks about those that are to end before.
pub const LONG_WORK_MS: u64 = 5_000;
const CALL_ID: &str = "call-id";
const WORK_MS: &str = "work-ms";

/// What the client was told of a call.
#[derive(Debug)]
pub enum Outcome {
    /// It ran, and this came back.
    Answered(Bytes),
    /// It has certainly not run.
    NotRun(String),
    /// It may have run.
    Unknown(String),
}

/// One call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Call {
    /// Its number, unique in the history.
    pub id: u64,
    /// The gRPC service it is for, if not `SERVICE`.
    pub service: Option<&'static str>,
    /// The client says that it may run more than once.
    pub idempotent: bool,
    /// How long the instance thinks.
    pub work_ms: u64,
    /// Its deadline.
    pub timeout: Option<Duration>,
    /// The client resets it after this.
    pub give_up: Option<Duration>,
}

/// Serves as an instance on the simulated host it is called on; `name` is how the history knows it.
pub async fn instance(history: History, name: String) -> Result<()> {
    let listener = turmoil::net::TcpListener::bind((IpAddr::from([0, 0, 0, 0]), PORT)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (history, name) = (history.clone(), name.clone());
        tokio::spawn(async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(serve(history.clone(), name.clone(), request, respond));
            }
        });
    }
}

/// Notes the call as run once its body is whole, thinks for a while and sends the body back.
async fn serve(
    history: History,
    name: String,
    request: Request<RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Option<()> {
    let number = |header: &str| request.headers().get(header)?.to_str().ok()?.parse::<u64>().ok();
    let (call, work_ms) = (number(CALL_ID)?, number(WORK_MS).unwrap_or(0));
    let body = read(request.into_body()).await.ok()?.0;
    history.add(&name, What::CallRan { call, instance: name.clone() });
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(work_ms)) => {}
        _ = poll_fn(|context| respond.poll_reset(context)) => {
            history.add(&name, What::CallCancelled { call });
            return None;
        }
    }
    let head = Response::builder().header("content-type", "application/grpc").body(()).ok()?;
    let mut stream = respond.send_response(head, false).ok()?;
    stream.send_data(body, false).ok()?;
    stream.send_trailers(HeaderMap::from_iter([("grpc-status".parse().ok()?, "0".parse().ok()?)])).ok()
}

async fn read(mut body: RecvStream) -> Result<(Bytes, HeaderMap)> {
    let mut whole = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        whole.extend_from_slice(&data);
    }
    Ok((whole.into(), body.trailers().await?.unwrap_or_default()))
}

/// A client's connection to one node.
pub struct Caller(SendRequest<Bytes>);

impl Caller {
    /// Connects to a node's door.
    pub async fn connect(server: &str) -> Result<Caller> {
        let to: SocketAddr = crate::host::resolve(server)?;
        let stream = crate::net::connect(None, to).await?;
        let (send, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        Ok(Caller(send.ready().await?))
    }

    /// Makes a call and says what came of it.
    pub async fn call(&self, call: Call) -> Outcome {
        match tokio::time::timeout(PATIENCE, self.exchange(call)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) if is_untouched(&error) => Outcome::NotRun(format!("{error:#}")),
            Ok(Err(error)) => Outcome::Unknown(format!("{error:#}")),
            Err(_) => Outcome::Unknown("no answer".into()),
        }
    }

    /// Sends a call; its answer, and the stream that cancels it when it is reset.
    pub async fn send(&self, call: Call) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>)> {
        let service = call.service.unwrap_or(SERVICE);
        let mut request = Request::post(format!("http://sim/{service}/Echo"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header(CALL_ID, call.id.to_string())
            .header(WORK_MS, call.work_ms.to_string());
        if call.idempotent {
            request = request.header("weft-idempotent", "true");
        }
        if let Some(timeout) = call.timeout {
            request = request.header("grpc-timeout", format!("{}m", timeout.as_millis()));
        }
        let mut sender = self.0.clone().ready().await.context(NOT_TAKEN)?;
        let (answer, mut stream) = sender.send_request(request.body(())?, false).context(NOT_TAKEN)?;
        let message = call.id.to_be_bytes();
        let mut framed = vec![0, 0, 0, 0, message.len() as u8];
        framed.extend_from_slice(&message);
        stream.send_data(framed.into(), true)?;
        Ok((answer, stream))
    }

    async fn exchange(&self, call: Call) -> Result<Outcome> {
        let (answer, mut stream) = self.send(call).await?;
        let answer = match call.give_up {
            None => answer.await,
            Some(after) => match tokio::time::timeout(after, answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    stream.send_reset(h2::Reason::CANCEL);
                    return Ok(Outcome::Unknown("given up".into()));
                }
            },
        };
        let (head, body) = answer?.into_parts();
        if head.headers.contains_key("grpc-status") {
            return outcome(&head.headers, Bytes::new());
        }
        let (body, trailers) = read(body).await?;
        outcome(&trailers, body)
    }
}

/// What an error says that came before a byte of the call went out.
pub const NOT_TAKEN: &str = "the connection takes no more calls";

/// Whether no node has looked at the call: it was not sent, or its stream was refused, or came after the last one that the
/// node still takes.
fn is_untouched(error: &anyhow::Error) -> bool {
    let by_node = |error: &h2::Error| {
        error.reason() == Some(h2::Reason::REFUSED_STREAM) || (error.is_go_away() && error.is_remote())
    };
    error.to_string() == NOT_TAKEN || error.downcast_ref::<h2::Error>().is_some_and(by_node)
}

fn outcome(trailers: &HeaderMap, body: Bytes) -> Result<Outcome> {
    let status = Status::from_header_map(trailers).context("an answer without a status")?;
    if status.code() == tonic::Code::Ok {
        return Ok(Outcome::Answered(body));
    }
    let error = from_status(&status);
    let text = format!("{:?}: {}", error.code(), error.message);
    Ok(match (error.code(), error.retry()) {
        (ErrorCode::Deadline, _) => Outcome::Unknown(text),
        (_, Retry::Same | Retry::Never) => Outcome::NotRun(text),
        _ => Outcome::Unknown(text),
    })
}

/// Calls through one node after the other until the storm is over.
pub(super) async fn caller(shared: Shared, number: usize) {
    let who = format!("caller-{number}");
    let mut dice = shared.dice(40 + number as u64);
    let mut turn = number;
    while shared.phase() == Phase::Storm {
        turn += 1;
        let server = &shared.servers[turn % shared.servers.len()];
        let connected = tokio::time::timeout(Duration::from_secs(1), Caller::connect(server)).await;
        let Ok(Ok(caller)) = connected else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        for _ in 0..dice.random_range(5..40) {
            // Nobody waits for a call that begins later.
            if shared.phase() != Phase::Storm {
                break;
            }
            let mut call = Call {
                id: shared.next_id(),
                service: None,
                idempotent: dice.random_bool(0.3),
                work_ms: dice.random_range(0..WORK_MS_MAX),
                timeout: dice.random_bool(0.5).then(|| Duration::from_millis(dice.random_range(500..3_000))),
                give_up: None,
            };
            match dice.random_range(0..20) {
                0 => (call.work_ms, call.timeout) = (LONG_WORK_MS, Some(Duration::from_millis(200))),
                1 => (call.work_ms, call.give_up) = (LONG_WORK_MS, Some(Duration::from_millis(200))),
                _ => {}
            }
            shared.open.fetch_add(1, Ordering::Relaxed);
            let goes_on = note(&shared.history, &who, &caller, call).await;
            shared.open.fetch_sub(1, Ordering::Relaxed);
            if !goes_on {
                break;
            }
            tokio::time::sleep(Duration::from_millis(dice.random_range(0..60))).await;
        }
    }
    std::future::pending().await
}

/// Makes a call and writes it down; false if the connection is of no more use.
pub async fn note(history: &History, who: &str, caller: &Caller, call: Call) -> bool {
    let (idempotent, work_ms) = (call.idempotent, call.work_ms);
    let timeout_ms = call.timeout.map_or(0, |timeout| timeout.as_millis() as u64);
    history.add(who, What::CallInvoke { call: call.id, idempotent, work_ms, timeout_ms });
    let what = match caller.call(call).await {
        Outcome::Answered(body) if body.ends_with(&call.id.to_be_bytes()) => What::CallOk { call: call.id },
        Outcome::Answered(_) => What::CallUnknown { call: call.id, error: "the answer of another call".into() },
        Outcome::NotRun(error) => What::CallFail { call: call.id, error },
        Outcome::Unknown(error) => What::CallUnknown { call: call.id, error },
    };
    let goes_on = !matches!(what, What::CallUnknown { .. });
    history.add(who, what);
    goes_on
}

/// Registers the instances, each through another node, so that they have different homes, unless the plan wants one.
pub(super) async fn register(shared: Shared, instances: Vec<IpAddr>) {
    for (number, instance) in instances.into_iter().enumerate() {
        let client = shared.connect_surely(if shared.one_home { 0 } else { number }).await;
        let address = format!("{instance}:{PORT}");
        let builder = client.services().instance(SERVICE, &address).ttl(Duration::ZERO);
        while let Err(error) = builder.register_once().await {
            tracing::warn!(%error, "register an instance again");
            tokio::time::sleep(AGAIN).await;
        }
    }
}
