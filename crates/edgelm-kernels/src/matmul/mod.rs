//! y = x · Wᵀ (+ bias) over packed weights.
//!
//! The one idea: 16 rows of W form a tile in which their blocks stand interleaved, so that a SIMD lane is a row of W.
//! Every format is then unpacked by the same lane-wise code on every instruction set: `format/` has one file per
//! format, `lanes/` one per instruction set, `quantized/` and `float.rs` the loops that join them.

#![allow(unsafe_code)]
// Loops over lanes, rows and tiles index several arrays of constant size at once.
#![allow(clippy::needless_range_loop)]

mod activations;
pub(crate) mod arena;
mod float;
mod format;
mod interleave;
pub(crate) mod lanes;
mod order;
mod output;
mod pack;
pub(crate) mod quantized;
mod streamed;
#[cfg(test)]
mod tests;
mod two_terms;

use crate::disjoint::Disjoint;
use crate::{Cpu, Isa, KernelError};
use activations::{Floats, Input, Quantized};
use arena::Arena;
use edgelm_tensor::{DType, TensorError};
use format::*;
use lanes::{Family, Lanes, LanesVisitor, Line, ROWS};
use order::{Order, in_order};
use output::Out;
use pack::{Layout, Packed};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use streamed::RowSource;

/// Weights `[N, K]`: repacked once for the kernel family of a `Cpu`, or made anew for every product.
pub struct Matrix {
    held: Held,
    /// Of the input, if it is not that of the columns.
    order: Option<Order>,
    dtype: DType,
    rows: usize,
    cols: usize,
    family: Family,
}

/// Where the weights are.
enum Held {
    Packed(Packed),
    Streamed(Arc<dyn RowSource>),
}

/// Rows of a matrix as they stand in a file.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// Their format.
    pub dtype: DType,
    /// N.
    pub rows: usize,
    /// K.
    pub cols: usize,
    /// Exactly `rows` rows of `cols` values.
    pub bytes: &'a [u8],
}

/// Source bytes that a worker packs at a time: enough that fetching the next piece costs nothing, little enough that
/// all workers are done at about the same time and few pages of a mapped file are held at once.
const PACK_BYTES: usize = 2 << 20;

impl Matrix {
    /// Packs one matrix.
    pub fn pack(cpu: &Cpu, dtype: DType, rows: usize, cols: usize, bytes: &[u8]) -> Result<Self, KernelError> {
        let mut packed = Self::pack_all(cpu, &[Weights { dtype, rows, cols, bytes }], &|_, _| ())?;
        Ok(packed.swap_remove(0))
    }

    /// Packs the matrices of a model into one piece of memory, all workers at once. `done(index, bytes)` is
    /// told which bytes of which matrix are not needed any more, piece by piece and in no order, so that pages of a
    /// mapped file can be let go.
    ///
    /// Errors if the bytes of a matrix are not what its format and shape say.
    pub fn pack_all(
        cpu: &Cpu,
        weights: &[Weights<'_>],
        done: &(dyn Fn(usize, &[u8]) + Sync),
    ) -> Result<Vec<Self>, KernelError> {
        let layouts = weights.iter().map(Weights::layout).collect::<Result<Vec<_>, _>>()?;
        let mut starts = Vec::with_capacity(weights.len());
        let mut pieces = Vec::new();
        let mut total = 0;
        for (index, layout) in layouts.iter().enumerate() {
            starts.push(total);
            total += layout.lines();
            let step = (PACK_BYTES / layout.source_bytes().max(1)).max(1);
            let tiles = layout.tiles();
            pieces.extend((0..tiles).step_by(step).map(|first| (index, first..tiles.min(first + step))));
        }

        let mut arena = Arena::zeroed(total);
        let lines = Disjoint::new(arena.lines_mut());
        let next = AtomicUsize::new(0);
        cpu.pool().run(&|_| {
            while let Some((index, tiles)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                let layout = &layouts[*index];
                let source = &weights[*index].bytes[layout.source_of(tiles)];
                let of = layout.lines_of(tiles);
                // SAFETY: pieces are different tiles, whose lines do not overlap, and each is taken once.
                let lines = unsafe { lines.part(starts[*index] + of.start..starts[*index] + of.end) };
                layout.pack(cpu.isa(), source, lines);
                done(*index, source);
            }
        });

        let arena = Arc::new(arena);
        let family = Family::of(cpu.isa());
        let matrix = |((weights, layout), start): ((&Weights<'_>, Layout), usize)| Self {
            held: Held::Packed(Packed::new(Arc::clone(&arena), start..start + layout.lines(), layout)),
            order: None,
            dtype: weights.dtype,
            rows: weights.rows,
            cols: weights.cols,
            family,
        };
        Ok(weights.iter().zip(layouts).zip(starts).map(matrix).collect())
    }

    /// A matrix of f32 whose rows are asked for whenever they are multiplied, so that nothing is held in memory.
    pub fn streamed(cpu: &Cpu, rows: usize, cols: usize, source: Arc<dyn RowSource>) -> Self {
        let family = Family::of(cpu.isa());
        Self { held: Held::Streamed(source), order: None, dtype: DType::F32, rows, cols, family }
    }

    /// The same weights for an input in another order: column j meets value `order[j]` of it. Panics if `order` is not a
    /// permutation of 0 .. K.
    pub fn with_order(self, order: Vec<u32>) -> Self {
        assert_eq!(order.len(), self.cols, "the order is not that of the columns");
        Self { order: Some(Order::new(order)), ..self }
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
        match &self.held {
            Held::Packed(packed) => packed.bytes(),
            Held::Streamed(_) => 0,
        }
    }

    /// `{arch}-{types}-{feature}`, for `bench` and logs.
    pub fn kernel(&self) -> &'static str {
        kernel_name(self.dtype, self.family)
    }

    /// Tiles that hold anything.
    fn tiles(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Bytes of a tile that a product reads.
    fn tile_bytes(&self) -> usize {
        match &self.held {
            Held::Packed(packed) => packed.tile_bytes(),
            Held::Streamed(_) => self.cols * size_of::<Line>(),
        }
    }
}

impl Weights<'_> {
    fn layout(&self) -> Result<Layout, KernelError> {
        let Self { dtype, rows, cols, bytes } = *self;
        let row_bytes = dtype.row_bytes(cols)?;
        let want = rows.checked_mul(row_bytes);
        if want != Some(bytes.len()) {
            let len = rows.saturating_mul(cols);
            let want = want.unwrap_or(usize::MAX);
            return Err(TensorError::ByteLength { dtype, len, want, got: bytes.len() }.into());
        }
        Ok(match dtype {
            DType::F32 => Layout::floats::<4>(rows, row_bytes),
            DType::F16 | DType::BF16 => Layout::floats::<2>(rows, row_bytes),
            DType::Q4_0 => Layout::quantized::<Q4_0>(rows, row_bytes),
            DType::Q4_1 => Layout::quantized::<Q4_1>(rows, row_bytes),
            DType::Q5_0 => Layout::quantized::<Q5_0>(rows, row_bytes),
            DType::Q5_1 => Layout::quantized::<Q5_1>(rows, row_bytes),
            DType::Q8_0 => Layout::quantized::<Q8_0>(rows, row_bytes),
            DType::Q2_K => Layout::quantized::<Q2K>(rows, row_bytes),
            DType::Q3_K => Layout::quantized::<Q3K>(rows, row_bytes),
            DType::Q4_K => Layout::quantized::<Q4K>(rows, row_bytes),
            DType::Q5_K => Layout::quantized::<Q5K>(rows, row_bytes),
            DType::Q6_K => Layout::quantized::<Q6K>(rows, row_bytes),
            DType::IQ4_NL => Layout::quantized::<Iq4Nl>(rows, row_bytes),
            DType::IQ4_XS => Layout::quantized::<Iq4Xs>(rows, row_bytes),
            DType::IQ2_XXS => Layout::quantized::<Iq2Xxs>(rows, row_bytes),
            DType::IQ2_XS => Layout::quantized::<Iq2Xs>(rows, row_bytes),
            DType::IQ2_S => Layout::quantized::<Iq2S>(rows, row_bytes),
            DType::IQ3_XXS => Layout::quantized::<Iq3Xxs>(rows, row_bytes),
            DType::IQ3_S => Layout::quantized::<Iq3S>(rows, row_bytes),
            DType::NF4 => Layout::quantized::<Nf4>(rows, row_bytes),
            DType::FP4 => Layout::quantized::<Fp4>(rows, row_bytes),
            DType::Q8_24 => Layout::quantized::<Q8Sparse>(rows, row_bytes),
            DType::Q4_24 => Layout::quantized::<Q4Sparse>(rows, row_bytes),
            DType::MXFP4 => Layout::rewritten::<Mxfp4>(rows, row_bytes, dtype.block_bytes(), with_half),
            DType::TQ1_0 => Layout::rewritten::<Tq2_0>(rows, row_bytes, dtype.block_bytes(), from_tq1_0),
            DType::TQ2_0 => Layout::quantized::<Tq2_0>(rows, row_bytes),
        })
    }
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
                    (DType::$dtype, Family::AvxVnni(_)) => concat!(arch!(), "-", $types, "-avxvnni"),
                    #[cfg(target_arch = "x86_64")]
                    (DType::$dtype, Family::Avx512(_)) => concat!(arch!(), "-", $types, "-avx512vnni"),
                    #[cfg(target_arch = "x86_64")]
                    (DType::$dtype, Family::Amx(_)) => concat!(arch!(), "-", $types, "-amx"),
                    #[cfg(target_arch = "aarch64")]
                    (DType::$dtype, Family::Neon(_)) => concat!(arch!(), "-", $types, "-neon"),
                    #[cfg(target_arch = "aarch64")]
                    (DType::$dtype, Family::Dotprod(_)) => concat!(arch!(), "-", $types, "-dotprod"),
                    #[cfg(target_arch = "aarch64")]
                    (DType::$dtype, Family::I8mm(_)) => concat!(arch!(), "-", $types, "-i8mm"),
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
    IQ2_XXS "iq2_xxsq8",
    IQ2_XS "iq2_xsq8",
    IQ2_S "iq2_sq8",
    IQ3_XXS "iq3_xxsq8",
    IQ3_S "iq3_sq8",
    NF4 "nf4q8",
    FP4 "fp4q8",
    Q8_24 "q8_24q8",
    Q4_24 "q4_24q8",
    MXFP4 "mxfp4q8",
    TQ1_0 "tq1_0q8",
    TQ2_0 "tq2_0q8",
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
    terms: two_terms::Terms,
    /// x in the order of a matrix.
    ordered: Vec<f32>,
    /// One per worker; only the worker locks it.
    workers: Vec<Mutex<Buffers>>,
}

#[derive(Default)]
struct Buffers {
    unpacked: quantized::Unpacked,
    converted: float::Converted,
    made: streamed::Made,
}

/// From this many rows on, converting floats to a buffer pays.
const MANY_FLOAT_ROWS: usize = 12;

/// Tiles per part of products of many rows, and the most parts per worker. Cores are not equally fast, so the last part is
/// what one waits for the other; TinyLlama's shape on two: a sixth of the time with one part each.
const PART_TILES: usize = 8;
const MAX_PARTS: usize = 32;

/// Products below this many weight bytes times rows run on the caller alone.
const PARALLEL_FROM: usize = 16 << 10;

impl Cpu {
    /// out[m, n] = Σ_k x[m, k] · W[n, k] + bias[n], for every product of the group, in one parallel region.
    ///
    /// Shapes: `x` [M, K] row-major. Numerics: for quantized weights x is quantized to int8 in groups of 128 and the products of a
    /// group are exact integers; sums over groups are f32 in index order, so a row's result does not depend on M or
    /// on the number of threads, and is the same bits in every kernel family. For float weights x stays f32 and sums
    /// run in the order of k; SIMD families fuse each multiply-add, `scalar` rounds twice. Panics if lengths disagree.
    pub fn matmul(&self, x: &[f32], m: usize, group: &mut [Linear<'_>], scratch: &mut Scratch) {
        in_order(x, group, scratch, &|x, group, scratch| self.matmul_of(x, m, None, group, scratch));
    }

    /// The same with one scale for all of x instead of one per row and group: x is rounded to whole multiples of it, from
    /// −127 to 127. Float weights meet x as it is.
    pub fn matmul_static(
        &self,
        x: &[f32],
        m: usize,
        input_scale: f32,
        group: &mut [Linear<'_>],
        scratch: &mut Scratch,
    ) {
        in_order(x, group, scratch, &|x, group, scratch| self.matmul_of(x, m, Some(input_scale), group, scratch));
    }

    /// For columns in the order of x.
    fn matmul_of(&self, x: &[f32], m: usize, scale: Option<f32>, group: &mut [Linear<'_>], scratch: &mut Scratch) {
        let Some(first) = group.first() else { return };
        let cols = first.weight.cols;
        assert_eq!(x.len(), m * cols, "x is not [{m}, {cols}]");
        for linear in &*group {
            assert_eq!(linear.weight.cols, cols, "products of a group share their input");
            assert_eq!(linear.out.len(), m * linear.weight.rows, "out is not [{m}, {}]", linear.weight.rows);
            assert!(linear.bias.is_none_or(|bias| bias.len() == linear.weight.rows), "bias is not [N]");
        }
        let family = first.weight.family;
        let _operator = self.operator("matmul", || work_of(group, m));
        family.visit(Matmul { cpu: self, x, m, cols, scale, group, scratch });
    }
}

/// For traces: the weights read and the operations of a group.
fn work_of(group: &[Linear<'_>], m: usize) -> crate::Work {
    let weights = || group.iter().map(|linear| linear.weight);
    crate::Work {
        bytes: weights().map(|weight| weight.bytes() as u64).sum(),
        operations: weights().map(|weight| 2 * (m * weight.rows * weight.cols) as u64).sum(),
        is_int8: weights().any(|weight| weight.dtype.is_quantized()),
    }
}

/// From how many rows on unpacking a format to a buffer pays.
fn many_from<L: Lanes>(dtype: DType) -> usize {
    L::MANY_ROWS[usize::from(dtype.block_len() > activations::BLOCK)]
}

struct Matmul<'a, 'b> {
    cpu: &'a Cpu,
    x: &'a [f32],
    m: usize,
    cols: usize,
    scale: Option<f32>,
    group: &'a mut [Linear<'b>],
    scratch: &'a mut Scratch,
}

impl LanesVisitor for Matmul<'_, '_> {
    type Output = ();

    fn visit<L: Lanes>(self, l: L) {
        let Self { cpu, x, m, cols, scale, group, scratch } = self;
        let pool = cpu.pool();
        let dtypes = || group.iter().map(|linear| linear.weight.dtype);
        // The quantized weights of a group meet the same panels.
        let many_from = dtypes().filter(|dtype| dtype.is_quantized()).map(many_from::<L>).min();
        let many_floats = m >= MANY_FLOAT_ROWS;
        let many_quantized = many_from.is_some_and(|from| m >= from);
        if many_from.is_some() {
            let many = many_quantized;
            let widths = if many { L::INT_PANELS } else { L::FEW_PANELS };
            let chunk = (many && L::MATRIX).then_some(quantized::GROUPS_AT_ONCE);
            scratch.quantized.fill(l.vector(), pool, Input { x, m, cols, scale }, widths, chunk);
        }
        if dtypes().any(|dtype| !dtype.is_quantized()) {
            let widths = if many_floats { L::FLOAT_PANELS } else { float::FEW_PANELS };
            scratch.floats.fill(pool, x, m, cols, widths);
        }
        scratch.workers.resize_with(pool.threads(), Mutex::default);

        let work: Vec<Work<'_>> = group
            .iter_mut()
            .map(|linear| {
                let out = Out::new(linear.out, linear.weight.rows, linear.bias);
                let many = if linear.weight.dtype.is_quantized() { many_quantized } else { many_floats };
                Work { weight: linear.weight, many, out, isa: cpu.isa() }
            })
            .collect();
        let many = many_floats || many_quantized;
        let grain = if many && L::TWO_TILES { 2 } else { 1 };
        let total: usize = work.iter().map(|work| work.weight.tiles() * work.weight.tile_bytes()).sum();
        let scratch = &*scratch;
        let run = |worker: usize, part: usize, parts: usize| {
            let mut buffers = scratch.workers[worker].lock().unwrap_or_else(PoisonError::into_inner);
            for (work, tiles) in work.iter().zip(share(&work, part, parts, grain)) {
                if !tiles.is_empty() {
                    work.run(l, tiles, scratch, &mut buffers);
                }
            }
        };
        if total.saturating_mul(m) < PARALLEL_FROM {
            run(0, 0, 1);
        } else {
            let mut parts = pool.threads();
            if many {
                let tiles: usize = work.iter().map(|work| work.weight.tiles()).sum();
                parts *= (tiles / (PART_TILES * parts)).clamp(1, MAX_PARTS);
            }
            pool.run_parts(parts, &|worker, part| run(worker, part, parts));
        }
    }
}

struct Work<'a> {
    weight: &'a Matrix,
    many: bool,
    out: Out<'a>,
    isa: Isa,
}

/// The tiles of every product in one part: an equal share of the bytes of the group, cut at multiples of `grain` tiles.
fn share(work: &[Work<'_>], part: usize, parts: usize, grain: usize) -> impl Iterator<Item = Range<usize>> {
    let units = move |work: &Work<'_>| work.weight.tiles().div_ceil(grain);
    // A tile of a matrix without columns has no bytes, but still a bias to write.
    let unit_bytes = move |work: &Work<'_>| (work.weight.tile_bytes() * grain).max(1);
    let total: usize = work.iter().map(|work| units(work) * unit_bytes(work)).sum();
    let bound = move |part: usize| (total as u128 * part as u128 / parts as u128) as usize;
    let mut before = 0;
    work.iter().map(move |work| {
        let (units, bytes) = (units(work), unit_bytes(work));
        let at =
            |bound: usize| (bound.saturating_sub(before).div_ceil(bytes).min(units) * grain).min(work.weight.tiles());
        let range = at(bound(part))..at(bound(part + 1));
        before += units * bytes;
        range
    })
}

/// Tiles of packed weights, and what they are multiplied with.
struct With<'a> {
    packed: &'a Packed,
    tiles: Range<usize>,
    scratch: &'a Scratch,
    buffers: &'a mut Buffers,
}

impl Work<'_> {
    fn run<L: Lanes>(&self, l: L, tiles: Range<usize>, scratch: &Scratch, buffers: &mut Buffers) {
        let packed = match &self.weight.held {
            Held::Packed(packed) => packed,
            Held::Streamed(source) => {
                let shape = [self.weight.rows, self.weight.cols];
                let tiles = streamed::Tiles { source: &**source, shape, tiles, x: &scratch.floats, out: &self.out };
                return tiles.run(l, self.isa, self.many, &mut buffers.made, &mut buffers.converted);
            }
        };
        let with = With { packed, tiles, scratch, buffers };
        match self.weight.dtype {
            DType::F32 => self.floats::<L, float::F32>(l, with),
            DType::F16 => self.floats::<L, float::F16>(l, with),
            DType::BF16 => self.floats::<L, float::Bf16>(l, with),
            DType::Q4_0 => self.blocks::<L, Q4_0>(l, with),
            DType::Q4_1 => self.blocks::<L, Q4_1>(l, with),
            DType::Q5_0 => self.blocks::<L, Q5_0>(l, with),
            DType::Q5_1 => self.blocks::<L, Q5_1>(l, with),
            DType::Q8_0 => self.blocks::<L, Q8_0>(l, with),
            DType::Q2_K => self.blocks::<L, Q2K>(l, with),
            DType::Q3_K => self.blocks::<L, Q3K>(l, with),
            DType::Q4_K => self.blocks::<L, Q4K>(l, with),
            DType::Q5_K => self.blocks::<L, Q5K>(l, with),
            DType::Q6_K => self.blocks::<L, Q6K>(l, with),
            DType::IQ4_NL => self.blocks::<L, Iq4Nl>(l, with),
            DType::IQ4_XS => self.blocks::<L, Iq4Xs>(l, with),
            DType::IQ2_XXS => self.blocks::<L, Iq2Xxs>(l, with),
            DType::IQ2_XS => self.blocks::<L, Iq2Xs>(l, with),
            DType::IQ2_S => self.blocks::<L, Iq2S>(l, with),
            DType::IQ3_XXS => self.blocks::<L, Iq3Xxs>(l, with),
            DType::IQ3_S => self.blocks::<L, Iq3S>(l, with),
            DType::NF4 => self.blocks::<L, Nf4>(l, with),
            DType::FP4 => self.blocks::<L, Fp4>(l, with),
            DType::Q8_24 => self.blocks::<L, Q8Sparse>(l, with),
            DType::Q4_24 => self.blocks::<L, Q4Sparse>(l, with),
            DType::MXFP4 => self.blocks::<L, Mxfp4>(l, with),
            DType::TQ1_0 | DType::TQ2_0 => self.blocks::<L, Tq2_0>(l, with),
        }
    }

    fn blocks<L: Lanes, F: Format>(&self, l: L, with: With<'_>) {
        let With { packed, tiles, scratch, buffers } = with;
        let tiles = quantized::Tiles::<F> {
            weights: packed,
            blocks: self.weight.cols / self.weight.dtype.block_len(),
            tiles,
            x: &scratch.quantized,
            out: &self.out,
            format: PhantomData,
        };
        if self.many {
            quantized::many_rows(l, &tiles, &mut buffers.unpacked);
        } else {
            quantized::few_rows(l.vector(), &tiles);
        }
    }

    fn floats<L: Lanes, E: float::Element>(&self, l: L, with: With<'_>) {
        let With { packed, tiles, scratch, buffers } = with;
        let tiles = float::Tiles::<E> {
            weights: packed.tiles(),
            cols: self.weight.cols,
            tiles,
            x: &scratch.floats,
            out: &self.out,
            element: PhantomData,
        };
        if self.many {
            l.vector().enter(float::ManyRows { tiles, buffer: &mut buffers.converted });
        } else {
            l.vector().enter(float::FewRows(tiles));
        }
    }
}
