//! A bound on values: projections of OLMo and MPT, feed-forward networks of GPT-OSS.

use super::map::{Map, map_in_place};
use crate::Cpu;
use crate::simd::Lanes;

/// x[i] ← min(max(x[i], -limit), limit), for a limit of 0 or more. NaN stays NaN.
pub fn clamp(cpu: &Cpu, x: &mut [f32], limit: f32) {
    map_in_place(cpu, x, Clamp(limit));
}

#[derive(Clone, Copy)]
struct Clamp(f32);

impl Map for Clamp {
    const NAME: &'static str = "clamp";
    const OPERATIONS: usize = 2;
    const GRAIN: usize = 1 << 15;

    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        // Constants go first: `min` and `max` give their second operand when one is NaN.
        L::splat(-self.0).max(L::splat(self.0).min(x))
    }
}
