//! What a model makes of a fixed text.

use crate::encoding::hex;
use edgelm_engine::{Engine, EngineError, Sequence, Step, Want, Workspace, argmax, log_sum_exp};
use sha2::{Digest, Sha256};

/// The text: plain words, digits and punctuation, so that every tokenizer has tokens for it.
const TEXT: &str = "The lighthouse keeper counted 47 ships before noon. Each of them carried salt, rope and letters, \
                               and each one answered his lamp with two short flashes.";
/// Tokens generated behind it.
const GENERATED: usize = 8;
/// Tokens read at once: between two such steps a probe can be given up.
const CHUNK: usize = 8;
/// The text's tokens that are read at most: byte-level vocabularies make many of it.
const MAX_TOKENS: usize = 64;

/// What is read, and how far a probe goes on with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeText {
    /// The text.
    pub text: String,
    /// As many of its first tokens are read, at most.
    pub max_tokens: usize,
    /// As many are generated behind them.
    pub generated: usize,
}

impl Default for ProbeText {
    fn default() -> Self {
        Self { text: TEXT.to_owned(), max_tokens: MAX_TOKENS, generated: GENERATED }
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// Greedy tokens behind the text.
    pub tokens: Vec<u32>,
    /// SHA-256 over the bits of all logits, little-endian, in hexadecimal.
    pub logits_sha256: String,
    /// Of the text: exp(−1/(T−1) · Σ_t log p(token\[t\] | token\[..t\])). Sums in f64.
    pub perplexity: f64,
    /// Tokens of the text that were read.
    pub prompt_tokens: usize,
    /// What the bits depend on beside the weights: the family of kernels, the cache format and the version of this program.
    pub numerics: String,
}

/// Asked between two steps: whether to go on.
pub type Patience<'a> = &'a mut dyn FnMut() -> bool;

/// Reads `tokens`, those of `text`, as far as that says, and generates as it says, greedily. `None` where `patience` was over first.
///
/// # Errors
/// Those of the engine.
pub(crate) fn run(
    engine: &Engine,
    mut sequence: Sequence,
    (text, tokens): (&ProbeText, &[u32]),
    context: usize,
    numerics: String,
    patience: Patience<'_>,
) -> Result<Option<Probe>, EngineError> {
    let generated = text.generated;
    let room = context.saturating_sub(generated).min(text.max_tokens);
    let text = &tokens[..tokens.len().min(room)];
    if text.is_empty() {
        return Err(EngineError::EmptyPrompt);
    }
    let mut workspace = Workspace::default();
    let mut hasher = Sha256::new();
    let (mut loss, mut next) = (0.0, 0);
    for (index, chunk) in text.chunks(CHUNK).enumerate() {
        if !patience() {
            return Ok(None);
        }
        engine.forward(&mut [Step { sequence: &mut sequence, tokens: chunk, want: Want::All }], &mut workspace)?;
        let width = (workspace.logits().len() / chunk.len()).max(1);
        for (row, logits) in workspace.logits().chunks_exact(width).enumerate() {
            logits.iter().for_each(|value| hasher.update(value.to_bits().to_le_bytes()));
            next = argmax(logits);
            let expected = text.get(index * CHUNK + row + 1).and_then(|&id| logits.get(usize::try_from(id).ok()?));
            if let Some(&logit) = expected {
                loss += log_sum_exp(logits) - f64::from(logit);
            }
        }
    }
    let mut tokens = vec![next];
    while tokens.len() < generated {
        if !patience() {
            return Ok(None);
        }
        let last = [next];
        engine.forward(&mut [Step { sequence: &mut sequence, tokens: &last, want: Want::Last }], &mut workspace)?;
        workspace.logits().iter().for_each(|value| hasher.update(value.to_bits().to_le_bytes()));
        next = argmax(workspace.logits());
        tokens.push(next);
    }
    let scored = text.len().saturating_sub(1).max(1);
    let (logits_sha256, perplexity) = (hex(&hasher.finalize()), (loss / scored as f64).exp());
    Ok(Some(Probe { tokens, logits_sha256, perplexity, prompt_tokens: text.len(), numerics }))
}
