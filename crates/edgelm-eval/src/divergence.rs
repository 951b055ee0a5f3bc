//! How far a model's predictions are from its parent's.

use crate::{
    EvalError, OnProgress, Perplexity, Progress, WindowOptions,
    perplexity::Sample,
    rows::map_rows,
    softmax::{NotFinite, compare},
    windows::{Windows, chunk_tokens},
};
use edgelm_engine::{Model, Step, Want, Workspace};

/// Divergence from a parent, and the perplexity of both on the same windows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    /// KL(parent || model) over positions.
    pub kl: KlDivergence,
    /// Share of positions where both rank the same token first.
    pub top1_agreement: f64,
    /// Of `top1_agreement`.
    pub top1_standard_error: f64,
    /// The model's own.
    pub model: Perplexity,
    /// The parent's.
    pub parent: Perplexity,
}

/// Distribution over positions of the Kullback-Leibler divergence, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KlDivergence {
    /// The published figure.
    pub mean: f64,
    /// Of the mean, as if positions were independent.
    pub standard_error: f64,
    /// Half of the positions diverge no more than this.
    pub median: f64,
    /// 99 % of the positions diverge no more than this.
    pub percentile_99: f64,
    /// Worst position.
    pub max: f64,
}

impl KlDivergence {
    /// `values` is not empty; sorts it.
    fn new(values: &mut [f64]) -> Self {
        let mut sample = Sample::default();
        values.iter().for_each(|&value| sample.add(value));
        values.sort_by(f64::total_cmp);
        let last = values.len() - 1;
        Self {
            mean: sample.mean(),
            standard_error: sample.standard_error(),
            median: values[last / 2],
            percentile_99: values[(last * 99).div_ceil(100)],
            max: values[last],
        }
    }
}

/// Both models must be fed and asked for the same ids.
fn check_same_tokens(parent: (&Windows, usize), model: (&Windows, usize)) -> Result<(), EvalError> {
    let ((parent, parent_vocab), (model, model_vocab)) = (parent, model);
    let what = if parent_vocab != model_vocab {
        format!("the parent's vocabulary has {parent_vocab} entries, the model's {model_vocab}")
    } else if parent.first != model.first {
        format!("the parent begins a window with token {}, the model with token {}", parent.first, model.first)
    } else if parent.tokens() != model.tokens() {
        let same = parent.tokens().iter().zip(model.tokens()).take_while(|(parent, model)| parent == model).count();
        format!("their tokenizers part at token {same} of the text")
    } else {
        return Ok(());
    };
    Err(EvalError::Vocabulary { what })
}

/// KL divergence of `model` from `parent` on `text`, with top-1 agreement and the perplexity of both, in one pass.
/// KL = mean over positions of Σᵢ pᵢ ln(pᵢ / qᵢ), p the parent's distribution, q the model's, over the whole vocabulary.
///
/// Windows as in [`perplexity`](crate::perplexity()). Natural logarithm. `options.kv` applies to both models.
/// Numerics: per position within about 1e-6, so that equal models give 0 to that accuracy; sums in f64 in text order.
/// Errors: as `perplexity`, and models that differ in vocabulary size, first token or the ids of the text.
pub fn divergence(
    parent: &Model,
    model: &Model,
    text: &str,
    options: &WindowOptions,
    on_progress: &mut OnProgress<'_>,
) -> Result<Divergence, EvalError> {
    let (parent_engine, model_engine) = (parent.engine(), model.engine());
    let cpu = model_engine.cpu();
    let vocab_size = model_engine.config().vocab_size;
    let windows = Windows::new(model, text, options)?;
    let parent_windows = Windows::new(parent, text, options)?;
    check_same_tokens((&parent_windows, parent_engine.config().vocab_size), (&windows, vocab_size))?;
    let chunk = chunk_tokens(model_engine, windows.context()).max(chunk_tokens(parent_engine, windows.context()));
    let parent_kv = options.kv.unwrap_or(parent_engine.default_kv());
    let model_kv = options.kv.unwrap_or(model_engine.default_kv());
    let (mut parent_workspace, mut model_workspace) = (Workspace::default(), Workspace::default());
    let (mut parent_nll, mut model_nll, mut same_top) = (Sample::default(), Sample::default(), Sample::default());
    let mut divergences = Vec::with_capacity(windows.tokens().len());
    let mut kl_sum = 0.0;
    for (window, (inputs, targets)) in windows.iter().enumerate() {
        let (mut parent_sequence, mut model_sequence) =
            (parent_engine.sequence(parent_kv), model_engine.sequence(model_kv));
        for (index, (inputs, targets)) in inputs.chunks(chunk).zip(targets.chunks(chunk)).enumerate() {
            let step = Step { sequence: &mut parent_sequence, tokens: inputs, want: Want::All };
            parent_engine.forward(&mut [step], &mut parent_workspace)?;
            let step = Step { sequence: &mut model_sequence, tokens: inputs, want: Want::All };
            model_engine.forward(&mut [step], &mut model_workspace)?;
            let (parent_logits, model_logits) = (parent_workspace.logits(), model_workspace.logits());
            let scores = map_rows(cpu.pool(), targets.len(), &|row| {
                let values = row * vocab_size..(row + 1) * vocab_size;
                compare(cpu, &parent_logits[values.clone()], &model_logits[values], targets[row] as usize)
            });
            for (row, score) in scores.into_iter().enumerate() {
                let score = score.map_err(|whose| {
                    let model = if whose == NotFinite::Parent { parent } else { model };
                    EvalError::NonFinite { model: model.name().to_owned(), window, position: index * chunk + row }
                })?;
                parent_nll.add(score.parent_nll);
                model_nll.add(score.model_nll);
                same_top.add(f64::from(u8::from(score.same_top)));
                divergences.push(score.kl);
                kl_sum += score.kl;
            }
        }
        on_progress(Progress::Window {
            done: window + 1,
            total: windows.count(),
            perplexity: model_nll.mean().exp(),
            kl_divergence: Some(kl_sum / divergences.len() as f64),
        });
    }
    Ok(Divergence {
        kl: KlDivergence::new(&mut divergences),
        top1_agreement: same_top.mean(),
        top1_standard_error: same_top.standard_error(),
        model: Perplexity::new(&model_nll, &windows),
        parent: Perplexity::new(&parent_nll, &windows),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distribution_over_positions() {
        let mut values: Vec<f64> = (1..=1000).rev().map(f64::from).collect();
        let kl = KlDivergence::new(&mut values);
        assert_eq!((kl.mean, kl.median, kl.percentile_99, kl.max), (500.5, 500.0, 991.0, 1000.0));
        let kl = KlDivergence::new(&mut [0.25]);
        assert_eq!((kl.mean, kl.standard_error, kl.median, kl.percentile_99, kl.max), (0.25, 0.0, 0.25, 0.25, 0.25));
    }

    #[test]
    fn models_of_different_tokens_are_refused() {
        let windows = |first, tokens: &[u32]| Windows::for_test(first, tokens, 2);
        let base = windows(0, &[1, 2, 3, 4]);
        let what = |model: &Windows, vocab| match check_same_tokens((&base, 10), (model, vocab)) {
            Err(EvalError::Vocabulary { what }) => what,
            other => panic!("{other:?}"),
        };
        assert!(check_same_tokens((&base, 10), (&base.clone(), 10)).is_ok());
        assert!(what(&base.clone(), 11).contains("11"));
        assert!(what(&windows(9, &[1, 2, 3, 4]), 10).contains("token 9"));
        assert!(what(&windows(0, &[1, 2, 4, 4]), 10).contains("token 2 of the text"));
        assert!(what(&windows(0, &[1, 2]), 10).contains("token 2 of the text"));
    }
}
