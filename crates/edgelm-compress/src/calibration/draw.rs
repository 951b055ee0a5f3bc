//! Numbers to choose windows by.

/// Knuth's 64-bit linear congruential generator; its high bits are good enough to choose passages by.
pub(super) struct Draw(pub u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// Uniform in [0, `count`), which must not be 0.
    pub fn below(&mut self, count: usize) -> usize {
        self.next() as usize % count
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        self.next() as f64 / (1u64 << 31) as f64
    }

    /// Puts `count` items that are drawn without replacement to the front, in the order in which they are drawn.
    pub fn move_to_front<T>(&mut self, items: &mut [T], count: usize) {
        for i in 0..count.min(items.len()) {
            let rest = items.len() - i;
            items.swap(i, i + self.below(rest));
        }
    }
}
