//! Numbers that look random and follow from a seed: the same on every machine.

/// Marsaglia's xorshift: no more is asked of traces and of the moments of faults.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From 0, and less than `limit`; 0 if that is 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit.max(1)
    }

    pub(crate) fn within(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The bytes with one to eight bits flipped.
    pub(crate) fn flipped(&mut self, whole: &[u8]) -> Vec<u8> {
        let mut bytes = whole.to_vec();
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.below(8);
        }
        bytes
    }

    /// The bytes with a piece written over another one.
    pub(crate) fn spliced(&mut self, whole: &[u8]) -> Vec<u8> {
        let mut bytes = whole.to_vec();
        let length = 1 + self.below(64.min(whole.len() as u64 - 1));
        let span = whole.len() as u64 - length;
        let (from, to) = (self.below(span) as usize, self.below(span) as usize);
        bytes.copy_within(from..from + length as usize, to);
        bytes
    }
}
