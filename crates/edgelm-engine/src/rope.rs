//! Cosines and sines for the rows of a batch.

use edgelm_model::RopeConfig;
use std::ops::Range;

/// cos and sin `[T, R/2]` for the rows of one group, in batch order.
pub(crate) struct RopeTable<'a> {
    config: &'a RopeConfig,
    /// Frequencies for the last total length seen, with that length.
    frequencies: Option<(usize, Vec<f32>, f32)>,
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

impl<'a> RopeTable<'a> {
    pub(crate) fn new(config: &'a RopeConfig) -> Self {
        Self { config, frequencies: None, cos: Vec::new(), sin: Vec::new() }
    }

    /// Rows at `positions` of an input that is `total_len` long in all.
    ///
    /// The angle is the f32 product of an f32 frequency and the position, as the models were trained with: at position
    /// 2,000 its rounding is 1e-4 rad, more than what is left out by not doing the same.
    pub(crate) fn extend(&mut self, positions: Range<usize>, total_len: usize) {
        let stale = match &self.frequencies {
            Some((len, ..)) => *len != total_len && self.config.depends_on_length(),
            None => true,
        };
        if stale {
            let (frequencies, factor) = self.config.frequencies(total_len);
            let frequencies = frequencies.into_iter().map(|f| f as f32).collect();
            self.frequencies = Some((total_len, frequencies, factor as f32));
        }
        let Some((_, frequencies, factor)) = &self.frequencies else { return };
        for position in positions {
            for frequency in frequencies {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                self.cos.push(cos as f32 * factor);
                self.sin.push(sin as f32 * factor);
            }
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.cos.len() * 2 / self.config.rotary_dim.max(1)
    }
}
