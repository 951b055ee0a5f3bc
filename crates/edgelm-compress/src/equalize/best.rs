//! Whichever scales leave the least error once the codes are chosen as they will be. Pure.

use super::{
    ActivationRounding, awq,
    problem::{Problem, scaled},
    smoothquant,
};
use crate::{
    CompressError,
    layer_pass::{Codes, choose_codes, decode_blocks},
};

/// None, those of [`awq::search`] or those of [`smoothquant::search`].
pub(crate) fn search(
    problem: &Problem<'_>,
    rounding: ActivationRounding,
    codes: &Codes,
) -> Result<Vec<f32>, CompressError> {
    let candidates = [problem.ones(), awq::search(problem)?, smoothquant::search(problem, rounding)?];
    let h = problem.statistics.moments.full()?;
    problem.least(candidates, |scales| {
        let moments = problem.statistics.moments.divided(&problem.by_column(scales));
        problem.output_error(&h, scales, rounding, |matrix, columns| {
            let bytes = choose_codes(matrix.format, &scaled(&matrix.rows, columns), &moments, codes)?.bytes;
            Ok(decode_blocks(matrix.format.dtype(), &bytes, columns.len(), matrix.rows.len())?)
        })
    })
}
