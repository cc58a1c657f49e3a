//! Snapshots: pinned files on one side, staged files on the other.

use super::*;

/// A disk with a replica that has `events` events in two partitions.
fn source(events: u64) -> MemoryDisk {
    let disk = MemoryDisk::default();
    live(&disk, &small(), async |storage, _, _| {
        storage.create_group(GROUP, 1).await.unwrap();
        let replica = Arc::new(Replica::default());
        storage.register(GROUP, replica.clone());
        fill(&storage.segments(GROUP), 0..events);
        replica.set(at(1, 1), b"source");
        storage.checkpoint().await.unwrap();
    });
    disk
}

fn fill(segments: &Segments, events: Range<u64>) {
    for base in events {
        for part in [partition(0), partition(1)] {
            let (header, body) = batch(part, base, 700);
            segments.append(part, Offset(base), header, body).unwrap();
        }
    }
    segments.flush().unwrap();
}

fn check(segments: &Segments, events: u64) {
    for part in [partition(0), partition(1)] {
        for base in 0..events {
            assert_eq!(segments.read(part, Offset(base), 0).unwrap(), vec![joined(batch(part, base, 700))]);
        }
        assert!(segments.read(part, Offset(events), 0).unwrap().is_empty());
    }
}

#[test]
fn a_snapshot_is_installed_whole_or_not_at_all() {
    let from = source(30);
    let mut files = Vec::new();
    let content: Vec<(SegmentInfo, Bytes)> = live(&from, &small(), async |storage, _, _| {
        let segments = storage.segments(GROUP);
        let (infos, pin) = segments.manifest().unwrap();
        segments.drop_partition(partition(1)).unwrap();
        for _ in 0..4 {
            storage.checkpoint().await.unwrap();
        }
        let read = |info: &SegmentInfo| {
            let half = info.bytes as usize / 2;
            let parts =
                [segments.read_file(info, 0, half).unwrap(), segments.read_file(info, half as u64, 1 << 20).unwrap()];
            (info.clone(), Bytes::from(parts.concat()))
        };
        let content: Vec<_> = infos.iter().map(read).collect();
        drop(pin);
        for _ in 0..4 {
            storage.checkpoint().await.unwrap();
        }
        assert!(
            infos
                .iter()
                .filter(|info| info.partition == partition(1))
                .all(|info| segments.read_file(info, 0, 1).is_err())
        );
        content
    });
    files.extend(content.iter().map(|(info, _)| info.clone()));
    assert!(files.len() > 6);

    let to = source(12);
    live(&to, &small(), async |storage, _, _| {
        let log = storage.log(GROUP).unwrap();
        append(&log, vec![entry(1, 0, b"a"), entry(1, 1, b"b"), entry(1, 2, b"stale")]).await.unwrap();
        let segments = storage.segments(GROUP);
        let mut staging = segments.stage(&files).unwrap();
        assert!(!staging.missing.is_empty() && staging.missing.len() < files.len());
        let missing = staging.missing.clone();
        staging.write(&missing[0], 0, b"junk").unwrap();
        assert!(staging.write(&missing[0], missing[0].bytes, b"too far").is_err());
        assert_eq!(staging.commit(at(2, 9), Bytes::new()).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        check(&segments, 12);

        let mut staging = segments.stage(&files).unwrap();
        for info in staging.missing.clone() {
            let bytes = &content.iter().find(|(of, _)| *of == info).unwrap().1;
            staging.write(&info, 5, &bytes[5..]).unwrap();
            staging.write(&info, 0, &bytes[..5]).unwrap();
        }
        staging.commit(at(2, 9), Bytes::from_static(b"installed")).await.unwrap();
        check(&segments, 30);
        let state = log.state();
        assert_eq!((state.purged, state.last), (Some(at(2, 9)), Some(at(2, 9))));
        append(&log, vec![entry(2, 10, b"next")]).await.unwrap();
    });
    for round in 0..3 {
        to.crash(Crash::LoseAll);
        live(&to, &small(), async |storage, recovered, _| {
            assert_eq!(recovered[0].fenced, None);
            let (position, state) = recovered[0].checkpoint.clone().unwrap();
            assert_eq!((position, &state[..]), (at(2, 9), &b"installed"[..]));
            check(&storage.segments(GROUP), 30);
            let log = storage.log(GROUP).unwrap();
            assert_eq!(log.read(0..99, 99).unwrap(), vec![entry(2, 10, b"next")]);
            if round == 1 {
                storage.checkpoint().await.unwrap();
            }
        });
    }
}

#[test]
fn a_crash_around_the_switch_leaves_the_old_or_the_new() {
    let from = source(20);
    let content: Vec<(SegmentInfo, Bytes)> = live(&from, &small(), async |storage, _, _| {
        let segments = storage.segments(GROUP);
        let (infos, _pin) = segments.manifest().unwrap();
        infos.iter().map(|info| (info.clone(), segments.read_file(info, 0, 1 << 20).unwrap())).collect()
    });
    let files: Vec<_> = content.iter().map(|(info, _)| info.clone()).collect();
    let (mut old, mut new) = (0, 0);
    for yields in 0..24 {
        let to = source(5);
        live(&to, &small(), async |storage, _, _| {
            let mut staging = storage.segments(GROUP).stage(&files).unwrap();
            for info in staging.missing.clone() {
                staging.write(&info, 0, &content.iter().find(|(of, _)| *of == info).unwrap().1).unwrap();
            }
            tokio::spawn(staging.commit(at(2, 9), Bytes::from_static(b"installed")));
            for _ in 0..yields {
                tokio::task::yield_now().await;
            }
        });
        to.crash(Crash::Some(yields));
        live(&to, &small(), async |storage, recovered, _| {
            assert_eq!(recovered[0].fenced, None);
            match &recovered[0].checkpoint.as_ref().unwrap().1[..] {
                b"installed" => {
                    new += 1;
                    check(&storage.segments(GROUP), 20);
                }
                _ => {
                    old += 1;
                    check(&storage.segments(GROUP), 5);
                }
            }
        });
    }
    assert!(old > 0 && new > 0, "{old} old, {new} new");
}

/// Its number is higher than the snapshot's, and its state older.
#[test]
fn a_checkpoint_while_the_files_of_a_snapshot_come_does_not_hide_it() {
    let from = source(20);
    let content: Vec<(SegmentInfo, Bytes)> = live(&from, &small(), async |storage, _, _| {
        let segments = storage.segments(GROUP);
        let (infos, _pin) = segments.manifest().unwrap();
        infos.iter().map(|info| (info.clone(), segments.read_file(info, 0, 1 << 20).unwrap())).collect()
    });
    let files: Vec<_> = content.iter().map(|(info, _)| info.clone()).collect();
    let to = source(5);
    live(&to, &small(), async |storage, _, _| {
        let replica = Arc::new(Replica::default());
        storage.register(GROUP, replica.clone());
        let mut staging = storage.segments(GROUP).stage(&files).unwrap();
        for info in staging.missing.clone() {
            staging.write(&info, 0, &content.iter().find(|(of, _)| *of == info).unwrap().1).unwrap();
        }
        replica.set(at(1, 2), b"of the time before");
        storage.checkpoint().await.unwrap();
        staging.commit(at(2, 9), Bytes::from_static(b"installed")).await.unwrap();
    });
    to.crash(Crash::LoseAll);
    live(&to, &small(), async |storage, recovered, _| {
        assert_eq!(recovered[0].fenced, None);
        let (position, state) = recovered[0].checkpoint.clone().unwrap();
        assert_eq!((position, &state[..]), (at(2, 9), &b"installed"[..]));
        check(&storage.segments(GROUP), 20);
    });
}
