//! GPTQ inside block formats: codes chosen one after another, each making up for the errors of those before it.
//!
//! Pure: weights, moments and settings in; blocks out. Rows are independent.

use crate::{
    CompressError,
    moments::{Factor, Moments},
};
use edgelm_tensor::{
    DType,
    block::{Coded, CodedVisitor, Grid, visit_coded},
};
use faer::{Accum, Mat, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

/// Columns between two updates of what lies before them: the factor's part that they need stays in L2.
const COLUMNS_AT_A_TIME: usize = 256;

/// f32 values of a chunk of rows; there are about four arrays of them in work.
const VALUES_AT_A_TIME: usize = 32 << 20;

/// How codes are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FeedbackOptions {
    /// Part of the mean diagonal that is added to the diagonal of H. 0.01 as in GPTQ.
    pub damping: f32,
    /// Columns with the largest inputs first (`act_order`); the scales are then those of the weights as they were
    /// (static groups).
    pub activation_order: bool,
    /// Most passes of coordinate descent over a row after the feedback.
    pub sweeps: usize,
}

impl Default for FeedbackOptions {
    fn default() -> Self {
        Self { damping: 0.01, activation_order: false, sweeps: 8 }
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
/// [`Factor`]). The scales of a block are searched when its last column is reached, on the values that it then has to
/// express, each weighted by D. Then coordinate descent: with g = e·H, each code moves to the one nearest to
/// q[i] + g[i] / H[i, i], until none does.
///
/// Errors: values that are not finite, rows that are not whole blocks, an H that cannot be factored.
pub fn quantize_with_feedback(
    dtype: DType,
    weights: &[f32],
    moments: &Moments,
    options: &FeedbackOptions,
) -> Result<Fed, CompressError> {
    if let Some(index) = weights.iter().position(|value| !value.is_finite()) {
        return Err(CompressError::NotFinite { what: format!("weight {index}") });
    }
    visit_coded(dtype, Visitor { weights, moments, options }).unwrap_or(Err(CompressError::NoCodes { dtype }))
}

struct Visitor<'a> {
    weights: &'a [f32],
    moments: &'a Moments,
    options: &'a FeedbackOptions,
}

impl CodedVisitor for Visitor<'_> {
    type Output = Result<Fed, CompressError>;

    fn visit<B: Coded>(self) -> Self::Output {
        let columns = self.moments.columns();
        let row_bytes = B::DTYPE.row_bytes(columns)?;
        let order = if self.options.activation_order {
            by_activation(&self.moments.mean_squares(), B::Grid::STEP)
        } else {
            (0..columns).collect()
        };
        let h = self.moments.damped(self.options.damping, &order)?;
        let factor = Factor::new(&h)?;
        let plan = Plan { order: &order, h: &h, factor: &factor, options: self.options };
        let rows_at_a_time = (VALUES_AT_A_TIME / columns.max(1)).max(1);
        let mut fed = Fed { bytes: Vec::with_capacity(self.weights.len() / columns * row_bytes), output_error: 0.0 };
        for weights in self.weights.chunks(rows_at_a_time * columns) {
            let mut rows = Rows::<B>::new(weights, &plan);
            rows.feed_back(&plan);
            let error = rows.descend(&plan);
            fed.output_error += error;
            rows.write(&mut fed.bytes);
        }
        Ok(fed)
    }
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
}

/// One row in work. Columns are in the order in which they stand in `Plan::order`, blocks in file order.
struct Row<B: Coded> {
    /// The weights.
    weights: Vec<f32>,
    /// The block of each run of `LEN` columns, and its grid, once its scales are chosen.
    blocks: Vec<Option<(B, B::Grid)>>,
    /// In file order.
    codes: Vec<u16>,
}

struct Rows<B: Coded> {
    rows: Vec<Row<B>>,
    /// w − q, `[R, K]`.
    errors: Vec<f32>,
    columns: usize,
}

impl<B: Coded> Rows<B> {
    fn new(weights: &[f32], plan: &Plan<'_>) -> Self {
        let columns = plan.order.len();
        // Scales that are chosen before any column is decided.
        let importance: Option<Vec<f32>> = plan.options.activation_order.then(|| {
            let mut by_column = vec![0.0; columns];
            plan.order.iter().enumerate().for_each(|(at, &column)| by_column[column] = plan.h[(at, at)]);
            by_column
        });
        let row = |values: &[f32]| Row {
            weights: plan.order.iter().map(|&column| values[column]).collect(),
            blocks: (0..columns / B::LEN)
                .map(|index| {
                    let part = index * B::LEN..(index + 1) * B::LEN;
                    let fit = |weights: &Vec<f32>| B::encode(&values[part.clone()], Some(&weights[part.clone()]));
                    importance.as_ref().map(fit).map(|block| (block, block.grid()))
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
            matmul(out, Accum::Replace, decided, unit, 1.0, Par::rayon(0));
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
        matmul(out, Accum::Replace, errors, plan.h, 1.0, Par::rayon(0));
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
            for (block, codes) in row.blocks.into_iter().zip(row.codes.chunks(B::LEN)) {
                if let Some((block, _)) = block {
                    out.extend_from_slice(bytemuck::bytes_of(&block.with_codes(codes)));
                }
            }
        }
    }
}

impl<B: Coded> Row<B> {
    /// Decides the columns from `start` on, as many as `pull` has. `pull`: what the decided columns ask of these.
    fn decide(&mut self, plan: &Plan<'_>, start: usize, pull: &mut [f32], errors: &mut [f32]) {
        let step = B::Grid::STEP;
        let mut target = [0.0f32; 32];
        let mut decoded = [0.0f32; 32];
        for local in (0..pull.len()).step_by(step).rev() {
            let at = start + local;
            let column = plan.order[at];
            let index = column / B::LEN;
            if self.blocks[index].is_none() {
                // Without an order of its own a block is reached at its last column, and all of it lies in this part.
                let first = index * B::LEN;
                let wanted: Vec<f32> = (first..first + B::LEN).map(|i| self.weights[i] + pull[i - start]).collect();
                let block = B::encode(&wanted, Some(&plan.factor.cost()[first..first + B::LEN]));
                self.blocks[index] = Some((block, block.grid()));
            }
            let Some((_, grid)) = &self.blocks[index] else { continue };
            for i in 0..step {
                target[i] = self.weights[at + i] + pull[local + i];
            }
            let codes = &mut self.codes[column..column + step];
            grid.choose(
                column % B::LEN,
                &target[..step],
                &plan.factor.cost()[at..at + step],
                codes,
                &mut decoded[..step],
            );
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

    /// One pass of coordinate descent; `gradient` = e·H is kept up to date. False if nothing changed.
    fn sweep(&mut self, plan: &Plan<'_>, errors: &mut [f32], gradient: &mut [f32]) -> bool {
        let step = B::Grid::STEP;
        let mut has_changed = false;
        let mut target = [0.0f32; 32];
        let mut weight = [0.0f32; 32];
        let mut decoded = [0.0f32; 32];
        let mut codes = [0u16; 32];
        for at in (0..errors.len()).step_by(step) {
            let column = plan.order[at];
            let Some((_, grid)) = &self.blocks[column / B::LEN] else { continue };
            for i in 0..step {
                weight[i] = plan.h[(at + i, at + i)];
                target[i] = self.weights[at + i] - errors[at + i] + gradient[at + i] / weight[i];
            }
            grid.choose(column % B::LEN, &target[..step], &weight[..step], &mut codes[..step], &mut decoded[..step]);
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
