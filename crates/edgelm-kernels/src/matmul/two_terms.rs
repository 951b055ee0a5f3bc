//! Inputs of two int8 terms instead of one, for the rows that one would round more coarsely than the weights are.

use super::{
    Linear, Scratch,
    activations::{GROUP, scale_of},
    order::in_order,
};
use crate::{
    Cpu, Work,
    disjoint::Disjoint,
    simd::{Kernel, LANES, Lanes, dispatch},
};
use edgelm_tensor::DType;
use std::ops::Range;

/// Of weights of b bits, the root of their mean squared error over their mean square is about this / 2^b: 0.5 % in Q8_0, 1.9 % in
/// Q6_K, 8 % in Q4_0.
const WEIGHT_ERROR: f32 = 1.8;

/// What is no reason for a second term. A normally distributed row of x is 0.65 % off with one, the inputs of mica-40m's down
/// projections are 1.4 to 1.8 % off, those of its other products 0.65 to 1 %.
///
/// mica-40m in Q8_0 by `gptq` (24 windows of WikiText-2), two terms in the rows that are further off than 1 %: perplexity +0.027 %,
/// KL 0.00025; 0.85 %: +0.020 %, 0.00021; 0.75 %: +0.012 %, 0.00018; 0.7 %: +0.022 %, 0.00016; two everywhere: +0.012 %, 0.00008. That
/// text takes 1.2 times as long with 0.75 % as with 1 % (AVX2). For 512 rows of the shape of TinyLlama, beside one term everywhere: 1 %
/// takes 1.35 times as long, two everywhere 2.2 times (AMX); 0.75 % as long as 1 % (AVX2).
const ORDINARY: f32 = 0.0075;

/// From this many rows on second terms have products of their own; before, reading the weights once is what counts.
const MANY_ROWS: usize = 12;

/// Second terms that are multiplied at a time beside many rows: enough to pay for unpacking the weights, little enough that
/// the results of an output head of 100,000 rows fit in memory.
const ROWS_AT_A_TIME: usize = 128;

/// Values per thread below which a second thread costs more than it saves.
const GRAIN: usize = 1 << 14;

/// Buffers that survive between calls.
#[derive(Default)]
pub(super) struct Terms {
    /// Of each row of x.
    errors: Vec<f32>,
    /// The rows that have a second term.
    coarse: Vec<usize>,
    /// Rows of x, if few, and second terms.
    x: Vec<f32>,
    /// What comes of them, one for each product of the group.
    out: Vec<Vec<f32>>,
}

impl Cpu {
    /// [`Self::matmul`] with x = a + b, where a is x in int8 and b what that leaves of it, in int8 again, in the rows where a
    /// alone is further from x than the finest weights of the group are from what they stand for, and than ordinary rows are;
    /// elsewhere b is zero.
    ///
    /// out[m, n] = (Σ_k a[m, k] · W[n, k] + bias[n]) + Σ_k b[m, k] · W[n, k]
    ///
    /// Float weights meet x as it is. Numerics: both sums are as in `matmul`, and depend on the row alone. The error of x is at
    /// most max|x| / 2^8 in groups of 128 without b and max|x| / 2^15 with it. Few rows with second terms read the weights
    /// once.
    pub fn matmul_two_terms(&self, x: &[f32], m: usize, group: &mut [Linear<'_>], scratch: &mut Scratch) {
        in_order(x, group, scratch, &|x, group, scratch| self.two_terms_of(x, m, group, scratch));
    }

    /// For columns in the order of x.
    fn two_terms_of(&self, x: &[f32], m: usize, group: &mut [Linear<'_>], scratch: &mut Scratch) {
        let Some(cols) = group.first().map(|linear| linear.weight.cols()) else { return };
        assert_eq!(x.len(), m * cols, "x is not [{m}, {cols}]");
        let dtypes = group.iter().map(|linear| linear.weight.dtype());
        let bits = dtypes.filter(|dtype| dtype.is_quantized()).map(DType::bits_per_weight).fold(0.0, f64::max);
        let most = (WEIGHT_ERROR / bits.exp2() as f32).max(ORDINARY);
        // A row of one value per group, which is as coarse as rows get.
        let coarsest = (GROUP as f32 / 12.0).sqrt() / 127.0;
        if most >= coarsest {
            return self.matmul_of(x, m, None, group, scratch);
        }
        let mut terms = std::mem::take(&mut scratch.terms);
        terms.find_coarse(self, x, m, cols, most);
        if terms.coarse.is_empty() {
            self.matmul_of(x, m, None, group, scratch);
        } else if m < MANY_ROWS {
            terms.x.clear();
            terms.x.extend_from_slice(x);
            terms.append_rests(self, x, cols, 0..terms.coarse.len());
            let rows = m + terms.coarse.len();
            terms.multiply(self, rows, group, scratch);
            for (linear, out) in group.iter_mut().zip(&terms.out) {
                let (first, rests) = out.split_at(linear.out.len());
                linear.out.copy_from_slice(first);
                if let Some(bias) = linear.bias {
                    let rows = linear.out.chunks_mut(bias.len().max(1));
                    rows.for_each(|out| out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias));
                }
                add_rows(linear, &terms.coarse, rests);
            }
        } else {
            self.matmul_of(x, m, None, group, scratch);
            for start in (0..terms.coarse.len()).step_by(ROWS_AT_A_TIME) {
                let part = start..terms.coarse.len().min(start + ROWS_AT_A_TIME);
                terms.x.clear();
                terms.append_rests(self, x, cols, part.clone());
                terms.multiply(self, part.len(), group, scratch);
                for (linear, out) in group.iter_mut().zip(&terms.out) {
                    add_rows(linear, &terms.coarse[part.clone()], out);
                }
            }
        }
        scratch.terms = terms;
    }
}

/// out[row] += terms[i] for the i-th of `rows`. Float weights have met all of x already.
fn add_rows(Linear { weight, out, .. }: &mut Linear<'_>, rows: &[usize], terms: &[f32]) {
    let n = weight.rows();
    if !weight.dtype().is_quantized() {
        return;
    }
    for (&row, terms) in rows.iter().zip(terms.chunks(n.max(1))) {
        out[row * n..][..n].iter_mut().zip(terms).for_each(|(out, term)| *out += term);
    }
}

impl Terms {
    /// Finds the rows of x `[M, K]` with a relative error above `most`.
    fn find_coarse(&mut self, cpu: &Cpu, x: &[f32], m: usize, cols: usize, most: f32) {
        let _operator = cpu.operator("rounding error", || Work::elementwise(x.len(), 3 * x.len()));
        self.errors.resize(m, 0.0);
        let errors = Disjoint::new(&mut self.errors);
        cpu.pool().split(m, (GRAIN / cols.max(1)).max(1), &|rows| {
            // SAFETY: `split` hands out ranges that do not overlap.
            #[allow(unsafe_code)]
            let errors = unsafe { errors.part(rows.clone()) };
            dispatch(cpu, Errors { x: &x[rows.start * cols..rows.end * cols], cols, errors });
        });
        let errors = self.errors.iter().enumerate();
        self.coarse.clear();
        self.coarse.extend(errors.filter(|(_, error)| **error > most * most).map(|(row, _)| row));
    }

    /// Appends the second terms of the coarse rows number `part` to `self.x`.
    fn append_rests(&mut self, cpu: &Cpu, x: &[f32], cols: usize, part: Range<usize>) {
        let rows = &self.coarse[part];
        let start = self.x.len();
        self.x.resize(start + rows.len() * cols, 0.0);
        let rests = Disjoint::new(&mut self.x[start..]);
        cpu.pool().split(rows.len(), (GRAIN / cols.max(1)).max(1), &|range| {
            // SAFETY: `split` hands out ranges that do not overlap.
            #[allow(unsafe_code)]
            let rests = unsafe { rests.part(range.start * cols..range.end * cols) };
            for (&row, rest) in rows[range].iter().zip(rests.chunks_mut(cols)) {
                dispatch(cpu, Rest { x: &x[row * cols..][..cols], rest });
            }
        });
    }

    fn multiply(&mut self, cpu: &Cpu, rows: usize, group: &[Linear<'_>], scratch: &mut Scratch) {
        self.out.resize_with(group.len().max(self.out.len()), Vec::new);
        let mut linears = Vec::with_capacity(group.len());
        for (linear, out) in group.iter().zip(&mut self.out) {
            out.resize(rows * linear.weight.rows(), 0.0);
            linears.push(Linear { weight: linear.weight, bias: None, out });
        }
        cpu.matmul_of(&self.x, rows, None, &mut linears, scratch);
    }
}

/// Σ over groups of len · (max|x| / 127)² / 12, over Σ x²; 0 for zeros, and for what is not finite.
struct Errors<'a> {
    x: &'a [f32],
    cols: usize,
    errors: &'a mut [f32],
}

impl Kernel for Errors<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (x, error) in self.x.chunks_exact(self.cols).zip(self.errors) {
            let (mut squares, mut rounding) = (L::splat(0.0), 0.0);
            for group in x.chunks(GROUP) {
                // Rows of quantized weights are whole blocks of 32 values.
                let values = group.as_chunks::<LANES>().0;
                for values in values {
                    let values = L::load(values);
                    // Not fused: whether a row is coarse must not depend on the instruction set.
                    squares = values.mul(values).add(squares);
                }
                let step = largest::<L>(values) / 127.0;
                rounding += group.len() as f32 * step * step / 12.0;
            }
            let ratio = rounding / squares.sum();
            *error = if ratio.is_finite() { ratio } else { 0.0 };
        }
    }
}

#[inline(always)]
fn largest<L: Lanes>(values: &[[f32; LANES]]) -> f32 {
    let zero = L::splat(0.0);
    let mut most = zero;
    for values in values {
        let values = L::load(values);
        most = values.max(zero.sub(values)).max(most);
    }
    most.largest()
}

/// x minus what `matmul` rounds it to.
struct Rest<'a> {
    x: &'a [f32],
    rest: &'a mut [f32],
}

impl Kernel for Rest<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (x, rest) in self.x.chunks(GROUP).zip(self.rest.chunks_mut(GROUP)) {
            let x = x.as_chunks::<LANES>().0;
            let (scale, factor) = scale_of(largest::<L>(x));
            for (x, rest) in x.iter().zip(rest.as_chunks_mut::<LANES>().0) {
                let x = L::load(x);
                let rounded = x.mul(L::splat(factor)).round().mul(L::splat(scale));
                let difference = if factor != 0.0 { x.sub(rounded) } else { L::splat(0.0) };
                difference.store(rest);
            }
        }
    }
}
