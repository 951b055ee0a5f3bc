//! Equivalent transforms before quantization: what a channel carries is moved between the weights that read it and
//! whatever makes it, so that the rounding of one, or of the other, costs less.
//!
//! For matrices that share an input x: W[:, k] · s[k], and x[k] / s[k], the latter folded into the gain or the rows that
//! make x. The model computes the same as before and stays one of its architecture. What a reader would get wrong: the
//! query heads of a KV head read the same rows of V, so their columns of O share one s.

mod awq;
mod best;
mod fold;
mod problem;
mod smoothquant;
mod statistics;
#[cfg(test)]
mod tests;

pub use smoothquant::ActivationRounding;

use crate::{
    CompressError, MatrixFormat, Walk,
    layer_pass::{Codes, GROUPS, decode},
    needs_plain_layers,
};
use edgelm_model::{Edited, LayerConfig, LayerTensor, TensorId, Tensors};
use problem::{Matrix, Problem};
use statistics::Statistics;

/// How the scales of a group are searched. No scaling is always a candidate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Equalize {
    /// By the magnitude of the inputs, for the least error of rounded weights.
    /// Source: AWQ (Lin et al. 2023, arXiv:2306.00978).
    Awq,
    /// By the peaks of inputs and weights, for the least error of rounded weights on rounded activations.
    /// Source: SmoothQuant (Xiao et al. 2022, arXiv:2211.10438).
    SmoothQuant(ActivationRounding),
    /// Whichever of the two, or none, leaves the least error of the outputs once codes are chosen, activations rounded too.
    Best(ActivationRounding),
}

impl Equalize {
    /// As in `--method`.
    pub fn name(self) -> &'static str {
        match self {
            Equalize::Awq => "awq",
            Equalize::SmoothQuant(_) => "smoothquant",
            Equalize::Best(_) => "best",
        }
    }
}

/// What makes the input of a group, and takes 1 / s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The gain of a normalization.
    Gain(LayerTensor),
    /// The rows of a matrix, and its bias.
    Rows(LayerTensor),
}

/// Of [`GROUPS`], in that order.
const SOURCES: [Source; 4] = [
    Source::Gain(LayerTensor::AttnNorm),
    Source::Rows(LayerTensor::V),
    Source::Gain(LayerTensor::FfnNorm),
    Source::Rows(LayerTensor::Up),
];

/// For each input column of `reader`, the channel of the source that makes it.
fn channels(config: &LayerConfig, reader: LayerTensor, columns: usize) -> Vec<usize> {
    let shared = config.num_attention_heads / config.num_key_value_heads.max(1);
    match reader {
        LayerTensor::O => {
            let channel = |column: usize| {
                let (head, within) = (column / config.head_dim, column % config.head_dim);
                head / shared.max(1) * config.head_dim + within
            };
            (0..columns).map(channel).collect()
        }
        _ => (0..columns).collect(),
    }
}

/// Equalizes all groups of the next layer of `walk`, on the inputs that it has there: their matrices, as f32, and what makes
/// their inputs are replaced in `edited`. A group of which nothing is quantized stays as it is.
///
/// `codes` is how codes will be chosen. Errors where no calibration data went by, or it is not finite. Memory: a group's
/// matrices and second moments.
pub(crate) fn equalize_layer(
    walk: &Walk<'_>,
    edited: &mut Edited<'_>,
    choose: &dyn Fn(TensorId) -> MatrixFormat,
    equalize: Equalize,
    codes: &Codes,
    on_group: &mut dyn FnMut() -> Result<(), CompressError>,
) -> Result<(), CompressError> {
    needs_plain_layers(edited.config(), equalize.name())?;
    let layer = walk.layer();
    let mut scales = Vec::new();
    for (group, source) in GROUPS.into_iter().zip(SOURCES) {
        on_group()?;
        let quantized = group.iter().map(|&tensor| TensorId::Layer(layer, tensor));
        let quantized: Vec<TensorId> = quantized.filter(|&id| choose(id).is_quantized()).collect();
        let Some(&first) = quantized.first() else { continue };
        let columns = edited.tensor(first)?.row_len();
        let channels = channels(&edited.config().layers[layer], group[0], columns);
        let mut statistics = Statistics::new(columns, walk.positions());
        walk.inputs(edited, group[0], |x, rows| statistics.add(x, rows))?;
        if statistics.positions() == 0 {
            return Err(CompressError::NeedsCalibration { what: equalize.name() });
        }
        let matrices = quantized.iter().map(|&id| Ok(Matrix::sampled(choose(id), &decode(edited, id)?, columns)));
        let matrices = matrices.collect::<Result<Vec<_>, CompressError>>()?;
        let problem = Problem::new(&matrices, &statistics, &channels);
        let found = match equalize {
            Equalize::Awq => awq::search(&problem)?,
            Equalize::SmoothQuant(rounding) => smoothquant::search(&problem, rounding)?,
            Equalize::Best(rounding) => best::search(&problem, rounding, codes)?,
        };
        scales.push((group, source, channels, found));
    }
    // Only now: what the groups after this one read must not have changed while they are searched.
    for (group, source, channels, scales) in scales {
        if scales.iter().any(|&scale| scale != 1.0) {
            fold::fold(edited, layer, group, source, &channels, &scales)?;
        }
    }
    Ok(())
}
