//! y = x · Wᵀ (+ bias) over packed weights.
//!
//! The one idea: 16 rows of W form a tile in which their blocks stand interleaved, so that a SIMD lane is a row of W.
//! Every format is then unpacked by the same lane-wise code on every instruction set: `format/` has one file per
//! format, `lanes/` one per instruction set, `quantized.rs` and `float.rs` the loops that join them.

#![allow(unsafe_code)]
// Loops over lanes, rows and tiles index several arrays of constant size at once.
#![allow(clippy::needless_range_loop)]

mod activations;
mod float;
mod format;
pub(crate) mod lanes;
mod matrix;
mod output;
mod pack;
mod quantized;
#[cfg(test)]
mod tests;

use crate::{Cpu, KernelError, Pool};
use activations::{Floats, Quantized};
use edgelm_tensor::{DType, TensorError};
use format::*;
use lanes::{Family, Lanes, LanesVisitor, ROWS};
use output::Out;
use pack::Packed;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Weights `[N, K]`, repacked once for the kernel family of a `Cpu`.
pub struct Matrix {
    packed: Packed,
    dtype: DType,
    rows: usize,
    cols: usize,
    family: Family,
}

impl Matrix {
    /// Packs rows of `dtype`. `bytes` is exactly `rows` rows of `cols` values.
    pub fn pack(cpu: &Cpu, dtype: DType, rows: usize, cols: usize, bytes: &[u8]) -> Result<Self, KernelError> {
        let row_bytes = dtype.row_bytes(cols)?;
        let want = rows.checked_mul(row_bytes);
        if want != Some(bytes.len()) {
            let len = rows.saturating_mul(cols);
            let want = want.unwrap_or(usize::MAX);
            return Err(TensorError::ByteLength { dtype, len, want, got: bytes.len() }.into());
        }
        let pool = cpu.pool();
        let packed = match dtype {
            DType::F32 => Packed::floats::<4>(pool, rows, cols, bytes),
            DType::F16 | DType::BF16 => Packed::floats::<2>(pool, rows, cols, bytes),
            DType::Q4_0 => pack_blocks::<Q4_0>(pool, dtype, rows, cols, bytes),
            DType::Q4_1 => pack_blocks::<Q4_1>(pool, dtype, rows, cols, bytes),
            DType::Q5_0 => pack_blocks::<Q5_0>(pool, dtype, rows, cols, bytes),
            DType::Q5_1 => pack_blocks::<Q5_1>(pool, dtype, rows, cols, bytes),
            DType::Q8_0 => pack_blocks::<Q8_0>(pool, dtype, rows, cols, bytes),
            DType::Q2_K => pack_blocks::<Q2K>(pool, dtype, rows, cols, bytes),
            DType::Q3_K => pack_blocks::<Q3K>(pool, dtype, rows, cols, bytes),
            DType::Q4_K => pack_blocks::<Q4K>(pool, dtype, rows, cols, bytes),
            DType::Q5_K => pack_blocks::<Q5K>(pool, dtype, rows, cols, bytes),
            DType::Q6_K => pack_blocks::<Q6K>(pool, dtype, rows, cols, bytes),
            DType::IQ4_NL => pack_blocks::<Iq4Nl>(pool, dtype, rows, cols, bytes),
            DType::IQ4_XS => pack_blocks::<Iq4Xs>(pool, dtype, rows, cols, bytes),
        };
        Ok(Self { packed, dtype, rows, cols, family: Family::of(cpu.isa()) })
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// K.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Stored format.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        self.packed.bytes()
    }

    /// `{arch}-{types}-{feature}`, for `bench` and logs.
    pub fn kernel(&self) -> &'static str {
        kernel_name(self.dtype, self.family)
    }

    /// Tiles that hold anything.
    fn tiles(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }
}

fn pack_blocks<F: Format>(pool: &Pool, dtype: DType, rows: usize, cols: usize, bytes: &[u8]) -> Packed {
    Packed::quantized::<F>(pool, rows, cols / dtype.block_len(), dtype.block_bytes(), bytes)
}

#[cfg(target_arch = "x86_64")]
macro_rules! arch {
    () => {
        "x86_64"
    };
}
#[cfg(target_arch = "aarch64")]
macro_rules! arch {
    () => {
        "aarch64"
    };
}
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
macro_rules! arch {
    () => {
        "generic"
    };
}

/// One row per format: what is multiplied with what, spelled for every family.
macro_rules! kernel_names {
    ($($dtype:ident $types:literal,)*) => {
        fn kernel_name(dtype: DType, family: Family) -> &'static str {
            match (dtype, family) {
                $(
                    (DType::$dtype, Family::Scalar(_)) => concat!(arch!(), "-", $types, "-scalar"),
                    #[cfg(target_arch = "x86_64")]
                    (DType::$dtype, Family::Avx2(_)) => concat!(arch!(), "-", $types, "-avx2"),
                    #[cfg(target_arch = "x86_64")]
                    (DType::$dtype, Family::Avx512(_)) => concat!(arch!(), "-", $types, "-avx512vnni"),
                    #[cfg(target_arch = "x86_64")]
                    (DType::$dtype, Family::Amx(_)) => concat!(arch!(), "-", $types, "-amx"),
                )*
            }
        }
    };
}

kernel_names! {
    F32 "f32f32",
    F16 "f16f32",
    BF16 "bf16f32",
    Q4_0 "q4_0q8",
    Q4_1 "q4_1q8",
    Q5_0 "q5_0q8",
    Q5_1 "q5_1q8",
    Q8_0 "q8_0q8",
    Q2_K "q2_kq8",
    Q3_K "q3_kq8",
    Q4_K "q4_kq8",
    Q5_K "q5_kq8",
    Q6_K "q6_kq8",
    IQ4_NL "iq4_nlq8",
    IQ4_XS "iq4_xsq8",
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
    quantized: Quantized,
    floats: Floats,
    /// One per worker; only the worker locks it.
    workers: Vec<Mutex<Buffers>>,
}

#[derive(Default)]
struct Buffers {
    unpacked: quantized::Unpacked,
    converted: float::Converted,
}

/// From this many rows on, unpacking to a buffer pays.
const MANY_ROWS: usize = 12;

/// Products below this many weight bytes times rows run on the caller alone.
const PARALLEL_FROM: usize = 16 << 10;

impl Cpu {
    /// out[m, n] = Σ_k x[m, k] · W[n, k] + bias[n], for every product of the group, in one parallel region.
    ///
    /// Shapes: `x` [M, K] row-major. Numerics: for quantized weights x is quantized to int8 in blocks of 32 and block
    /// products are exact integers; sums over blocks are f32 in index order, so a row's result does not depend on M or
    /// on the number of threads, and is the same bits in every kernel family. For float weights x stays f32 and sums
    /// run in the order of k; SIMD families fuse each multiply-add, `scalar` rounds twice. Panics if lengths disagree.
    pub fn matmul(&self, x: &[f32], m: usize, group: &mut [Linear<'_>], scratch: &mut Scratch) {
        let Some(first) = group.first() else { return };
        let cols = first.weight.cols;
        assert_eq!(x.len(), m * cols, "x is not [{m}, {cols}]");
        for linear in &*group {
            assert_eq!(linear.weight.cols, cols, "products of a group share their input");
            assert_eq!(linear.out.len(), m * linear.weight.rows, "out is not [{m}, {}]", linear.weight.rows);
            assert!(linear.bias.is_none_or(|bias| bias.len() == linear.weight.rows), "bias is not [N]");
        }
        first.weight.family.visit(Matmul { cpu: self, x, m, cols, group, scratch });
    }
}

struct Matmul<'a, 'b> {
    cpu: &'a Cpu,
    x: &'a [f32],
    m: usize,
    cols: usize,
    group: &'a mut [Linear<'b>],
    scratch: &'a mut Scratch,
}

impl LanesVisitor for Matmul<'_, '_> {
    type Output = ();

    fn visit<L: Lanes>(self, l: L) {
        let Self { cpu, x, m, cols, group, scratch } = self;
        let pool = cpu.pool();
        let many = m >= MANY_ROWS;
        if group.iter().any(|linear| linear.weight.dtype.is_quantized()) {
            let widths = if many { L::INT_PANELS } else { quantized::FEW_PANELS };
            scratch.quantized.fill(l, pool, x, m, cols, widths);
        }
        if group.iter().any(|linear| !linear.weight.dtype.is_quantized()) {
            let widths = if many { L::FLOAT_PANELS } else { float::FEW_PANELS };
            scratch.floats.fill(pool, x, m, cols, widths);
        }
        scratch.workers.resize_with(pool.threads(), Mutex::default);

        let work: Vec<Work<'_>> = group
            .iter_mut()
            .map(|linear| {
                let out = Out::new(linear.out, linear.weight.rows, linear.bias);
                Work { weight: linear.weight, out }
            })
            .collect();
        let grain = if many && L::TWO_TILES { 2 } else { 1 };
        let total: usize = work.iter().map(|work| work.weight.bytes()).sum();
        let scratch = &*scratch;
        let run = |worker: usize, workers: usize| {
            let mut buffers = scratch.workers[worker].lock().unwrap_or_else(PoisonError::into_inner);
            for (work, tiles) in work.iter().zip(share(&work, worker, workers, grain)) {
                if !tiles.is_empty() {
                    work.run(l, tiles, many, scratch, &mut buffers);
                }
            }
        };
        if total.saturating_mul(m) < PARALLEL_FROM {
            run(0, 1);
        } else {
            pool.run(&|worker| run(worker, pool.threads()));
        }
    }
}

struct Work<'a> {
    weight: &'a Matrix,
    out: Out<'a>,
}

/// The tiles of every product that one worker computes: an equal share of the bytes of the group, cut at multiples of
/// `grain` tiles.
fn share(work: &[Work<'_>], worker: usize, workers: usize, grain: usize) -> impl Iterator<Item = Range<usize>> {
    let units = move |work: &Work<'_>| work.weight.tiles().div_ceil(grain);
    // A tile of a matrix without columns has no bytes, but still a bias to write.
    let unit_bytes = move |work: &Work<'_>| (work.weight.packed.tile_bytes() * grain).max(1);
    let total: usize = work.iter().map(|work| units(work) * unit_bytes(work)).sum();
    let bound = move |worker: usize| (total as u128 * worker as u128 / workers as u128) as usize;
    let mut before = 0;
    work.iter().map(move |work| {
        let (units, bytes) = (units(work), unit_bytes(work));
        let at =
            |bound: usize| (bound.saturating_sub(before).div_ceil(bytes).min(units) * grain).min(work.weight.tiles());
        let range = at(bound(worker))..at(bound(worker + 1));
        before += units * bytes;
        range
    })
}

impl Work<'_> {
    fn run<L: Lanes>(&self, l: L, tiles: Range<usize>, many: bool, scratch: &Scratch, buffers: &mut Buffers) {
        match self.weight.dtype {
            DType::F32 => self.floats::<L, float::F32>(l, tiles, many, scratch, buffers),
            DType::F16 => self.floats::<L, float::F16>(l, tiles, many, scratch, buffers),
            DType::BF16 => self.floats::<L, float::Bf16>(l, tiles, many, scratch, buffers),
            DType::Q4_0 => self.blocks::<L, Q4_0>(l, tiles, many, scratch, buffers),
            DType::Q4_1 => self.blocks::<L, Q4_1>(l, tiles, many, scratch, buffers),
            DType::Q5_0 => self.blocks::<L, Q5_0>(l, tiles, many, scratch, buffers),
            DType::Q5_1 => self.blocks::<L, Q5_1>(l, tiles, many, scratch, buffers),
            DType::Q8_0 => self.blocks::<L, Q8_0>(l, tiles, many, scratch, buffers),
            DType::Q2_K => self.blocks::<L, Q2K>(l, tiles, many, scratch, buffers),
            DType::Q3_K => self.blocks::<L, Q3K>(l, tiles, many, scratch, buffers),
            DType::Q4_K => self.blocks::<L, Q4K>(l, tiles, many, scratch, buffers),
            DType::Q5_K => self.blocks::<L, Q5K>(l, tiles, many, scratch, buffers),
            DType::Q6_K => self.blocks::<L, Q6K>(l, tiles, many, scratch, buffers),
            DType::IQ4_NL => self.blocks::<L, Iq4Nl>(l, tiles, many, scratch, buffers),
            DType::IQ4_XS => self.blocks::<L, Iq4Xs>(l, tiles, many, scratch, buffers),
        }
    }

    fn blocks<L: Lanes, F: Format>(
        &self,
        l: L,
        tiles: Range<usize>,
        many: bool,
        scratch: &Scratch,
        buffers: &mut Buffers,
    ) {
        let tiles = quantized::Tiles::<F> {
            weights: &self.weight.packed,
            blocks: self.weight.cols / self.weight.dtype.block_len(),
            tiles,
            x: &scratch.quantized,
            out: &self.out,
            format: PhantomData,
        };
        if many {
            l.enter(quantized::ManyRows { tiles, buffer: &mut buffers.unpacked });
        } else {
            l.enter(quantized::FewRows(tiles));
        }
    }

    fn floats<L: Lanes, E: float::Element>(
        &self,
        l: L,
        tiles: Range<usize>,
        many: bool,
        scratch: &Scratch,
        buffers: &mut Buffers,
    ) {
        let tiles = float::Tiles::<E> {
            weights: &self.weight.packed,
            cols: self.weight.cols,
            tiles,
            x: &scratch.floats,
            out: &self.out,
            element: PhantomData,
        };
        if many {
            l.enter(float::ManyRows { tiles, buffer: &mut buffers.converted });
        } else {
            l.enter(float::FewRows(tiles));
        }
    }
}
