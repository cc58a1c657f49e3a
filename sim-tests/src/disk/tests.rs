use rand::SeedableRng;

use super::*;

fn path(name: &str) -> PathBuf {
    PathBuf::from(name)
}

fn fresh() -> (SimDisk, Arc<dyn Disk>) {
    let disk = SimDisk::default();
    let mount = disk.mount();
    mount.create_dir_all(&path("/data")).unwrap();
    mount.sync_dir(&path("/")).unwrap();
    (disk, mount)
}

fn dice(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

#[test]
fn synced_bytes_survive_power_loss_and_unsynced_blocks_may_not() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..32 {
        let (disk, mount) = fresh();
        let file = mount.open(&path("/data/wal"), Open::Create).unwrap();
        mount.sync_dir(&path("/data")).unwrap();
        file.write_at(&[1; 1000], 0).unwrap();
        file.sync_data().unwrap();
        file.write_at(&[2; 2000], 1000).unwrap();
        assert_eq!(disk.contents(&path("/data/wal")).unwrap().len(), 3000);
        disk.lose_power(&mut dice(seed));
        assert!(file.write_at(&[3], 0).is_err(), "the handle of a dead process is void");
        let data = disk.contents(&path("/data/wal")).unwrap();
        assert_eq!(&data[..1000], &[1; 1000]);
        assert!(data.len() == 1000 || data.len() == 3000);
        outcomes.insert((data.len(), data.iter().filter(|byte| **byte == 2).count()));
    }
    assert!(outcomes.len() > 4, "torn writes come in many shapes: {outcomes:?}");
}

#[test]
fn names_survive_power_loss_only_after_sync_dir() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..16 {
        let (disk, mount) = fresh();
        let file = mount.open(&path("/data/a.tmp"), Open::Create).unwrap();
        file.write_at(b"new", 0).unwrap();
        file.sync_data().unwrap();
        mount.sync_dir(&path("/data")).unwrap();
        mount.rename(&path("/data/a.tmp"), &path("/data/a")).unwrap();
        disk.lose_power(&mut dice(seed));
        let mount = disk.mount();
        // A rename is one change: exactly one of the names is there.
        let (old, new) = (mount.exists(&path("/data/a.tmp")), mount.exists(&path("/data/a")));
        assert!(old != new);
        if new { kept += 1 } else { lost += 1 }
    }
    assert!(lost > 0 && kept > 0);
}

#[test]
fn a_kill_keeps_everything_and_frees_the_lock() {
    let (disk, mount) = fresh();
    let lock = mount.lock(&path("/data/LOCK")).unwrap();
    let held = mount.lock(&path("/data/LOCK")).err().map(|error| error.kind());
    assert_eq!(held, Some(io::ErrorKind::WouldBlock));
    mount.open(&path("/data/x"), Open::Create).unwrap().write_at(b"abc", 0).unwrap();
    disk.process_gone();
    let mount = disk.mount();
    let again = mount.lock(&path("/data/LOCK")).unwrap();
    drop(lock);
    assert!(mount.lock(&path("/data/LOCK")).is_err(), "the old guard must not free the new lock");
    drop(again);
    assert_eq!(disk.contents(&path("/data/x")).unwrap(), b"abc");
    assert_eq!(mount.list(&path("/data")).unwrap(), vec![path("LOCK"), path("x")]);
}

#[test]
fn faults_are_what_they_say() {
    let (disk, mount) = fresh();
    let file = mount.open(&path("/data/x"), Open::Create).unwrap();
    mount.sync_dir(&path("/data")).unwrap();
    disk.set_faults(|faults| faults.capacity = 4096);
    assert_eq!(file.write_at(&[0; 5000], 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    file.write_at(&[7; 4096], 0).unwrap();
    assert_eq!(mount.free_bytes(&path("/data")).unwrap(), 0);
    disk.set_faults(|faults| faults.fails = true);
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(libc::EIO));
    disk.set_faults(|faults| faults.fails = false);
    disk.set_faults(|faults| faults.lies = true);
    file.sync_data().unwrap();
    disk.flip(&path("/data/x"), 10, 3).unwrap();
    assert_eq!(disk.contents(&path("/data/x")).unwrap()[10], 7 ^ 8);
    let lost = (0..20).any(|seed| {
        let (disk, mount) = fresh();
        disk.set_faults(|faults| faults.lies = true);
        let file = mount.open(&path("/data/x"), Open::Create).unwrap();
        file.write_at(&[7; 4096], 0).unwrap();
        file.sync_data().unwrap();
        disk.lose_power(&mut dice(seed));
        disk.contents(&path("/data/x")).map_or(true, |data| data != [7; 4096])
    });
    assert!(lost, "a lying disk loses synced data");
}
