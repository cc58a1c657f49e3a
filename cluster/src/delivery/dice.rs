/// SplitMix64: small, seeded, good enough for jitter and turns. Source: Steele, Lea and Flood, OOPSLA 2014.
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// From 0 up to 1.
    pub(super) fn roll(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// From 0 up to `end`, which is a power of two.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.draw() & (end - 1)
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
