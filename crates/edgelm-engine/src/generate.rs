//! The generation loop's contract.
use crate::Sampling;
use edgelm_kernels::KvDtype;

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
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FinishReason {
    /** eos or a stop string */
    Stop,
    /** `max_tokens` or context full */
    Length,
    /** the callback said so */
    Cancelled,
}

/// One step's output.
#[derive(Debug, Clone)]
pub struct Piece {
    /// The token.
    pub token: u32,
    /// Text that became certain (possibly empty): whole characters, and never the start of a stop string.
    pub text: String,
    /// Natural log-probability under the model, where asked for.
    pub logprob: Option<f32>,
    /// Best alternatives, best first, where asked for.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// The whole of it.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Generation {
    pub tokens: Vec<u32>,
    /// Without the stop string or eos.
    pub text: String,
    pub prompt_tokens: usize,
    pub finish_reason: FinishReason,
    /// Milliseconds from the call to the first token.
    pub ttft_ms: f64,
    pub prefill_tokens_per_second: f64,
    pub decode_tokens_per_second: f64,
}
