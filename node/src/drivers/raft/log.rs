//! openraft's log over one group of the journal.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use super::convert::{entry_from_log, entry_to_log, log_id, position, vote_from_stored, vote_to_stored};
use super::types::{Entry, LogId, TypeConfig, Vote};
use crate::drivers::storage::{Done, GroupLog, LogEntry};

/// The log of one group, as openraft sees it.
#[derive(Clone)]
pub(super) struct Log {
    log: GroupLog,
    append_bytes: usize,
}

impl Log {
    /// `append_bytes`: how much one read for a peer returns at most (at least one entry).
    pub(super) fn new(log: GroupLog, append_bytes: usize) -> Log {
        Log { log, append_bytes }
    }

    fn read_all(&self, mut from: u64, to: u64) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        while from < to {
            let read = self.log.read(from..to, self.append_bytes)?;
            let Some(last) = read.last() else { break };
            from = last.at.index + 1;
            for entry in &read {
                entries.push(entry_from_log(entry)?);
            }
        }
        Ok(entries)
    }
}

/// A `Done` and the future that it resolves.
fn wait() -> (Done, impl Future<Output = io::Result<()>>) {
    let (sender, receiver) = oneshot::channel();
    let done: Done = Box::new(move |result| drop(sender.send(result)));
    let wait = async move {
        receiver.await.unwrap_or_else(|_| Err(io::Error::other("the journal stopped before the write was durable")))
    };
    (done, wait)
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => self.log.state().last.map_or(0, |last| last.index + 1),
        };
        self.read_all(from, to)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.log.read(start..end, self.append_bytes)?.iter().map(entry_from_log).collect()
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.log.state().vote.as_ref().and_then(vote_from_stored))
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.log.state();
        Ok(LogState { last_purged_log_id: state.purged.map(log_id), last_log_id: state.last.map(log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, durable) = wait();
        self.log.save_vote(vote_to_stored(vote), done);
        durable.await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(id) = committed {
            self.log.save_committed(position(&id));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.log.state().committed.map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<LogEntry> = entries.into_iter().map(|entry| entry_to_log(&entry)).collect();
        self.log.append(entries, Box::new(move |result| callback.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let last = last.map(|id| position(&id));
        let state = self.log.state();
        // An installed snapshot has already replaced what openraft truncates before it.
        if state.last <= last || state.purged.is_some_and(|purged| last < Some(purged)) {
            return Ok(());
        }
        let (done, durable) = wait();
        self.log.truncate_after(last, done);
        durable.await
    }

    async fn purge(&mut self, id: LogId) -> io::Result<()> {
        let (done, durable) = wait();
        self.log.purge(position(&id), done);
        durable.await
    }
}
