//! Opening, crashing, opening again; and what the tests share.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod damage;
mod full;
mod random;
mod snapshots;

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytesize::ByteSize;
use weft_batch::{Batch, HEADER_BYTES, Limits, Packer, Stamp};
use weft_cluster::ids::TopicId;
use weft_proto::v1::Event;

use super::*;
use crate::host::Disk;
use crate::host::testing::{Crash, MemoryDisk, TestHost};

const DIR: &str = "/data/node";
const GROUP: RaftGroup = RaftGroup(3);

/// Small files, so that a test meets every edge.
fn small() -> StorageConfig {
    StorageConfig {
        journal_slot_bytes: ByteSize::kib(64),
        journal_slots: 2,
        checkpoint_bytes: ByteSize::mib(64),
        checkpoint_interval: Duration::from_secs(3600),
        segment_bytes: ByteSize::kib(4),
        free_bytes_min: ByteSize::kib(1),
        ballast_bytes: ByteSize::b(0),
        log_cache_bytes: ByteSize::kib(8),
        ..StorageConfig::default()
    }
}

/// One life of a process: opens the folder, runs `life`, and is gone with all its tasks when that ends.
fn live<T>(
    disk: &MemoryDisk,
    config: &StorageConfig,
    life: impl AsyncFnOnce(Storage, Vec<RecoveredGroup>, Arc<TestHost>) -> T,
) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        disk.create_dir_all(Path::new("/data")).unwrap();
        let host = TestHost::new(disk.clone(), 7);
        let tasks = Tasks::new(host.clone());
        let (storage, recovered) = Storage::open(host.clone(), DIR.into(), config.clone(), &tasks).await.unwrap();
        life(storage, recovered, host).await
    })
}

/// Tries to open the folder.
fn open_error(disk: &MemoryDisk) -> io::Error {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let host = TestHost::new(disk.clone(), 7);
        let tasks = Tasks::new(host.clone());
        Storage::open(host, DIR.into(), small(), &tasks).await.err().expect("it must not open")
    })
}

fn at(term: u64, index: u64) -> LogPosition {
    LogPosition { term, index }
}

fn entry(term: u64, index: u64, payload: &[u8]) -> LogEntry {
    LogEntry { at: at(term, index), payload: Bytes::copy_from_slice(payload) }
}

/// A callback, and what resolves when it was called.
fn done() -> (Done, impl Future<Output = io::Result<()>>) {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    (Box::new(move |result| drop(sender.send(result))), async move { receiver.await.unwrap() })
}

async fn append(log: &GroupLog, entries: Vec<LogEntry>) -> io::Result<()> {
    let (done, written) = done();
    log.append(entries, done);
    written.await
}

async fn wait(call: impl FnOnce(Done)) {
    let (done, written) = done();
    call(done);
    written.await.unwrap();
}

fn partition(index: u32) -> PartitionId {
    PartitionId { topic: TopicId(5), index }
}

/// A stamped batch with one event of `bytes` bytes, as header and body.
fn batch(partition: PartitionId, base: u64, bytes: usize) -> (Bytes, Bytes) {
    let mut packer = Packer::new(Limits::default());
    let event =
        Event { key: base.to_le_bytes().to_vec().into(), data: vec![base as u8; bytes].into(), ..Event::default() };
    packer.push(&event, 1).unwrap();
    let batch = Batch::parse(packer.finish(None, None).unwrap()).unwrap();
    let stamp = Stamp {
        topic: partition.topic.0,
        partition: partition.index,
        base_offset: base,
        term: 1,
        raft_index: base,
        log_time_ms: 1,
    };
    (batch.stamp(stamp), batch.body())
}

fn joined((header, body): (Bytes, Bytes)) -> Bytes {
    assert_eq!(header.len(), HEADER_BYTES);
    [header, body].concat().into()
}

/// A replica that says what it is told to.
#[derive(Default)]
struct Replica {
    now: Mutex<Option<(LogPosition, Bytes)>>,
    told: Mutex<Option<LogPosition>>,
}

impl Checkpointed for Replica {
    fn freeze(&self) -> Option<(LogPosition, Bytes)> {
        locked(&self.now).take()
    }
    fn checkpointed(&self, at: LogPosition) {
        *locked(&self.told) = Some(at);
    }
}

impl Replica {
    fn set(&self, at: LogPosition, state: &[u8]) {
        *locked(&self.now) = Some((at, Bytes::copy_from_slice(state)));
    }
}

#[test]
fn a_folder_keeps_its_identity_and_counts_its_openings() {
    let disk = MemoryDisk::default();
    let first = live(&disk, &small(), async |storage, _, _| storage.identity());
    assert_eq!((first.cluster, first.generation.0), (None, 1));
    disk.crash(Crash::LoseAll);
    let second = live(&disk, &small(), async |storage, _, _| {
        storage.join_cluster(9).await.unwrap();
        storage.join_cluster(9).await.unwrap();
        assert_eq!(storage.join_cluster(8).await.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        storage.identity()
    });
    assert_eq!((second.node, second.secret, second.cluster), (first.node, first.secret, Some(9)));
    disk.crash(Crash::LoseAll);
    let third = live(&disk, &small(), async |storage, _, _| storage.identity());
    assert_eq!((third.cluster, third.generation.0), (Some(9), 3));
}

#[test]
fn unknown_versions_damage_and_a_second_process_are_refused() {
    let disk = MemoryDisk::default();
    live(&disk, &small(), async |_, _, _| {
        let error = open_error_in(&disk).await;
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(error.to_string().contains("LOCK"), "{error}");
    });
    let [format, copy] = ["FORMAT", "FORMAT.copy"].map(|name| Path::new(DIR).join(name));
    let both = |change: &dyn Fn(&mut Vec<u8>)| [&format, &copy].map(|path| disk.corrupt(path, change));
    both(&|bytes| bytes[8] = 9);
    let error = open_error(&disk).to_string();
    assert!(error.contains("has format version 9"), "{error}");
    both(&|bytes| bytes[8] = 1);
    both(&|bytes| bytes[30] ^= 4);
    assert!(open_error(&disk).to_string().contains("damaged"));
    disk.remove(&format).unwrap();
    disk.remove(&copy).unwrap();
    assert!(open_error(&disk).to_string().contains("FORMAT is missing"));
}

#[test]
fn a_damaged_identity_is_read_from_its_copy() {
    let disk = MemoryDisk::default();
    let first = live(&disk, &small(), async |storage, _, _| storage.identity());
    let [format, copy] = ["FORMAT", "FORMAT.copy"].map(|name| Path::new(DIR).join(name));
    for (number, damaged) in [&format, &copy].into_iter().cycle().take(4).enumerate() {
        match number < 2 {
            true => disk.flip(damaged, 30, 2),
            false => disk.remove(damaged).unwrap(),
        }
        let identity = live(&disk, &small(), async |storage, _, _| storage.identity());
        assert_eq!((identity.node, identity.secret), (first.node, first.secret));
        assert_eq!(identity.generation.0, number as u64 + 2, "both are written anew");
    }
    let stranger = MemoryDisk::default();
    live(&stranger, &small(), async |_, _, _| {});
    let other = identity::read(&stranger, Path::new(DIR)).unwrap().expect("made");
    identity::write(&stranger, Path::new(DIR), &Identity { node: NodeId(7), ..other }).unwrap();
    let foreign = stranger.bytes(&format).unwrap();
    disk.corrupt(&copy, |bytes| bytes.clone_from(&foreign));
    assert!(open_error(&disk).to_string().contains("files of two nodes are mixed"));
}

async fn open_error_in(disk: &MemoryDisk) -> io::Error {
    let host = TestHost::new(disk.clone(), 8);
    let tasks = Tasks::new(host.clone());
    Storage::open(host, DIR.into(), small(), &tasks).await.err().expect("it must not open")
}

#[test]
fn what_was_done_is_there_after_a_power_loss() {
    let disk = MemoryDisk::default();
    live(&disk, &small(), async |storage, recovered, _| {
        assert!(recovered.is_empty());
        let log = storage.create_group(GROUP, 11).await.unwrap();
        append(&log, (0..5).map(|index| entry(1, index, &[index as u8; 100])).collect()).await.unwrap();
        wait(|done| log.save_vote(StoredVote { term: 2, voted_for: Some(4), committed: true }, done)).await;
        wait(|done| log.truncate_after(Some(at(1, 2)), done)).await;
        log.save_committed(at(1, 1));
        append(&log, vec![entry(2, 3, b"after")]).await.unwrap();
        // Not waited for: it may be lost, whole.
        log.append(vec![entry(2, 4, b"unsure")], Box::new(|_| {}));
        let refused = append(&log, vec![entry(2, 9, b"gap")]).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    });
    disk.crash(Crash::LoseAll);
    live(&disk, &small(), async |storage, recovered, _| {
        assert_eq!(recovered.len(), 1);
        assert_eq!((recovered[0].group, recovered[0].replica), (GROUP, 11));
        assert_eq!((recovered[0].fenced.as_deref(), recovered[0].checkpoint.is_none()), (None, true));
        let log = storage.log(GROUP).unwrap();
        let state = log.state();
        assert!(matches!(state.last, Some(last) if last == at(2, 3) || last == at(2, 4)));
        assert_eq!(state.vote, Some(StoredVote { term: 2, voted_for: Some(4), committed: true }));
        assert_eq!((state.committed, state.purged), (Some(at(1, 1)), None));
        let read = log.read(0..4, usize::MAX).unwrap();
        assert_eq!(read.iter().map(|entry| entry.at.term).collect::<Vec<_>>(), [1, 1, 1, 2]);
        assert_eq!((&read[2].payload[..], &read[3].payload[..]), (&[2u8; 100][..], &b"after"[..]));
        assert_eq!(log.read(1..4, 150).unwrap().len(), 1);
        assert_eq!(log.read(1..4, 0).unwrap().len(), 1);
        assert_eq!(log.read(1..4, 205).unwrap().len(), 3);
    });
}

#[test]
fn frames_are_shared_and_callbacks_come_in_order() {
    let disk = MemoryDisk::default();
    live(&disk, &small(), async |storage, _, _| {
        let mut logs = Vec::new();
        for group in 1..=8 {
            logs.push(storage.create_group(RaftGroup(group), group).await.unwrap());
        }
        let before = storage.metrics().frames.get();
        let order = Arc::new(AtomicUsize::new(0));
        let (last, written) = done();
        for round in 0..10u64 {
            for (number, log) in logs.iter().enumerate() {
                let (order, due) = (Arc::clone(&order), round as usize * 8 + number);
                let check = move |result: io::Result<()>| {
                    result.unwrap();
                    assert_eq!(order.fetch_add(1, Ordering::Relaxed), due);
                };
                log.append(vec![entry(1, round, b"payload")], Box::new(check));
            }
        }
        logs[0].save_vote(StoredVote::default(), last);
        written.await.unwrap();
        assert_eq!(order.load(Ordering::Relaxed), 80);
        assert!(storage.metrics().frames.get() - before <= 3);
    });
}

#[test]
fn an_entry_larger_than_a_journal_file_gets_a_larger_file() {
    let disk = MemoryDisk::default();
    live(&disk, &small(), async |storage, _, _| {
        let log = storage.create_group(GROUP, 1).await.unwrap();
        for index in 0..20u64 {
            append(&log, vec![entry(1, index, &vec![index as u8; index as usize * 12_345])]).await.unwrap();
        }
        assert!(storage.metrics().entries_read.get() == 0);
    });
    disk.crash(Crash::LoseAll);
    live(&disk, &small(), async |storage, _, _| {
        let read = storage.log(GROUP).unwrap().read(0..99, usize::MAX).unwrap();
        assert_eq!(read.len(), 20);
        for (index, entry) in read.iter().enumerate() {
            assert_eq!(entry.payload, vec![index as u8; index * 12_345]);
        }
        assert_eq!(storage.metrics().entries_read.get(), 20);
    });
}

#[test]
fn a_blank_entry_at_the_end_of_a_frame_is_read_back_wherever_the_frame_ends() {
    let disk = MemoryDisk::default();
    // Every length of a frame modulo its sectors.
    live(&disk, &small(), async |storage, _, _| {
        let log = storage.create_group(GROUP, 1).await.unwrap();
        for bytes in 0..520u64 {
            let before = entry(1, bytes * 2, &vec![7; bytes as usize]);
            append(&log, vec![before, entry(1, bytes * 2 + 1, b"")]).await.unwrap();
        }
    });
    disk.crash(Crash::LoseAll);
    live(&disk, &small(), async |storage, _, _| {
        let read = storage.log(GROUP).unwrap().read(0..9_999, usize::MAX).unwrap();
        assert_eq!(read.len(), 1040);
        assert!(read.iter().skip(1).step_by(2).all(|blank| blank.payload.is_empty()));
    });
}

#[test]
fn a_checkpoint_frees_the_journal_and_a_stalled_group_does_not_pin_it() {
    let disk = MemoryDisk::default();
    let config = StorageConfig { checkpoint_bytes: ByteSize::kib(128), ..small() };
    live(&disk, &config, async |storage, _, _| {
        let stalled = storage.create_group(RaftGroup(1), 1).await.unwrap();
        append(&stalled, vec![entry(1, 0, b"old"), entry(1, 1, b"older")]).await.unwrap();
        let log = storage.create_group(GROUP, 2).await.unwrap();
        let replica = Arc::new(Replica::default());
        storage.register(GROUP, replica.clone());
        for round in 0..40u64 {
            for index in round * 4..round * 4 + 4 {
                append(&log, vec![entry(1, index, &[9; 8000])]).await.unwrap();
            }
            let last = at(1, round * 4 + 3);
            wait(|done| log.purge(last, done)).await;
            assert!(log.state().purged < Some(last), "no checkpoint covers it yet");
            replica.set(last, &round.to_le_bytes());
            storage.checkpoint().await.unwrap();
            assert_eq!(*locked(&replica.told), Some(last));
            wait(|done| log.purge(last, done)).await;
            assert_eq!(log.state().purged, Some(last));
        }
        assert!(storage.metrics().slots_recycled.get() > 10);
        assert!(storage.metrics().entries_moved.get() >= 2);
    });
    let files = disk.files().iter().filter(|path| path.to_string_lossy().ends_with(".wal")).count();
    assert!(files <= 8, "{files} journal files");
    disk.crash(Crash::LoseAll);
    live(&disk, &config, async |storage, recovered, _| {
        assert!(recovered.iter().all(|group| group.fenced.is_none()), "{recovered:?}");
        let (position, state) = recovered[1].checkpoint.clone().unwrap();
        assert_eq!((position, &state[..]), (at(1, 159), &39u64.to_le_bytes()[..]));
        let stalled = storage.log(RaftGroup(1)).unwrap().read(0..9, usize::MAX).unwrap();
        assert_eq!(stalled, vec![entry(1, 0, b"old"), entry(1, 1, b"older")]);
        assert_eq!(storage.log(GROUP).unwrap().state().last, Some(at(1, 159)));
    });
}

/// What waits takes several frames, and the process dies between two of them.
#[test]
fn nothing_is_committed_that_the_log_has_not() {
    let mut cut = 0;
    for yields in 0..60 {
        let disk = MemoryDisk::default();
        live(&disk, &small(), async |storage, _, _| {
            let log = storage.create_group(GROUP, 1).await.unwrap();
            for index in 0..8 {
                log.append(vec![entry(1, index, &[7; 20_000])], Box::new(|_| ()));
            }
            log.save_committed(at(1, 7));
            for _ in 0..yields {
                tokio::task::yield_now().await;
            }
        });
        disk.crash(Crash::LoseAll);
        live(&disk, &small(), async |storage, _, _| {
            let state = storage.log(GROUP).unwrap().state();
            assert!(state.committed.is_none() || state.committed <= state.last, "{yields} yields: {state:?}");
            cut += usize::from(state.last.is_some_and(|last| last < at(1, 7)));
        });
    }
    assert!(cut > 0, "no crash fell between two frames");
}

#[test]
fn journal_files_made_for_a_burst_are_given_back() {
    let disk = MemoryDisk::default();
    let files = || disk.files().iter().filter(|path| path.to_string_lossy().ends_with(".wal")).count();
    let config = StorageConfig { checkpoint_bytes: ByteSize::mib(64), ..small() };
    live(&disk, &config, async |storage, _, _| {
        let log = storage.create_group(GROUP, 2).await.unwrap();
        let replica = Arc::new(Replica::default());
        storage.register(GROUP, replica.clone());
        for index in 0..400u64 {
            append(&log, vec![entry(1, index, &[9; 8000])]).await.unwrap();
        }
        let most = files();
        assert!(most > 10, "{most} files hold the burst");
        for round in 400..440u64 {
            append(&log, vec![entry(1, round, b"little")]).await.unwrap();
            replica.set(at(1, round), &round.to_le_bytes());
            storage.checkpoint().await.unwrap();
            wait(|done| log.purge(at(1, round), done)).await;
        }
        assert!(files() <= config.journal_slots as usize + 1, "{} of {most} are left", files());
    });
    disk.crash(Crash::LoseAll);
    live(&disk, &config, async |storage, recovered, _| {
        assert!(recovered.iter().all(|group| group.fenced.is_none()), "{recovered:?}");
        assert_eq!(storage.log(GROUP).unwrap().state().last, Some(at(1, 439)));
    });
}

#[test]
fn groups_come_and_go() {
    let disk = MemoryDisk::default();
    live(&disk, &small(), async |storage, _, _| {
        let log = storage.create_group(GROUP, 1).await.unwrap();
        append(&log, vec![entry(1, 0, b"first")]).await.unwrap();
        storage.create_group(GROUP, 1).await.unwrap();
        let other = storage.create_group(GROUP, 2).await.err().unwrap();
        assert_eq!(other.kind(), io::ErrorKind::AlreadyExists);
        storage.checkpoint().await.unwrap();
        storage.delete_group(GROUP).await.unwrap();
        assert_eq!(append(&log, vec![entry(1, 1, b"late")]).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        let log = storage.create_group(GROUP, 2).await.unwrap();
        assert_eq!(log.state(), LogState::default());
        append(&log, vec![entry(5, 0, b"second")]).await.unwrap();
        storage.create_group(RaftGroup(4), 3).await.unwrap();
        storage.delete_group(RaftGroup(4)).await.unwrap();
    });
    for _ in 0..3 {
        disk.crash(Crash::LoseAll);
        live(&disk, &small(), async |storage, recovered, _| {
            assert_eq!(recovered.iter().map(|group| (group.group, group.replica)).collect::<Vec<_>>(), [(GROUP, 2)]);
            assert_eq!(storage.log(GROUP).unwrap().read(0..9, 99).unwrap(), vec![entry(5, 0, b"second")]);
            storage.checkpoint().await.unwrap();
        });
    }
}

#[test]
fn segments_roll_are_read_and_survive() {
    let disk = MemoryDisk::default();
    let part = partition(0);
    let expected: Vec<_> = (0..40).map(|base| joined(batch(part, base, 400))).collect();
    live(&disk, &small(), async |storage, _, _| {
        storage.create_group(GROUP, 1).await.unwrap();
        let replica = Arc::new(Replica::default());
        storage.register(GROUP, replica.clone());
        let segments = storage.segments(GROUP);
        for base in 0..40 {
            let (header, body) = batch(part, base, 400);
            segments.append(part, Offset(base), header, body).unwrap();
            if base == 20 {
                segments.flush().unwrap();
                replica.set(at(1, 20), b"at 20");
                storage.checkpoint().await.unwrap();
            }
        }
        segments.flush().unwrap();
        assert_eq!(
            segments.read(part, Offset(0), 1 << 14).unwrap(),
            expected[..segments.read(part, Offset(0), 1 << 14).unwrap().len()]
        );
        for from in 0..40 {
            assert_eq!(segments.read(part, Offset(from), 0).unwrap(), expected[from as usize..=from as usize]);
        }
        assert!(segments.read(part, Offset(40), 999).unwrap().is_empty());
        let (header, body) = batch(part, 42, 3);
        assert_eq!(segments.append(part, Offset(42), header, body).unwrap_err().kind(), io::ErrorKind::InvalidData);
    });
    disk.crash(Crash::Some(3));
    live(&disk, &small(), async |storage, recovered, _| {
        assert_eq!(recovered[0].fenced, None);
        assert_eq!(recovered[0].checkpoint.as_ref().unwrap().0, at(1, 20));
        let segments = storage.segments(GROUP);
        // The log is applied again from the checkpoint on, and a little from before it.
        for base in 18..40 {
            let (header, body) = batch(part, base, 400);
            segments.append(part, Offset(base), header, body).unwrap();
        }
        let (header, body) = batch(part, 19, 401);
        assert_eq!(segments.append(part, Offset(19), header, body).unwrap_err().kind(), io::ErrorKind::InvalidData);
        segments.flush().unwrap();
        let mut read = Vec::new();
        while read.len() < 40 {
            read.extend(segments.read(part, Offset(read.len() as u64), 3000).unwrap());
        }
        assert_eq!(read, expected);
        assert_eq!(segments.bytes(part), expected.iter().map(|batch| batch.len() as u64).sum::<u64>());
    });
}

#[test]
fn little_waits_before_it_is_written_and_is_read_meanwhile() {
    let disk = MemoryDisk::default();
    let config = StorageConfig { segment_bytes: ByteSize::mib(1), ..small() };
    live(&disk, &config, async |storage, _, _| {
        storage.create_group(GROUP, 1).await.unwrap();
        let segments = storage.segments(GROUP);
        let parts = [partition(0), partition(1)];
        let in_files = || {
            let files = disk.files().into_iter().filter(|path| path.extension().is_some_and(|end| end == "seg"));
            files.filter_map(|path| disk.bytes(&path)).map(|bytes| bytes.len()).sum::<usize>()
        };
        let mut appended = 0;
        for base in 0..80 {
            for part in parts {
                let (header, body) = batch(part, base, 1000);
                appended += header.len() + body.len();
                segments.append(part, Offset(base), header, body).unwrap();
                segments.flush_much().unwrap();
                let waits = appended - in_files();
                assert!(waits < 128 << 10, "{waits} bytes wait");
            }
            // From what is written and what waits, at once and in pieces.
            for part in parts {
                let expected: Vec<_> = (0..=base).map(|base| joined(batch(part, base, 1000))).collect();
                assert_eq!(segments.read(part, Offset(0), 1 << 20).unwrap(), expected);
                assert_eq!(segments.read(part, Offset(base), 1).unwrap(), expected[base as usize..]);
                assert_eq!(segments.read(part, Offset(0), 3000).unwrap(), expected[..expected.len().min(2)]);
            }
        }
        assert!(in_files() > 0 && in_files() < appended, "some of it waits");
        let bytes: u64 = parts.iter().map(|part| segments.bytes(*part)).sum();
        assert_eq!(bytes, appended as u64);
        segments.flush().unwrap();
        assert_eq!(in_files(), appended);
    });
}

#[test]
fn a_broken_disk_a_hung_disk_and_a_full_disk() {
    let disk = MemoryDisk::default();
    live(&disk, &small(), async |storage, _, host| {
        let log = storage.create_group(GROUP, 1).await.unwrap();
        disk.set_broken(Some("journal"));
        log.append(vec![entry(1, 0, b"x")], Box::new(|_| panic!("it must not be acked")));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(host.aborted().unwrap().contains("input/output error"));
    });
    disk.set_broken(None);
    let config = StorageConfig { hang_after: Duration::from_millis(30), ..small() };
    live(&disk, &config, async |storage, _, host| {
        let log = storage.log(GROUP).unwrap();
        disk.set_hang(true);
        log.append(vec![entry(1, log.state().last.map_or(0, |last| last.index + 1), b"x")], Box::new(|_| {}));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(host.aborted().unwrap().contains("the disk hangs"));
    });
}

#[test]
fn a_closed_storage_refuses_and_lets_go_of_the_folder() {
    let disk = MemoryDisk::default();
    live(&disk, &small(), async |storage, _, _| {
        let log = storage.create_group(GROUP, 1).await.unwrap();
        append(&log, vec![entry(1, 0, b"x")]).await.unwrap();
        storage.close().await;
        assert_eq!(append(&log, vec![entry(1, 1, b"y")]).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let host = TestHost::new(disk.clone(), 8);
        let tasks = Tasks::new(host.clone());
        let (again, _) = Storage::open(host, DIR.into(), small(), &tasks).await.unwrap();
        assert_eq!(again.log(GROUP).unwrap().state().last, Some(at(1, 0)));
    });
}
