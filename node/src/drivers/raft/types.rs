//! The types that all groups share, and the runtime that openraft runs on.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::TokioRuntime;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use weft_cluster::ids::NodeId;

use super::{Applied, ticks};
use crate::host::Host;

openraft::declare_raft_types!(
    /// One configuration for the registry and for every shard.
    pub(super) TypeConfig:
        D = Command,
        R = Response,
        Node = Place,
        // One leader per term, and log ids of 16 bytes.
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = NodeRuntime,
);

pub(super) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(super) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(super) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(super) type Payload = openraft::alias::PayloadOf<TypeConfig>;
pub(super) type Membership = openraft::Membership<u64, Place>;
pub(super) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(super) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(super) type Committed = openraft::alias::CommittedLeaderIdOf<TypeConfig>;
pub(super) type Raft = openraft::Raft<TypeConfig, super::machine::Machine>;

/// Where a replica lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The node.
    pub(super) node: NodeId,
}

/// A proposed command as the log and the wire hold it: an encoded `EntryPayload { command }`. So its bytes are
/// copied once, when it is proposed, and never again.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Command(Bytes);

/// The key of `EntryPayload.command`: field 1, length-delimited.
const COMMAND_KEY: u8 = 0x0a;

impl Command {
    /// Wraps a state machine's command.
    pub(super) fn wrap(body: &[u8]) -> Command {
        let mut encoded = BytesMut::with_capacity(body.len() + 11);
        encoded.put_u8(COMMAND_KEY);
        prost::encoding::encode_varint(body.len() as u64, &mut encoded);
        encoded.put_slice(body);
        Command(encoded.freeze())
    }

    /// Takes an encoded payload if it is a command, whole and nothing more.
    pub(super) fn parse(encoded: &Bytes) -> Option<Command> {
        let command = Command(encoded.clone());
        command.split().map(|_| command)
    }

    /// The encoded payload.
    pub(super) fn encoded(&self) -> &Bytes {
        &self.0
    }

    /// The state machine's command.
    pub(super) fn body(&self) -> Bytes {
        self.split().expect("checked when it was made")
    }

    fn split(&self) -> Option<Bytes> {
        let mut rest = self.0.clone();
        if !rest.has_remaining() || rest.get_u8() != COMMAND_KEY {
            return None;
        }
        let bytes = prost::encoding::decode_varint(&mut rest).ok()?;
        (bytes == rest.len() as u64).then_some(rest)
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What the state machine answered; taken once. The lock only makes it shareable, as openraft wants it.
pub(super) struct Response(Mutex<Option<Applied>>);

impl Response {
    /// The answer to a command.
    pub(super) fn new(applied: Applied) -> Response {
        Response(Mutex::new(Some(applied)))
    }

    /// The answer to a blank or membership entry.
    pub(super) fn none() -> Response {
        Response(Mutex::new(None))
    }

    /// The answer; `()` if there is none.
    pub(super) fn take(self) -> Applied {
        let taken = self.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        taken.unwrap_or_else(|| Box::new(()))
    }
}

thread_local! { static DICE: RefCell<Option<SmallRng>> = const { RefCell::new(None) }; }
/// For threads that no node has seeded: production's other workers.
static SEED: AtomicU64 = AtomicU64::new(0x9e37_79b9_7f4a_7c15);

/// Seeds this thread's dice from the host. In simulation all nodes run on one thread and the host's entropy
/// is itself drawn from the scenario's seed, so election timeouts are the same in every run.
pub(super) fn seed(host: &dyn Host) {
    let drawn = host.random_id();
    DICE.with(|dice| *dice.borrow_mut() = Some(SmallRng::seed_from_u64(drawn)));
    SEED.fetch_xor(drawn, Ordering::Relaxed);
}

/// tokio for openraft; only the randomness comes from elsewhere.
#[derive(Debug)]
pub(super) struct NodeRuntime(TokioRuntime);

impl AsyncRuntime for NodeRuntime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = openraft_rt_tokio::TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = openraft_rt_tokio::TokioMpsc;
    type Watch = openraft_rt_tokio::TokioWatch;
    type Oneshot = openraft_rt_tokio::TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = openraft_rt_tokio::TokioMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }
    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }
    /// Openraft sleeps until an instant for ticks, and for a microsecond in which it gathers what the storage reports.
    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        ticks::sleep(deadline - <Self::Instant as openraft::Instant>::now())
    }
    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }
    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }
    fn is_panic(error: &Self::JoinError) -> bool {
        error.is_panic()
    }
    fn thread_rng() -> SmallRng {
        let drawn = DICE.with(|dice| dice.borrow_mut().as_mut().map(Rng::next_u64));
        let drawn = drawn.unwrap_or_else(|| SEED.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed));
        SmallRng::seed_from_u64(drawn)
    }
    fn new(threads: usize) -> Self {
        NodeRuntime(TokioRuntime::new(threads))
    }
    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}
