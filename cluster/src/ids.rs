//! Newtypes for every id, offset and epoch, so that none is taken for another.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

id!(
    /// A node: the random store id of its data folder. Never 0. A folder made anew is a new node.
    NodeId(u64), "{:016x}"
);
id!(
    /// One replica of one Raft group. Allocated by the registry, never reused.
    ReplicaId(u64), "r{}"
);
id!(
    /// A Raft group: 0 is the registry, shard s is s + 1.
    RaftGroup(u64), "g{}"
);
id!(
    /// A shard: 0..shards_total of the cluster.
    ShardId(u32), "s{}"
);
id!(
    /// A topic. Allocated by the registry from 1, never reused.
    TopicId(u32), "t{}"
);
id!(
    /// A durable consumer group of one topic. Allocated by the registry from 1, never reused.
    GroupId(u32), "c{}"
);
id!(
    /// An idempotent producer. Allocated by the registry from 1; 0 in a batch means "none".
    ProducerId(u64), "p{}"
);
id!(
    /// A running copy of a service. Allocated by the registry from 1, never reused.
    InstanceId(u64), "i{}"
);
id!(
    /// The place of an event in its partition, dense from 0.
    Offset(u64), "{}"
);
id!(
    /// The Raft term under which an owner acts.
    Epoch(u64), "e{}"
);
id!(
    /// Grows at each start of a node.
    Generation(u64), "{}"
);
id!(
    /// Milliseconds since 1970: log time, or a wall clock's reading.
    Millis(i64), "{}"
);

/// One start of a node's process on its data folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Start {
    /// Raised in the folder before anything else is done with it.
    pub generation: Generation,
    /// Drawn at the start; 0: not known.
    pub id: u64,
}

impl Start {
    /// Whether a process of this start runs on an older copy of the folder that a process of start `known` has run on.
    /// Each start raises the folder's generation, so another start of the same generation is one on a copy, too.
    pub fn is_old(self, known: Start) -> bool {
        let other = self.id != known.id && self.id != 0 && known.id != 0;
        self.generation < known.generation || (self.generation == known.generation && other)
    }
}

impl RaftGroup {
    /// The registry's group.
    pub const REGISTRY: RaftGroup = RaftGroup(0);

    /// The group of a shard.
    pub fn of(shard: ShardId) -> RaftGroup {
        RaftGroup(u64::from(shard.0) + 1)
    }

    /// The shard of this group; `None` for the registry.
    pub fn shard(self) -> Option<ShardId> {
        self.0.checked_sub(1).and_then(|shard| u32::try_from(shard).ok()).map(ShardId)
    }
}

/// The ordered log of a part of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId {
    /// The topic.
    pub topic: TopicId,
    /// 0..partitions of the topic.
    pub index: u32,
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.index)
    }
}

/// A place in a Raft log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// The term of the entry.
    pub term: u64,
    /// Its index, from 0 (the group's first membership).
    pub index: u64,
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_old_after_a_newer_one_and_beside_one_of_its_generation() {
        let start = |generation, id| Start { generation: Generation(generation), id };
        let cases = [
            (start(4, 1), start(3, 2), false),
            (start(4, 1), start(4, 1), false),
            (start(4, 1), start(4, 2), true),
            (start(4, 1), start(4, 0), false),
            (start(4, 0), start(4, 2), false),
            (start(3, 1), start(4, 1), true),
            (start(3, 0), start(4, 0), true),
        ];
        for (start, known, old) in cases {
            assert_eq!(start.is_old(known), old, "{start:?} after {known:?}");
        }
    }
}
