//! y = x · Wᵀ (+ bias) over packed weights.

use crate::{Cpu, KernelError};
use edgelm_tensor::DType;

/// Weights `[N, K]`, repacked once for the kernel family of a `Cpu`.
pub struct Matrix {
    _private: (),
}

impl Matrix {
    /// Packs rows of `dtype`. `bytes` is exactly `rows` rows of `cols` values.
    pub fn pack(cpu: &Cpu, dtype: DType, rows: usize, cols: usize, bytes: &[u8]) -> Result<Self, KernelError> {
        let _ = (cpu, dtype, rows, cols, bytes);
        todo!()
    }
    /// N.
    pub fn rows(&self) -> usize {
        todo!()
    }
    /// K.
    pub fn cols(&self) -> usize {
        todo!()
    }
    /// Stored format.
    pub fn dtype(&self) -> DType {
        todo!()
    }
    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        todo!()
    }
    /// `{arch}-{types}-{feature}`, for `bench` and logs.
    pub fn kernel(&self) -> &'static str {
        todo!()
    }
}

/// One product of a group that shares its input.
pub struct Linear<'a> {
    /// Weights `[N, K]`.
    pub weight: &'a Matrix,
    /// Added to each row of the result, `[N]`.
    pub bias: Option<&'a [f32]>,
    /// Result `[M, N]`, row-major.
    pub out: &'a mut [f32],
}

/// Buffers that survive between calls so that decode does not allocate.
#[derive(Default)]
pub struct Scratch {
    _private: (),
}

impl Cpu {
    /// out[m, n] = Σ_k x[m, k] · W[n, k] + bias[n], for every product of the group, in one parallel region.
    ///
    /// Shapes: `x` [M, K] row-major. Numerics: for quantized weights x is quantized to int8 in blocks of 32 and block
    /// products are exact integers; sums over blocks are f32 in index order, so a row's result does not depend on M or
    /// on the number of threads. For float weights x stays f32. Panics if lengths disagree.
    pub fn matmul(&self, x: &[f32], m: usize, group: &mut [Linear<'_>], scratch: &mut Scratch) {
        let _ = (x, m, group, scratch);
        todo!()
    }
}
