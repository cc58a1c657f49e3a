//! The choice of an instance.

use weft_proto::v1::Balance;

/// Of two idle instances, the better one is chosen for sure if its cost is less than the other's by this factor.
const IDLE_MARGIN: u128 = 2;

/// What is known of an instance at the moment of a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// False: it has just failed, or this call has been there. Chosen only if all others are the same.
    pub open: bool,
    /// Relative share, from 1.
    pub weight: u32,
    /// Calls on their way to it from this node.
    pub in_flight: u32,
    /// Its latency, faded; 0: unknown.
    pub latency_us: u64,
}

/// Chooses one of `count` instances, which `look` describes; `None` if there are none.
///
/// `turn` counts the calls of the service. `dice` is random, all of its 64 bits.
///
/// Least request (the default): of two chosen at random, the one with the smaller latency times calls in flight, per
/// weight (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing"; the product is Finagle's).
pub fn choose(
    balance: Balance,
    count: usize,
    look: impl Fn(usize) -> Candidate,
    turn: u64,
    dice: u64,
) -> Option<usize> {
    match count {
        0 => return None,
        1 => return Some(0),
        _ => {}
    }
    let open = |index: usize| look(index).open;
    let (high, low) = ((dice >> 32) as u32, dice as u32);
    let chosen = match balance {
        Balance::RoundRobin => next_open(count, (turn % count as u64) as usize, open),
        Balance::Random => any_open(count, high, low, open),
        Balance::Weighted => by_weight(count, &look, dice),
        Balance::Unspecified | Balance::LeastRequest => least_of_two(count, &look, high, low),
    };
    // None is open: better one that has just failed than none.
    Some(chosen.unwrap_or_else(|| scaled(high, count)))
}

/// A number below `count`, as random as `dice`.
fn scaled(dice: u32, count: usize) -> usize {
    ((u64::from(dice) * count as u64) >> 32) as usize
}

/// The first open one at or after `from`, around the end.
fn next_open(count: usize, from: usize, open: impl Fn(usize) -> bool) -> Option<usize> {
    (from..count).chain(0..from).find(|index| open(*index))
}

/// Any open one, each with the same chance.
fn any_open(count: usize, high: u32, low: u32, open: impl Fn(usize) -> bool) -> Option<usize> {
    let first = scaled(high, count);
    if open(first) {
        return Some(first);
    }
    let total = (0..count).filter(|index| open(*index)).count();
    (0..count).filter(|index| open(*index)).nth(scaled(low, total))
}

fn by_weight(count: usize, look: &impl Fn(usize) -> Candidate, dice: u64) -> Option<usize> {
    let weight = |index: usize| Some(look(index)).filter(|it| it.open).map_or(0, |it| u64::from(it.weight.max(1)));
    let total: u64 = (0..count).map(weight).sum();
    let mut left = ((u128::from(dice) * u128::from(total)) >> 64) as u64;
    (0..count).find(|index| {
        let here = weight(*index);
        let found = left < here;
        left = left.saturating_sub(here);
        found
    })
}

fn least_of_two(count: usize, look: &impl Fn(usize) -> Candidate, high: u32, low: u32) -> Option<usize> {
    let open = |index: usize| look(index).open;
    // The other half's bits, mixed, serve where the first choice is closed.
    let first = any_open(count, high, low.rotate_left(16) ^ high, open)?;
    let from = (first + 1 + scaled(low, count - 1)) % count;
    let Some(second) = next_open(count, from, |index| index != first && open(index)) else { return Some(first) };
    Some(if is_better(look(second), look(first)) { second } else { first })
}

fn is_better(one: Candidate, other: Candidate) -> bool {
    let cost = |it: Candidate, weight: u32, latency: u64| {
        u128::from(latency) * u128::from(it.in_flight + 1) * u128::from(weight.max(1))
    };
    let known = one.latency_us > 0 && other.latency_us > 0;
    let (ones, others) = if known { (one.latency_us, other.latency_us) } else { (1, 1) };
    // Idle ones that are about as quick are left to the dice: calls one after another would all go to the quickest.
    let margin = if one.in_flight == 0 && other.in_flight == 0 { IDLE_MARGIN } else { 1 };
    // Each is multiplied by the other's weight: no division.
    cost(one, other.weight, ones) * margin < cost(other, one.weight, others)
}
