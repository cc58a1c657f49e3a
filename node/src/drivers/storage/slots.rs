//! The journal's files: a ring of pre-written slots that are used again.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::envelope::invalid;
use super::frame::{self, ALIGN_BYTES, Place};
use super::locked;
use crate::host::{Disk, DiskFile, Open};

/// Zeros are written in pieces of this size.
const ZEROS_BYTES: usize = 1 << 20;

/// The frames that a slot holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    pub(super) first_lsn: u64,
    pub(super) first_prev_crc: u32,
    pub(super) last_lsn: u64,
}

/// One journal file.
pub(super) struct Slot {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) bytes: u64,
    /// `None`: free.
    pub(super) used: Option<Used>,
}

/// All journal files of a node.
pub(super) struct Slots {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    slot_bytes: u64,
    ring: Mutex<Ring>,
}

#[derive(Default)]
struct Ring {
    slots: BTreeMap<u32, Slot>,
    id_next: u32,
    active: Option<u32>,
    /// Where the next frame goes in the active slot.
    at: u64,
}

/// Where a frame is to be written.
pub(super) struct Target {
    pub(super) slot: u32,
    pub(super) at: u64,
    pub(super) file: Arc<dyn DiskFile>,
}

/// The name of a slot's file.
pub(super) fn file_name(slot: u32) -> String {
    format!("J-{slot:08}.wal")
}

/// The slot of a file name.
pub(super) fn slot_of(name: &Path) -> Option<u32> {
    name.to_str()?.strip_prefix("J-")?.strip_suffix(".wal")?.parse().ok()
}

impl Slots {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: PathBuf, slot_bytes: u64, slots: BTreeMap<u32, Slot>) -> Slots {
        let id_next = slots.keys().next_back().map_or(0, |last| last + 1);
        let slot_bytes = slot_bytes.max(ALIGN_BYTES as u64).next_multiple_of(ALIGN_BYTES as u64);
        Slots { disk, dir, slot_bytes, ring: Mutex::new(Ring { slots, id_next, active: None, at: 0 }) }
    }

    /// A place for a frame of `bytes` bytes: in the active slot, else in a free one that is large enough, else in a
    /// new one, as large as the frame if need be.
    pub(super) fn place(&self, bytes: u64, lsn: u64, prev_crc: u32) -> io::Result<Target> {
        if let Some(target) = locked(&self.ring).place(bytes, lsn, prev_crc) {
            return Ok(target);
        }
        self.add(bytes, false)?;
        locked(&self.ring)
            .place(bytes, lsn, prev_crc)
            .ok_or_else(|| io::Error::other("a journal file just made is not free"))
    }

    /// Makes a slot with room for `bytes`. `zeros`: written to its end, so that later syncs change no metadata.
    ///
    /// # Errors
    /// `StorageFull`: no trace is left.
    pub(super) fn add(&self, bytes: u64, zeros: bool) -> io::Result<()> {
        let id = {
            let mut ring = locked(&self.ring);
            ring.id_next += 1;
            ring.id_next - 1
        };
        let bytes = bytes.max(self.slot_bytes);
        let path = self.dir.join(file_name(id));
        let file = self.disk.open(&path, Open::Replace)?;
        if let Err(error) = fill(&*file, bytes, zeros).and_then(|()| self.disk.sync_dir(&self.dir)) {
            // What a full disk has left of it is given back.
            drop(self.disk.remove(&path));
            return Err(error);
        }
        locked(&self.ring).slots.insert(id, Slot { file, bytes, used: None });
        Ok(())
    }

    /// How many slots are there, and how many of them are free.
    pub(super) fn count(&self) -> (usize, usize) {
        let ring = locked(&self.ring);
        (ring.slots.len(), ring.slots.values().filter(|slot| slot.used.is_none()).count())
    }

    /// A frame was written where `place` said.
    pub(super) fn written(&self, target: &Target, bytes: u64, lsn: u64) {
        let mut ring = locked(&self.ring);
        assert_eq!((ring.active, ring.at), (Some(target.slot), target.at), "one frame is written at a time");
        ring.at += bytes;
        let used = ring.slots.get_mut(&target.slot).and_then(|slot| slot.used.as_mut());
        used.expect("the active slot is in use").last_lsn = lsn;
    }

    /// The first frame of the slot that holds `lsn` or what is before it: its LSN and `prev_crc`. `None`: no slot is used.
    pub(super) fn floor(&self, lsn: u64) -> Option<(u64, u32)> {
        let ring = locked(&self.ring);
        let used = ring.slots.values().filter_map(|slot| slot.used);
        used.filter(|used| used.first_lsn <= lsn)
            .max_by_key(|used| used.first_lsn)
            .map(|used| (used.first_lsn, used.first_prev_crc))
    }

    /// Frees all slots whose frames are before `floor`; returns how many.
    pub(super) fn recycle(&self, floor: u64) -> usize {
        let mut ring = locked(&self.ring);
        let active = ring.active;
        let old = ring.slots.iter_mut().filter(|(id, slot)| {
            Some(**id) != active && slot.used.is_some_and(|used| used.last_lsn < floor && used.first_lsn < floor)
        });
        old.map(|(_, slot)| slot.used = None).count()
    }

    /// Gives back free slots when there are more than `keep`, the largest first, and always leaves one free: half of those
    /// too many, so that a load that comes in bursts does not make all of them again and again.
    pub(super) fn shrink(&self, keep: usize) -> io::Result<()> {
        let mut free: Vec<(u64, u32)> = Vec::new();
        {
            let mut ring = locked(&self.ring);
            free.extend(ring.slots.iter().filter(|(_, slot)| slot.used.is_none()).map(|(id, slot)| (slot.bytes, *id)));
            free.sort_unstable_by(|one, other| other.cmp(one));
            let too_many = ring.slots.len().saturating_sub(keep);
            free.truncate(too_many.div_ceil(2).min(free.len().saturating_sub(1)));
            free.iter().for_each(|(_, id)| drop(ring.slots.remove(id)));
        }
        free.iter().try_for_each(|(_, id)| self.disk.remove(&self.dir.join(file_name(*id))))
    }

    /// Bytes of used slots, and (first LSN, bytes) of each, oldest first.
    pub(super) fn used(&self) -> Vec<(u64, u64)> {
        let ring = locked(&self.ring);
        let mut used: Vec<_> =
            ring.slots.values().filter_map(|slot| slot.used.map(|used| (used.first_lsn, slot.bytes))).collect();
        used.sort_unstable();
        used
    }

    /// Reads a payload back and checks it.
    ///
    /// # Errors
    /// `InvalidData`: it is not what was written.
    pub(super) fn read(&self, place: &Place, bytes: u32, crc: u32) -> io::Result<Bytes> {
        if bytes == 0 {
            // A blank entry has no bytes: at a frame's end its place may lie in a sector that the frame has not.
            return Ok(Bytes::new());
        }
        let file = locked(&self.ring).slots.get(&place.slot).map(|slot| Arc::clone(&slot.file));
        let damaged = || {
            invalid(format!(
                "{} is damaged: the entry at byte {} of frame {} does not match its CRC",
                self.dir.join(file_name(place.slot)).display(),
                place.at,
                place.lsn
            ))
        };
        let (start, count) = frame::span(place.at, bytes);
        let sectors = file.ok_or_else(damaged)?.read_exact_at(count, place.frame + start)?;
        let payload = frame::unstripe(&sectors, place.lsn, place.at, bytes).ok_or_else(damaged)?;
        if crc32c::crc32c(&payload) != crc {
            return Err(damaged());
        }
        Ok(payload)
    }
}

/// Sets the space of a slot aside: frames that are written into it meet no full disk.
fn fill(file: &dyn DiskFile, bytes: u64, zeros: bool) -> io::Result<()> {
    file.allocate(bytes)?;
    if zeros {
        let block = vec![0; ZEROS_BYTES];
        let mut at = 0;
        while at < bytes {
            let count = (bytes - at).min(ZEROS_BYTES as u64);
            file.write_at(&block[..count as usize], at)?;
            at += count;
        }
    }
    file.sync_data()
}

impl Ring {
    fn place(&mut self, bytes: u64, lsn: u64, first_prev_crc: u32) -> Option<Target> {
        let fits = |ring: &Ring, id: u32, at: u64| ring.slots.get(&id).is_some_and(|slot| at + bytes <= slot.bytes);
        if !self.active.is_some_and(|id| fits(self, id, self.at)) {
            let free = self.slots.iter().filter(|(_, slot)| slot.used.is_none() && slot.bytes >= bytes);
            // The smallest that fits: large ones wait for large frames.
            let (id, _) = free.min_by_key(|(id, slot)| (slot.bytes, **id))?;
            let id = *id;
            let slot = self.slots.get_mut(&id).expect("just found");
            slot.used = Some(Used { first_lsn: lsn, first_prev_crc, last_lsn: lsn });
            (self.active, self.at) = (Some(id), 0);
        }
        let id = self.active?;
        Some(Target { slot: id, at: self.at, file: Arc::clone(&self.slots.get(&id)?.file) })
    }
}
