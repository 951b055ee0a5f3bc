//! From logits to a token.

/// How to pick. The default is greedy.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Sampling {
    /// 0 = greedy.
    pub temperature: f32,
    /// 0 = off.
    pub top_k: usize,
    /// 1 = off.
    pub top_p: f32,
    /// 0 = off.
    pub min_p: f32,
    /// Divides (positive) or multiplies (negative) logits of seen tokens (CTRL, arXiv:1909.05858); 1 = off.
    pub repeat_penalty: f32,
    /// How many of the last tokens count as seen; 0 = all.
    pub repeat_last_n: usize,
    /// Subtracted once per seen generated token (OpenAI); 0 = off.
    pub presence_penalty: f32,
    /// Subtracted per occurrence of a generated token (OpenAI); 0 = off.
    pub frequency_penalty: f32,
    /// Same seed, same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            repeat_last_n: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

/// Picks tokens by the rules of a `Sampling`, with its own random stream.
pub struct Sampler {
    _private: (),
}
