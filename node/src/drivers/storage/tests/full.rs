//! Full disks: what waits, what is refused, what is given back.

use super::*;

fn used(disk: &MemoryDisk) -> u64 {
    disk.files().iter().filter_map(|path| disk.bytes(path)).map(|bytes| bytes.len() as u64).sum()
}

fn journal_files(disk: &MemoryDisk) -> usize {
    disk.files().iter().filter(|path| path.extension().is_some_and(|extension| extension == "wal")).count()
}

/// Waits until something holds; the test hangs if it never does.
async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Lets the storage make the journal files that it wants to have.
async fn settled(storage: &Storage, disk: &MemoryDisk) {
    until(|| storage.inner.journal.slots.count().0 >= 2 && journal_files(disk) >= 2).await;
}

#[test]
fn segments_wait_for_room_and_then_go_on() {
    let disk = MemoryDisk::default();
    live(&disk, &small(), async |storage, _, host| {
        storage.create_group(GROUP, 1).await.unwrap();
        settled(&storage, &disk).await;
        let segments = storage.segments(GROUP);
        let append = |base: u64| {
            let (header, body) = batch(partition(0), base, 1500);
            segments.append(partition(0), Offset(base), header, body)
        };
        append(0).unwrap();
        segments.flush().unwrap();
        disk.set_capacity(Some(used(&disk) + 2000));
        // More than one file of 4 KiB.
        (1..9).for_each(|base| append(base).unwrap());
        for _ in 0..3 {
            assert!(is_full(&segments.flush().unwrap_err()));
        }
        let expected: Vec<Bytes> = (0..9).map(|base| joined(batch(partition(0), base, 1500))).collect();
        let all = || {
            let stored = segments.read(partition(0), Offset(0), 1 << 20).unwrap();
            let more = segments.read(partition(0), Offset(stored.len() as u64), 1 << 20).unwrap();
            [stored, more].concat()
        };
        assert_eq!(all(), expected, "what waits can be read");
        disk.set_capacity(None);
        segments.flush().unwrap();
        assert_eq!(all(), expected);
        assert_eq!(host.aborted(), None);
    });
}

#[test]
fn the_journal_waits_for_room_and_then_goes_on() {
    let disk = MemoryDisk::default();
    live(&disk, &small(), async |storage, _, host| {
        let log = storage.create_group(GROUP, 1).await.unwrap();
        settled(&storage, &disk).await;
        let files = journal_files(&disk);
        disk.set_capacity(Some(used(&disk) + 500));
        // Larger than any file that is there.
        let (done, written) = done();
        log.append(vec![entry(1, 0, &vec![7; 200 << 10])], done);
        let mut written = std::pin::pin!(written);
        until(|| storage.full()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(futures::poll!(written.as_mut()).is_pending());
        assert_eq!(journal_files(&disk), files, "nothing is left of a file that there was no room for");
        disk.set_capacity(None);
        written.await.unwrap();
        assert_eq!(host.aborted(), None);
    });
    live(&disk, &small(), async |storage, _, _| {
        assert_eq!(storage.log(GROUP).unwrap().state().last, Some(at(1, 0)));
    });
}

#[test]
fn a_checkpoint_without_room_is_taken_again() {
    let disk = MemoryDisk::default();
    live(&disk, &small(), async |storage, _, host| {
        storage.create_group(GROUP, 1).await.unwrap();
        settled(&storage, &disk).await;
        disk.set_capacity(Some(used(&disk)));
        assert!(is_full(&storage.checkpoint().await.unwrap_err()));
        disk.set_capacity(None);
        storage.checkpoint().await.unwrap();
        assert_eq!(host.aborted(), None);
    });
}

#[test]
fn the_watermark_is_left_a_little_above_it() {
    let disk = MemoryDisk::default();
    let config = StorageConfig { free_bytes_min: ByteSize::kib(64), ..small() };
    live(&disk, &config, async |storage, _, _| {
        settled(&storage, &disk).await;
        let mut told = storage.full_watch();
        let mut leave = async |room: u64, full: bool| {
            disk.set_capacity(Some(used(&disk) + room));
            storage.inner.space.due.notify_one();
            told.wait_for(|told| *told == full).await.unwrap();
            assert_eq!(storage.full(), full);
        };
        leave(60 << 10, true).await;
        leave(80 << 10, false).await;
        leave(63 << 10, true).await;
        disk.set_capacity(Some(used(&disk) + (66 << 10)));
        space::look(&storage.inner).await;
        assert!(storage.full(), "66 KiB are above the watermark, and not enough above it");
    });
}

/// Between two looks at the disk.
#[test]
fn what_was_taken_since_the_last_look_counts() {
    let disk = MemoryDisk::default();
    disk.set_capacity(Some(1 << 20));
    let config = StorageConfig { free_bytes_min: ByteSize::kib(64), ..small() };
    live(&disk, &config, async |storage, _, _| {
        let log = storage.create_group(GROUP, 1).await.unwrap();
        settled(&storage, &disk).await;
        assert!(!storage.full());
        let (done, _written) = done();
        log.append(vec![entry(1, 0, &vec![7; 900 << 10])], done);
        assert!(storage.full());
    });
}

#[test]
fn the_ballast_is_kept_while_there_is_room_and_given_back_at_the_end() {
    let disk = MemoryDisk::default();
    let config = StorageConfig { free_bytes_min: ByteSize::kib(64), ballast_bytes: ByteSize::kib(32), ..small() };
    let there = || disk.files().iter().any(|path| path.ends_with("BALLAST"));
    live(&disk, &config, async |storage, _, _| {
        until(there).await;
        settled(&storage, &disk).await;
        disk.set_capacity(Some(used(&disk) + (8 << 10)));
        storage.inner.space.due.notify_one();
        until(|| !there()).await;
        assert!(storage.full());
    });
    // Nothing is left: half the ballast is not for segments.
    disk.set_capacity(Some(used(&disk) + (12 << 10)));
    live(&disk, &config, async |storage, _, _| {
        storage.create_group(GROUP, 1).await.unwrap();
        let segments = storage.segments(GROUP);
        let (header, body) = batch(partition(0), 0, 100);
        segments.append(partition(0), Offset(0), header, body).unwrap();
        assert!(segments.flush().unwrap_err().to_string().contains("kept for the journal"));
        disk.set_capacity(None);
        storage.inner.space.due.notify_one();
        until(|| segments.flush().is_ok()).await;
        until(there).await;
    });
}

#[test]
fn a_snapshot_that_does_not_fit_is_not_begun() {
    let disk = MemoryDisk::default();
    let config = StorageConfig { free_bytes_min: ByteSize::kib(64), ..small() };
    live(&disk, &config, async |storage, _, _| {
        storage.create_group(GROUP, 1).await.unwrap();
        settled(&storage, &disk).await;
        let wanted = [SegmentInfo { partition: partition(0), base: Offset(0), bytes: 20 << 10, crc: 1 }];
        assert!(storage.segments(GROUP).stage(&wanted).is_ok());
        disk.set_capacity(Some(used(&disk) + (80 << 10)));
        space::look(&storage.inner).await;
        assert!(is_full(&storage.segments(GROUP).stage(&wanted).err().unwrap()));
        assert!(storage.segments(GROUP).stage(&[]).is_ok());
    });
}

#[test]
fn who_gets_no_descriptor_waits_and_the_disk_is_not_broken() {
    let disk = MemoryDisk::default();
    let stored = joined(batch(partition(0), 0, 1500));
    live(&disk, &small(), async |storage, _, host| {
        let log = storage.create_group(GROUP, 1).await.unwrap();
        settled(&storage, &disk).await;
        let replica = Arc::new(Replica::default());
        storage.register(GROUP, replica.clone());
        append(&log, vec![entry(1, 0, b"first")]).await.unwrap();
        let segments = storage.segments(GROUP);
        let (header, body) = batch(partition(0), 0, 1500);
        segments.append(partition(0), Offset(0), header, body).unwrap();
        disk.set_no_descriptors(true);
        assert!(is_full(&segments.flush().unwrap_err()));
        disk.set_no_descriptors(false);
        segments.flush().unwrap();
        disk.set_no_descriptors(true);
        replica.set(at(1, 0), b"state");
        assert!(is_full(&storage.checkpoint().await.unwrap_err()), "it is tried again");
        // Larger than any journal file that is there.
        let (done, written) = done();
        log.append(vec![entry(1, 1, &vec![7; 200 << 10])], done);
        let mut written = std::pin::pin!(written);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(futures::poll!(written.as_mut()).is_pending());
        disk.set_no_descriptors(false);
        written.await.unwrap();
        replica.set(at(1, 0), b"state");
        storage.checkpoint().await.unwrap();
        assert_eq!(host.aborted(), None);
    });
    // What the first checkpoint could not sync, the next one has.
    disk.crash(Crash::LoseAll);
    live(&disk, &small(), async |storage, _, _| {
        assert_eq!(storage.log(GROUP).unwrap().state().last, Some(at(1, 1)));
        let read = storage.segments(GROUP).read(partition(0), Offset(0), 1 << 20).unwrap();
        assert_eq!(read, vec![stored.clone()]);
    });
}

#[test]
fn segment_files_that_are_open_are_bounded() {
    let disk = MemoryDisk::default();
    let config = StorageConfig { files_open_max: 16, ..small() };
    live(&disk, &config, async |storage, _, _| {
        storage.create_group(GROUP, 1).await.unwrap();
        let segments = storage.segments(GROUP);
        for round in 0..2 {
            for index in 0..40 {
                let (header, body) = batch(partition(index), round, 100);
                segments.append(partition(index), Offset(round), header, body).unwrap();
                segments.flush().unwrap();
                assert!(storage.metrics().files_open.get() <= 16);
            }
        }
        assert_eq!(storage.metrics().files_open.get(), 16);
        // One that is open is given up for one that is to be opened.
        assert_eq!(segments.read(partition(0), Offset(0), 1 << 20).unwrap().len(), 2);
    });
}
