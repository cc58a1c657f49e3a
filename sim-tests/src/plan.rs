//! What a seed stands for: the size of the cluster and every fault, with its time.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};

/// How long faults go on, at least.
const STORM: Duration = Duration::from_secs(15);

/// A whole run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// All randomness comes from it.
    pub seed: u64,
    /// 3 to 7.
    pub nodes: usize,
    /// So many of them, the last ones, are no founders: they start when a fault lets them join.
    pub late: usize,
    /// Shards of the cluster.
    pub shards: u32,
    /// Partitions of the workload's topic.
    pub partitions: u32,
    /// When (after the cluster is up), what.
    pub faults: Vec<(Duration, Fault)>,
    /// How long the workload goes on after the cluster is up.
    pub storm: Duration,
    /// Syncs of all disks say yes and do nothing, from the storm's begin on.
    pub disks_lie: bool,
    /// The consumers' habits.
    pub group: Habits,
    /// Both instances of the service have the first node as their home.
    pub one_home: bool,
    /// Segments are scrubbed every 2 s, and a disk that has rotted must be whole again at the end.
    pub heals: bool,
    /// Producers with a session.
    pub producers: u64,
    /// The nodes' gauges of queues are written down.
    pub gauges: bool,
}

/// How consumers of the group behave while the storm lasts.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Short, mostly, so that what a consumer forgets comes again within the run.
    pub ack_deadline: Duration,
    /// Of a thousand deliveries, so many make their consumer leave, and join again.
    pub leaves_per_mille: u32,
    /// And so many are forgotten: neither acked nor nacked.
    pub forgets_per_mille: u32,
    /// And so many are nacked.
    pub nacks_per_mille: u32,
    /// The first consumers do not read what is delivered to them: so many.
    pub slow: usize,
}

impl Default for Habits {
    fn default() -> Habits {
        Habits {
            ack_deadline: Duration::from_secs(3),
            leaves_per_mille: 3,
            forgets_per_mille: 15,
            nacks_per_mille: 15,
            slow: 0,
        }
    }
}

/// Something that goes wrong. Nodes are numbered from 0.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// The power of some nodes fails at one moment; they come back after `away`.
    PowerLoss { nodes: Vec<usize>, away: Duration },
    /// A process is killed; the page cache survives.
    Kill { node: usize, away: Duration },
    /// A process is told to stop, drains, and is started again.
    Stop { node: usize },
    /// An instance of the service that is called dies, and comes back.
    Instance { instance: usize, away: Duration },
    /// All messages from and to a node are held and delivered at the end, as if it had stood still.
    Pause { node: usize, lasts: Duration },
    /// Nodes on one side do not hear those of the other. With `clients`, they are on the other side.
    Partition { side: Vec<usize>, clients: bool, lasts: Duration },
    /// Two nodes do not hear each other; all others hear both.
    Cut { nodes: [usize; 2], lasts: Duration },
    /// What `from` sends to the other nodes is lost; it hears them.
    OneWay { from: usize, lasts: Duration },
    /// Every node loses, and doubles, some datagrams.
    Loss { lost_per_mille: u32, doubled_per_mille: u32, lasts: Duration },
    /// Messages take up to this long.
    Delay { up_to: Duration, lasts: Duration },
    /// One bit of a file of the journal or of a segment flips, while the process is down.
    BitFlip { node: usize, dice: u64 },
    /// One bit of each segment file flips, while the process is down.
    RottenSegments { node: usize, dice: u64 },
    /// Writes and syncs of a disk fail: EIO.
    FailingDisk { node: usize, lasts: Duration },
    /// A disk has room for so many bytes more: ENOSPC.
    FullDisk { node: usize, room: u64, lasts: Duration },
    /// A node that is no founder starts for the first time.
    Join { node: usize },
    /// Work on a disk does not return.
    HungDisk { node: usize, lasts: Duration },
    /// Work on a disk takes so much longer.
    SlowDisk { node: usize, by: Duration, lasts: Duration },
    /// Messages from and to a node take up to this long.
    SlowLinks { node: usize, up_to: Duration, lasts: Duration },
    /// A node's disk is copied, and `later` the copy takes the disk's place, while the process is down for `away`. With
    /// `forged` the copy keeps the newest number of starts, so that nobody can tell.
    OldDisk { node: usize, later: Duration, away: Duration, forged: bool },
    /// A node's wall clock jumps.
    Clock { node: usize, by_ms: i64 },
}

impl Fault {
    /// How long the network must be left alone after it begins.
    fn lasts(&self) -> Duration {
        match self {
            Fault::PowerLoss { away, .. } | Fault::Kill { away, .. } | Fault::Instance { away, .. } => *away,
            Fault::Pause { lasts, .. }
            | Fault::Partition { lasts, .. }
            | Fault::Cut { lasts, .. }
            | Fault::OneWay { lasts, .. }
            | Fault::Loss { lasts, .. }
            | Fault::Delay { lasts, .. }
            | Fault::FailingDisk { lasts, .. }
            | Fault::FullDisk { lasts, .. }
            | Fault::SlowDisk { lasts, .. }
            | Fault::SlowLinks { lasts, .. }
            | Fault::HungDisk { lasts, .. } => *lasts,
            Fault::BitFlip { .. } | Fault::RottenSegments { .. } | Fault::Join { .. } | Fault::Stop { .. } => {
                Duration::from_secs(1)
            }
            Fault::OldDisk { later, away, .. } => *later + *away,
            Fault::Clock { .. } => Duration::ZERO,
        }
    }
}

/// A year in milliseconds.
pub const YEAR_MS: i64 = 365 * 24 * 3600 * 1000;

impl Plan {
    /// The run of a seed.
    pub fn of(seed: u64) -> Plan {
        let mut dice = StdRng::seed_from_u64(seed ^ 0x5EED);
        let nodes = [3, 3, 3, 4, 5, 5, 7][dice.random_range(0..if seed % 5 == 4 { 7 } else { 3 })];
        let mut plan = Plan {
            seed,
            nodes,
            late: 0,
            shards: [4, 8][dice.random_range(0..2)],
            partitions: dice.random_range(2..=6),
            faults: Vec::new(),
            storm: STORM,
            disks_lie: false,
            group: Habits::default(),
            one_home: false,
            heals: false,
            producers: 2,
            gauges: false,
        };
        plan.draw_faults(&mut dice);
        // Dice of their own, so that the other seeds stay what they were.
        if seed % 4 == 3 {
            plan.draw_disk_faults(&mut StdRng::seed_from_u64(seed ^ 0xD15C));
        }
        if seed % 8 == 5 {
            plan.draw_old_disk(&mut StdRng::seed_from_u64(seed ^ 0x01D));
        }
        if seed.is_multiple_of(2) {
            plan.draw_instance_faults(&mut StdRng::seed_from_u64(seed ^ 0xCA11));
        }
        plan
    }

    /// A run without faults.
    pub fn calm(seed: u64) -> Plan {
        Plan {
            seed,
            nodes: 3,
            late: 0,
            shards: 4,
            partitions: 3,
            faults: Vec::new(),
            storm: Duration::from_secs(5),
            disks_lie: false,
            group: Habits::default(),
            one_home: false,
            heals: false,
            producers: 2,
            gauges: false,
        }
    }

    fn draw_faults(&mut self, dice: &mut StdRng) {
        let mut at = Duration::from_millis(dice.random_range(500..2_000));
        // A node whose disk has rotted counts as lost: only one, and no more power losses of others' disks matter
        // to it, since theirs survive.
        let mut rotted = false;
        while at < STORM {
            let fault = self.draw(dice, &mut rotted);
            let next = fault.lasts();
            self.faults.push((at, fault));
            // Mostly one after the other, now and then a second one into the first.
            at += if dice.random_bool(0.25) { next / 3 } else { next };
            at += Duration::from_millis(dice.random_range(100..2_500));
        }
        self.storm = self.storm.max(at);
    }

    /// A disk that fails or fills, into whatever else happens.
    fn draw_disk_faults(&mut self, dice: &mut StdRng) {
        for _ in 0..dice.random_range(1..3) {
            let node = dice.random_range(0..self.nodes);
            let at = Duration::from_millis(dice.random_range(500..14_000));
            let lasts = Duration::from_millis(dice.random_range(300..5_000));
            let fault = match dice.random_range(0..3) {
                0 => Fault::FailingDisk { node, lasts },
                // Below the watermark, with room for what is under way.
                1 => Fault::FullDisk { node, room: dice.random_range(256 << 10..1 << 20), lasts },
                _ => Fault::FullDisk { node, room: dice.random_range(0..64 << 10), lasts },
            };
            self.faults.push((at, fault));
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }

    /// A node comes back with an earlier state of its disk, and has started anew in between.
    fn draw_old_disk(&mut self, dice: &mut StdRng) {
        let node = dice.random_range(0..self.nodes);
        let at = Duration::from_millis(dice.random_range(500..5_000));
        let later = Duration::from_millis(dice.random_range(4_000..8_000));
        let away = Duration::from_millis(dice.random_range(100..1_000));
        self.faults.push((at, Fault::OldDisk { node, later, away, forged: false }));
        self.faults.push((at + later / 4, Fault::Kill { node, away: away / 2 }));
        self.faults.sort_by_key(|(at, _)| *at);
    }

    /// Instances that die, into whatever else happens.
    fn draw_instance_faults(&mut self, dice: &mut StdRng) {
        for _ in 0..dice.random_range(1..4) {
            let at = Duration::from_millis(dice.random_range(500..14_000));
            let away = Duration::from_millis(dice.random_range(100..3_000));
            self.faults.push((at, Fault::Instance { instance: dice.random_range(0..2), away }));
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }

    fn draw(&self, dice: &mut StdRng, rotted: &mut bool) -> Fault {
        let node = dice.random_range(0..self.nodes);
        let ms = |dice: &mut StdRng, from, to| Duration::from_millis(dice.random_range(from..to));
        match dice.random_range(0..20) {
            0..3 => Fault::Kill { node, away: ms(dice, 100, 4_000) },
            3..5 => Fault::PowerLoss { nodes: vec![node], away: ms(dice, 100, 4_000) },
            5 => Fault::PowerLoss { nodes: self.some(dice, 2), away: ms(dice, 100, 3_000) },
            6 => Fault::PowerLoss { nodes: (0..self.nodes).collect(), away: ms(dice, 100, 1_000) },
            7..9 => Fault::Pause { node, lasts: ms(dice, 200, 4_000) },
            9..12 => {
                let side = self.some(dice, 1 + self.nodes / 3);
                Fault::Partition { side, clients: dice.random_bool(0.5), lasts: ms(dice, 500, 5_000) }
            }
            12..14 => Fault::OneWay { from: node, lasts: ms(dice, 500, 4_000) },
            14..16 => Fault::Loss {
                lost_per_mille: dice.random_range(10..200),
                doubled_per_mille: dice.random_range(0..100),
                lasts: ms(dice, 500, 4_000),
            },
            16 => Fault::Delay { up_to: ms(dice, 20, 300), lasts: ms(dice, 500, 4_000) },
            17 if !*rotted => {
                *rotted = true;
                Fault::BitFlip { node, dice: dice.random() }
            }
            18 => Fault::HungDisk { node, lasts: ms(dice, 300, 5_000) },
            _ => Fault::Clock { node, by_ms: [YEAR_MS, -YEAR_MS, 5_000, -5_000][dice.random_range(0..4)] },
        }
    }

    fn some(&self, dice: &mut StdRng, most: usize) -> Vec<usize> {
        let count = dice.random_range(1..=most.min(self.nodes - 1));
        let mut nodes: Vec<usize> = (0..self.nodes).collect();
        (0..count).map(|_| nodes.remove(dice.random_range(0..nodes.len()))).collect()
    }

    /// Whether at most one node's clock jumps: then the median of any three is good.
    pub fn clocks_can_be_told(&self) -> bool {
        let jumped = self.faults.iter().filter_map(|(_, fault)| match fault {
            Fault::Clock { node, .. } => Some(*node),
            _ => None,
        });
        jumped.collect::<std::collections::BTreeSet<_>>().len() <= 1
    }

    /// Nodes that found the cluster.
    pub fn founders(&self) -> usize {
        self.nodes - self.late
    }

    /// Whether a node's disk has rotted in this run: it may end fenced.
    pub fn rots(&self, node: usize) -> bool {
        let rot = |fault: &Fault| match fault {
            Fault::BitFlip { node: hit, .. } | Fault::RottenSegments { node: hit, .. } => *hit == node,
            _ => false,
        };
        self.faults.iter().any(|(_, fault)| rot(fault))
    }
}
