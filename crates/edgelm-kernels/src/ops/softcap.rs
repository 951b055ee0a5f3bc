//! The soft cap of logits.

use super::map::{Map, map_in_place};
use crate::Cpu;
use crate::simd::{Lanes, tanh};

/// x[i] ← cap · tanh(x[i] / cap).
///
/// Numerics: within 4e-7 of the exact value, relatively. Every instruction set gives the same bits.
/// Source: Gemma Team 2024, arXiv:2408.00118.
pub fn softcap(cpu: &Cpu, x: &mut [f32], cap: f32) {
    map_in_place(cpu, x, Softcap(cap));
}

#[derive(Clone, Copy)]
struct Softcap(f32);

impl Map for Softcap {
    const NAME: &'static str = "softcap";
    const OPERATIONS: usize = 5;
    const GRAIN: usize = 1 << 13;

    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        let cap = L::splat(self.0);
        tanh(x.div(cap)).mul(cap)
    }
}
