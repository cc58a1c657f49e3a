//! Reading the journal's files: which frames are whole, which are rotten, which were never finished.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::frame::{self, ALIGN_BYTES, Found, Frame};
use super::slots::{Used, slot_of};
use crate::host::{Disk, Open};

/// A frame or what is left of one, with the file it is in.
pub(super) enum Event {
    /// A whole frame.
    Frame(u32, Frame),
    /// A frame that changed after it was written; the groups in it, if they are known.
    Rotten(Option<Vec<u64>>),
}

/// A journal file.
pub(super) struct SlotScan {
    pub(super) bytes: u64,
    pub(super) used: Option<Used>,
}

/// All journal files.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) slots: BTreeMap<u32, SlotScan>,
    /// By LSN: what is at or after the floor.
    pub(super) events: BTreeMap<u64, Event>,
    /// The highest LSN seen, also of frames that were never finished.
    pub(super) lsn_max: u64,
    /// Unfinished frames after the last whole one.
    pub(super) torn: usize,
}

/// Reads all journal files; frames before `floor` are left over from an earlier use of their file.
pub(super) fn scan(disk: &dyn Disk, dir: &Path, floor: u64) -> io::Result<Scan> {
    let mut scan = Scan::default();
    if !disk.exists(dir) {
        return Ok(scan);
    }
    let mut torn = Vec::new();
    for name in disk.list(dir)? {
        let Some(slot) = slot_of(&name) else { continue };
        let file = disk.open(&dir.join(&name), Open::Read)?;
        let bytes = file.len()?;
        let content = file.read_exact_at(bytes as usize, 0)?;
        let mut used: Option<Used> = None;
        let mut note = |lsn: u64, prev_crc: u32| {
            let used = used.get_or_insert(Used { first_lsn: lsn, first_prev_crc: prev_crc, last_lsn: lsn });
            used.last_lsn = used.last_lsn.max(lsn);
        };
        let mut at = 0;
        // LSNs only grow within one use of a file: what is lower than the last is of an earlier use.
        let mut last = floor.saturating_sub(1);
        while at < bytes {
            let mut next = at + ALIGN_BYTES as u64;
            match frame::decode(&content, at) {
                Found::Whole(frame) if frame.lsn > last => {
                    (last, next) = (frame.lsn, at + frame.bytes);
                    scan.lsn_max = scan.lsn_max.max(frame.lsn);
                    note(frame.lsn, frame.prev_crc);
                    scan.events.insert(frame.lsn, Event::Frame(slot, frame));
                }
                Found::Rotten { lsn, groups, bytes } if lsn > last => {
                    // The LSN of a damaged header is what its stamp says; it may be damaged too, so that it is not
                    // used to tell what is old.
                    if let Some(bytes) = bytes {
                        (last, next) = (lsn, at + bytes);
                    }
                    note(lsn, 0);
                    scan.events.insert(lsn, Event::Rotten(groups));
                }
                Found::Torn { lsn } if lsn > last => {
                    note(lsn, 0);
                    torn.push(lsn);
                }
                _ => {}
            }
            at = next;
        }
        scan.slots.insert(slot, SlotScan { bytes, used });
    }
    let whole =
        scan.events.iter().rev().find(|(_, event)| matches!(event, Event::Frame(..))).map_or(0, |(lsn, _)| *lsn);
    scan.torn = torn.iter().filter(|lsn| **lsn > whole).count();
    scan.lsn_max = torn.into_iter().fold(scan.lsn_max, u64::max);
    Ok(scan)
}
