//! Which heads stay, and how many channels of each layer: what the model would lose, layer by layer.

use super::{
    Allocation, PruneCalibration, PruneMethod, PruneOptions, Score,
    columns::removal_order,
    layer_pass::{Before, LayerPass, LayerReport},
    layers::GoOn,
    likelihood::{Likelihood, PERPLEXITY_WINDOWS},
    widths::{LayerPlan, Widths, ffn_step, share_out, units_to_remove},
};
use crate::{CompressError, Walk, layer_pass::decode};
use edgelm_model::{Edited, LayerTensor, TensorId, Tensors};

/// Most of a layer's units that go, as a multiple of the fraction asked for: beyond it, what a layer alone would lose says
/// little about what the model loses.
const MOST_OF_A_LAYER: f64 = 2.0;

/// What of each layer stays. Uniform: the same fraction everywhere. Global: as much in all, from where it is missed least. The
/// measure is the logarithm of the perplexity of a calibration text with that layer alone pruned and adjusted; what single
/// steps of channels contribute to it is in the proportion of what they cost `down`. Heads are chosen by it in either case.
pub(crate) fn plan<'a>(
    edited: &mut Edited<'a>,
    options: &'a PruneOptions<'a>,
    calibration: &PruneCalibration<'a>,
    go_on: &mut GoOn<'_>,
) -> Result<Vec<LayerPlan>, CompressError> {
    let mut widths = options.widths(edited.config())?;
    let is_global = options.allocation == Allocation::Global;
    let by_perplexity = options.score == Score::Perplexity && options.method != PruneMethod::Magnitude;
    let measures_heads = options.heads.is_some() && (is_global || by_perplexity);
    let measures_channels = options.ffn.is_some() && is_global;
    let mut kv_heads = vec![None; widths.len()];
    if measures_heads || measures_channels {
        let mut losses = Losses::begin(edited, options, calibration, measures_heads, measures_channels)?;
        for layer in 0..widths.len() {
            go_on(&format!("what layer {} would lose", edited.layers()[layer]))?;
            losses.measure(edited, layer, go_on)?;
        }
        if measures_heads {
            let sorted: Vec<Vec<(f64, usize)>> = losses.heads.iter().map(|heads| by_loss(heads)).collect();
            let now: Vec<usize> = edited.config().layers.iter().map(|layer| layer.num_key_value_heads).collect();
            let mut fewer: Vec<usize> = now.iter().zip(&widths).map(|(now, widths)| now - widths.kv_heads).collect();
            if is_global {
                // One stays in each layer.
                let all_but_one =
                    |heads: &Vec<(f64, usize)>| heads.iter().rev().skip(1).rev().map(|head| head.0).collect();
                let candidates: Vec<Vec<f64>> = sorted.iter().map(all_but_one).collect();
                fewer = share_out(&candidates, fewer.iter().sum());
            }
            for (layer, sorted) in sorted.iter().enumerate() {
                let mut kept: Vec<usize> = sorted[fewer[layer]..].iter().map(|head| head.1).collect();
                kept.sort_unstable();
                widths[layer].kv_heads = kept.len();
                kv_heads[layer] = Some(kept);
            }
        }
        if measures_channels {
            let step = |layer: usize| ffn_step(edited.config().layers[layer].intermediate_size);
            let now = |layer: usize| edited.config().layers[layer].intermediate_size;
            let total = (0..widths.len()).map(|layer| (now(layer) - widths[layer].intermediate) / step(layer)).sum();
            for (layer, fewer) in share_out(&losses.channels, total).into_iter().enumerate() {
                widths[layer].intermediate = now(layer) - step(layer) * fewer;
            }
        }
    }
    Ok(widths.into_iter().zip(kv_heads).map(|(widths, kv_heads)| LayerPlan { widths, kv_heads }).collect())
}

/// Losses and places, the least first.
fn by_loss(losses: &[f64]) -> Vec<(f64, usize)> {
    let mut all: Vec<(f64, usize)> = losses.iter().copied().zip(0..).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    all
}

/// What has been measured so far.
struct Losses<'a> {
    options: &'a PruneOptions<'a>,
    windows: &'a [Vec<u32>],
    likelihood: Likelihood<'a>,
    walk: Walk<'a>,
    /// Logarithm of the perplexity with nothing gone.
    base: f64,
    measures_heads: bool,
    measures_channels: bool,
    /// `[layer][KV head]`.
    heads: Vec<Vec<f64>>,
    /// `[layer][step]`, in the order in which steps go.
    channels: Vec<Vec<f64>>,
}

impl<'a> Losses<'a> {
    fn begin(
        edited: &Edited<'_>,
        options: &'a PruneOptions<'a>,
        calibration: &PruneCalibration<'a>,
        measures_heads: bool,
        measures_channels: bool,
    ) -> Result<Self, CompressError> {
        let windows = &calibration.windows[..calibration.windows.len().min(PERPLEXITY_WINDOWS)];
        let likelihood = Likelihood::load(edited, calibration.cpu)?;
        let walk = Walk::begin(edited, calibration.cpu, windows)?;
        let (heads, channels) = (Vec::new(), Vec::new());
        let mut new =
            Self { options, windows, likelihood, walk, base: 0.0, measures_heads, measures_channels, heads, channels };
        new.base = new.log_perplexity_from(edited, 0)?;
        Ok(new)
    }

    /// With the walk's hidden states before `layer`, and all layers from there as they are in `edited`.
    fn log_perplexity_from(&self, edited: &Edited<'_>, layer: usize) -> Result<f64, CompressError> {
        let mut hidden =
            (0..self.walk.windows()).map(|index| self.walk.hidden(index)).collect::<Result<Vec<_>, _>>()?;
        for later in layer..edited.config().layers.len() {
            self.likelihood.run(edited, later, &mut hidden)?;
        }
        Ok(self.likelihood.perplexity(self.windows, &hidden)?.ln())
    }

    fn before(&self, edited: &Edited<'_>, layer: usize, tensor: LayerTensor) -> Result<Before, CompressError> {
        let moments = self.walk.moments(edited, tensor)?;
        let order: Vec<usize> = (0..moments.columns()).collect();
        let h = moments.damped(self.options.damping, &order)?;
        let weights = decode(edited, TensorId::Layer(layer, tensor))?;
        Ok(Before { moments: Some(moments), h: Some(h), weights })
    }

    /// What the model loses by a change to one layer, which is undone afterwards.
    fn loss_of(
        &self,
        edited: &mut Edited<'a>,
        layer: usize,
        change: impl FnOnce(&mut LayerPass<'_, 'a>) -> Result<(), CompressError>,
    ) -> Result<f64, CompressError> {
        let was = edited.config().layers[layer].clone();
        let report = LayerReport::new(edited, layer);
        change(&mut LayerPass { edited, walk: None, parent: None, options: self.options, layer, report })?;
        let loss = self.log_perplexity_from(edited, layer)? - self.base;
        edited.config_mut().layers[layer] = was;
        LayerTensor::ALL.iter().for_each(|&tensor| drop(edited.take(TensorId::Layer(layer, tensor))));
        Ok(loss)
    }

    fn measure(&mut self, edited: &mut Edited<'a>, layer: usize, go_on: &mut GoOn<'_>) -> Result<(), CompressError> {
        let now = Widths::of(&edited.config().layers[layer]);
        if self.measures_heads {
            let before = self.before(edited, layer, LayerTensor::O)?;
            let mut losses = Vec::with_capacity(now.kv_heads);
            for head in 0..now.kv_heads {
                go_on(&format!("perplexity without KV head {head} of layer {}", edited.layers()[layer]))?;
                let kept: Vec<usize> = (0..now.kv_heads).filter(|other| *other != head).collect();
                losses.push(self.loss_of(edited, layer, |pass| pass.keep_kv_heads(&kept, &before))?);
            }
            self.heads.push(losses);
        }
        if let (true, Some(fraction)) = (self.measures_channels, self.options.ffn) {
            let step = ffn_step(now.intermediate);
            let units = now.intermediate / step;
            let count = units_to_remove("--ffn", fraction, units, "steps of FFN channels")?;
            let before = self.before(edited, layer, LayerTensor::Down)?;
            let most = ((fraction * MOST_OF_A_LAYER * units as f64).ceil() as usize).clamp(count, units - 1);
            let Some(h) = &before.h else { return Ok(()) };
            let order = removal_order(&before.weights, h, 1, step * most)?;
            let gone: Vec<usize> = order[..step * count].iter().map(|removal| removal.group).collect();
            let kept: Vec<usize> = (0..now.intermediate).filter(|channel| !gone.contains(channel)).collect();
            let loss = self.loss_of(edited, layer, |pass| pass.keep_channels(&kept, &before))?;
            let single: Vec<f64> =
                order.chunks(step).map(|step| step.iter().map(|removal| removal.loss).sum()).collect();
            // A layer that the text is more likely without is free.
            let scale = loss.max(0.0) / single[..count].iter().sum::<f64>().max(f64::MIN_POSITIVE);
            self.channels.push(single.iter().map(|single| single * scale).collect());
        }
        self.walk.advance(edited)
    }
}
