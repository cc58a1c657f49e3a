//! Replicas that failed, or have forgotten, come back under new ids and are filled by the others.

use super::*;

/// Waits until a node's replica of a group is a newer one than `old`, nothing is fenced there, and it is a voter.
fn healed(cluster: &Cluster, which: usize, id: RaftGroup, old: u64) {
    let node = cluster.node(which);
    let start = Instant::now();
    loop {
        let group = node.rafts.group(id).filter(|group| group.replica().0 > old && group.votes());
        // In the middle of the change the failed one still counts.
        let group = group.filter(|group| group.settled() && !group.voters().contains_key(&old));
        if group.is_some() && node.rafts.fenced().is_empty() {
            return;
        }
        let had = node.storage.log(id).map(|log| log.replica());
        assert!(start.elapsed() < PATIENCE, "never healed: {had:?}, fenced {:?}", node.rafts.fenced());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_rotten_journal_costs_a_replica_its_id_and_nothing_else() {
    let mut cluster = founded(3);
    let leader = cluster.node(0).all_owned().registry_leader.unwrap();
    let rots = (0..3).find(|which| cluster.node(*which).id != leader).unwrap();
    cluster.node(rots).create_topic("a-topic-to-find");
    (0..3).for_each(|which| drop(cluster.node(which).has_topic("a-topic-to-find")));
    let old = cluster.node(rots).storage.log(RaftGroup::REGISTRY).unwrap().replica();
    cluster.kill(rots);
    let disk = &cluster.machines[rots].disk;
    let (path, at) = disk
        .files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .find_map(|path| {
            let bytes = disk.bytes(&path)?;
            let at = bytes.windows(15).position(|window| window == b"a-topic-to-find")?;
            Some((path, at as u64))
        })
        .expect("the creation is in the journal");
    disk.flip(&path, at, 0);
    cluster.start(rots);
    healed(&cluster, rots, RaftGroup::REGISTRY, old);
    let seats: Vec<_> = cluster.node(rots).registry.state().registry_seats().collect();
    assert_eq!(seats.len(), 3, "{seats:?}");
    // It votes again: with it and one other, the registry goes on.
    let other = (0..3).find(|which| *which != rots && cluster.node(*which).id == leader).unwrap();
    cluster.kill(other);
    cluster.node(rots).create_topic("after");
}

/// Nothing of its groups is left, their votes neither: they come back under other ids.
#[test]
fn a_node_that_lost_its_journal_does_not_take_its_old_ids() {
    let mut cluster = founded(3);
    let view = cluster.node(0).all_owned();
    let leader = view.registry_leader.unwrap();
    let rots = (0..3).find(|which| cluster.node(*which).id != leader).unwrap();
    let shard = RaftGroup::of(*view.owners.keys().next().expect("shards are owned"));
    let old = [RaftGroup::REGISTRY, shard].map(|id| (id, cluster.node(rots).storage.log(id).unwrap().replica()));
    cluster.kill(rots);
    let disk = &cluster.machines[rots].disk;
    for path in disk.files() {
        if path.extension().is_some_and(|extension| extension == "wal") {
            // A bit of each frame's header.
            let frames = disk.bytes(&path).unwrap().len() as u64 / 4096;
            (0..frames).for_each(|frame| disk.flip(&path, frame * 4096 + 20, 3));
        } else if path.components().any(|part| part.as_os_str() == "CURRENT") {
            crate::host::Disk::remove(disk, &path).unwrap();
        }
    }
    cluster.start(rots);
    for (id, old) in old {
        healed(&cluster, rots, id, old);
    }
}

/// The files of a node as they are now, save those that tell its starts.
fn earlier_state(cluster: &Cluster, which: usize) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let disk = &cluster.machines[which].disk;
    let tells =
        |path: &std::path::PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("FORMAT"));
    disk.files()
        .into_iter()
        .filter(|path| !tells(path))
        .filter_map(|path| Some((path.clone(), disk.bytes(&path)?)))
        .collect()
}

/// The log ends earlier than it should, and nothing on the disk says so: only the leader knows.
#[test]
fn a_replica_that_has_forgotten_what_it_acked_comes_back_under_a_new_id() {
    let mut cluster = founded(3);
    let leader = cluster.node(0).all_owned().registry_leader.unwrap();
    let forgets = (0..3).find(|which| cluster.node(*which).id != leader).unwrap();
    (0..3).for_each(|which| drop(cluster.node(which).all_owned()));
    let before = earlier_state(&cluster, forgets);
    for number in 0..5 {
        cluster.node(forgets).create_topic(&format!("forgotten-{number}"));
    }
    (0..3).for_each(|which| drop(cluster.node(which).has_topic("forgotten-4")));
    let old = cluster.node(forgets).storage.log(RaftGroup::REGISTRY).unwrap().replica();
    cluster.kill(forgets);
    let disk = cluster.machines[forgets].disk.clone();
    let now: Vec<_> = earlier_state(&cluster, forgets).into_iter().map(|(path, _)| path).collect();
    now.iter().for_each(|path| crate::host::Disk::remove(&disk, path).unwrap());
    for (path, bytes) in before {
        let file = crate::host::Disk::open(&disk, &path, crate::host::Open::Replace).unwrap();
        file.write_at(&bytes, 0).unwrap();
        file.sync_data().unwrap();
        crate::host::Disk::sync_dir(&disk, path.parent().unwrap()).unwrap();
    }
    cluster.start(forgets);
    healed(&cluster, forgets, RaftGroup::REGISTRY, old);
    cluster.node(forgets).has_topic("forgotten-4");
}

#[test]
fn a_shards_replica_that_is_fenced_is_filled_again() {
    let cluster = founded(3);
    let view = cluster.node(0).all_owned();
    let (shard, owner) = view.owners.iter().next().expect("shards are owned");
    let rots = (0..3).find(|which| cluster.node(*which).id != owner.node).unwrap();
    let id = RaftGroup::of(*shard);
    let node = cluster.node(rots);
    let old = node.storage.log(id).unwrap().replica();
    let runtime = node.runtime.as_ref().unwrap();
    runtime.block_on(node.rafts.context_for_tests().fence_group(id, "a test says so".into()));
    healed(&cluster, rots, id, old);
    let view =
        node.until("the end of the move", |view| view.registry.shard(*shard).is_some_and(|row| row.target.is_empty()));
    let row = view.registry.shard(*shard).unwrap();
    assert!(row.replicas.len() == 3 && row.replicas.iter().all(|replica| replica.replica_id != old), "{row:?}");
}

/// A leader whose term is over may be told nothing but that: its successor may have cut what it has acks of.
#[test]
fn acks_count_only_towards_a_leader_whose_term_is_not_over() {
    let cluster = founded(3);
    let leader = cluster.node(0).all_owned().registry_leader.unwrap();
    let which = (0..3).find(|which| cluster.node(*which).id != leader).unwrap();
    let node = cluster.node(which);
    let group = node.registry.group().unwrap();
    let old = group.replica().0;
    let ask = |term| {
        let vote = Some(wire::Vote { term, voted_for: Some(77), committed: true });
        let append = wire::AppendRequest { vote, ..wire::AppendRequest::default() };
        let request = Some(wire::raft_request::Request::Append(append));
        let request = wire::RaftRequest { group: 0, from: 77, to: old, request, acked: Some(1 << 40) };
        let answer = block(node.rafts.request(NodeId(7), request.encode_to_vec().into())).unwrap().concat();
        wire::RaftResponse::decode(answer.as_slice()).unwrap().response.unwrap()
    };
    let over = ask(0);
    assert!(matches!(over, wire::raft_response::Response::Append(_)), "{over:?}");
    let present = ask(group.leadership().borrow().epoch.0);
    let lacks = "it has acknowledged entries up to";
    assert!(matches!(&present, wire::raft_response::Response::Refused(why) if why.contains(lacks)), "{present:?}");
    healed(&cluster, which, RaftGroup::REGISTRY, old);
}
