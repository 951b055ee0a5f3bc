//! Zeros chosen column by column, each time where they cost least, with the error handed on to the columns that follow.

use super::pattern::{Pattern, Scope, Sparsity};
use crate::moments::Factor;
use edgelm_linalg::{MatMut, MatRef, product_f32};
use rayon::prelude::*;

/// Columns whose zeros are chosen together, all rows in competition. 128 as in the paper.
const COLUMNS_AT_A_TIME: usize = 128;

/// Weights `[N, K]` with zeros. Columns are decided from the last to the first: what the columns after i ask of it is
/// t[i] = w[i] + Σ_{j>i} e[j]·Lᵤ[j, i] (see [`Factor`]); leaving it out then costs D[i]·t[i]²; kept, it becomes t[i].
///
/// Which ones go is decided 128 columns at a time, for `n:m` each group at a time, by D·t² with t as it would be
/// if all of them stayed.
///
/// Source: SparseGPT (Frantar and Alistarh 2023, arXiv:2301.00774), in the form of LDLQ: 1/D[i] is its [H⁻¹]_ii.
pub fn sparsegpt(weights: &[f32], factor: &Factor, sparsity: &Sparsity) -> Vec<f32> {
    let columns = factor.columns();
    let count = weights.len() / columns.max(1);
    let mut pruned = weights.to_vec();
    let mut errors = vec![0.0; weights.len()];
    let together = COLUMNS_AT_A_TIME.next_multiple_of(sparsity.columns_together());
    let starts: Vec<usize> = (0..columns).step_by(together).collect();
    for &start in starts.iter().rev() {
        let end = (start + together).min(columns);
        let width = end - start;
        // pull[r, i] = Σ_{j ≥ end} e[r, j] · Lᵤ[j, i]
        let mut pull = vec![0.0; count * width];
        let decided = MatRef::from_row_major_slice(&errors, count, columns).subcols(end, columns - end);
        let unit = factor.unit().submatrix(end, start, columns - end, width);
        let out = MatMut::from_row_major_slice_mut(&mut pull, count, width);
        product_f32(out, false, decided, unit);
        let part = Part { factor, sparsity, start };
        let kept = match sparsity.pattern() {
            Pattern::NOfM { .. } => None,
            Pattern::Unstructured | Pattern::Block { .. } => {
                let scores: Vec<f32> = weights
                    .par_chunks(columns)
                    .zip(pull.par_chunks(width))
                    .flat_map_iter(|(weights, pull)| part.costs(&weights[start..end], pull, 0))
                    .collect();
                Some(sparsity.mask(&scores, width, Scope::Matrix))
            }
        };
        let rows = pruned
            .par_chunks_mut(columns)
            .zip(errors.par_chunks_mut(columns))
            .zip(pull.par_chunks_mut(width))
            .zip(weights.par_chunks(columns))
            .enumerate();
        rows.for_each(|(row, (((pruned, errors), pull), weights))| {
            let kept = kept.as_ref().map(|kept| &kept[row * width..][..width]);
            part.decide(&weights[start..end], kept, pull, &mut pruned[start..end], &mut errors[start..end]);
        });
    }
    pruned
}

/// Columns in work.
struct Part<'a> {
    factor: &'a Factor,
    sparsity: &'a Sparsity,
    start: usize,
}

impl Part<'_> {
    /// D·t² of the columns from `start` + `offset` on, with t what they would be if all of them stayed: then each hands its
    /// own pull on.
    fn costs(&self, weights: &[f32], pull: &[f32], offset: usize) -> Vec<f32> {
        let first = self.start + offset;
        let mut pull = pull.to_vec();
        for at in (1..pull.len()).rev() {
            let error = -pull[at];
            let unit = &self.factor.row(first + at)[first..first + at];
            pull.iter_mut().zip(unit).for_each(|(pull, unit)| *pull += error * unit);
        }
        let both = weights.iter().zip(pull).zip(&self.factor.cost()[first..]);
        both.map(|((weight, pull), cost)| cost * (weight + pull) * (weight + pull)).collect()
    }

    /// One row. Without `kept`, it is chosen group by group.
    fn decide(&self, weights: &[f32], kept: Option<&[bool]>, pull: &mut [f32], pruned: &mut [f32], errors: &mut [f32]) {
        let group = self.sparsity.columns_together();
        for first in (0..weights.len()).step_by(group).rev() {
            let last = first + group;
            let of_group = match kept {
                Some(kept) => kept[first..last].to_vec(),
                None => {
                    let costs = self.costs(&weights[first..last], &pull[first..last], first);
                    self.sparsity.mask(&costs, group, Scope::Row)
                }
            };
            for at in (first..last).rev() {
                pruned[at] = if of_group[at - first] { weights[at] + pull[at] } else { 0.0 };
                let error = weights[at] - pruned[at];
                errors[at] = error;
                let unit = &self.factor.row(self.start + at)[self.start..self.start + at];
                pull.iter_mut().zip(unit).for_each(|(pull, unit)| *pull += error * unit);
            }
        }
    }
}
