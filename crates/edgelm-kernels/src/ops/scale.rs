//! Multipliers of embeddings, residual branches and logits.

use super::map::{Map, map_in_place};
use crate::Cpu;
use crate::simd::Lanes;

/// x[i] *= factor.
pub fn scale(cpu: &Cpu, x: &mut [f32], factor: f32) {
    map_in_place(cpu, x, Scale(factor));
}

#[derive(Clone, Copy)]
struct Scale(f32);

impl Map for Scale {
    const NAME: &'static str = "scale";
    const OPERATIONS: usize = 1;
    const GRAIN: usize = 1 << 15;

    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        x.mul(L::splat(self.0))
    }
}
