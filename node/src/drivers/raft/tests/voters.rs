//! The registry's voters follow the nodes.

use std::collections::BTreeSet;

use super::*;

/// Waits until a node knows so many voters, the registry's group has just these, and no change is under way.
fn voters(cluster: &Cluster, which: usize, count: usize) -> BTreeMap<u64, NodeId> {
    let start = Instant::now();
    loop {
        let node = cluster.node(which);
        let seats: BTreeMap<u64, NodeId> =
            node.registry.state().registry_seats().map(|(node, replica)| (replica, node)).collect();
        let group = node.registry.group().filter(|group| group.settled());
        if seats.len() == count && group.is_some_and(|group| group.voters() == seats) {
            return seats;
        }
        assert!(start.elapsed() < PATIENCE, "never {count} voters: {seats:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_registry_that_has_grown_to_five_voters_bears_the_loss_of_two_founders() {
    let mut cluster = founded(3);
    voters(&cluster, 0, 3);
    for which in 3..5 {
        assert_eq!(cluster.add(), which);
        cluster.start(which);
        cluster.node(which).all_owned();
    }
    let all = voters(&cluster, 4, 5);
    assert_eq!(all.values().collect::<BTreeSet<_>>().len(), 5, "{all:?}");
    cluster.kill(0);
    cluster.kill(1);
    cluster.node(4).create_topic("after");
    (2..5).for_each(|which| drop(cluster.node(which).has_topic("after")));
}

#[test]
fn a_node_that_is_removed_leaves_its_seat_and_does_not_come_back() {
    let mut cluster = founded(3);
    assert_eq!(cluster.add(), 3);
    cluster.start(3);
    cluster.node(3).all_owned();
    let before = voters(&cluster, 0, 3);
    let removed = (0..3).find(|which| cluster.node(*which).registry.leader() != Some(cluster.node(*which).id)).unwrap();
    let id = cluster.node(removed).id;
    cluster.kill(removed);
    let stays = cluster.node(3);
    stays.until("it is dead", |view| !view.usable(id));
    let remove = Command::RemoveNode(wire::RemoveNode { id: id.0, reason: "a test".into() });
    let command = RegistryCommand { level: 1, command: Some(remove) };
    block(stays.registry.propose(&Caller::anonymous(), command, PATIENCE)).expect("it is removed");
    stays.until("it is gone", |view| view.registry.node(id).is_none());
    let after = voters(&cluster, 3, 3);
    assert!(after.values().all(|node| *node != id) && after != before, "{after:?}");
}
