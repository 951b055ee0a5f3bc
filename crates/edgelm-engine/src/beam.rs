//! Beam search.

use crate::{
    Engine, EngineError, FinishReason, GenerateOptions, Generation, Guesses, Piece, Sequence, Step, Want, Workspace,
    generate::{TextOut, budget},
    sampling::top_log_probabilities,
};
use edgelm_model::Tokenizer;
use std::{ops::ControlFlow, time::Instant};

/// A partial or finished answer.
struct Beam {
    sequence: Sequence,
    tokens: Vec<u32>,
    log_probability: f64,
}

/// A finished answer; its score is the mean log-probability per token, eos included.
struct Finished {
    tokens: Vec<u32>,
    score: f64,
    reason: FinishReason,
}

/// Keeps the `options.beams` most probable continuations and returns the finished one with the highest mean
/// log-probability per token (length penalty 1, as transformers' default; Wu et al. 2016, arXiv:1609.08144, §7).
///
/// Ends when `beams` answers are finished and no running one can still beat the worst of them. Stop strings end a
/// beam as eos does. The callback gets the winner's pieces when it is known: a beam that leads may still lose.
pub(crate) fn beam_search(
    engine: &Engine,
    tokenizer: Option<&Tokenizer>,
    prompt: &[u32],
    options: &GenerateOptions,
    on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
) -> Result<Generation, EngineError> {
    let begin = Instant::now();
    if !options.sampling.is_greedy() {
        let what = "beam search needs temperature 0".to_owned();
        return Err(EngineError::Option { option: "beams", what });
    }
    let width = options.beams;
    let max_tokens = budget(engine.config().context_length(), prompt.len(), options)?;
    let mut workspace = Workspace::default();
    let mut sequence =
        engine.adapted_sequence(options.kv.unwrap_or_else(|| engine.default_kv()), options.adapter.clone());
    engine.forward(&mut [Step { sequence: &mut sequence, tokens: prompt, want: Want::Last }], &mut workspace)?;
    let ttft = begin.elapsed().as_secs_f64();

    let mut beams = vec![Beam { sequence, tokens: Vec::new(), log_probability: 0.0 }];
    let mut finished: Vec<Finished> = Vec::new();
    let mut steps = 0;
    while steps < max_tokens && !beams.is_empty() {
        steps += 1;
        let candidates = expand(&beams, workspace.logits(), engine.config().vocab_size, width);
        let mut next: Vec<Beam> = Vec::with_capacity(width);
        for (from, token, log_probability) in candidates {
            if next.len() == width {
                break;
            }
            let mut tokens = beams[from].tokens.clone();
            let is_eos = !options.ignore_eos && engine.config().eos_token_ids.contains(&token);
            if !is_eos {
                tokens.push(token);
            }
            if is_eos || meets_stop(tokenizer, options, &tokens)? {
                let score = log_probability / steps as f64;
                finished.push(Finished { tokens, score, reason: FinishReason::Stop });
            } else {
                next.push(Beam { sequence: beams[from].sequence.clone(), tokens, log_probability });
            }
        }
        finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        finished.truncate(width);
        beams = next;
        let best_running = beams.first().map_or(f64::NEG_INFINITY, |beam| beam.log_probability / steps as f64);
        if finished.len() == width && finished[width - 1].score >= best_running {
            beams.clear();
            break;
        }
        if steps < max_tokens && !beams.is_empty() {
            let last: Vec<[u32; 1]> = beams.iter().map(|beam| [beam.tokens.last().copied().unwrap_or(0)]).collect();
            let mut batch: Vec<Step<'_>> = beams
                .iter_mut()
                .zip(&last)
                .map(|(beam, token)| Step { sequence: &mut beam.sequence, tokens: token, want: Want::Last })
                .collect();
            engine.forward(&mut batch, &mut workspace)?;
        }
    }
    finished.extend(beams.into_iter().map(|beam| Finished {
        score: beam.log_probability / steps.max(1) as f64,
        tokens: beam.tokens,
        reason: FinishReason::Length,
    }));
    let winner = finished.into_iter().max_by(|a, b| a.score.total_cmp(&b.score));
    let (tokens, mut finish_reason) =
        winner.map_or((Vec::new(), FinishReason::Length), |winner| (winner.tokens, winner.reason));
    let seconds = begin.elapsed().as_secs_f64();

    let mut out = TextOut::new(tokenizer, options);
    let mut stopped = false;
    for &token in &tokens {
        let (text, met) = out.push(token)?;
        stopped |= met;
        if on_piece(&Piece { token: Some(token), text, ..Piece::default() }).is_break() {
            finish_reason = FinishReason::Cancelled;
            break;
        }
    }
    let rest = out.finish(stopped)?;
    if !rest.is_empty() {
        let _ = on_piece(&Piece { text: rest, ..Piece::default() });
    }
    Ok(Generation {
        text: out.into_text(),
        prompt_tokens: prompt.len(),
        finish_reason,
        ttft_ms: ttft * 1e3,
        prefill_tokens_per_second: prompt.len() as f64 / ttft,
        decode_tokens_per_second: steps as f64 / (seconds - ttft).max(1e-9),
        guesses: Guesses::default(),
        tokens,
    })
}

/// The best 2·width (beam, token, summed log-probability), best first: enough that width of them are not eos.
fn expand(beams: &[Beam], logits: &[f32], vocab_size: usize, width: usize) -> Vec<(usize, u32, f64)> {
    let mut candidates = Vec::new();
    for (i, (beam, row)) in beams.iter().zip(logits.chunks(vocab_size)).enumerate() {
        for (token, log_probability) in top_log_probabilities(row, 2 * width) {
            candidates.push((i, token, beam.log_probability + f64::from(log_probability)));
        }
    }
    candidates.sort_by(|a, b| b.2.total_cmp(&a.2));
    candidates.truncate(2 * width);
    candidates
}

fn meets_stop(tokenizer: Option<&Tokenizer>, options: &GenerateOptions, tokens: &[u32]) -> Result<bool, EngineError> {
    let Some(tokenizer) = tokenizer else { return Ok(false) };
    if options.stop.is_empty() {
        return Ok(false);
    }
    let text = tokenizer.decode(tokens, !options.keep_special)?;
    Ok(options.stop.iter().any(|stop| !stop.is_empty() && text.contains(stop.as_str())))
}
