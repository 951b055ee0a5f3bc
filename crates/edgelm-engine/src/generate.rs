//! What a generation is asked for and what comes of it.

use crate::{EngineError, Grammar, Guesses, LoadedAdapter, Sampling, Speculation, stop::StopMatcher};
use edgelm_kernels::KvDtype;
use edgelm_model::{DecodeStream, Tokenizer};
use std::sync::Arc;

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
    /// Guess tokens and check several in a pass: the same answer, sooner.
    pub speculation: Option<Speculation>,
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
    /// How speculation fared; zeros without it.
    pub guesses: Guesses,
}

/// Context limit and number of tokens to generate at most; an error where they cannot be had.
pub(crate) fn budget(trained: usize, prompt: usize, options: &GenerateOptions) -> Result<usize, EngineError> {
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
    if options.speculation.is_some() && options.beams > 1 {
        let what = "a beam search has several next tokens".to_owned();
        return Err(EngineError::Option { option: "speculation", what });
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
    stops: StopMatcher,
    text: String,
}

impl<'a> TextOut<'a> {
    pub(crate) fn new(tokenizer: Option<&'a Tokenizer>, options: &GenerateOptions) -> Self {
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

    /// The last part of the text, which `push` had held back. Nothing may be pushed after it.
    pub(crate) fn finish(&mut self, stopped: bool) -> Result<String, EngineError> {
        let mut rest = String::new();
        if let (Some(stream), false) = (self.stream.take(), stopped) {
            let (text, met) = self.stops.push(&stream.finish()?.unwrap_or_default());
            rest = text;
            if !met {
                rest.push_str(&self.stops.finish());
            }
        }
        self.text.push_str(&rest);
        Ok(rest)
    }

    /// All of it.
    pub(crate) fn into_text(self) -> String {
        self.text
    }
}
