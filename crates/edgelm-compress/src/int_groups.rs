//! Integers with a scale per group, row or matrix: the search for scales, and rounding to nearest.
//!
//! Pure: values in, blocks of the format's block type out (see [`IntFormat`]).

use edgelm_tensor::{IntBlock, IntFormat, block::Grid};
use half::f16;
use rayon::prelude::*;

pub use edgelm_format::compressed_tensors::{Activations, Strategy};
use edgelm_format::compressed_tensors::{Group, Packing};

/// Values of a block.
const BLOCK: usize = 32;

/// How a matrix is stored as integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IntSettings {
    /// What the quants mean.
    pub format: IntFormat,
    /// What shares a scale.
    pub strategy: Strategy,
}

impl std::fmt::Display for IntSettings {
    /// For tables: `int4 g128`, `int3 asym row`, `int8 2:4 row`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.format.is_symmetric() { "" } else { " asym" };
        let sparse = if self.format.is_sparse() { " 2:4" } else { "" };
        write!(f, "int{}{kind}{sparse} ", self.format.bits())?;
        match self.strategy {
            Strategy::Tensor => f.write_str("tensor"),
            Strategy::Channel => f.write_str("row"),
            Strategy::Group(size) => write!(f, "g{size}"),
        }
    }
}

impl IntSettings {
    /// How a matrix is stored. `activations`: what happens to its inputs.
    pub(crate) fn group(&self, activations: Activations) -> Group {
        // Of sparse int8 the library has bytes alone.
        let is_sparse_bytes = self.format.is_sparse() && self.format.bits() == 8;
        let packing = if activations == Activations::Any && !is_sparse_bytes { Packing::Words } else { Packing::Bytes };
        Group { targets: Vec::new(), format: self.format, strategy: self.strategy, activations, packing }
    }

    /// Values of a row that share a scale, in rows of `columns`.
    pub fn run(&self, columns: usize) -> usize {
        match self.strategy {
            Strategy::Tensor | Strategy::Channel => columns,
            Strategy::Group(size) => size,
        }
    }

    /// True if rows of `columns` are whole blocks and whole groups.
    pub fn fits(&self, columns: usize) -> bool {
        let run = self.run(columns);
        run > 0 && run.is_multiple_of(BLOCK) && columns.is_multiple_of(run)
    }
}

/// What one scale (and zero) can express.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IntGrid {
    format: IntFormat,
    first: f32,
    step: f32,
    inverse: f32,
}

impl IntGrid {
    pub fn new(format: IntFormat, IntScale { scale, zero }: IntScale) -> Self {
        let (first, step) = format.line(scale, zero);
        Self { format, first, step, inverse: if step > 0.0 { 1.0 / step } else { 0.0 } }
    }

    fn nearest(&self, value: f32) -> (u16, f32) {
        let last = f32::from(self.format.high()) - f32::from(self.format.low());
        let code = ((value - self.first) * self.inverse).round_ties_even().clamp(0.0, last);
        let decoded = match self.format.is_symmetric() {
            true => (code + f32::from(self.format.low())) * self.step,
            false => code * self.step + self.first,
        };
        (code as u16, decoded)
    }
}

impl Grid for IntGrid {
    const STEP: usize = 1;

    fn choose(&self, _at: usize, values: &[f32], _weights: &[f32], codes: &mut [u16], decoded: &mut [f32]) {
        (codes[0], decoded[0]) = self.nearest(values[0]);
    }
}

/// The scale and zero of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct IntScale {
    pub scale: f16,
    pub zero: i8,
}

/// By how much the range is narrowed, in parts of it.
const NARROWINGS: [f32; 12] = [0.0, 0.03, 0.06, 0.09, 0.12, 0.16, 0.2, 0.25, 0.3, 0.36, 0.43, 0.5];

/// Scales around the best one, in parts of it.
const FINE: [f32; 8] = [0.988, 0.991, 0.994, 0.997, 1.003, 1.006, 1.009, 1.012];

/// The scale with the least Σ weights · (value − decoded)²: a search over narrower ranges, each refitted to its codes by
/// least squares. Weights must not be negative; without any above 0, all count alike.
pub(crate) fn search(format: IntFormat, values: &[f32], weights: &[f32]) -> IntScale {
    let is_weighted = weights.iter().any(|weight| *weight > 0.0);
    let weight = |i: usize| if is_weighted { weights[i] } else { 1.0 };
    let (low, high) = values.iter().fold((0.0f32, 0.0f32), |(low, high), &value| (low.min(value), high.max(value)));
    let mut best = (f64::INFINITY, IntScale { scale: f16::ZERO, zero: 0 });
    if low == high {
        return best.1;
    }
    let attempt_at = |best: &mut (f64, IntScale), scale: f32, zero: i8| -> f32 {
        let found = IntScale { scale: f16::from_f32(scale.min(f16::MAX.to_f32())), zero };
        let grid = IntGrid::new(format, found);
        let (mut error, mut wq, mut wqq) = (0.0f64, 0.0f64, 0.0f64);
        for (i, &value) in values.iter().enumerate() {
            let (code, decoded) = grid.nearest(value);
            let q = f32::from(code) + f32::from(format.low()) - f32::from(zero);
            let difference = value - decoded;
            error += f64::from(weight(i) * difference * difference);
            wq += f64::from(weight(i) * value * q);
            wqq += f64::from(weight(i) * q * q);
        }
        if error < best.0 && found.scale > f16::ZERO {
            *best = (error, found);
        }
        if wqq > 0.0 { (wq / wqq) as f32 } else { 0.0 }
    };
    let steps = f32::from(format.high()) - f32::from(format.low());
    let mut around = |scale: f32, zero: i8| {
        let refitted = attempt_at(&mut best, scale, zero);
        if refitted > 0.0 {
            attempt_at(&mut best, refitted, zero);
        }
    };
    for from_low in NARROWINGS {
        if format.is_symmetric() {
            let keep = 1.0 - from_low;
            around(keep * high.max(-low) / f32::from(format.high()), 0);
            around(keep * (high / f32::from(format.high())).max(low / f32::from(format.low())), 0);
            continue;
        }
        for from_high in NARROWINGS {
            let (low, high) = (low * (1.0 - from_low), high * (1.0 - from_high));
            let scale = (high - low) / steps;
            let zero = (f32::from(format.low()) - low / scale).round();
            around(scale, zero.clamp(f32::from(format.low()), f32::from(format.high())) as i8);
        }
    }
    // With many steps the error is not smooth in the scale: a few more near the best.
    let centre = best.1;
    for part in FINE {
        attempt_at(&mut best, part * centre.scale.to_f32(), centre.zero);
    }
    best.1
}

/// Appends the blocks of a run with one scale. `codes` count from the smallest quant.
pub(crate) fn write_run(format: IntFormat, IntScale { scale, zero }: IntScale, codes: &[u16], out: &mut Vec<u8>) {
    for part in codes.as_chunks::<BLOCK>().0 {
        let codes = part.map(|code| (code as i16 + i16::from(format.low())) as i8);
        format.write_block(&IntBlock { scale, zero, codes }, out);
    }
}

/// The one scale of a matrix `[N, K]` where the strategy is `Tensor`. `importance` `[K]` weighs columns.
pub(crate) fn matrix_scale(settings: &IntSettings, weights: &[f32], importance: Option<&[f32]>) -> Option<IntScale> {
    let of_columns =
        |importance: &[f32]| -> Vec<f32> { importance.iter().copied().cycle().take(weights.len()).collect() };
    let all = importance.map_or_else(|| vec![1.0; weights.len()], of_columns);
    (settings.strategy == Strategy::Tensor).then(|| search(settings.format, weights, &all))
}

/// Rounds `weights` `[N, K]` to nearest, with the scales of least error weighted by `importance` `[K]`.
pub(crate) fn round_to_nearest(
    settings: &IntSettings,
    weights: &[f32],
    columns: usize,
    importance: Option<&[f32]>,
) -> Vec<u8> {
    let all = vec![1.0; columns];
    let importance = importance.unwrap_or(&all);
    let fixed = matrix_scale(settings, weights, Some(importance));
    let run = settings.run(columns);
    let rows = weights.par_chunks(columns).map(|row| {
        let mut out = Vec::new();
        for (values, weights) in row.chunks(run).zip(importance.chunks(run)) {
            let scale = fixed.unwrap_or_else(|| search(settings.format, values, weights));
            let grid = IntGrid::new(settings.format, scale);
            let codes: Vec<u16> = values.iter().map(|&value| grid.nearest(value).0).collect();
            write_run(settings.format, scale, &codes, &mut out);
        }
        out
    });
    rows.collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use edgelm_tensor::block::decode_row;

    fn values(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 1013) as f32 / 506.5 - 1.0).powi(3) + 0.1).collect()
    }

    fn error(format: IntFormat, values: &[f32], scale: IntScale) -> f64 {
        let grid = IntGrid::new(format, scale);
        values.iter().map(|&value| f64::from(value - grid.nearest(value).1).powi(2)).sum()
    }

    #[test]
    fn no_scale_of_a_fine_scan_is_much_better() {
        for (bits, symmetric) in [(2, true), (3, true), (4, true), (8, true), (2, false), (3, false), (4, false)] {
            let format = IntFormat::new(bits, symmetric).unwrap();
            let values = values(64);
            let found = error(format, &values, search(format, &values, &[1.0; 64]));
            let mut least = f64::INFINITY;
            for step in 1..400 {
                let scale = f16::from_f32(1.2 * step as f32 / 400.0 / f32::from(format.high()).max(1.0));
                let zeros = if symmetric { 0..=0 } else { format.low()..=format.high() };
                for zero in zeros {
                    least = least.min(error(format, &values, IntScale { scale, zero }));
                }
            }
            // Of 400 scales of eight bits some happen to suit just these 64 values.
            let most = if bits < 8 { 1.05 } else { 1.25 };
            assert!(found <= most * least, "{format:?}: {found} {least}");
        }
    }

    #[test]
    fn runs_share_scales_and_rounding_is_within_half_a_step() {
        let format = IntFormat::new(4, false).unwrap();
        let (rows, columns) = (6, 192);
        let weights = values(rows * columns);
        for strategy in [Strategy::Tensor, Strategy::Channel, Strategy::Group(96), Strategy::Group(32)] {
            let settings = IntSettings { format, strategy };
            assert!(settings.fits(columns));
            let bytes = round_to_nearest(&settings, &weights, columns, None);
            let row_bytes = format.block_dtype().row_bytes(columns).unwrap();
            assert_eq!(bytes.len(), rows * row_bytes);
            let blocks: Vec<IntBlock> =
                bytes.chunks(format.block_bytes()).map(|block| format.read_block(block)).collect();
            let per_run = match strategy {
                Strategy::Tensor => blocks.len(),
                _ => settings.run(columns) / BLOCK,
            };
            for run in blocks.chunks(per_run) {
                assert!(run.iter().all(|block| (block.scale, block.zero) == (run[0].scale, run[0].zero)));
            }
            let mut decoded = vec![0.0; weights.len()];
            for (out, bytes) in decoded.chunks_mut(columns).zip(bytes.chunks(row_bytes)) {
                decode_row(format.block_dtype(), bytes, out).unwrap();
            }
            let signal: f32 = weights.iter().map(|value| value * value).sum();
            let noise: f32 = weights.iter().zip(&decoded).map(|(was, is)| (was - is) * (was - is)).sum();
            assert!(noise < 0.02 * signal, "{settings}: {}", noise / signal);
        }
        assert!(!IntSettings { format, strategy: Strategy::Group(48) }.fits(192));
        assert!(!IntSettings { format, strategy: Strategy::Group(128) }.fits(192));
    }

    #[test]
    fn zeros_and_constants_stay_what_they_are() {
        for (bits, symmetric) in [(2, true), (8, true), (3, false)] {
            let format = IntFormat::new(bits, symmetric).unwrap();
            let settings = IntSettings { format, strategy: Strategy::Channel };
            let decode = |values: &[f32]| {
                let bytes = round_to_nearest(&settings, values, 32, None);
                let mut out = [0.0; 32];
                decode_row(format.block_dtype(), &bytes, &mut out).unwrap();
                out
            };
            assert_eq!(decode(&[0.0; 32]), [0.0; 32]);
            assert!(decode(&[0.25; 32]).iter().all(|value| (value - 0.25).abs() < 1e-3));
        }
    }
}
