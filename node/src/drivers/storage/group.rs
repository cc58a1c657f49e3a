//! One group's log in memory: where each entry is, and the payloads that fit the cache.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use weft_cluster::ids::{LogPosition, RaftGroup};

use super::envelope::invalid;
use super::frame::{Kind, Place, Record, SOME, VOTE_COMMITTED, VOTED_FOR};
use super::journal::Item;
use super::meta::MetaRef;
use super::segments::ShardFiles;
use super::{Done, Inner, LogEntry, LogState, StoredVote, locked};

/// What an entry costs in the cache beside its payload.
const ENTRY_BYTES: usize = 96;

/// A group of this node.
pub(super) struct Group {
    pub(super) id: RaftGroup,
    pub(super) replica: u64,
    pub(super) files: Arc<ShardFiles>,
    pub(super) log: Mutex<Log>,
    /// What was found wrong with its segments. The log is sound: the replica can hand over before it is fenced.
    damage: Mutex<Option<String>>,
}

/// The log of a group.
#[derive(Default)]
pub(super) struct Log {
    pub(super) purged: Option<LogPosition>,
    pub(super) vote: Option<StoredVote>,
    pub(super) committed: Option<LogPosition>,
    /// Dense; the first is at `purged` + 1.
    pub(super) entries: VecDeque<Entry>,
    /// The last durable checkpoint.
    pub(super) checkpoint: Option<MetaRef>,
    pub(super) fenced: Option<String>,
    pub(super) deleted: bool,
    /// Bytes of cached payloads with their overhead.
    cached: usize,
    serial_next: u64,
}

/// An entry.
pub(super) struct Entry {
    pub(super) term: u64,
    /// Of this append; never used again in the group, unlike (index, term).
    pub(super) serial: u64,
    pub(super) bytes: u32,
    pub(super) crc: u32,
    /// `None` until it is durable.
    pub(super) place: Option<Place>,
    /// `None`: only on disk.
    pub(super) payload: Option<Bytes>,
}

impl Entry {
    fn cached(&self) -> usize {
        self.payload.as_ref().map_or(0, |payload| payload.len() + ENTRY_BYTES)
    }
}

impl Log {
    /// The index of the first entry, or of the one that comes first.
    pub(super) fn first(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    /// The index after the last entry.
    pub(super) fn end(&self) -> u64 {
        self.first() + self.entries.len() as u64
    }

    fn last(&self) -> Option<LogPosition> {
        let last = self.entries.back().map(|entry| LogPosition { term: entry.term, index: self.end() - 1 });
        last.or(self.purged)
    }

    pub(super) fn state(&self) -> LogState {
        LogState { purged: self.purged, last: self.last(), vote: self.vote, committed: self.committed }
    }

    /// The entry at `index`.
    pub(super) fn get(&self, index: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(index.checked_sub(self.first())?).ok()?)
    }

    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        let purged = self.purged.filter(|purged| purged.index == index).map(|purged| purged.term);
        self.get(index).map(|entry| entry.term).or(purged)
    }

    fn get_mut(&mut self, index: u64) -> Option<&mut Entry> {
        let at = index.checked_sub(self.first())?;
        self.entries.get_mut(usize::try_from(at).ok()?)
    }

    /// Adds an entry after the last; returns its serial.
    pub(super) fn push(
        &mut self,
        term: u64,
        bytes: u32,
        crc: u32,
        place: Option<Place>,
        payload: Option<Bytes>,
    ) -> u64 {
        let serial = self.serial_next;
        self.serial_next += 1;
        let entry = Entry { term, serial, bytes, crc, place, payload };
        self.cached += entry.cached();
        self.entries.push_back(entry);
        serial
    }

    fn cut(&mut self, end: u64) {
        while self.end() > end {
            let Some(entry) = self.entries.pop_back() else { return };
            self.cached -= entry.cached();
        }
    }

    /// Forgets entries up to `at`.
    fn forget(&mut self, at: LogPosition) {
        let mut count = (at.index + 1).saturating_sub(self.first());
        while count > 0 {
            let Some(entry) = self.entries.pop_front() else { break };
            self.cached -= entry.cached();
            count -= 1;
        }
        self.purged = self.purged.max(Some(at));
    }

    /// Switches to a snapshot at `at`: entries after it stay only if the log agrees with it.
    pub(super) fn install(&mut self, at: LogPosition) {
        if self.get(at.index).is_none_or(|entry| entry.term != at.term) && self.purged != Some(at) {
            self.cut(self.first());
        }
        self.forget(at);
        // An index can only be forgotten once; a snapshot may also take the log back to a lower term's place.
        self.purged = Some(at);
        self.committed = self.committed.max(Some(at));
    }

    /// Notes where an entry is, now that it is durable.
    pub(super) fn placed(&mut self, index: u64, serial: u64, place: Place) {
        if let Some(entry) = self.get_mut(index).filter(|entry| entry.serial == serial) {
            entry.place = Some(place);
        }
    }

    /// Bytes of payloads held in memory.
    pub(super) fn cached(&self) -> usize {
        self.cached
    }

    /// Drops durable payloads from memory, oldest first, until at most `budget` bytes are held.
    pub(super) fn evict(&mut self, budget: usize) {
        for entry in &mut self.entries {
            if self.cached <= budget {
                return;
            }
            if entry.place.is_some() {
                self.cached -= entry.cached();
                entry.payload = None;
            }
        }
    }

    /// The LSN of the oldest frame that holds an entry of this log.
    pub(super) fn lsn_min(&self) -> Option<u64> {
        self.entries.iter().filter_map(|entry| entry.place.as_ref()).map(|place| place.lsn).min()
    }
}

impl Group {
    pub(super) fn new(id: RaftGroup, replica: u64, files: Arc<ShardFiles>, log: Log) -> Arc<Group> {
        Arc::new(Group { id, replica, files, log: Mutex::new(log), damage: Mutex::default() })
    }

    fn usable(log: &Log) -> io::Result<()> {
        match &log.fenced {
            _ if log.deleted => Err(io::Error::new(io::ErrorKind::NotFound, "the group was deleted")),
            Some(reason) => Err(invalid(format!("the group is fenced: {reason}"))),
            None => Ok(()),
        }
    }

    /// Queues `records` if the log accepts them; the order of the queue is the order of the log's changes, because
    /// the log stays locked.
    fn change(
        self: &Arc<Self>,
        inner: &Inner,
        done: Done,
        change: impl FnOnce(&mut Log) -> io::Result<(Vec<(Record, Bytes)>, u64)>,
    ) {
        let mut log = locked(&self.log);
        let (done, refused) = match Self::usable(&log).and_then(|()| change(&mut log)) {
            Ok((records, serial)) => {
                let item = Item { group: Some(Arc::clone(self)), records, serial, done: Some(done) };
                let closed = io::Error::new(io::ErrorKind::BrokenPipe, "the storage is closed");
                (inner.journal.push(item), closed)
            }
            Err(error) => (Some(done), error),
        };
        drop(log);
        if let Some(done) = done {
            done(Err(refused));
        }
    }

    pub(super) fn append(self: &Arc<Self>, inner: &Inner, entries: Vec<LogEntry>, done: Done) {
        // CRCs are made before the lock is taken.
        let records: Vec<_> = entries
            .into_iter()
            .map(|entry| Record::with(Kind::Entry, self.id.0, entry.at.index, entry.at.term, entry.payload))
            .collect();
        inner.space.take(records.iter().map(|(record, _)| u64::from(record.bytes)).sum());
        self.change(inner, done, |log| {
            let from = log.end();
            for (index, (record, _)) in (from..).zip(&records) {
                if record.index != index {
                    let (at, id) = (record.index, self.id);
                    let message = format!("group {id}: entry {at} cannot follow a log that ends before {index}");
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
                }
            }
            let serial = log.serial_next;
            for (record, payload) in &records {
                log.push(record.term, record.bytes, record.crc, None, Some(payload.clone()));
            }
            Ok((records, serial))
        });
    }

    pub(super) fn save_vote(self: &Arc<Self>, inner: &Inner, vote: StoredVote, done: Done) {
        self.change(inner, done, |log| {
            log.vote = Some(vote);
            let flags = if vote.voted_for.is_some() { VOTED_FOR } else { 0 };
            let flags = flags | if vote.committed { VOTE_COMMITTED } else { 0 };
            let voted_for = vote.voted_for.unwrap_or_default();
            Ok((vec![Record::bare(Kind::Vote, flags, self.id.0, voted_for, vote.term)], 0))
        });
    }

    pub(super) fn save_committed(self: &Arc<Self>, inner: &Inner, at: LogPosition) {
        let mut log = locked(&self.log);
        if Self::usable(&log).is_ok() && log.committed < Some(at) {
            log.committed = Some(at);
            inner.journal.note_committed(self, at);
        }
    }

    pub(super) fn truncate_after(self: &Arc<Self>, inner: &Inner, last: Option<LogPosition>, done: Done) {
        self.change(inner, done, |log| {
            let end = last.map_or(0, |last| last.index + 1);
            if end < log.first() {
                let message = format!("group {}: entries before {} are purged", self.id, log.first());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            log.cut(end);
            let (flags, at) = last.map_or((0, LogPosition::default()), |last| (SOME, last));
            Ok((vec![Record::bare(Kind::Truncate, flags, self.id.0, at.index, at.term)], 0))
        });
    }

    pub(super) fn purge(self: &Arc<Self>, inner: &Inner, at: LogPosition, done: Done) {
        self.change(inner, done, |log| {
            // What no checkpoint covers is still needed to build the state again.
            let covered = log.checkpoint.as_ref().map(MetaRef::at);
            let Some(at) = covered.map(|covered| if at.index > covered.index { covered } else { at }) else {
                return Ok((Vec::new(), 0));
            };
            if log.purged.is_some_and(|purged| purged.index >= at.index) {
                return Ok((Vec::new(), 0));
            }
            log.forget(at);
            Ok((vec![Record::bare(Kind::Purge, 0, self.id.0, at.index, at.term)], 0))
        });
    }

    /// Switches the log to a received snapshot; `payload` says where its state is.
    pub(super) fn install(self: &Arc<Self>, inner: &Inner, at: LogPosition, payload: Bytes, done: Done) {
        self.change(inner, done, |log| {
            log.install(at);
            Ok((vec![Record::with(Kind::Install, self.id.0, at.index, at.term, payload)], 0))
        });
    }

    pub(super) fn read(&self, inner: &Inner, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut index = range.start.max(locked(&self.log).first());
        while index < range.end {
            let Some((entry, size)) = self.read_one(inner, index, (!entries.is_empty()).then(|| bytes_max - bytes))?
            else {
                break;
            };
            bytes = (bytes + size).min(bytes_max);
            entries.push(entry);
            index += 1;
        }
        Ok(entries)
    }

    /// The entry at `index`, if it is there and at most `room` bytes.
    fn read_one(&self, inner: &Inner, index: u64, room: Option<usize>) -> io::Result<Option<(LogEntry, usize)>> {
        loop {
            let (term, serial, bytes, crc, place) = {
                let log = locked(&self.log);
                Self::usable(&log)?;
                let Some(entry) = log.get(index).filter(|entry| room.is_none_or(|room| entry.bytes as usize <= room))
                else {
                    return Ok(None);
                };
                let at = LogPosition { term: entry.term, index };
                match (&entry.payload, &entry.place) {
                    (Some(payload), _) => {
                        return Ok(Some((LogEntry { at, payload: payload.clone() }, payload.len())));
                    }
                    (None, Some(place)) => (entry.term, entry.serial, entry.bytes, entry.crc, place.clone()),
                    (None, None) => return Err(io::Error::other("an entry is neither in memory nor on disk")),
                }
            };
            inner.metrics.entries_read.inc();
            match inner.journal.slots.read(&place, bytes, crc) {
                Ok(payload) => {
                    let at = LogPosition { term, index };
                    return Ok(Some((LogEntry { at, payload }, bytes as usize)));
                }
                Err(error) => {
                    let mut log = locked(&self.log);
                    // The entry may have moved, or gone and its file been used again, meanwhile.
                    let same = log.get(index).filter(|entry| entry.serial == serial).and_then(|now| now.place.as_ref());
                    if same.is_none_or(|now| now.lsn != place.lsn) {
                        continue;
                    }
                    if error.kind() == io::ErrorKind::InvalidData {
                        self.fence(&mut log, inner, error.to_string());
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Notes that a segment failed a check. What is damaged is never served; the rest is until the group is fenced.
    pub(super) fn note_damage(&self, inner: &Inner, error: &io::Error) {
        let mut damage = locked(&self.damage);
        if damage.is_none() {
            inner.metrics.segments_damaged.inc();
            tracing::error!(group = %self.id, %error, "a segment is damaged");
            *damage = Some(error.to_string());
        }
    }

    /// What was found wrong with its segments.
    pub(super) fn damage(&self) -> Option<String> {
        locked(&self.damage).clone()
    }

    /// Marks the group as damaged: nothing of it is read or written any more.
    pub(super) fn fence(&self, log: &mut Log, inner: &Inner, reason: String) {
        if log.fenced.is_none() {
            tracing::error!(group = %self.id, reason, "a group is fenced: its data failed a check");
            inner.metrics.groups_fenced.inc();
            log.fenced = Some(reason);
        }
    }

    /// Writes entries that are in frames before `cutoff` again, so that these frames are no longer needed.
    pub(super) fn move_entries(self: &Arc<Self>, inner: &Inner, cutoff: u64) -> io::Result<()> {
        let old: Vec<(u64, u64)> = {
            let log = locked(&self.log);
            let is_old = |entry: &Entry| entry.place.as_ref().is_some_and(|place| place.lsn < cutoff);
            let entries = (log.first()..).zip(&log.entries);
            entries.filter(|(_, entry)| is_old(entry)).map(|(index, entry)| (index, entry.serial)).collect()
        };
        for (index, serial) in old {
            let Some((entry, _)) = self.read_one(inner, index, None)? else { continue };
            let log = locked(&self.log);
            if log.deleted || log.get(index).is_none_or(|now| now.serial != serial) {
                continue;
            }
            inner.metrics.entries_moved.inc();
            let record = Record::with(Kind::Entry, self.id.0, index, entry.at.term, entry.payload);
            drop(inner.journal.push(Item { group: Some(Arc::clone(self)), records: vec![record], serial, done: None }));
        }
        Ok(())
    }

    /// Bytes of entries in frames before `cutoff`.
    pub(super) fn old_bytes(&self, cutoff: u64) -> u64 {
        let log = locked(&self.log);
        let places = log.entries.iter().filter_map(|entry| entry.place.as_ref().map(|place| (place.lsn, entry.bytes)));
        places.filter(|(lsn, _)| *lsn < cutoff).map(|(_, bytes)| u64::from(bytes) + ENTRY_BYTES as u64).sum()
    }
}
