//! Which whole layers a model can best do without.

use super::{
    Score,
    likelihood::{Likelihood, PERPLEXITY_WINDOWS},
};
use crate::{CompressError, Walk};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use serde::Serialize;

/// A layer that goes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RemovedLayer {
    /// Its number in the model as it was.
    pub layer: usize,
    /// Block influence; or the perplexity of the calibration text without it and those before it in this list.
    pub score: f64,
}

pub(crate) type GoOn<'a> = dyn FnMut(&str) -> Result<(), CompressError> + 'a;

/// Block influence of every layer: 1 − the mean cosine between the hidden states before and after it.
/// Source: ShortGPT (Men et al. 2024, arXiv:2403.03853).
pub(crate) fn influences(
    checkpoint: &Checkpoint,
    cpu: &Cpu,
    windows: &[Vec<u32>],
    go_on: &mut GoOn<'_>,
) -> Result<Vec<f64>, CompressError> {
    let mut walk = Walk::begin(checkpoint, cpu, windows)?;
    let d = checkpoint.config().hidden_size;
    let mut influences = Vec::new();
    for layer in 0..checkpoint.config().layers.len() {
        go_on(&format!("influence of layer {layer}"))?;
        let before = (0..walk.windows()).map(|index| walk.hidden(index)).collect::<Result<Vec<_>, _>>()?;
        walk.advance(checkpoint)?;
        let (mut sum, mut count) = (0.0, 0);
        for (index, before) in before.iter().enumerate() {
            let after = walk.hidden(index)?;
            for (before, after) in before.chunks_exact(d).zip(after.chunks_exact(d)) {
                sum += cosine(before, after);
                count += 1;
            }
        }
        influences.push(1.0 - sum / f64::from(count.max(1)));
    }
    if influences.iter().any(|influence| !influence.is_finite()) {
        return Err(CompressError::NotFinite { what: "the activations of the calibration data".to_owned() });
    }
    Ok(influences)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
}

/// The `count` layers of least score, in the order in which they go. `go_on` is called before every step.
pub(crate) fn choose_layers(
    checkpoint: &Checkpoint,
    cpu: &Cpu,
    windows: &[Vec<u32>],
    count: usize,
    score: Score,
    go_on: &mut GoOn<'_>,
) -> Result<Vec<RemovedLayer>, CompressError> {
    match score {
        Score::Local => {
            let influences = influences(checkpoint, cpu, windows, go_on)?;
            let mut removed: Vec<RemovedLayer> =
                influences.iter().enumerate().map(|(layer, &score)| RemovedLayer { layer, score }).collect();
            removed.sort_by(|a, b| a.score.total_cmp(&b.score).then(a.layer.cmp(&b.layer)));
            removed.truncate(count);
            Ok(removed)
        }
        Score::Perplexity => {
            let likelihood = Likelihood::load(checkpoint, cpu)?;
            let windows = &windows[..windows.len().min(PERPLEXITY_WINDOWS)];
            let mut kept: Vec<usize> = (0..checkpoint.config().layers.len()).collect();
            let mut removed = Vec::with_capacity(count);
            while removed.len() < count {
                let worst = least_missed(&likelihood, checkpoint, windows, &kept, go_on)?;
                kept.retain(|&layer| layer != worst.layer);
                removed.push(worst);
            }
            Ok(removed)
        }
    }
}

/// The layer of `kept` without which perplexity is least. Layers before a candidate run once for all candidates.
fn least_missed(
    likelihood: &Likelihood<'_>,
    checkpoint: &Checkpoint,
    windows: &[Vec<u32>],
    kept: &[usize],
    go_on: &mut GoOn<'_>,
) -> Result<RemovedLayer, CompressError> {
    let embed = |window: &Vec<u32>| edgelm_engine::embed_window(checkpoint, likelihood.cpu, window);
    let mut before = windows.iter().map(embed).collect::<Result<Vec<_>, _>>()?;
    let mut best: Option<RemovedLayer> = None;
    for (place, &layer) in kept.iter().enumerate() {
        go_on(&format!("perplexity without layer {layer}"))?;
        let mut hidden = before.clone();
        for &later in &kept[place + 1..] {
            likelihood.run(checkpoint, later, &mut hidden)?;
        }
        let score = likelihood.perplexity(windows, &hidden)?;
        if best.is_none_or(|best| score < best.score) {
            best = Some(RemovedLayer { layer, score });
        }
        likelihood.run(checkpoint, layer, &mut before)?;
    }
    best.ok_or(CompressError::NeedsCalibration { what: "--layers" })
}
