//! What happened, in the order in which it happened: one entry per line of JSON.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::trace;

/// One thing that happened.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Simulated microseconds since the start.
    pub at_us: u64,
    /// Who saw it: a client, or the harness.
    pub who: String,
    /// What it was.
    #[serde(flatten)]
    pub what: What,
}

/// A partition of the workload's one topic, and an offset there.
pub type Place = (u32, u64);

/// Which delivery of an event within an epoch: (dispatch, attempt); the greater was given out later.
pub type Given = (u32, u32);

/// What can happen. `id` is an event's own number, unique in the history.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields are named after what they hold")]
pub enum What {
    /// A fault began or ended, or a process did.
    Fault { text: String },
    /// A publish was sent for the first time.
    PublishInvoke { id: u64, key: String, idempotent: bool },
    /// It has a receipt.
    PublishOk { id: u64, partition: u32, offset: u64, epoch: u64, fsynced: Vec<String>, duplicate: bool },
    /// It has certainly not taken effect.
    PublishFail { id: u64, error: String },
    /// It may or may not have taken effect.
    PublishUnknown { id: u64, error: String },
    /// An observer saw an event.
    Observed { partition: u32, offset: u64, epoch: u64, id: u64, intact: bool },
    /// A consumer of the group was given an event.
    Delivered { partition: u32, offset: u64, epoch: u64, given: Given, id: u64, key: String, intact: bool },
    /// It leaves the group in order: all that it has not acked goes to others.
    Left,
    /// It acked.
    AckInvoke { partition: u32, offset: u64, epoch: u64 },
    /// The ack is committed.
    AckOk { partition: u32, offset: u64, epoch: u64 },
    /// The ack was refused, or its outcome is unknown.
    AckFail { partition: u32, offset: u64, epoch: u64, error: String },
    /// A registry write was sent: create or delete the topic `name`.
    RegistryInvoke { call: u64, name: String, create: bool },
    /// It took effect; `topic`: the id of the topic created.
    RegistryOk { call: u64, topic: u32 },
    /// It was refused: creating what exists, deleting what does not.
    RegistryRefused { call: u64 },
    /// It may or may not have taken effect.
    RegistryUnknown { call: u64, error: String },
    /// A call was sent; the instance is to think for `work_ms`. `timeout_ms` 0: no deadline.
    CallInvoke { call: u64, idempotent: bool, work_ms: u64, timeout_ms: u64 },
    /// An instance began to run it.
    CallRan { call: u64, instance: String },
    /// The instance was told that nobody waits for it any more.
    CallCancelled { call: u64 },
    /// It was answered by an instance.
    CallOk { call: u64 },
    /// It has certainly not run.
    CallFail { call: u64, error: String },
    /// It may or may not have run.
    CallUnknown { call: u64, error: String },
    /// How many members a node speaks of.
    Members { node: String, known: u32 },
    /// What a node says of who acts.
    Owner { node: String, shard: u32, owner: String, epoch: u64 },
    /// A node's copy of the registry at an index: the ids of all topics.
    Copy { node: String, index: u64, topics: Vec<u32> },
    /// What a node said of one of its queues.
    Gauge { node: String, name: String, value: i64 },
    /// The log at the end, as a subscriber reads it from the owners.
    Final { partition: u32, offset: u64, epoch: u64, id: u64, key: String, intact: bool },
    /// The log at the end, as it is on one node's disk.
    OnDisk { node: String, partition: u32, offset: u64, id: u64, digest: u64 },
}

/// The history of one run. Clones share it.
#[derive(Clone, Default)]
pub struct History {
    entries: Arc<Mutex<Vec<Entry>>>,
}

impl History {
    /// Adds what `who` saw.
    pub fn add(&self, who: &str, what: What) {
        let at_us = turmoil::sim_elapsed().unwrap_or_default().as_micros() as u64;
        trace::note(&format!("{who} {what:?}"));
        self.add_at(at_us, who, what);
    }

    /// Adds what happened at a time that the harness knows: it is outside of all simulated hosts.
    pub fn add_at(&self, at_us: u64, who: &str, what: What) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.push(Entry { at_us, who: who.to_owned(), what });
    }

    /// All so far.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes all as JSON lines.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        for entry in self.entries() {
            serde_json::to_writer(&mut file, &entry)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    }
}

/// The end's log by place, as the owners serve it.
pub fn final_log(entries: &[Entry]) -> BTreeMap<Place, u64> {
    let finals = entries.iter().filter_map(|entry| match entry.what {
        What::Final { partition, offset, id, .. } => Some(((partition, offset), id)),
        _ => None,
    });
    finals.collect()
}
