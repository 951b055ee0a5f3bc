//! The generation loop: options, result, and sampling one token after another.

use crate::{
    Engine, EngineError, Grammar, LoadedAdapter, Sampler, Sampling, Sequence, Step, Want, Workspace,
    sampling::top_log_probabilities, stop::StopMatcher,
};
use edgelm_kernels::KvDtype;
use edgelm_model::{DecodeStream, Tokenizer};
use std::{ops::ControlFlow, sync::Arc, time::Instant};

/// What to generate and when to stop.
#[derive(Debug, Clone, Default)]
pub struct GenerateOptions {
    /// `None` = until eos or the context is full.
    pub max_tokens: Option<usize>,
    /// How to pick.
    pub sampling: Sampling,
    /// Stop before any of these texts appears in the output.
    pub stop: Vec<String>,
    /// Go on after eos.
    pub ignore_eos: bool,
    /// Context limit; `None` = the model's own.
    pub context: Option<usize>,
    /// Cache format; `None` = the engine's default.
    pub kv: Option<KvDtype>,
    /// Beam search width; 0 or 1 = off (needs greedy sampling).
    pub beams: usize,
    /// Keep special tokens in the text.
    pub keep_special: bool,
    /// Report the log-probability of each token and of this many alternatives.
    pub logprobs: Option<usize>,
    /// Go through these adapters.
    pub adapter: Option<Arc<LoadedAdapter>>,
    /// Generate only what this grammar accepts.
    pub constraint: Option<Grammar>,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// eos or a stop string.
    Stop,
    /// `max_tokens` reached or context full.
    Length,
    /// The callback said so.
    Cancelled,
}

impl FinishReason {
    /// As in the OpenAI API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One step's output.
#[derive(Debug, Clone, Default)]
pub struct Piece {
    /// The token; `None` for text that was held back till the end.
    pub token: Option<u32>,
    /// Text that became certain (possibly empty): whole characters, and never the start of a stop string.
    pub text: String,
    /// Natural log-probability under the model, where asked for.
    pub logprob: Option<f32>,
    /// Best alternatives, best first, where asked for.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// The whole of it.
#[derive(Debug, Clone)]
pub struct Generation {
    /// Generated ids, without eos.
    pub tokens: Vec<u32>,
    /// Without the stop string or eos; empty for a model without tokenizer.
    pub text: String,
    /// Length of the prompt.
    pub prompt_tokens: usize,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Milliseconds from the call to the first token.
    pub ttft_ms: f64,
    /// Prompt tokens that had to be computed, over the time to the first token.
    pub prefill_tokens_per_second: f64,
    /// Tokens after the first over the time they took; 0 where there was none.
    pub decode_tokens_per_second: f64,
}

/// Context limit and number of tokens to generate at most; an error where they cannot be had.
pub(crate) fn budget(engine: &Engine, prompt: usize, options: &GenerateOptions) -> Result<usize, EngineError> {
    let trained = engine.config().context_length();
    let context = options.context.unwrap_or(trained);
    if context > trained {
        let what = format!("{context} is more than the {trained} positions of this model");
        return Err(EngineError::Option { option: "context", what });
    }
    if prompt == 0 {
        return Err(EngineError::EmptyPrompt);
    }
    if options.constraint.is_some() && (options.ignore_eos || options.beams > 1) {
        let what = "a constrained answer ends where its grammar does, and is searched by one beam".to_owned();
        return Err(EngineError::Option { option: "constraint", what });
    }
    let max_new = options.max_tokens.unwrap_or(0);
    // The last token is returned but never fed back: it needs no place of its own, but one must be left for it to be
    // asked for at all.
    if prompt + max_new > context || prompt >= context {
        return Err(EngineError::ContextLength { prompt, max_new, context });
    }
    Ok(options.max_tokens.unwrap_or(context - prompt))
}

/// Text of a generation in progress: detokenizes, watches for stop strings.
pub(crate) struct TextOut<'a> {
    stream: Option<DecodeStream<'a>>,
    stops: StopMatcher<'a>,
    text: String,
}

impl<'a> TextOut<'a> {
    pub(crate) fn new(tokenizer: Option<&'a Tokenizer>, options: &'a GenerateOptions) -> Self {
        Self {
            stream: tokenizer.map(|tokenizer| tokenizer.stream(!options.keep_special)),
            stops: StopMatcher::new(&options.stop),
            text: String::new(),
        }
    }

    /// Text that became certain with this token, and whether a stop string was met.
    pub(crate) fn push(&mut self, token: u32) -> Result<(String, bool), EngineError> {
        let Some(stream) = &mut self.stream else { return Ok((String::new(), false)) };
        let (text, stopped) = match stream.push(token)? {
            Some(text) => self.stops.push(&text),
            None => (String::new(), false),
        };
        self.text.push_str(&text);
        Ok((text, stopped))
    }

    /// All text, and the last part of it that `push` had held back.
    pub(crate) fn finish(mut self, stopped: bool) -> Result<(String, String), EngineError> {
        let mut rest = String::new();
        if let (Some(stream), false) = (self.stream, stopped) {
            let (text, met) = self.stops.push(&stream.finish()?.unwrap_or_default());
            rest = text;
            if !met {
                rest.push_str(&self.stops.finish());
            }
        }
        self.text.push_str(&rest);
        Ok((self.text, rest))
    }
}

/// Samples token after token. What `sequence` already holds of the prompt is not computed again.
pub(crate) fn sample(
    engine: &Engine,
    tokenizer: Option<&Tokenizer>,
    sequence: &mut Sequence,
    prompt: &[u32],
    options: &GenerateOptions,
    on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
) -> Result<Generation, EngineError> {
    let begin = Instant::now();
    let max_tokens = budget(engine, prompt.len(), options)?;
    let mut sampler = Sampler::new(&options.sampling)?;
    let mut guide = options.constraint.as_ref().map(Grammar::guide);
    let shared = sequence.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
    sequence.truncate(shared.min(prompt.len() - 1));
    let computed = prompt.len() - sequence.tokens().len();

    let mut workspace = Workspace::default();
    let mut out = TextOut::new(tokenizer, options);
    let mut tokens = Vec::new();
    let mut first_token = begin;
    let mut finish_reason = FinishReason::Length;
    let mut stopped = false;
    let mut feed = prompt[prompt.len() - computed..].to_vec();
    let mut logits = Vec::new();
    while tokens.len() < max_tokens {
        engine.forward(&mut [Step { sequence, tokens: &feed, want: Want::Last }], &mut workspace)?;
        logits.clear();
        logits.extend_from_slice(workspace.logits());
        let mut piece = Piece::default();
        if let Some(n) = options.logprobs {
            piece.top_logprobs = top_log_probabilities(&logits, n.max(1));
        }
        if let Some(guide) = &mut guide {
            guide.mask(&mut logits)?;
        }
        let token = sampler.pick(&mut logits, prompt, &tokens);
        if tokens.is_empty() {
            first_token = Instant::now();
        }
        if !options.ignore_eos && engine.config().eos_token_ids.contains(&token) {
            finish_reason = FinishReason::Stop;
            break;
        }
        if let Some(n) = options.logprobs {
            piece.logprob = Some(log_probability(workspace.logits(), token));
            piece.top_logprobs.truncate(n);
        }
        tokens.push(token);
        piece.token = Some(token);
        (piece.text, stopped) = out.push(token)?;
        let complete = guide.as_mut().map_or(Ok(false), |guide| guide.accept(token))?;
        let flow = on_piece(&piece);
        if stopped || complete {
            finish_reason = FinishReason::Stop;
            break;
        }
        if flow.is_break() {
            finish_reason = FinishReason::Cancelled;
            break;
        }
        feed.clear();
        feed.push(token);
    }
    let end = Instant::now();
    let (text, rest) = out.finish(stopped)?;
    if !rest.is_empty() {
        // Nothing is left to cancel.
        let _ = on_piece(&Piece { text: rest, ..Piece::default() });
    }
    let ttft = (first_token - begin).as_secs_f64();
    let decode = (end - first_token).as_secs_f64();
    Ok(Generation {
        text,
        prompt_tokens: prompt.len(),
        finish_reason,
        ttft_ms: ttft * 1e3,
        prefill_tokens_per_second: if ttft > 0.0 { computed as f64 / ttft } else { 0.0 },
        decode_tokens_per_second: if tokens.len() > 1 { (tokens.len() - 1) as f64 / decode } else { 0.0 },
        tokens,
    })
}

fn log_probability(logits: &[f32], token: u32) -> f32 {
    (f64::from(logits[token as usize]) - crate::sampling::log_sum_exp(logits)) as f32
}
