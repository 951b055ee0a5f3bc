//! GPTQ inside block formats: codes chosen one after another, each making up for the errors of those before it.
//!
//! Pure: weights, moments and settings in; blocks out. Rows are independent.

use crate::{
    CompressError,
    int_groups::{self, IntGrid, IntScale, IntSettings, matrix_scale},
    lookup_groups::{self, LookupSettings},
    moments::{Factor, Moments},
};
use edgelm_linalg::{Mat, MatMut, MatRef, product_f32};
use edgelm_tensor::{
    DType, IntFormat, LookupFormat,
    block::{Coded, CodedVisitor, Grid, LookupGrid, visit_coded},
};
use half::f16;
use rayon::prelude::*;
use std::marker::PhantomData;

/// Columns between two updates of what lies before them: the factor's part that they need stays in L2.
const COLUMNS_AT_A_TIME: usize = 256;

/// f32 values of a chunk of rows; there are about four arrays of them in work.
const VALUES_AT_A_TIME: usize = 32 << 20;

/// How codes are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FeedbackOptions {
    /// Part of the mean diagonal that is added to the diagonal of H: how little the calibration data is trusted to show what else
    /// the matrix will read.
    ///
    /// KL on WikiText-2, 128 windows, Q3_K_M. With 0.01, as in GPTQ, 0.1 and 0.3: mica-5m calibrated with other texts 0.0695, 0.0656,
    /// 0.0658 (1: 0.0663), with WikiText-2 0.0450, 0.0427, 0.0426; mica-40m with other texts 0.0337, 0.0327, 0.0327, with WikiText-2
    /// 0.0220, 0.0212. Q4_0 of mica-5m: 0.0334, 0.0331, 0.0317; 0.0228, 0.0229, 0.0227. Correlations shrunk by 3 to 20 % instead:
    /// mica-5m 0.0650 to 0.0678, mica-40m no gain.
    pub damping: f32,
    /// Columns with the largest inputs first (`act_order`); the scales are then those of the weights as they were
    /// (static groups).
    pub activation_order: bool,
    /// Most passes of coordinate descent over a row after the feedback.
    pub sweeps: usize,
}

impl Default for FeedbackOptions {
    fn default() -> Self {
        Self { damping: 0.1, activation_order: false, sweeps: 8 }
    }
}

/// The blocks of a matrix, and what they cost.
#[derive(Debug, Clone)]
pub struct Fed {
    /// N rows.
    pub bytes: Vec<u8>,
    /// tr(ΔW · H · ΔWᵀ) / positions, with the damping in H.
    pub output_error: f64,
}

/// Quantizes `weights` `[N, K]` to `dtype` such that the outputs for inputs of moments H change least.
///
/// Columns are decided from the last to the first: column i is rounded from w[i] + Σ_{j>i} e[j]·Lᵤ[j, i] (see
/// [`Factor`]). The scales of a block are searched when its last column is reached, on the values that it would take if it
/// could hold anything, each weighted by D. Then coordinate descent: with g = e·H, each code moves to the one nearest to
/// q[i] + g[i] / H[i, i], until none does.
///
/// Errors: values that are not finite, rows that are not whole blocks, an H that cannot be factored.
pub fn quantize_with_feedback(
    dtype: DType,
    weights: &[f32],
    moments: &Moments,
    options: &FeedbackOptions,
) -> Result<Fed, CompressError> {
    visit_coded(dtype, Visitor { weights, moments, options }).unwrap_or(Err(CompressError::NoCodes { dtype }))
}

/// The same to integers with a scale per group, row or matrix; those of a sparse format that are zero stay so. The scales of groups that do not divide 256 values, of rows and
/// of matrices are those of the weights as they were.
pub fn quantize_ints_with_feedback(
    settings: &IntSettings,
    weights: &[f32],
    moments: &Moments,
    options: &FeedbackOptions,
) -> Result<Fed, CompressError> {
    let codes = IntRuns {
        format: settings.format,
        len: settings.run(moments.columns()),
        fixed: matrix_scale(settings, weights, Some(&moments.mean_squares())),
    };
    run(&codes, weights, moments, options)
}

/// The same to codes of a table with a scale per group.
pub fn quantize_lookup_with_feedback(
    settings: &LookupSettings,
    weights: &[f32],
    moments: &Moments,
    options: &FeedbackOptions,
) -> Result<Fed, CompressError> {
    run(&LookupRuns { format: settings.format, len: settings.group_size }, weights, moments, options)
}

/// How a row is cut into parts that share scales, and what their codes can be.
trait Codes: Sync {
    /// The scales of a part.
    type Scales: Send;
    /// What its codes mean.
    type Grid: Grid + Send;

    /// Values of a part.
    fn len(&self) -> usize;
    /// The scales of least weighted error.
    fn fit(&self, values: &[f32], weights: &[f32]) -> Self::Scales;
    fn grid(&self, scales: &Self::Scales) -> Self::Grid;
    /// Appends the part's bytes.
    fn write(&self, scales: Self::Scales, codes: &[u16], out: &mut Vec<u8>);
    /// The code of weights that are zero where they have to stay so.
    fn fixed_zero(&self) -> Option<u16> {
        None
    }
}

/// Parts are blocks.
struct Blocks<B>(PhantomData<fn() -> B>);

impl<B: Coded> Codes for Blocks<B> {
    type Scales = B;
    type Grid = B::Grid;

    fn len(&self) -> usize {
        B::LEN
    }

    fn fit(&self, values: &[f32], weights: &[f32]) -> B {
        B::encode(values, Some(weights))
    }

    fn grid(&self, block: &B) -> B::Grid {
        block.grid()
    }

    fn write(&self, block: B, codes: &[u16], out: &mut Vec<u8>) {
        out.extend_from_slice(bytemuck::bytes_of(&block.with_codes(codes)));
    }
}

/// Parts are runs of integers.
struct IntRuns {
    format: IntFormat,
    len: usize,
    /// The scale of all of them.
    fixed: Option<IntScale>,
}

impl Codes for IntRuns {
    type Scales = IntScale;
    type Grid = IntGrid;

    fn len(&self) -> usize {
        self.len
    }

    fn fit(&self, values: &[f32], weights: &[f32]) -> IntScale {
        self.fixed.unwrap_or_else(|| int_groups::search(self.format, values, weights))
    }

    fn grid(&self, scale: &IntScale) -> IntGrid {
        IntGrid::new(self.format, *scale)
    }

    fn write(&self, scale: IntScale, codes: &[u16], out: &mut Vec<u8>) {
        int_groups::write_run(self.format, scale, codes, out);
    }

    fn fixed_zero(&self) -> Option<u16> {
        self.format.is_sparse().then_some(-i16::from(self.format.low()) as u16)
    }
}

/// Parts are groups of codes of a table.
struct LookupRuns {
    format: LookupFormat,
    len: usize,
}

impl Codes for LookupRuns {
    type Scales = f16;
    type Grid = LookupGrid;

    fn len(&self) -> usize {
        self.len
    }

    fn fit(&self, values: &[f32], weights: &[f32]) -> f16 {
        lookup_groups::search(self.format, values, weights)
    }

    fn grid(&self, scale: &f16) -> LookupGrid {
        LookupGrid::new(self.format.table(), *scale)
    }

    fn write(&self, scale: f16, codes: &[u16], out: &mut Vec<u8>) {
        lookup_groups::write_run(self.format, scale, codes, out);
    }
}

struct Visitor<'a> {
    weights: &'a [f32],
    moments: &'a Moments,
    options: &'a FeedbackOptions,
}

impl CodedVisitor for Visitor<'_> {
    type Output = Result<Fed, CompressError>;

    fn visit<B: Coded>(self) -> Self::Output {
        B::DTYPE.row_bytes(self.moments.columns())?;
        run(&Blocks::<B>(PhantomData), self.weights, self.moments, self.options)
    }
}

fn run<C: Codes>(
    codes: &C,
    weights: &[f32],
    moments: &Moments,
    options: &FeedbackOptions,
) -> Result<Fed, CompressError> {
    if let Some(index) = weights.iter().position(|value| !value.is_finite()) {
        return Err(CompressError::NotFinite { what: format!("weight {index}") });
    }
    let columns = moments.columns();
    let order = if options.activation_order {
        by_activation(&moments.mean_squares(), C::Grid::STEP)
    } else {
        (0..columns).collect()
    };
    let h = moments.damped(options.damping, &order)?;
    let factor = Factor::new(&h)?;
    // Scales of a part that is decided piece by piece must be known before.
    let fit_first = options.activation_order || !COLUMNS_AT_A_TIME.is_multiple_of(codes.len());
    let plan = Plan { order: &order, h: &h, factor: &factor, options, fit_first };
    let rows_at_a_time = (VALUES_AT_A_TIME / columns.max(1)).max(1);
    let mut fed = Fed { bytes: Vec::new(), output_error: 0.0 };
    for weights in weights.chunks(rows_at_a_time * columns) {
        let mut rows = Rows::new(codes, weights, &plan);
        rows.feed_back(&plan);
        fed.output_error += rows.descend(&plan);
        rows.write(&mut fed.bytes);
    }
    Ok(fed)
}

/// Columns in groups of `step`, those with the largest mean square last: they are decided first.
fn by_activation(squares: &[f32], step: usize) -> Vec<usize> {
    let mut groups: Vec<usize> = (0..squares.len() / step).collect();
    let power = |group: usize| squares[group * step..][..step].iter().sum::<f32>();
    groups.sort_by(|&a, &b| power(a).total_cmp(&power(b)));
    groups.into_iter().flat_map(|group| group * step..(group + 1) * step).collect()
}

struct Plan<'a> {
    order: &'a [usize],
    h: &'a Mat<f32>,
    factor: &'a Factor,
    options: &'a FeedbackOptions,
    /// Scales are chosen before any column is decided.
    fit_first: bool,
}

/// One row in work. Columns are in the order in which they stand in `Plan::order`, parts in file order.
struct Row<'a, C: Codes> {
    format: &'a C,
    /// The weights.
    weights: Vec<f32>,
    /// The scales of each part and its grid, once they are chosen.
    parts: Vec<Option<(C::Scales, C::Grid)>>,
    /// In file order.
    codes: Vec<u16>,
}

struct Rows<'a, C: Codes> {
    rows: Vec<Row<'a, C>>,
    /// w − q, `[R, K]`.
    errors: Vec<f32>,
    columns: usize,
}

impl<'a, C: Codes> Rows<'a, C> {
    fn new(format: &'a C, weights: &[f32], plan: &Plan<'_>) -> Self {
        let (columns, len) = (plan.order.len(), format.len());
        let importance: Option<Vec<f32>> = plan.fit_first.then(|| {
            let mut by_column = vec![0.0; columns];
            plan.order.iter().enumerate().for_each(|(at, &column)| by_column[column] = plan.h[(at, at)]);
            by_column
        });
        let row = |values: &[f32]| Row {
            format,
            weights: plan.order.iter().map(|&column| values[column]).collect(),
            parts: (0..columns / len)
                .map(|index| {
                    let part = index * len..(index + 1) * len;
                    let fit = |weights: &Vec<f32>| format.fit(&values[part.clone()], &weights[part.clone()]);
                    importance.as_ref().map(fit).map(|scales| {
                        let grid = format.grid(&scales);
                        (scales, grid)
                    })
                })
                .collect(),
            codes: vec![0; columns],
        };
        Self { rows: weights.par_chunks(columns).map(row).collect(), errors: vec![0.0; weights.len()], columns }
    }

    fn feed_back(&mut self, plan: &Plan<'_>) {
        let (columns, count) = (self.columns, self.rows.len());
        let mut pull = vec![0.0; count * COLUMNS_AT_A_TIME];
        let starts: Vec<usize> = (0..columns).step_by(COLUMNS_AT_A_TIME).collect();
        for &start in starts.iter().rev() {
            let end = (start + COLUMNS_AT_A_TIME).min(columns);
            let width = end - start;
            let pull = &mut pull[..count * width];
            // pull[r, i] = Σ_{j ≥ end} e[r, j] · Lᵤ[j, i]
            let decided = MatRef::from_row_major_slice(&self.errors, count, columns).subcols(end, columns - end);
            let unit = plan.factor.unit().submatrix(end, start, columns - end, width);
            let out = MatMut::from_row_major_slice_mut(pull, count, width);
            product_f32(out, false, decided, unit);
            let parts =
                self.rows.par_iter_mut().zip(self.errors.par_chunks_mut(columns)).zip(pull.par_chunks_mut(width));
            parts.for_each(|((row, errors), pull)| row.decide(plan, start, pull, errors));
        }
    }

    /// Returns Σ e·H·e over the rows.
    fn descend(&mut self, plan: &Plan<'_>) -> f64 {
        let (columns, count) = (self.columns, self.rows.len());
        let mut gradient = vec![0.0; self.errors.len()];
        let errors = MatRef::from_row_major_slice(&self.errors, count, columns);
        let out = MatMut::from_row_major_slice_mut(&mut gradient, count, columns);
        product_f32(out, false, errors, plan.h.as_ref());
        let parts =
            self.rows.par_iter_mut().zip(self.errors.par_chunks_mut(columns)).zip(gradient.par_chunks_mut(columns));
        let losses: Vec<f64> = parts
            .map(|((row, errors), gradient)| {
                for _ in 0..plan.options.sweeps {
                    if !row.sweep(plan, errors, gradient) {
                        break;
                    }
                }
                errors.iter().zip(&*gradient).map(|(e, g)| f64::from(e * g)).sum()
            })
            .collect();
        losses.iter().sum()
    }

    fn write(self, out: &mut Vec<u8>) {
        for row in self.rows {
            for (part, codes) in row.parts.into_iter().zip(row.codes.chunks(row.format.len())) {
                if let Some((scales, _)) = part {
                    row.format.write(scales, codes, out);
                }
            }
        }
    }
}

impl<C: Codes> Row<'_, C> {
    /// The code of the weight at `at` if it must stay zero.
    fn fixed(&self, at: usize) -> Option<u16> {
        self.format.fixed_zero().filter(|_| self.weights[at] == 0.0)
    }

    /// Decides the columns from `start` on, as many as `pull` has. `pull`: what the decided columns ask of these.
    fn decide(&mut self, plan: &Plan<'_>, start: usize, pull: &mut [f32], errors: &mut [f32]) {
        let step = C::Grid::STEP;
        let mut target = [0.0f32; 32];
        let mut decoded = [0.0f32; 32];
        for local in (0..pull.len()).step_by(step).rev() {
            let at = start + local;
            let column = plan.order[at];
            let len = self.format.len();
            let index = column / len;
            if self.parts[index].is_none() {
                // Without an order of its own a part is reached at its last column, and all of it is among these columns.
                let first = index * len;
                let wanted = self.expected(plan, first, &pull[first - start..at + step - start]);
                let scales = self.format.fit(&wanted, &plan.factor.cost()[first..first + len]);
                let grid = self.format.grid(&scales);
                self.parts[index] = Some((scales, grid));
            }
            if let Some(zero) = self.fixed(at) {
                // Without an error it asks nothing of others.
                self.codes[column] = zero;
                continue;
            }
            let Some((_, grid)) = &self.parts[index] else { continue };
            for i in 0..step {
                target[i] = self.weights[at + i] + pull[local + i];
            }
            let codes = &mut self.codes[column..column + step];
            grid.choose(column % len, &target[..step], &plan.factor.cost()[at..at + step], codes, &mut decoded[..step]);
            for i in 0..step {
                let error = self.weights[at + i] - decoded[i];
                errors[at + i] = error;
                let unit = &plan.factor.row(at + i)[start..at];
                for (pull, unit) in pull.iter_mut().zip(unit) {
                    *pull += error * unit;
                }
            }
        }
    }

    /// What the part of the columns from `first` on would hold if it could hold anything: the values that make the least of
    /// the errors of the decided columns, all taken together. `pull`: what the decided columns ask of these.
    fn expected(&self, plan: &Plan<'_>, first: usize, pull: &[f32]) -> Vec<f32> {
        let mut wanted: Vec<f32> = self.weights[first..].iter().zip(pull).map(|(weight, pull)| weight + pull).collect();
        for j in (0..wanted.len()).rev() {
            if self.fixed(first + j).is_some() {
                wanted[j] = 0.0;
            }
            let error = self.weights[first + j] - wanted[j];
            let unit = &plan.factor.row(first + j)[first..first + j];
            for (wanted, unit) in wanted.iter_mut().zip(unit) {
                *wanted += error * unit;
            }
        }
        wanted
    }

    /// One pass of coordinate descent; `gradient` = e·H is kept up to date. False if nothing changed.
    fn sweep(&mut self, plan: &Plan<'_>, errors: &mut [f32], gradient: &mut [f32]) -> bool {
        let step = C::Grid::STEP;
        let mut has_changed = false;
        let mut target = [0.0f32; 32];
        let mut weight = [0.0f32; 32];
        let mut decoded = [0.0f32; 32];
        let mut codes = [0u16; 32];
        for at in (0..errors.len()).step_by(step) {
            let column = plan.order[at];
            let len = self.format.len();
            let Some((_, grid)) = &self.parts[column / len] else { continue };
            if self.fixed(at).is_some() {
                continue;
            }
            for i in 0..step {
                weight[i] = plan.h[(at + i, at + i)];
                target[i] = self.weights[at + i] - errors[at + i] + gradient[at + i] / weight[i];
            }
            grid.choose(column % len, &target[..step], &weight[..step], &mut codes[..step], &mut decoded[..step]);
            if self.codes[column..column + step] == codes[..step] {
                continue;
            }
            // −2·δ·g + δ·H·δ, with δ the change of q.
            let mut change = [0.0f32; 32];
            let mut gain = 0.0;
            for i in 0..step {
                change[i] = decoded[i] - (self.weights[at + i] - errors[at + i]);
                gain -= 2.0 * change[i] * gradient[at + i];
                for j in 0..=i {
                    let both = if i == j { 1.0 } else { 2.0 };
                    gain += both * change[i] * change[j] * plan.h[(at + i, at + j)];
                }
            }
            if gain >= 0.0 {
                continue;
            }
            has_changed = true;
            self.codes[column..column + step].copy_from_slice(&codes[..step]);
            for i in 0..step {
                if change[i] == 0.0 {
                    continue;
                }
                errors[at + i] -= change[i];
                // H is symmetric, and its columns are contiguous.
                if let Some(h) = plan.h.col(at + i).try_as_col_major() {
                    for (gradient, h) in gradient.iter_mut().zip(h.as_slice()) {
                        *gradient -= change[i] * h;
                    }
                }
            }
        }
        has_changed
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use edgelm_tensor::block::{Block, BlockQ4_0, decode_row, encode_row};

    const K: usize = 96;
    const N: usize = 24;

    /// Weights `[N, K]` and correlated inputs `[T, K]` from a fixed generator.
    fn case(positions: usize) -> (Vec<f32>, Vec<f32>, Moments) {
        let mut state = 7u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let weights: Vec<f32> = (0..N * K).map(|_| next()).collect();
        let mut inputs = vec![0.0; positions * K];
        for row in inputs.chunks_mut(K) {
            let shared = [next(), next(), next()];
            for (k, value) in row.iter_mut().enumerate() {
                *value = next() * 0.3 + shared[k % 3] * (1.0 + k as f32 / 40.0);
            }
        }
        let mut moments = Moments::new(K);
        moments.add(&inputs, positions);
        (weights, inputs, moments)
    }

    fn decoded(dtype: DType, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; N * K];
        for (out, bytes) in out.chunks_mut(K).zip(bytes.chunks(dtype.row_bytes(K).unwrap())) {
            decode_row(dtype, bytes, out).unwrap();
        }
        out
    }

    fn nearest(dtype: DType, weights: &[f32], importance: &[f32]) -> Vec<f32> {
        let row_bytes = dtype.row_bytes(K).unwrap();
        let mut bytes = vec![0; N * row_bytes];
        for (bytes, row) in bytes.chunks_mut(row_bytes).zip(weights.chunks(K)) {
            encode_row(dtype, row, Some(importance), bytes).unwrap();
        }
        decoded(dtype, &bytes)
    }

    fn error(weights: &[f32], decoded: &[f32], moments: &Moments) -> f64 {
        let difference: Vec<f32> = weights.iter().zip(decoded).map(|(was, is)| was - is).collect();
        moments.output_error(&difference)
    }

    /// GPTQ as its paper has it, in f64: an explicit inverse, whose rows are eliminated one after another. It goes through
    /// the columns from the last to the first, as the code above does.
    fn reference(weights: &[f32], moments: &Moments, damping: f32) -> Vec<f32> {
        let order: Vec<usize> = (0..K).collect();
        let h = moments.damped(damping, &order).unwrap();
        let mut inverse: Vec<Vec<f64>> =
            (0..K).map(|i| (0..K).map(|j| f64::from(u8::from(i == j))).collect()).collect();
        let mut left: Vec<Vec<f64>> = (0..K).map(|i| (0..K).map(|j| f64::from(h[(i, j)])).collect()).collect();
        for pivot in 0..K {
            let scale = left[pivot][pivot];
            for j in 0..K {
                left[pivot][j] /= scale;
                inverse[pivot][j] /= scale;
            }
            for i in (0..K).filter(|&i| i != pivot) {
                let factor = left[i][pivot];
                for j in 0..K {
                    left[i][j] -= factor * left[pivot][j];
                    inverse[i][j] -= factor * inverse[pivot][j];
                }
            }
        }
        let mut rows: Vec<Vec<f64>> =
            weights.chunks(K).map(|row| row.iter().map(|&w| f64::from(w)).collect()).collect();
        let mut out = vec![0.0; N * K];
        let mut grids: Vec<Option<<BlockQ4_0 as Coded>::Grid>> = (0..N).map(|_| None).collect();
        // D of the columns of a block, known before they are eliminated: 1 / [H⁻¹]ᵢᵢ with the columns after i removed.
        let cost: Vec<f32> = {
            let mut inverse = inverse.clone();
            let mut cost = vec![0.0; K];
            for i in (0..K).rev() {
                cost[i] = (1.0 / inverse[i][i]) as f32;
                eliminate(&mut inverse, i);
            }
            cost
        };
        for i in (0..K).rev() {
            for (r, row) in rows.iter_mut().enumerate() {
                if i % 32 == 31 {
                    let first = i - 31;
                    let values: Vec<f32> = row[first..=i].iter().map(|&w| w as f32).collect();
                    grids[r] = Some(BlockQ4_0::encode(&values, Some(&cost[first..=i])).grid());
                }
                let (mut code, mut value) = ([0], [0.0]);
                grids[r].as_ref().unwrap().choose(i % 32, &[row[i] as f32], &[1.0], &mut code, &mut value);
                out[r * K + i] = value[0];
                let error = (row[i] - f64::from(value[0])) / inverse[i][i];
                for j in 0..i {
                    row[j] -= error * inverse[i][j];
                }
            }
            eliminate(&mut inverse, i);
        }
        out
    }

    fn eliminate(inverse: &mut [Vec<f64>], i: usize) {
        let row = inverse[i].clone();
        for (j, other) in inverse.iter_mut().enumerate().take(i) {
            let factor = row[j] / row[i];
            other.iter_mut().zip(&row).for_each(|(value, by)| *value -= factor * by);
        }
    }

    #[test]
    fn is_as_good_as_the_reference_and_better_than_rounding() {
        let (weights, _, moments) = case(400);
        let options = FeedbackOptions { sweeps: 0, ..FeedbackOptions::default() };
        let fed = quantize_with_feedback(DType::Q4_0, &weights, &moments, &options).unwrap();
        let ours = error(&weights, &decoded(DType::Q4_0, &fed.bytes), &moments);
        let theirs = error(&weights, &reference(&weights, &moments, options.damping), &moments);
        let rounded = error(&weights, &nearest(DType::Q4_0, &weights, &moments.mean_squares()), &moments);
        assert!((ours / theirs - 1.0).abs() < 0.01, "{ours} {theirs}");
        assert!(ours < 0.8 * rounded, "{ours} {rounded}");

        let descended = quantize_with_feedback(DType::Q4_0, &weights, &moments, &FeedbackOptions::default()).unwrap();
        assert!(descended.output_error <= fed.output_error, "{} {}", descended.output_error, fed.output_error);
        let ordered = FeedbackOptions { activation_order: true, ..FeedbackOptions::default() };
        let ordered = quantize_with_feedback(DType::Q4_0, &weights, &moments, &ordered).unwrap();
        let ordered = error(&weights, &decoded(DType::Q4_0, &ordered.bytes), &moments);
        assert!(ordered < 0.8 * rounded, "{ordered} {rounded}");
    }

    #[test]
    fn every_format_of_32_values_gains() {
        let (weights, _, moments) = case(400);
        for dtype in DType::all().filter(|dtype| dtype.block_len() == 32) {
            let fed = quantize_with_feedback(dtype, &weights, &moments, &FeedbackOptions::default()).unwrap();
            let ours = error(&weights, &decoded(dtype, &fed.bytes), &moments);
            let rounded = error(&weights, &nearest(dtype, &weights, &moments.mean_squares()), &moments);
            assert!(ours < rounded, "{dtype}: {ours} {rounded}");
        }
    }

    #[test]
    fn the_number_of_threads_does_not_matter() {
        let (weights, _, moments) = case(50);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| quantize_with_feedback(DType::Q5_1, &weights, &moments, &FeedbackOptions::default()))
                .unwrap()
        };
        assert_eq!(run(1).bytes, run(3).bytes);
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let (mut weights, mut inputs, moments) = case(50);
        assert!(matches!(
            quantize_with_feedback(DType::F16, &weights, &moments, &FeedbackOptions::default()),
            Err(CompressError::NoCodes { .. })
        ));
        assert!(quantize_with_feedback(DType::Q4_K, &weights, &moments, &FeedbackOptions::default()).is_err());
        weights[5] = f32::NAN;
        let error = quantize_with_feedback(DType::Q4_0, &weights, &moments, &FeedbackOptions::default()).unwrap_err();
        assert!(error.to_string().contains("weight 5"), "{error}");
        weights[5] = 0.0;
        inputs[3] = f32::INFINITY;
        let mut broken = Moments::new(K);
        broken.add(&inputs, 50);
        assert!(quantize_with_feedback(DType::Q4_0, &weights, &broken, &FeedbackOptions::default()).is_err());
        // Fewer positions than columns, and none at all: damping makes up for them.
        for positions in [0, 3] {
            let mut few = Moments::new(K);
            few.add(&inputs[K..K + positions * K], positions);
            quantize_with_feedback(DType::Q4_0, &weights, &few, &FeedbackOptions::default()).unwrap();
        }
    }
}
