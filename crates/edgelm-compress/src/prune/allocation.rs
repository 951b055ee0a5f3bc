//! Where in the model heads and channels are missed least: what each layer would lose, in one measure.

use super::{
    PruneCalibration, PruneOptions,
    columns::{Removal, removal_order},
    widths::{Widths, ffn_step, share_out, units_to_remove},
};
use crate::{CompressError, Walk, layer_pass::decode};
use edgelm_model::{Edited, LayerTensor, TensorId, Tensors};

/// Most of a layer's units that go, as a multiple of the fraction asked for: beyond it, what a layer alone would lose says
/// little about what the model loses.
const MOST_OF_A_LAYER: f64 = 2.0;

/// Widths that take out as much as the same fraction everywhere would, where it costs least. The cost of a unit is what the
/// hidden states behind its layer lose by it, the rest adjusted, in units of their mean square: that is what the next norm
/// divides by. Each layer is measured alone, on the inputs of the model as it was.
pub(crate) fn share_out_widths(
    edited: &Edited<'_>,
    options: &PruneOptions<'_>,
    calibration: &PruneCalibration<'_>,
    go_on: &mut dyn FnMut(&str) -> Result<(), CompressError>,
) -> Result<Vec<Widths>, CompressError> {
    let mut all: Vec<Widths> = edited.config().layers.iter().map(Widths::of).collect();
    let (mut of_heads, mut of_channels) = (Vec::new(), Vec::new());
    let (mut heads, mut channels) = (0, 0);
    let mut walk = Walk::begin(edited, calibration.cpu, calibration.windows)?;
    for (layer, widths) in all.iter().enumerate() {
        go_on(&format!("what layer {} would lose", edited.layers()[layer]))?;
        let o = options.heads.map(|_| walk.moments(edited, LayerTensor::O)).transpose()?;
        let down = options.ffn.map(|_| walk.moments(edited, LayerTensor::Down)).transpose()?;
        walk.advance(edited)?;
        let energy = mean_energy(&walk, edited.config().hidden_size)?;
        let losses = |tensor, moments: &crate::Moments, width, count| -> Result<Vec<f64>, CompressError> {
            let order: Vec<usize> = (0..moments.columns()).collect();
            let h = moments.damped(options.damping, &order)?;
            let weights = decode(edited, TensorId::Layer(layer, tensor))?;
            let order: Vec<Removal> = removal_order(&weights, &h, width, count)?;
            Ok(order.iter().map(|removal| removal.loss / energy).collect())
        };
        if let (Some(fraction), Some(moments)) = (options.heads, &o) {
            let count = units_to_remove("--heads", fraction, widths.kv_heads, "KV heads")?;
            let width = moments.columns() / widths.kv_heads;
            of_heads.push(losses(LayerTensor::O, moments, width, most(fraction, widths.kv_heads))?);
            heads += count;
        }
        if let (Some(fraction), Some(moments)) = (options.ffn, &down) {
            let step = ffn_step(widths.intermediate);
            let units = widths.intermediate / step;
            let count = units_to_remove("--ffn", fraction, units, "steps of FFN channels")?;
            let single = losses(LayerTensor::Down, moments, 1, step * most(fraction, units))?;
            of_channels.push(single.chunks(step).map(|step| step.iter().sum()).collect());
            channels += count;
        }
    }
    let (fewer_heads, fewer_steps) = (share_out(&of_heads, heads), share_out(&of_channels, channels));
    for (layer, widths) in all.iter_mut().enumerate() {
        widths.kv_heads -= fewer_heads.get(layer).copied().unwrap_or(0);
        widths.intermediate -= ffn_step(widths.intermediate) * fewer_steps.get(layer).copied().unwrap_or(0);
    }
    Ok(all)
}

/// Most units of a layer that may go; one stays.
fn most(fraction: f64, units: usize) -> usize {
    ((fraction * MOST_OF_A_LAYER * units as f64).ceil() as usize).clamp(1, units - 1)
}

/// Mean over positions of Σ h².
fn mean_energy(walk: &Walk<'_>, hidden_size: usize) -> Result<f64, CompressError> {
    let (mut sum, mut values) = (0.0, 0);
    for index in 0..walk.windows() {
        let hidden = walk.hidden(index)?;
        sum += hidden.iter().map(|h| f64::from(*h) * f64::from(*h)).sum::<f64>();
        values += hidden.len();
    }
    let energy = sum * hidden_size as f64 / values.max(1) as f64;
    if energy.is_finite() && energy > 0.0 {
        Ok(energy)
    } else {
        Err(CompressError::NotFinite { what: "the activations of the calibration data".to_owned() })
    }
}
