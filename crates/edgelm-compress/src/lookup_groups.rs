//! Codes of a table (nf4, fp4) with a scale per group: the search for scales, and rounding to nearest.
//!
//! Pure: values in, blocks of the format's block type out (see [`LookupFormat`]).

use edgelm_format::bitsandbytes::LookupMatrix;
use edgelm_tensor::{
    LookupFormat,
    block::{Grid, LookupGrid},
};
use half::f16;
use rayon::prelude::*;

/// Values of a block.
const BLOCK: usize = 32;

/// How a matrix is stored as codes of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LookupSettings {
    /// What codes mean.
    pub format: LookupFormat,
    /// Values of a row that share a scale.
    pub group_size: usize,
}

impl std::fmt::Display for LookupSettings {
    /// For tables: `nf4 g64`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} g{}", self.format.name(), self.group_size)
    }
}

impl LookupSettings {
    /// A matrix `[N, K]` that is stored so.
    pub(crate) fn matrix(&self, shape: [usize; 2]) -> LookupMatrix {
        LookupMatrix { format: self.format, run: self.group_size, shape }
    }

    /// True if rows of `columns` are whole blocks and whole groups.
    pub fn fits(&self, columns: usize) -> bool {
        self.group_size > 0 && self.group_size.is_multiple_of(BLOCK) && columns.is_multiple_of(self.group_size)
    }
}

/// The scale with the least Σ weights · (value − decoded)². Weights must not be negative; without any above 0, all count alike.
pub(crate) fn search(format: LookupFormat, values: &[f32], weights: &[f32]) -> f16 {
    match weights.iter().any(|weight| *weight > 0.0) {
        true => format.table().search(values, weights),
        false => format.table().search(values, &vec![1.0; values.len()]),
    }
}

/// Appends the blocks of a group.
pub(crate) fn write_run(format: LookupFormat, scale: f16, codes: &[u16], out: &mut Vec<u8>) {
    for part in codes.as_chunks::<BLOCK>().0 {
        format.write_block(scale, &part.map(|code| code as u8 & 15), out);
    }
}

/// Rounds `weights` `[N, K]` to nearest, with the scales of least error weighted by `importance` `[K]`.
pub(crate) fn round_to_nearest(
    settings: &LookupSettings,
    weights: &[f32],
    columns: usize,
    importance: Option<&[f32]>,
) -> Vec<u8> {
    let all = vec![1.0; columns];
    let importance = importance.unwrap_or(&all);
    let rows = weights.par_chunks(columns.max(1)).map(|row| {
        let mut out = Vec::new();
        for (values, weights) in row.chunks(settings.group_size).zip(importance.chunks(settings.group_size)) {
            let scale = search(settings.format, values, weights);
            let grid = LookupGrid::new(settings.format.table(), scale);
            let mut codes = vec![0; values.len()];
            for (value, code) in values.iter().zip(&mut codes) {
                grid.choose(0, &[*value], &[1.0], std::slice::from_mut(code), &mut [0.0]);
            }
            write_run(settings.format, scale, &codes, &mut out);
        }
        out
    });
    rows.collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_scale_of_a_fine_scan_is_much_better() {
        for format in LookupFormat::ALL {
            for seed in 0..20usize {
                let value = |i: usize| ((i * 7919 + seed * 271) % 1013) as f32 / 506.5 - 1.0;
                let values: Vec<f32> = (0..64).map(|i| value(i).powi(3) + 0.05).collect();
                let weights: Vec<f32> = (0..64).map(|i| 0.1 + value(i + 64).abs()).collect();
                let error = |scale: f16| -> f64 {
                    let grid = LookupGrid::new(format.table(), scale);
                    let of = |i: usize| {
                        let mut decoded = [0.0];
                        grid.choose(0, &values[i..=i], &[1.0], &mut [0], &mut decoded);
                        f64::from(weights[i]) * f64::from(values[i] - decoded[0]).powi(2)
                    };
                    (0..64).map(of).sum()
                };
                let found = error(search(format, &values, &weights));
                let absmax = error(f16::from_f32(values.iter().fold(0.0, |most, value| value.abs().max(most))));
                let least =
                    (1..600).map(|step| error(f16::from_f32(step as f32 / 300.0))).fold(f64::INFINITY, f64::min);
                assert!(found <= 1.1 * least && found <= absmax, "{format:?}: {found} {least} {absmax}");
            }
        }
    }

    #[test]
    fn groups_share_scales_and_codes_are_the_nearest() {
        let settings = LookupSettings { format: LookupFormat::Nf4, group_size: 64 };
        assert!(settings.fits(192) && !settings.fits(96) && !LookupSettings { group_size: 48, ..settings }.fits(96));
        // What a scale and the table give is kept.
        let values: Vec<f32> =
            (0..256usize).map(|i| [0.5, 2.0][i / 64 % 2] * settings.format.table().values[i * 7 % 16]).collect();
        let bytes = round_to_nearest(&settings, &values, 128, None);
        let blocks: Vec<(f16, [u8; 32])> = bytes.chunks(18).map(|block| settings.format.read_block(block)).collect();
        assert_eq!(blocks.len(), 8);
        for (index, (scale, codes)) in blocks.iter().enumerate() {
            assert_eq!(scale.to_f32(), [0.5, 2.0][index / 2 % 2]);
            assert!(codes.iter().enumerate().all(|(i, code)| usize::from(*code) == (32 * index + i) * 7 % 16));
        }
    }
}
