//! Perplexity of a model on a text.

use crate::{
    EvalError, OnProgress, Progress, WindowOptions,
    rows::map_rows,
    softmax::negative_log_likelihood,
    windows::{Reader, Windows, chunk_of, chunk_tokens},
};
use edgelm_engine::{Decoding, Model, Step, Want, Workspace};
use edgelm_kernels::Cpu;
use edgelm_model::Tokenizer;

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// exp(mean negative log-likelihood).
    pub perplexity: f64,
    /// Of the perplexity, to first order, as if positions were independent.
    pub standard_error: f64,
    /// Tokens in the mean.
    pub tokens_scored: usize,
    /// Windows of `context` tokens.
    pub windows: usize,
    /// C.
    pub context: usize,
    /// The token fed before each window: bos, or what stands for it.
    pub first_token: u32,
}

/// Sum and sum of squares of a sample.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    count: usize,
    sum: f64,
    squares: f64,
}

impl Sample {
    pub(crate) fn add(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.squares += value * value;
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Not a number for an empty sample.
    pub(crate) fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// Of the mean: sqrt(variance / n), variance with n − 1; 0 for fewer than two values.
    pub(crate) fn standard_error(&self) -> f64 {
        if self.count < 2 {
            return 0.0;
        }
        let n = self.count as f64;
        let variance = (self.squares - self.sum * self.sum / n) / (n - 1.0);
        (variance.max(0.0) / n).sqrt()
    }
}

impl Perplexity {
    pub(crate) fn new(nll: &Sample, windows: &Windows) -> Self {
        let perplexity = nll.mean().exp();
        Self {
            perplexity,
            standard_error: perplexity * nll.standard_error(),
            tokens_scored: nll.count(),
            windows: windows.count(),
            context: windows.context(),
            first_token: windows.first,
        }
    }
}

/// Perplexity of `model` on `text`.
/// perplexity = exp(Σₜ −ln p(tokenₜ | window so far) / tokens scored)
///
/// Protocol: the whole text is tokenized without special tokens and cut into windows of C tokens, the last short one is
/// dropped; each window starts afresh with `[bos] + window[0 .. C−1)` as input, and all its C tokens are scored. Where
/// the model has no bos, its eos takes that place (it is what separates documents in training); `Perplexity` says which
/// token it was.
///
/// Numerics: logits as the engine gives them; likelihoods within 1e-6, summed in f64 in text order, so the figure does
/// not depend on the number of threads. Memory: logits of a few hundred positions, never of a whole window.
/// Errors: a text shorter than one window, windows longer than the model's context, no bos nor eos, logits that are not
/// finite, and those of the engine and tokenizer.
pub fn perplexity(
    model: &Model,
    text: &str,
    options: &WindowOptions,
    on_progress: &mut OnProgress<'_>,
) -> Result<Perplexity, EvalError> {
    let windows = Windows::new(model, text, options)?;
    let engine = model.engine();
    let cpu = engine.cpu();
    let vocab_size = engine.config().vocab_size;
    let chunk = chunk_tokens(engine, windows.context());
    let kv = options.kv.unwrap_or(engine.default_kv());
    let mut workspace = Workspace::default();
    let mut nll = Sample::default();
    for (window, (inputs, targets)) in windows.iter().enumerate() {
        let mut sequence = engine.sequence(kv);
        for (index, (inputs, targets)) in inputs.chunks(chunk).zip(targets.chunks(chunk)).enumerate() {
            let step = Step { sequence: &mut sequence, tokens: inputs, want: Want::All };
            engine.forward(&mut [step], &mut workspace)?;
            let place = Place { model: model.name(), window, position: index * chunk };
            add_scores(cpu, workspace.logits(), vocab_size, targets, &place, &mut nll)?;
        }
        on_progress(progress(&windows, window, &nll));
    }
    Ok(Perplexity::new(&nll, &windows))
}

/// A model that another engine runs.
pub struct Foreign<'a> {
    /// For messages.
    pub name: &'a str,
    /// An empty sequence of it.
    pub decoding: &'a mut dyn Decoding,
    /// Its own.
    pub tokenizer: &'a Tokenizer,
    /// The token that begins a text, where the tokenizer has none.
    pub bos_token_id: Option<u32>,
    /// V.
    pub vocab_size: usize,
    /// Computes likelihoods.
    pub cpu: &'a Cpu,
    /// Windows go in as one piece: positions may depend on how many follow, and an engine may not take them in parts.
    pub at_once: bool,
}

/// [`perplexity`] of a model that another engine runs, by the same protocol; the cache format of `options` is not for it.
///
/// Memory: with `at_once` the logits of a window.
pub fn perplexity_of(
    model: Foreign<'_>,
    text: &str,
    options: &WindowOptions,
    on_progress: &mut OnProgress<'_>,
) -> Result<Perplexity, EvalError> {
    let Foreign { name, decoding, tokenizer, bos_token_id, vocab_size, cpu, at_once } = model;
    let eos_token_ids = decoding.eos_token_ids().to_vec();
    let context_length = decoding.context_length();
    let reader = Reader { tokenizer, bos_token_id, eos_token_ids: &eos_token_ids, vocab_size, context_length };
    let windows = Windows::read(&reader, text, options)?;
    let chunk = if at_once { windows.context() } else { chunk_of(vocab_size) };
    let (mut nll, mut logits) = (Sample::default(), Vec::new());
    for (window, (inputs, targets)) in windows.iter().enumerate() {
        decoding.truncate(0)?;
        for (index, (inputs, targets)) in inputs.chunks(chunk).zip(targets.chunks(chunk)).enumerate() {
            decoding.forward(inputs, inputs.len(), &mut logits)?;
            let place = Place { model: name, window, position: index * chunk };
            add_scores(cpu, &logits, vocab_size, targets, &place, &mut nll)?;
        }
        on_progress(progress(&windows, window, &nll));
    }
    Ok(Perplexity::new(&nll, &windows))
}

/// Where the first of some rows stands.
struct Place<'a> {
    model: &'a str,
    window: usize,
    position: usize,
}

/// Scores of `targets` under logits `[targets, V]`.
fn add_scores(
    cpu: &Cpu,
    logits: &[f32],
    vocab_size: usize,
    targets: &[u32],
    place: &Place<'_>,
    nll: &mut Sample,
) -> Result<(), EvalError> {
    let scores = map_rows(cpu.pool(), targets.len(), &|row| {
        negative_log_likelihood(cpu, &logits[row * vocab_size..][..vocab_size], targets[row] as usize)
    });
    for (row, score) in scores.into_iter().enumerate() {
        nll.add(score.ok_or_else(|| EvalError::NonFinite {
            model: place.model.to_owned(),
            window: place.window,
            position: place.position + row,
        })?);
    }
    Ok(())
}

fn progress(windows: &Windows, window: usize, nll: &Sample) -> Progress<'static> {
    Progress::Window { done: window + 1, total: windows.count(), perplexity: nll.mean().exp(), kl_divergence: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_statistics() {
        let mut sample = Sample::default();
        assert_eq!(sample.standard_error(), 0.0);
        for value in [1.0, 2.0, 3.0, 4.0] {
            sample.add(value);
        }
        assert_eq!(sample.mean(), 2.5);
        assert!((sample.standard_error() - (5.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
    }
}
