//! The values that a block can hold once its scales are chosen. Error feedback (GPTQ) and coordinate descent choose codes
//! one after another on it, each in view of the errors made before.

use super::Block;
use super::affine::Pair;
use super::symmetric::{Levels, clamp, inverse, round};
use crate::DType;

/// A quantized format: scales, and codes that can be chosen anew under the same scales.
pub trait Coded: Block + Send {
    /// What its codes mean.
    type Grid: Grid + Send;

    /// The grid of this block's scales.
    fn grid(&self) -> Self::Grid;

    /// The same scales with other codes, one per value. Panics if there are not `LEN` of them.
    fn with_codes(self, codes: &[u16]) -> Self;
}

/// Values that given scales can express.
pub trait Grid {
    /// Values whose codes are chosen together: 1 for scalar formats.
    const STEP: usize;

    /// Codes of the values `at .. at + STEP` of a block: the ones with the least Σ weights[i] · (values[i] − decoded[i])²,
    /// and what `decode` will give for them. All slices have `STEP` elements.
    fn choose(&self, at: usize, values: &[f32], weights: &[f32], codes: &mut [u16], decoded: &mut [f32]);
}

/// value = scale[j] · level[code], with S scales of N values each.
pub struct ScaledLevels<L, const S: usize, const N: usize> {
    scales: [f32; S],
    inverses: [f32; S],
    levels: L,
}

impl<L: Levels, const S: usize, const N: usize> ScaledLevels<L, S, N> {
    pub(super) fn new(levels: L, scales: [f32; S]) -> Self {
        Self { scales, inverses: scales.map(inverse), levels }
    }
}

impl<L: Levels, const S: usize, const N: usize> Grid for ScaledLevels<L, S, N> {
    const STEP: usize = 1;

    fn choose(&self, at: usize, values: &[f32], _weights: &[f32], codes: &mut [u16], decoded: &mut [f32]) {
        let j = at / N;
        let code = self.levels.code(values[0] * self.inverses[j]);
        codes[0] = u16::from(code);
        decoded[0] = self.scales[j] * self.levels.level(code);
    }
}

/// value = scale[j] · code + min[j], codes from 0 to HIGH, with S pairs of N values each.
pub struct ScaledSteps<const HIGH: u8, const S: usize, const N: usize> {
    pairs: [Pair; S],
    inverses: [f32; S],
}

impl<const HIGH: u8, const S: usize, const N: usize> ScaledSteps<HIGH, S, N> {
    pub(super) fn new(pairs: [Pair; S]) -> Self {
        Self { pairs, inverses: pairs.map(|pair| inverse(pair.scale)) }
    }
}

impl<const HIGH: u8, const S: usize, const N: usize> Grid for ScaledSteps<HIGH, S, N> {
    const STEP: usize = 1;

    fn choose(&self, at: usize, values: &[f32], _weights: &[f32], codes: &mut [u16], decoded: &mut [f32]) {
        let pair = self.pairs[at / N];
        let code = round(clamp((values[0] - pair.min) * self.inverses[at / N], 0.0, f32::from(HIGH)));
        codes[0] = code as u16;
        decoded[0] = pair.scale * code + pair.min;
    }
}

/// Something to be done with whatever format a `DType` names.
pub trait CodedVisitor {
    /// Its result.
    type Output;
    /// With the format as a type.
    fn visit<B: Coded>(self) -> Self::Output;
}

/// Calls `visitor` with the block type of `dtype`; `None` for F32, F16 and BF16, which have no scales.
pub fn visit_coded<V: CodedVisitor>(dtype: DType, visitor: V) -> Option<V::Output> {
    use super::*;
    Some(match dtype {
        DType::F32 | DType::F16 | DType::BF16 => return None,
        DType::Q4_0 => visitor.visit::<BlockQ4_0>(),
        DType::Q4_1 => visitor.visit::<BlockQ4_1>(),
        DType::Q5_0 => visitor.visit::<BlockQ5_0>(),
        DType::Q5_1 => visitor.visit::<BlockQ5_1>(),
        DType::Q8_0 => visitor.visit::<BlockQ8_0>(),
        DType::Q2_K => visitor.visit::<BlockQ2K>(),
        DType::Q3_K => visitor.visit::<BlockQ3K>(),
        DType::Q4_K => visitor.visit::<BlockQ4K>(),
        DType::Q5_K => visitor.visit::<BlockQ5K>(),
        DType::Q6_K => visitor.visit::<BlockQ6K>(),
        DType::IQ4_NL => visitor.visit::<BlockIq4Nl>(),
        DType::IQ4_XS => visitor.visit::<BlockIq4Xs>(),
        DType::IQ2_XXS => visitor.visit::<BlockIq2Xxs>(),
        DType::IQ2_XS => visitor.visit::<BlockIq2Xs>(),
        DType::IQ2_S => visitor.visit::<BlockIq2S>(),
        DType::IQ3_XXS => visitor.visit::<BlockIq3Xxs>(),
        DType::IQ3_S => visitor.visit::<BlockIq3S>(),
        DType::NF4 => visitor.visit::<BlockNf4>(),
        DType::FP4 => visitor.visit::<BlockFp4>(),
        DType::Q8_24 => visitor.visit::<BlockQ8Sparse>(),
        DType::Q4_24 => visitor.visit::<BlockQ4Sparse>(),
        DType::MXFP4 => visitor.visit::<BlockMxfp4>(),
        DType::TQ1_0 => visitor.visit::<BlockTq1_0>(),
        DType::TQ2_0 => visitor.visit::<BlockTq2_0>(),
    })
}

/// The codes of a block whose errors do not see each other.
pub(super) fn nearest<G: Grid, const N: usize>(grid: &G, x: &[f32; N], w: &[f32; N]) -> [u16; N] {
    let mut codes = [0; N];
    let mut decoded = [0.0; N];
    for at in (0..N).step_by(G::STEP) {
        let part = at..at + G::STEP;
        grid.choose(at, &x[part.clone()], &w[part.clone()], &mut codes[part.clone()], &mut decoded[part]);
    }
    codes
}
