//! Torn tails are dropped, damage is fenced, nothing rotten is served.

use std::path::PathBuf;

use super::*;

fn journal_files(disk: &MemoryDisk) -> Vec<PathBuf> {
    disk.files().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "wal")).collect()
}

/// Where `needle` is in the journal.
fn find(disk: &MemoryDisk, needle: &[u8]) -> (PathBuf, u64) {
    for path in journal_files(disk) {
        let bytes = disk.bytes(&path).unwrap();
        if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) {
            return (path, at as u64);
        }
    }
    panic!("it is not in the journal");
}

/// Two groups, three frames each after another.
fn write_two(disk: &MemoryDisk) {
    live(disk, &small(), async |storage, _, _| {
        let one = storage.create_group(RaftGroup(1), 11).await.unwrap();
        let two = storage.create_group(RaftGroup(2), 22).await.unwrap();
        for index in 0..3 {
            append(&one, vec![entry(1, index, format!("one {index} {}", "x".repeat(600)).as_bytes())]).await.unwrap();
            append(&two, vec![entry(1, index, format!("two {index}").as_bytes())]).await.unwrap();
        }
    });
}

fn fenced(disk: &MemoryDisk) -> Vec<(u64, Option<String>)> {
    live(disk, &small(), async |_, recovered, _| {
        recovered.into_iter().map(|group| (group.group.0, group.fenced)).collect()
    })
}

#[test]
fn a_torn_tail_is_dropped_and_the_journal_goes_on() {
    let disk = MemoryDisk::default();
    write_two(&disk);
    live(&disk, &small(), async |storage, _, _| {
        let one = storage.log(RaftGroup(1)).unwrap();
        append(&one, vec![entry(1, 3, &[b'l'; 5000])]).await.unwrap();
    });
    // The last frame's third sector never reached the disk.
    let (path, place) = find(&disk, &[b'l'; 400]);
    let sector = (place / 512 + 2) * 512;
    disk.corrupt(&path, |bytes| bytes[sector as usize..sector as usize + 512].fill(0));
    for _ in 0..3 {
        assert!(fenced(&disk).iter().all(|(_, reason)| reason.is_none()));
    }
    live(&disk, &small(), async |storage, _, _| {
        let one = storage.log(RaftGroup(1)).unwrap();
        assert_eq!(one.state().last, Some(at(1, 2)));
        append(&one, vec![entry(2, 3, b"again")]).await.unwrap();
    });
    live(&disk, &small(), async |storage, recovered, _| {
        assert!(recovered.iter().all(|group| group.fenced.is_none()));
        let one = storage.log(RaftGroup(1)).unwrap();
        assert_eq!(one.read(3..4, 99).unwrap(), vec![entry(2, 3, b"again")]);
    });
}

#[test]
fn a_flipped_payload_bit_fences_its_group_only() {
    for needle in ["two 1", "two 2"] {
        let disk = MemoryDisk::default();
        write_two(&disk);
        let (path, place) = find(&disk, needle.as_bytes());
        disk.flip(&path, place, 0);
        // Also at the next start, and after a checkpoint has let go of the journal.
        for _ in 0..2 {
            let found = fenced(&disk);
            assert_eq!(found[0], (1, None));
            assert!(found[1].1.as_ref().unwrap().contains("does not match its CRC"), "{found:?}");
        }
        live(&disk, &small(), async |storage, _, _| {
            let one = storage.log(RaftGroup(1)).unwrap();
            assert_eq!(one.state().last, Some(at(1, 2)));
            append(&one, vec![entry(1, 3, b"goes on")]).await.unwrap();
            let two = storage.log(RaftGroup(2)).unwrap();
            assert_eq!(two.read(0..1, 9).unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert_eq!(append(&two, vec![entry(1, 3, b"no")]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
            storage.checkpoint().await.unwrap();
        });
        assert!(fenced(&disk)[1].1.is_some());
        live(&disk, &small(), async |storage, _, _| {
            storage.delete_group(RaftGroup(2)).await.unwrap();
            let two = storage.create_group(RaftGroup(2), 23).await.unwrap();
            append(&two, vec![entry(1, 0, b"new")]).await.unwrap();
        });
        assert!(fenced(&disk).iter().all(|(_, reason)| reason.is_none()));
    }
}

#[test]
fn a_lost_header_in_the_middle_fences_all_groups() {
    let disk = MemoryDisk::default();
    write_two(&disk);
    let (path, place) = find(&disk, b"two 1");
    let frame = place / 4096 * 4096;
    for damage in [20u64, 0] {
        let copy = disk.bytes(&path).unwrap();
        disk.flip(&path, frame + damage, 3);
        let found = fenced(&disk);
        assert!(found.iter().all(|(_, reason)| reason.is_some()), "{damage}: {found:?}");
        disk.corrupt(&path, |bytes| bytes.clone_from(&copy));
    }
    disk.corrupt(&path, |bytes| bytes[frame as usize..frame as usize + 4096].fill(0));
    assert!(fenced(&disk).iter().all(|(_, reason)| reason.as_ref().unwrap().contains("missing")));
}

/// Whom lost frames concerned is not known: whoever is not there later may have been in them.
#[test]
fn a_folder_that_has_lost_frames_says_so_for_ever() {
    let disk = MemoryDisk::default();
    write_two(&disk);
    live(&disk, &small(), async |storage, _, _| assert!(!storage.lost()));
    let (path, place) = find(&disk, b"two 1");
    let copy = disk.bytes(&path).unwrap();
    disk.flip(&path, place / 4096 * 4096 + 20, 3);
    live(&disk, &small(), async |storage, _, _| assert!(storage.lost()));
    disk.corrupt(&path, |bytes| bytes.clone_from(&copy));
    live(&disk, &small(), async |storage, _, _| assert!(storage.lost()));
}

#[test]
fn a_journal_that_ends_before_its_checkpoint_is_damage() {
    let disk = MemoryDisk::default();
    write_two(&disk);
    live(&disk, &small(), async |storage, _, _| {
        append(&storage.log(RaftGroup(1)).unwrap(), vec![entry(1, 3, b"the last")]).await.unwrap();
        storage.checkpoint().await.unwrap();
    });
    let (path, place) = find(&disk, b"the last");
    disk.corrupt(&path, |bytes| bytes[place as usize / 4096 * 4096..].fill(0));
    assert!(fenced(&disk).iter().all(|(_, reason)| reason.as_ref().unwrap().contains("was durable up to")));
}

#[test]
fn rot_met_by_a_reader_fences_the_group() {
    let disk = MemoryDisk::default();
    write_two(&disk);
    live(&disk, &small(), async |storage, _, _| {
        let one = storage.log(RaftGroup(1)).unwrap();
        assert_eq!(one.read(1..2, 9).unwrap().len(), 1);
        let (path, place) = find(&disk, b"one 1");
        disk.flip(&path, place + 2, 7);
        assert_eq!(one.read(1..2, 9).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(append(&one, vec![entry(1, 3, b"no")]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    });
}

#[test]
fn rot_in_a_segment_is_never_served_and_a_short_one_fences() {
    let disk = MemoryDisk::default();
    let part = partition(4);
    live(&disk, &small(), async |storage, _, _| {
        storage.create_group(GROUP, 1).await.unwrap();
        let replica = Arc::new(Replica::default());
        storage.register(GROUP, replica.clone());
        let segments = storage.segments(GROUP);
        for base in 0..3 {
            let (header, body) = batch(part, base, 300);
            segments.append(part, Offset(base), header, body).unwrap();
        }
        segments.flush().unwrap();
        replica.set(at(1, 1), b"state");
        storage.checkpoint().await.unwrap();
    });
    let path = segments::segment_path(&meta::group_dir(Path::new(DIR), GROUP, 1), part, Offset(0), 0);
    let whole = disk.bytes(&path).unwrap();
    let second = joined(batch(part, 0, 300)).len() as u64;
    for byte in [second + 10, second + 150] {
        disk.flip(&path, byte, 1);
        live(&disk, &small(), async |storage, _, _| {
            let segments = storage.segments(GROUP);
            assert_eq!(segments.read(part, Offset(0), 1).unwrap().len(), 1);
            assert_eq!(segments.read(part, Offset(1), 1).unwrap_err().kind(), io::ErrorKind::InvalidData);
        });
        let report = dump(&disk, Path::new(DIR)).unwrap();
        assert_eq!(report.problems.len(), 1, "{report:?}");
        disk.flip(&path, byte, 1);
    }
    let report = dump(&disk, Path::new(DIR)).unwrap();
    assert!(report.problems.is_empty());
    let shown = &report.groups[0].partitions[0];
    assert_eq!((shown.partition, shown.start, shown.end, shown.bytes), (4, 0, 3, whole.len() as u64));
    assert!(serde_json::to_string(&report).unwrap().contains("\"checkpoint\":\"1.1\""));
    disk.corrupt(&path, |bytes| bytes.truncate(bytes.len() - 1));
    assert!(fenced(&disk)[0].1.as_ref().unwrap().contains("its checkpoint says"));
}

#[test]
fn the_scrub_finds_what_nobody_reads() {
    let disk = MemoryDisk::default();
    let part = partition(4);
    live(&disk, &small(), async |storage, _, _| {
        storage.create_group(GROUP, 1).await.unwrap();
        let replica = Arc::new(Replica::default());
        storage.register(GROUP, replica.clone());
        let segments = storage.segments(GROUP);
        for base in 0..40 {
            let (header, body) = batch(part, base, 300);
            segments.append(part, Offset(base), header, body).unwrap();
        }
        segments.flush().unwrap();
        replica.set(at(1, 1), b"state");
        storage.checkpoint().await.unwrap();
    });
    let config = StorageConfig { scrub_bytes_per_second: ByteSize::gib(1), ..small() };
    let folder = meta::group_dir(Path::new(DIR), GROUP, 1);
    let files = || disk.files().into_iter().filter(|path| path.starts_with(&folder) && path.extension().is_some());
    let segments: Vec<_> = files().filter(|path| path.extension().unwrap() == "seg").collect();
    assert!(segments.len() > 2, "{segments:?}");
    let bytes: usize = segments.iter().map(|path| disk.bytes(path).unwrap().len()).sum();
    let scrubbed = |config: &StorageConfig| {
        live(&disk, config, async |storage, _, _| {
            for _ in 0..500 {
                if storage.damage(GROUP).is_some() || storage.metrics().scrubbed_bytes.get() >= bytes as u64 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            (storage.damage(GROUP), storage.metrics().scrubbed_bytes.get())
        })
    };
    assert_eq!(scrubbed(&config), (None, bytes as u64), "a sound disk is read to its end");
    assert_eq!(scrubbed(&StorageConfig { scrub_bytes_per_second: ByteSize::b(0), ..small() }), (None, 0));
    let last = segments.last().unwrap();
    for byte in [10, 150, disk.bytes(last).unwrap().len() - 1] {
        disk.flip(last, byte as u64, 3);
        let (damage, _) = scrubbed(&config);
        assert!(damage.as_ref().is_some_and(|damage| damage.contains("is damaged at byte")), "{byte}: {damage:?}");
        disk.flip(last, byte as u64, 3);
    }
}

#[test]
fn a_damaged_manifest_or_state_is_replaced_by_the_one_before_or_fences() {
    for name in ["CURRENT", "MANIFEST-2"] {
        let disk = MemoryDisk::default();
        write_two(&disk);
        live(&disk, &small(), async |storage, _, _| {
            storage.checkpoint().await.unwrap();
            append(&storage.log(RaftGroup(1)).unwrap(), vec![entry(1, 3, b"more")]).await.unwrap();
            storage.checkpoint().await.unwrap();
        });
        disk.flip(&Path::new(DIR).join(name), 24, 1);
        live(&disk, &small(), async |storage, recovered, _| {
            assert!(recovered.iter().all(|group| group.fenced.is_none()), "{name}: {recovered:?}");
            assert_eq!(storage.log(RaftGroup(1)).unwrap().state().last, Some(at(1, 3)));
        });
    }
}
