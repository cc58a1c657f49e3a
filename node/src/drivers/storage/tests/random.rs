//! Random operations on several groups with crashes, against a simple model.

use std::collections::BTreeMap;

use super::*;
use crate::host::testing::Dice;

/// A group as it should be after each operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    purged: Option<LogPosition>,
    entries: Vec<LogEntry>,
    vote: Option<StoredVote>,
}

impl Model {
    fn end(&self) -> u64 {
        self.entries.last().map_or(self.purged.map_or(0, |at| at.index + 1), |entry| entry.at.index + 1)
    }
    fn drop_to(&mut self, purged: Option<LogPosition>) {
        self.purged = purged;
        self.entries.retain(|entry| Some(entry.at.index) > purged.map(|at| at.index));
    }
}

/// A group's life: a model per operation, how many of them are durable, and what was applied.
#[derive(Default)]
struct Life {
    history: Vec<Model>,
    acked: Arc<AtomicUsize>,
    term: u64,
    /// Entries applied, as (index, bytes of its batch); base offset = place in the list.
    applied: Vec<(LogPosition, usize)>,
    replica: Arc<Replica>,
    /// The last position that a checkpoint was said to cover.
    covered: Option<LogPosition>,
}

impl Life {
    fn now(&self) -> &Model {
        self.history.last().unwrap()
    }
    fn state(&self) -> Vec<u8> {
        (self.applied.len() as u64).to_le_bytes().to_vec()
    }
}

fn storage_config(dice: &mut Dice) -> StorageConfig {
    StorageConfig {
        log_cache_bytes: ByteSize::b([0, 4000, 1 << 20][dice.below(3) as usize]),
        checkpoint_bytes: ByteSize::kib([64, 200, 4000][dice.below(3) as usize]),
        ..small()
    }
}

async fn operate(storage: &Storage, dice: &mut Dice, lives: &mut BTreeMap<u64, Life>) {
    let id = 1 + dice.below(3);
    let Some(log) = storage.log(RaftGroup(id)) else { return };
    let life = lives.get_mut(&id).unwrap();
    let mut model = life.now().clone();
    let number = life.history.len();
    let acked = Arc::clone(&life.acked);
    let ack: Done = Box::new(move |result| {
        result.unwrap();
        assert!(acked.swap(number, Ordering::Relaxed) < number, "in order");
    });
    let applied = life.applied.last().map(|(at, _)| *at);
    match dice.below(10) {
        0..=4 => {
            let count = 1 + dice.below(4);
            let entries: Vec<_> = (0..count)
                .map(|number| {
                    let bytes = [3, 300, 3000, 30_000][dice.below(4) as usize] as usize;
                    entry(life.term, model.end() + number, &vec![dice.roll() as u8; bytes])
                })
                .collect();
            model.entries.extend(entries.clone());
            log.append(entries, ack);
        }
        5 => {
            life.term += 1;
            let vote = StoredVote { term: life.term, voted_for: Some(dice.below(5)), committed: dice.below(2) == 0 };
            model.vote = Some(vote);
            log.save_vote(vote, ack);
        }
        6 => {
            // Never what was applied.
            let low = applied.map_or(0, |at| at.index + 1).max(model.purged.map_or(0, |at| at.index + 1));
            let end = low + dice.below(model.end().saturating_sub(low) + 1);
            model.entries.retain(|entry| entry.at.index < end);
            let last = model.entries.last().map(|entry| entry.at).or(model.purged);
            life.term += 1;
            log.truncate_after(last, ack);
        }
        7 => {
            let Some(applied) = applied else { return };
            log.purge(applied, ack);
            model.drop_to(log.state().purged);
        }
        _ => {
            // Applies what is durable.
            let durable = &life.history[life.acked.load(Ordering::Relaxed)];
            let from = applied.map_or(0, |at| at.index + 1);
            let segments = storage.segments(RaftGroup(id));
            for entry in durable.entries.iter().filter(|entry| entry.at.index >= from && model.entries.contains(entry))
            {
                let bytes = 10 + entry.payload.len() % 700;
                let (header, body) = batch(partition(id as u32), life.applied.len() as u64, bytes);
                segments.append(partition(id as u32), Offset(life.applied.len() as u64), header, body).unwrap();
                life.applied.push((entry.at, bytes));
            }
            segments.flush().unwrap();
            if let Some((at, _)) = life.applied.last() {
                life.replica.set(*at, &life.state());
            }
            return;
        }
    }
    life.history.push(model);
}

/// Checks what was found against what may be there, and goes on from it.
fn verify(seed: u64, storage: &Storage, recovered: &[RecoveredGroup], lives: &mut BTreeMap<u64, Life>) {
    for (id, life) in lives {
        let found = recovered.iter().find(|group| group.group.0 == *id).expect("the group is there");
        assert_eq!(found.fenced, None, "seed {seed} group {id}");
        let log = storage.log(RaftGroup(*id)).unwrap();
        let state = log.state();
        let entries = log.read(0..u64::MAX, usize::MAX).unwrap();
        let now = Model { purged: state.purged, entries, vote: state.vote };
        let acked = life.acked.load(Ordering::Relaxed);
        let fits = |model: &&Model| {
            model.vote == now.vote && {
                // A manifest may be early with a purge.
                let mut model = (*model).clone();
                model.drop_to(model.purged.max(now.purged));
                model == now
            }
        };
        let model = life.history[acked..].iter().find(fits);
        assert!(model.is_some(), "seed {seed} group {id}: {acked} of {} acked, found {state:?}", life.history.len());
        let said = life.replica.told.lock().unwrap().take();
        life.covered = life.covered.max(said);
        let checkpoint = found.checkpoint.as_ref().map(|(at, _)| *at);
        assert!(checkpoint >= life.covered, "seed {seed} group {id}");
        let segments = storage.segments(RaftGroup(*id));
        let from = found.checkpoint.as_ref().map_or(0, |(_, state)| envelope::u64_at(state, 0)) as usize;
        for (base, (at, bytes)) in life.applied.iter().enumerate() {
            let expected = batch(partition(*id as u32), base as u64, *bytes);
            if base < from {
                assert!(Some(*at) <= checkpoint);
                let read = segments.read(partition(*id as u32), Offset(base as u64), 0).unwrap();
                assert_eq!(read, vec![joined(expected)], "seed {seed} group {id}");
            } else {
                assert!(now.entries.iter().any(|entry| entry.at == *at), "seed {seed}: an applied entry is gone");
                segments.append(partition(*id as u32), Offset(base as u64), expected.0, expected.1).unwrap();
            }
        }
        segments.flush().unwrap();
        life.history = vec![now];
        life.acked = Arc::default();
        storage.register(RaftGroup(*id), life.replica.clone());
        if let Some((at, _)) = life.applied.last() {
            life.replica.set(*at, &life.state());
        }
    }
}

fn run(seed: u64) {
    let mut dice = Dice(seed);
    let disk = MemoryDisk::default();
    let mut lives: BTreeMap<u64, Life> = BTreeMap::new();
    live(&disk, &small(), async |storage, _, _| {
        for id in 1..=3 {
            storage.create_group(RaftGroup(id), id).await.unwrap();
        }
    });
    for id in 1..=3 {
        lives.insert(id, Life { history: vec![Model::default()], term: 1, ..Life::default() });
    }
    for _ in 0..6 {
        let config = storage_config(&mut dice);
        live(&disk, &config, async |storage, recovered, host| {
            verify(seed, &storage, &recovered, &mut lives);
            for _ in 0..dice.below(120) {
                operate(&storage, &mut dice, &mut lives).await;
                for _ in 0..dice.below(4) {
                    tokio::task::yield_now().await;
                }
                match dice.below(25) {
                    0 => drop(tokio::spawn({
                        let storage = storage.clone();
                        async move { storage.checkpoint().await }
                    })),
                    1 => storage.checkpoint().await.unwrap(),
                    _ => {}
                }
            }
            assert_eq!(host.aborted(), None, "seed {seed}");
        });
        match dice.below(4) {
            0 => {}
            1 => disk.crash(Crash::LoseAll),
            _ => disk.crash(Crash::Some(dice.roll())),
        }
    }
}

#[test]
fn what_was_acked_is_there_and_nothing_else() {
    for seed in 0..40 {
        run(seed);
    }
}
