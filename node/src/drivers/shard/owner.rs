//! The owner: one task per shard. While its node acts, it gathers what is waiting into one proposal at a time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;
use weft_cluster::errors;
use weft_cluster::ids::{Epoch, LogPosition, Millis, NodeId};
use weft_cluster::shard::{AppendResult, Outcome, Refusal};
use weft_cluster::view::ClusterView;
use weft_proto::internal::v1::{Append as AppendCommand, ShardEntry};
use weft_proto::v1::{Ack as AckLevel, Error, Receipt};

use super::queue::{Ack, Append, Work};
use super::seat::Seat;
use super::{bytes_of, refusal, settings};
use crate::drivers::raft::{Committed, Group, Leadership, ProposeError};

/// How long the owner waits after a proposal that failed, unless its leadership changes before.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);

/// Owns the shard whenever this node acts for it, until the replica is gone.
pub(super) async fn run(seat: Arc<Seat>) {
    let (Some(group), Some(leadership)) = (seat.group().cloned(), seat.leaderships()) else { return };
    let view = seat.commons.view.clone();
    let mut owner = Owner { seat, group, leadership, view, settled: None };
    while owner.turn().await {}
}

/// Refuses what is waiting: this node is no longer the owner.
pub(super) fn leave(seat: &Seat) {
    refuse(seat, None);
}

struct Owner {
    seat: Arc<Seat>,
    group: Group,
    leadership: watch::Receiver<Leadership>,
    view: watch::Receiver<Arc<ClusterView>>,
    /// The registry's position up to which the shard has its settings, and under which epoch that was seen.
    settled: Option<(Epoch, Option<LogPosition>)>,
}

impl Owner {
    /// One proposal, or a wait for something to do. False when the group has stopped.
    async fn turn(&mut self) -> bool {
        let leadership = self.leadership.borrow_and_update().clone();
        if !leadership.acting {
            self.settled = None;
            let me = self.seat.commons.me();
            refuse(&self.seat, leadership.leader.filter(|leader| *leader != me));
            return tokio::select! {
                biased;
                changed = self.leadership.changed() => changed.is_ok(),
                () = self.seat.queue.rung() => true,
            };
        }
        let (entry, round) = self.gather(leadership.epoch);
        if round.is_empty() {
            return tokio::select! {
                biased;
                changed = self.leadership.changed() => changed.is_ok(),
                () = self.seat.queue.rung() => true,
                // When the last view is gone the node is stopping, and this task is about to be cancelled.
                changed = self.view.changed() => changed.is_ok(),
            };
        }
        let metrics = &self.seat.commons.metrics;
        metrics.proposals.inc();
        metrics.queued_bytes.set(self.seat.commons.queued_bytes());
        metrics.proposal_bytes.observe(entry.len() as f64);
        // What was under way when leadership is lost may still be committed by another: those who wait are told so
        // at once, for this replica may not hear of it for long.
        let proposed = tokio::select! {
            biased;
            proposed = self.group.propose(entry) => proposed,
            () = lost(self.leadership.clone(), leadership.epoch) => Err(ProposeError::Unknown),
        };
        let refused = proposed.is_err();
        self.answer(round, proposed);
        self.seat.commons.metrics.queued_bytes.set(self.seat.commons.queued_bytes());
        if !refused {
            return true;
        }
        self.settled = None;
        // A leader that hands over acts still and refuses at once. What is proposed anew at each turn, as settings are,
        // would keep this task busy until it is over.
        tokio::select! {
            biased;
            changed = self.leadership.changed() => changed.is_ok(),
            () = tokio::time::sleep(REFUSED_PAUSE) => true,
        }
    }

    /// All that waits and fits, as an entry.
    fn gather(&mut self, epoch: Epoch) -> (Bytes, Round) {
        let view = self.view.borrow_and_update().clone();
        let bytes_max = bytes_of(self.seat.commons.config.proposal_bytes_max);
        let mut round = Round { works: self.seat.queue.take(bytes_max), settings: 0 };
        let mut entry = ShardEntry::default();
        let previous;
        {
            let replica = self.seat.replica();
            let registry = (epoch, view.registry.applied());
            if self.settled != Some(registry) {
                round.settings = settings::add(&mut entry, &view.registry, self.seat.shard, &replica.state);
                // Only when nothing was missing is the shard known to have it all.
                self.settled = (round.settings == 0).then_some(registry);
            }
            previous = replica.state.log_time();
        }
        entry.log_time_ms = self.log_time(previous).0;
        for work in &round.works {
            match work {
                Work::Append(append) => entry.appends.push(AppendCommand {
                    topic: append.partition.topic.0,
                    partition: append.partition.index,
                    packed: append.packed.clone(),
                    accepted: append.reply.is_none(),
                }),
                Work::Ack(ack) => entry.acks.push(ack.command.clone()),
            }
        }
        if round.is_empty() {
            return (Bytes::new(), round);
        }
        (entry.encode_to_vec().into(), round)
    }

    fn log_time(&self, previous: Millis) -> Millis {
        self.seat.commons.links.log_time(previous, || self.group.voters().into_values().collect())
    }

    /// Tells everybody what came of the round.
    fn answer(&self, round: Round, proposed: Result<Committed, ProposeError>) {
        let error = match proposed {
            Ok(committed) => return self.committed(round, committed),
            Err(ProposeError::NotLeader(hint)) => refusal::not_owner(hint),
            Err(ProposeError::Stopped(_)) => refusal::not_owner(None),
            Err(ProposeError::Unknown) => {
                self.seat.commons.metrics.unknown.inc_by(round.works.len() as u64);
                refusal::outcome_unknown("the owner lost its leadership before the commit was known")
            }
        };
        for work in round.works {
            work.refuse(&error);
        }
    }

    fn committed(&self, round: Round, committed: Committed) {
        let Ok(outcome) = committed.applied.downcast::<Outcome>() else {
            // It was applied as part of a snapshot: stored, but where is not known here.
            let error = refusal::outcome_unknown("it was applied with a snapshot");
            return round.works.into_iter().for_each(|work| work.refuse(&error));
        };
        let witnesses = Witnesses::new(&self.view.borrow(), &committed.fsynced);
        let (mut appends, mut acks) = (outcome.appends.into_iter(), outcome.acks.into_iter());
        let metrics = &self.seat.commons.metrics;
        for work in round.works {
            match work {
                Work::Append(append) => {
                    let result = appends.next().expect("an outcome for each append");
                    if let AppendResult::Stored(stored) = &result {
                        metrics.batches.inc();
                        metrics.events.inc_by(u64::from(stored.count));
                        metrics.bytes.inc_by(append.packed.len() as u64);
                    }
                    append.answer(|| receipt(result, &witnesses));
                }
                Work::Ack(ack) => {
                    metrics.acks.inc();
                    ack.answer(acks.next().expect("an outcome for each ack").map_err(refused));
                }
            }
        }
    }
}

/// Resolves when this node no longer acts under `epoch`.
async fn lost(mut leadership: watch::Receiver<Leadership>, epoch: Epoch) {
    // An error means that the group has stopped.
    let _ = leadership.wait_for(|now| !now.acting || now.epoch != epoch).await;
}

/// What one proposal carries.
struct Round {
    works: Vec<Work>,
    settings: usize,
}

impl Round {
    fn is_empty(&self) -> bool {
        self.works.is_empty() && self.settings == 0
    }
}

/// Who is known to have a round fsynced.
struct Witnesses {
    nodes: Vec<String>,
    zones: Vec<String>,
}

impl Witnesses {
    fn new(view: &ClusterView, nodes: &[NodeId]) -> Self {
        let zone = |node: &NodeId| {
            let member = view.members.get(node).map(|member| member.zone.clone());
            member.or_else(|| view.registry.node(*node).map(|record| record.zone.clone()))
        };
        let mut zones: Vec<String> = nodes.iter().filter_map(zone).collect();
        zones.sort();
        zones.dedup();
        Witnesses { nodes: nodes.iter().map(|node| view.name_of(*node)).collect(), zones }
    }
}

fn receipt(result: AppendResult, witnesses: &Witnesses) -> Result<Receipt, Error> {
    let (partition, offset, count, epoch, duplicate) = match result {
        AppendResult::Stored(stored) => (stored.partition, stored.base_offset, stored.count, stored.epoch, false),
        AppendResult::Duplicate { partition, base_offset, count, epoch } => {
            (partition, base_offset, count, epoch, true)
        }
        AppendResult::Refused(refusal) => return Err(refused(refusal)),
    };
    Ok(Receipt {
        partition: partition.index,
        offset: Some(offset.0),
        count,
        epoch: epoch.0,
        ack: AckLevel::Committed.into(),
        fsynced_nodes: witnesses.nodes.clone(),
        fsynced_zones: witnesses.zones.clone(),
        duplicate,
    })
}

fn refused(refusal: Refusal) -> Error {
    match refusal.limit {
        Some((limit, max)) => errors::over(refusal.code, limit, max, refusal.message),
        None => errors::error(refusal.code, refusal.message),
    }
}

fn refuse(seat: &Seat, hint: Option<NodeId>) {
    let error = refusal::not_owner(hint);
    for work in seat.queue.take_all() {
        work.refuse(&error);
    }
}

impl Work {
    fn refuse(self, error: &Error) {
        match self {
            Work::Append(append) => append.answer(|| Err(error.clone())),
            Work::Ack(ack) => ack.answer(Err(error.clone())),
        }
    }
}

impl Append {
    // The room is given back before the answer, so that whoever sees the answer finds the room.
    fn answer(self, result: impl FnOnce() -> Result<Receipt, Error>) {
        drop(self.permit);
        if let Some(reply) = self.reply {
            // A caller that has gone does not want to know.
            let _ = reply.send(result());
        }
    }
}

impl Ack {
    fn answer(self, result: Result<(), Error>) {
        drop(self.permit);
        let _ = self.reply.send(result);
    }
}
