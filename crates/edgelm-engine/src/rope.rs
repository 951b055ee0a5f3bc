//! Cosines and sines for the rows of a batch.

use edgelm_model::{LayerRope, RopeConfig, config::QueryGrowth};
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
}

/// The tables of all rotary embeddings of a model.
pub(crate) struct Tables<'a> {
    rows: usize,
    /// What the query of each row is multiplied by, where they grow.
    pub(crate) query_factors: Option<Vec<f32>>,
    growth: Option<QueryGrowth>,
    global: Option<RopeTable<'a>>,
    local: Option<RopeTable<'a>>,
}

impl<'a> Tables<'a> {
    /// Those that `layers` use.
    pub(crate) fn new(
        rope: &'a RopeConfig,
        local_rope: Option<&'a RopeConfig>,
        layers: impl IntoIterator<Item = LayerRope>,
    ) -> Self {
        let used: Vec<LayerRope> = layers.into_iter().collect();
        Self {
            rows: 0,
            query_factors: rope.query_growth.map(|_| Vec::new()),
            growth: rope.query_growth,
            global: used.contains(&LayerRope::Global).then(|| RopeTable::new(rope)),
            local: local_rope.filter(|_| used.contains(&LayerRope::Local)).map(RopeTable::new),
        }
    }

    /// Rows at `positions` of an input that is `total_len` long in all.
    pub(crate) fn extend(&mut self, positions: Range<usize>, total_len: usize) {
        self.rows += positions.len();
        if let (Some(factors), Some(growth)) = (&mut self.query_factors, self.growth) {
            factors.extend(positions.clone().map(|position| growth.factor(position)));
        }
        for table in self.global.iter_mut().chain(&mut self.local) {
            table.extend(positions.clone(), total_len);
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// That of a layer; none if it does not rotate.
    pub(crate) fn of(&self, rope: LayerRope) -> Option<&RopeTable<'a>> {
        match rope {
            LayerRope::None => None,
            LayerRope::Global => self.global.as_ref(),
            LayerRope::Local => self.local.as_ref(),
        }
    }
}
