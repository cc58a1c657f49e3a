//! Commands and read points: at the leader, wherever it is, through failover.

use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, sleep, timeout};
use weft_cluster::caller::Caller;
use weft_cluster::errors::{error, not_owner};
use weft_cluster::ids::NodeId;
use weft_proto::internal::v1::control_request::Request;
use weft_proto::internal::v1::control_response::Response;
use weft_proto::internal::v1::registry_command::Command;
use weft_proto::internal::v1::registry_outcome::Outcome;
use weft_proto::internal::v1::{
    ControlRequest, ControlResponse, ReadIndex, RegistryCommand, RegistryEntry, RegistryOutcome, RegistryPropose,
};
use weft_proto::v1;
use weft_proto::v1::ErrorCode;

use super::Registry;
use crate::drivers::link::{Lane, LinkError};
use crate::drivers::raft::ProposeError;

/// Between two tries.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// How long one try waits for a leader's answer.
const TRY_PATIENCE: Duration = Duration::from_secs(2);

/// How one try ended.
enum Try<T> {
    Done(T),
    Refused(v1::Error),
    /// It has not taken effect and will not.
    NotTaken,
    /// It may or may not take effect.
    Unknown,
}

/// Whether running it again has the same effect as running it once.
fn repeatable(command: &RegistryCommand) -> bool {
    matches!(
        command.command,
        Some(
            Command::RegisterNode(_)
                | Command::RemoveNode(_)
                | Command::OpenProducer(_)
                | Command::ShardMoved(_)
                | Command::ReplaceReplica(_)
                | Command::PreferLeader(_)
                | Command::PlanSeats(_)
                | Command::SetFeatureLevel(_)
                | Command::PutInstance(_)
                | Command::InstanceHealth(_)
                | Command::RehomeInstances(_)
                | Command::ConfigureService(_)
        )
    )
}

pub(super) async fn propose(
    registry: &Registry,
    caller: &Caller,
    command: RegistryCommand,
    deadline: Instant,
) -> Result<RegistryOutcome, v1::Error> {
    let mut unknown = false;
    loop {
        match attempt(registry, caller, &command, deadline).await {
            Try::Done(RegistryOutcome { outcome: Some(Outcome::Error(refusal)), .. }) => return Err(refusal),
            Try::Done(outcome) => return Ok(outcome),
            Try::Refused(refusal) => return Err(refusal),
            Try::NotTaken => {}
            Try::Unknown => unknown = true,
        }
        let over = Instant::now() + RETRY_AFTER >= deadline;
        if unknown && (over || !repeatable(&command)) {
            return Err(error(ErrorCode::OutcomeUnknown, "the registry's leader was lost before it answered"));
        }
        if over {
            return Err(error(ErrorCode::NoOwner, "the registry has no leader that this node can reach"));
        }
        sleep(RETRY_AFTER).await;
    }
}

/// Proposes at this node, on behalf of a peer.
pub(in crate::drivers) async fn serve(registry: &Registry, caller: &Caller, command: RegistryCommand) -> Response {
    match here(registry, caller, &command).await {
        Try::Done(outcome) => Response::Registry(outcome),
        Try::Refused(refusal) => Response::Error(refusal),
        Try::NotTaken => {
            let leader = registry.leader().filter(|leader| *leader != registry.inner.me);
            Response::Error(not_owner(leader, "this node does not lead the registry"))
        }
        Try::Unknown => Response::Error(error(ErrorCode::OutcomeUnknown, "leadership was lost before the commit")),
    }
}

async fn attempt(
    registry: &Registry,
    caller: &Caller,
    command: &RegistryCommand,
    deadline: Instant,
) -> Try<RegistryOutcome> {
    if registry.acting() {
        return here(registry, caller, command).await;
    }
    let propose = RegistryPropose { command: Some(command.clone()), caller: caller.to_wire() };
    let request = Request::RegistryPropose(propose);
    match ask_leader(registry, request, deadline).await {
        Try::Done(Response::Registry(outcome)) => Try::Done(outcome),
        Try::Done(_) => Try::Unknown,
        Try::Refused(refusal) => Try::Refused(refusal),
        Try::NotTaken => Try::NotTaken,
        Try::Unknown => Try::Unknown,
    }
}

/// Proposes at this node, which leads: what the registry refuses, it refuses to `caller`.
async fn here(registry: &Registry, caller: &Caller, command: &RegistryCommand) -> Try<RegistryOutcome> {
    let Some(group) = registry.group() else { return Try::NotTaken };
    let voters = || group.voters().into_values().collect();
    let log_time = registry.inner.links.log_time(registry.state().log_time(), voters);
    let entry = RegistryEntry { log_time_ms: log_time.0, command: Some(command.clone()) };
    match timeout(TRY_PATIENCE, group.propose(entry.encode_to_vec().into())).await {
        Ok(Ok(committed)) => match committed.applied.downcast::<RegistryOutcome>() {
            Ok(outcome) => {
                if let Some(Outcome::Error(refusal)) = &outcome.outcome {
                    tracing::debug!(%caller, reason = refusal.message, "the registry refuses a command");
                }
                Try::Done(*outcome)
            }
            Err(_) => Try::Unknown,
        },
        Ok(Err(ProposeError::NotLeader(leader))) => {
            registry.hint(leader);
            Try::NotTaken
        }
        Ok(Err(ProposeError::Stopped(_))) => Try::NotTaken,
        Ok(Err(ProposeError::Unknown)) | Err(_) => Try::Unknown,
    }
}

async fn ask_leader(registry: &Registry, request: Request, deadline: Instant) -> Try<Response> {
    let known = registry.leader().filter(|leader| *leader != registry.inner.me);
    let Some(to) = known.or_else(|| registry.next_peer()) else { return Try::NotTaken };
    let patience = deadline.saturating_duration_since(Instant::now()).min(TRY_PATIENCE);
    let body = ControlRequest { request: Some(request) }.encode_to_vec();
    let answer = match registry.inner.links.request(to, Lane::Control, vec![body.into()], patience).await {
        Ok(answer) => answer,
        Err(lost) => {
            registry.hint(None);
            return match lost {
                LinkError::NotSent(_) | LinkError::Refused(..) | LinkError::TooLarge { .. } => Try::NotTaken,
                LinkError::Lost(_) | LinkError::Deadline(_) => Try::Unknown,
            };
        }
    };
    match ControlResponse::decode(answer).ok().and_then(|answer| answer.response) {
        Some(Response::Error(refusal)) => match refusal.code() {
            ErrorCode::NotOwner => {
                registry.hint((refusal.owner != 0).then_some(NodeId(refusal.owner)));
                Try::NotTaken
            }
            ErrorCode::NotReady | ErrorCode::NoOwner => Try::NotTaken,
            ErrorCode::OutcomeUnknown => Try::Unknown,
            _ => Try::Refused(refusal),
        },
        Some(response) => {
            registry.hint(Some(to));
            Try::Done(response)
        }
        None => Try::Unknown,
    }
}

/// A read point: the index up to which a linearizable read must have applied.
pub(super) async fn read_index(registry: &Registry, deadline: Instant) -> Result<u64, v1::Error> {
    loop {
        if registry.acting() {
            if let Some(index) = read_index_here(registry).await {
                return Ok(index);
            }
        } else if let Try::Done(Response::ReadIndex(answer)) =
            ask_leader(registry, Request::ReadIndex(ReadIndex {}), deadline).await
        {
            return Ok(answer.index);
        }
        if Instant::now() + RETRY_AFTER >= deadline {
            return Err(error(ErrorCode::NoOwner, "the registry has no leader that this node can reach"));
        }
        sleep(RETRY_AFTER).await;
    }
}

/// The read point of a leader; `None` if this node is not one, or has no majority.
pub(in crate::drivers) async fn read_index_here(registry: &Registry) -> Option<u64> {
    let group = registry.group()?;
    let read = timeout(TRY_PATIENCE, group.read_index()).await.ok()?;
    read.ok().map(|at| at.index)
}
