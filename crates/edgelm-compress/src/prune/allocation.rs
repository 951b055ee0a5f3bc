//! Which heads stay, and how many channels of each layer: what the model would lose, layer by layer.

use super::{
    Allocation, PruneCalibration, PruneMethod, PruneOptions, Score,
    columns::removal_order,
    heads::choose_heads,
    layer_pass::{Before, LayerPass, LayerReport},
    layers::GoOn,
    likelihood::{Likelihood, PERPLEXITY_WINDOWS},
    widths::{LayerPlan, Widths, ffn_step, share_out, units_to_remove},
};
use crate::{CompressError, Walk, layer_pass::decode};
use edgelm_kernels::Cpu;
use edgelm_model::{Edited, LayerConfig, LayerTensor, Replaced, TensorId, Tensors};

/// Most of a layer's units that go, as a multiple of the fraction asked for: beyond it, what a layer alone would lose says
/// little about what the model loses.
const MOST_OF_A_LAYER: f64 = 2.0;

/// What of each layer stays. Uniform: the same fraction everywhere. Global: as much in all, from where it is missed least. The
/// measure is the loss on a calibration text ([`Score`]). Heads go one after another, in either case, on the model as it is by
/// then; for channels it is the loss with that layer alone pruned and adjusted, to which single steps of them contribute in the
/// proportion of what they cost `down`.
pub(crate) fn plan<'a>(
    edited: &mut Edited<'a>,
    options: &'a PruneOptions<'a>,
    calibration: &PruneCalibration<'a>,
    go_on: &mut GoOn<'_>,
) -> Result<Vec<LayerPlan>, CompressError> {
    let mut widths = options.widths(edited.config())?;
    let is_global = options.allocation == Allocation::Global;
    let by_perplexity = options.score != Score::Local && options.method != PruneMethod::Magnitude;
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
            let now: Vec<usize> = edited.config().layers.iter().map(|layer| layer.num_key_value_heads).collect();
            let fewer: Vec<usize> = now.iter().zip(&widths).map(|(now, widths)| now - widths.kv_heads).collect();
            let total = fewer.iter().sum();
            // One stays in each layer.
            let most = if is_global { now.iter().map(|now| now - 1).collect() } else { fewer };
            let kept = choose_heads(&losses, edited, &losses.heads, &most, total, go_on)?;
            for (layer, kept) in kept.into_iter().enumerate() {
                losses.undo(edited, layer);
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

/// What has been measured so far.
pub(crate) struct Losses<'a> {
    cpu: &'a Cpu,
    options: &'a PruneOptions<'a>,
    windows: &'a [Vec<u32>],
    likelihood: Likelihood<'a>,
    walk: Walk<'a>,
    /// With nothing gone.
    base: f64,
    /// As they were.
    layers: Vec<LayerConfig>,
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
        let mut new = Self {
            cpu: calibration.cpu,
            options,
            windows,
            likelihood: Likelihood::load(edited, calibration.cpu)?,
            walk: Walk::begin(edited, calibration.cpu, windows)?,
            base: 0.0,
            layers: edited.config().layers.clone(),
            measures_heads,
            measures_channels,
            heads: Vec::new(),
            channels: Vec::new(),
        };
        if options.score == Score::Divergence {
            let parent = new.outputs(edited, &new.walk)?;
            new.likelihood.compare_with(parent);
        } else {
            new.base = new.likelihood.loss(windows, &new.outputs(edited, &new.walk)?)?;
        }
        Ok(new)
    }

    /// Hidden states after the last layer, of a walk through the layers as they are in `edited`.
    fn outputs(&self, edited: &Edited<'_>, walk: &Walk<'_>) -> Result<Vec<Vec<f32>>, CompressError> {
        let mut hidden = (0..walk.windows()).map(|index| walk.hidden(index)).collect::<Result<Vec<_>, _>>()?;
        for later in walk.layer()..edited.config().layers.len() {
            self.likelihood.run(edited, later, &mut hidden)?;
        }
        Ok(hidden)
    }

    /// More than with nothing gone.
    fn loss_from(&self, edited: &Edited<'_>, walk: &Walk<'_>) -> Result<f64, CompressError> {
        Ok(self.likelihood.loss(self.windows, &self.outputs(edited, walk)?)? - self.base)
    }

    fn before(&self, edited: &Edited<'_>, walk: &Walk<'_>, tensor: LayerTensor) -> Result<Before, CompressError> {
        let moments = walk.moments(edited, tensor)?;
        let order: Vec<usize> = (0..moments.columns()).collect();
        let h = moments.damped(self.options.damping, &order)?;
        let weights = decode(edited, TensorId::Layer(walk.layer(), tensor))?;
        Ok(Before { moments: Some(moments), h: Some(h), weights })
    }

    /// What the model loses by a change to one layer, which is undone afterwards.
    fn loss_of(
        &self,
        edited: &mut Edited<'a>,
        layer: usize,
        change: impl FnOnce(&mut LayerPass<'_, 'a>) -> Result<(), CompressError>,
    ) -> Result<f64, CompressError> {
        let report = LayerReport::new(edited, layer);
        change(&mut LayerPass { edited, walk: None, options: self.options, layer, report })?;
        let loss = self.loss_from(edited, &self.walk)?;
        self.undo(edited, layer);
        Ok(loss)
    }

    /// A layer as it was.
    fn undo(&self, edited: &mut Edited<'_>, layer: usize) {
        edited.config_mut().layers[layer] = self.layers[layer].clone();
        LayerTensor::ALL.iter().for_each(|&tensor| drop(edited.take(TensorId::Layer(layer, tensor))));
    }

    /// What the model as it is in `edited` would have lost in all if layer `layer` had only the KV heads `kept`.
    pub fn without(&self, edited: &mut Edited<'a>, layer: usize, kept: &[usize]) -> Result<f64, CompressError> {
        let was = edited.config().layers[layer].clone();
        let replaced: Vec<(TensorId, Replaced)> = LayerTensor::ALL
            .iter()
            .map(|&tensor| TensorId::Layer(layer, tensor))
            .filter_map(|id| Some((id, edited.take(id)?)))
            .collect();
        let walk = self.settle(edited, layer, kept)?;
        let loss = self.loss_from(edited, &walk)?;
        self.undo(edited, layer);
        edited.config_mut().layers[layer] = was;
        replaced.into_iter().for_each(|(id, tensor)| edited.replace(id, tensor));
        Ok(loss)
    }

    /// Leaves layer `layer` with the KV heads `kept`, adjusted to what the layers before it, as they are in `edited`, produce;
    /// returns the walk up to there.
    pub fn settle(&self, edited: &mut Edited<'a>, layer: usize, kept: &[usize]) -> Result<Walk<'a>, CompressError> {
        self.undo(edited, layer);
        let mut walk = Walk::begin(edited, self.cpu, self.windows)?;
        (0..layer).try_for_each(|_| walk.advance(edited))?;
        let before = self.before(edited, &walk, LayerTensor::O)?;
        let report = LayerReport::new(edited, layer);
        LayerPass { edited, walk: None, options: self.options, layer, report }.keep_kv_heads(kept, &before)?;
        Ok(walk)
    }

    fn measure(&mut self, edited: &mut Edited<'a>, layer: usize, go_on: &mut GoOn<'_>) -> Result<(), CompressError> {
        let now = Widths::of(&edited.config().layers[layer]);
        if self.measures_heads {
            let before = self.before(edited, &self.walk, LayerTensor::O)?;
            let mut losses = Vec::with_capacity(now.kv_heads);
            for head in 0..now.kv_heads {
                go_on(&format!("loss without KV head {head} of layer {}", edited.layers()[layer]))?;
                let kept: Vec<usize> = (0..now.kv_heads).filter(|other| *other != head).collect();
                losses.push(self.loss_of(edited, layer, |pass| pass.keep_kv_heads(&kept, &before))?);
            }
            self.heads.push(losses);
        }
        if let (true, Some(fraction)) = (self.measures_channels, self.options.ffn) {
            let step = ffn_step(now.intermediate);
            let units = now.intermediate / step;
            let count = units_to_remove("--ffn", fraction, units, "steps of FFN channels")?;
            let before = self.before(edited, &self.walk, LayerTensor::Down)?;
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
