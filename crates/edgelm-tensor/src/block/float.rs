//! F32, F16 and BF16: "blocks" of one value.

use super::Block;
use crate::DType;
use half::{bf16, f16};

/// The value itself.
impl Block for f32 {
    const DTYPE: DType = DType::F32;
    const LEN: usize = 1;
    const ERROR: f32 = 0.0;

    fn encode(values: &[f32], _importance: Option<&[f32]>) -> Self {
        values[0]
    }

    fn decode(&self, out: &mut [f32]) {
        out[0] = *self;
    }
}

/// IEEE 754 binary16, rounded to nearest, ties to even; values beyond ±65504 become ±65504, never infinite.
impl Block for f16 {
    const DTYPE: DType = DType::F16;
    const LEN: usize = 1;
    const ERROR: f32 = 1.0 / 2048.0;

    fn encode(values: &[f32], _importance: Option<&[f32]>) -> Self {
        f16::from_f32(values[0].clamp(f16::MIN.to_f32_const(), f16::MAX.to_f32_const()))
    }

    fn decode(&self, out: &mut [f32]) {
        out[0] = self.to_f32();
    }
}

/// The upper half of an f32, rounded to nearest, ties to even; never rounded up to infinity.
impl Block for bf16 {
    const DTYPE: DType = DType::BF16;
    const LEN: usize = 1;
    const ERROR: f32 = 1.0 / 256.0;

    fn encode(values: &[f32], _importance: Option<&[f32]>) -> Self {
        bf16::from_f32(values[0].clamp(bf16::MIN.to_f32_const(), bf16::MAX.to_f32_const()))
    }

    fn decode(&self, out: &mut [f32]) {
        out[0] = self.to_f32();
    }
}
