//! From logits to a token.

use crate::EngineError;

/// How to pick. The default is greedy.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 = greedy.
    pub temperature: f32,
    /// Keep this many of the most probable tokens; 0 = off.
    pub top_k: usize,
    /// Keep the most probable tokens until their sum reaches this (nucleus sampling, arXiv:1904.09751); 1 = off.
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the best (arXiv:2407.01082); 0 = off.
    pub min_p: f32,
    /// Divides (positive) or multiplies (negative) logits of seen tokens (CTRL, arXiv:1909.05858); 1 = off.
    pub repeat_penalty: f32,
    /// How many of the last tokens, prompt included, count as seen; 0 = all.
    pub repeat_last_n: usize,
    /// Subtracted from the logits of tokens already generated (OpenAI); 0 = off.
    pub presence_penalty: f32,
    /// Subtracted once per occurrence of a token already generated (OpenAI); 0 = off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens (OpenAI).
    pub logit_bias: Vec<(u32, f32)>,
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
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// True where the most probable token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Refuses values that have no meaning, naming the field.
    pub fn check(&self) -> Result<(), EngineError> {
        let within = |option, value: f32, low: f32, high: f32| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(EngineError::Option { option, what: format!("{value} is not between {low} and {high}") })
            }
        };
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repeat_penalty", self.repeat_penalty, 0.01, 100.0)?;
        within("presence_penalty", self.presence_penalty, -100.0, 100.0)?;
        within("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): our own ten lines, because the same seed must give the same tokens in every
/// release, which generator libraries do not promise.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Picks tokens by the rules of a `Sampling`, with its own random stream.
///
/// The order is: penalties and biases, temperature, top-k, top-p, min-p, then one draw. (As in transformers and the OpenAI
/// services: the cuts see the distribution after temperature.) Ties go to the lower id.
#[derive(Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: Random,
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// Errors if an option is out of range.
    pub fn new(sampling: &Sampling) -> Result<Self, EngineError> {
        sampling.check()?;
        Ok(Self { sampling: sampling.clone(), random: Random(sampling.seed), candidates: Vec::new() })
    }

    /// Picks the next token. `logits` are changed by penalties and biases. `prompt` and `generated` are what was seen so far.
    pub fn pick(&mut self, logits: &mut [f32], prompt: &[u32], generated: &[u32]) -> u32 {
        self.penalize(logits, prompt, generated);
        for &(token, bias) in &self.sampling.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        if self.sampling.is_greedy() {
            return argmax(logits);
        }
        self.cut(logits);
        let sum: f64 = self.candidates.iter().map(|c| f64::from(c.1)).sum();
        let mut rest = self.random.unit() * sum;
        for &(token, p) in &self.candidates {
            rest -= f64::from(p);
            if rest < 0.0 {
                return token;
            }
        }
        self.candidates.last().map_or(0, |c| c.0)
    }

    fn penalize(&self, logits: &mut [f32], prompt: &[u32], generated: &[u32]) {
        let Sampling { repeat_penalty, repeat_last_n, presence_penalty, frequency_penalty, .. } = self.sampling;
        if repeat_penalty != 1.0 {
            let last_n = if repeat_last_n == 0 { usize::MAX } else { repeat_last_n };
            let mut seen: Vec<u32> = generated.iter().rev().chain(prompt.iter().rev()).copied().take(last_n).collect();
            seen.sort_unstable();
            seen.dedup();
            for token in seen {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = if *logit > 0.0 { *logit / repeat_penalty } else { *logit * repeat_penalty };
                }
            }
        }
        if presence_penalty != 0.0 || frequency_penalty != 0.0 {
            let mut tokens = generated.to_vec();
            tokens.sort_unstable();
            for run in tokens.chunk_by(|a, b| a == b) {
                if let Some(logit) = logits.get_mut(run[0] as usize) {
                    *logit -= presence_penalty + frequency_penalty * run.len() as f32;
                }
            }
        }
    }

    /// Fills `candidates` with (token, unnormalized probability), best first, after all cuts.
    fn cut(&mut self, logits: &[f32]) {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self.candidates.clear();
        let probability = |logit: f32| ((logit - best) / temperature).exp();
        // Below e⁻⁴⁰ of the best a token is never drawn by a 53-bit random number: leaving it out keeps the sort short.
        let visible = logits.iter().map(|&logit| probability(logit)).enumerate().filter(|(_, p)| *p > 4e-18);
        self.candidates.extend(visible.map(|(token, p)| (token as u32, p)));
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if top_k > 0 && top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(top_k - 1, order);
            self.candidates.truncate(top_k);
        }
        self.candidates.sort_unstable_by(order);
        if top_p < 1.0 {
            let total: f64 = self.candidates.iter().map(|c| f64::from(c.1)).sum();
            let mut sum = 0.0;
            let keep = self.candidates.iter().take_while(|c| {
                let before = sum;
                sum += f64::from(c.1);
                before < f64::from(top_p) * total
            });
            let keep = keep.count().max(1);
            self.candidates.truncate(keep);
        }
        if min_p > 0.0 {
            // Probabilities are relative to the best, which is 1.
            self.candidates.retain(|c| c.1 >= min_p);
        }
    }
}

/// The most probable token; the lower id where two are equal.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// ln Σ exp(logits), summed in f64.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let best = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    best + logits.iter().map(|&x| (f64::from(x) - best).exp()).sum::<f64>().ln()
}

/// The `n` most probable tokens with their log-probabilities, best first.
pub fn top_log_probabilities(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let total = log_sum_exp(logits);
    let mut all: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, &x)| (i as u32, x)).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if n < all.len() {
        all.select_nth_unstable_by(n, order);
        all.truncate(n);
    }
    all.sort_unstable_by(order);
    all.into_iter().map(|(token, x)| (token, (f64::from(x) - total) as f32)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn draw(sampling: Sampling, logits: &[f32], times: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(&sampling).unwrap();
        (0..times).map(|_| sampler.pick(&mut logits.to_vec(), &[], &[])).collect()
    }

    fn share(tokens: &[u32], token: u32) -> f64 {
        tokens.iter().filter(|&&t| t == token).count() as f64 / tokens.len() as f64
    }

    #[test]
    fn greedy_takes_the_best_and_the_lower_id_of_equals() {
        assert_eq!(draw(Sampling::default(), &[0.0, 3.0, 3.0, 1.0], 1), [1]);
    }

    #[test]
    fn frequencies_follow_the_distribution_at_any_temperature() {
        let logits = [0.0, 2f32.ln(), 4f32.ln()];
        for temperature in [0.5, 1.0, 2.0] {
            let tokens = draw(Sampling { temperature, seed: 7, ..Sampling::default() }, &logits, 40_000);
            let weights: Vec<f64> = logits.iter().map(|&x| f64::from(x / temperature).exp()).collect();
            for (token, weight) in weights.iter().enumerate() {
                let want = weight / weights.iter().sum::<f64>();
                assert!((share(&tokens, token as u32) - want).abs() < 0.01, "{temperature} {token}");
            }
        }
    }

    #[test]
    fn cuts_keep_what_their_papers_say() {
        // Probabilities 0.5, 0.3, 0.15, 0.05.
        let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
        let base = Sampling { temperature: 1.0, seed: 1, ..Sampling::default() };
        let kept = |sampling: Sampling| {
            let mut tokens = draw(sampling, &logits, 2_000);
            tokens.sort_unstable();
            tokens.dedup();
            tokens
        };
        assert_eq!(kept(Sampling { top_k: 2, ..base.clone() }), [0, 1]);
        assert_eq!(kept(Sampling { top_p: 0.6, ..base.clone() }), [0, 1]);
        assert_eq!(kept(Sampling { top_p: 0.01, ..base.clone() }), [0]);
        assert_eq!(kept(Sampling { min_p: 0.2, ..base.clone() }), [0, 1, 2]);
        assert_eq!(kept(base), [0, 1, 2, 3]);
    }

    #[test]
    fn same_seed_same_tokens_and_another_seed_others() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
        let with = |seed| draw(Sampling { temperature: 1.0, seed, ..Sampling::default() }, &logits, 50);
        assert_eq!(with(3), with(3));
        assert_ne!(with(3), with(4));
    }

    #[test]
    fn penalties_apply_to_what_was_seen() {
        let mut sampler = Sampler::new(&Sampling { repeat_penalty: 2.0, ..Sampling::default() }).unwrap();
        let mut logits = [4.0, 3.0, -1.0];
        assert_eq!(sampler.pick(&mut logits, &[0], &[2]), 1);
        assert_eq!(logits, [2.0, 3.0, -2.0]);
        let mut sampler =
            Sampler::new(&Sampling { repeat_penalty: 2.0, repeat_last_n: 1, ..Sampling::default() }).unwrap();
        let mut logits = [4.0, 3.0, -1.0];
        sampler.pick(&mut logits, &[0], &[2]);
        assert_eq!(logits, [4.0, 3.0, -2.0]);
        let sampling = Sampling { logit_bias: vec![(1, -2.0), (9, 5.0)], ..Sampling::default() };
        assert_eq!(Sampler::new(&sampling).unwrap().pick(&mut [4.0, 5.0, 0.0], &[], &[]), 0);
        let sampling = Sampling { presence_penalty: 1.0, frequency_penalty: 0.5, ..Sampling::default() };
        let mut logits = [4.0, 3.0, 2.5];
        assert_eq!(Sampler::new(&sampling).unwrap().pick(&mut logits, &[2], &[0, 0]), 1);
        assert_eq!(logits, [2.0, 3.0, 2.5]);
    }

    #[test]
    fn options_out_of_range_are_named() {
        for (sampling, name) in [
            (Sampling { temperature: -1.0, ..Sampling::default() }, "temperature"),
            (Sampling { temperature: f32::NAN, ..Sampling::default() }, "temperature"),
            (Sampling { top_p: 0.0, ..Sampling::default() }, "top_p"),
            (Sampling { min_p: 1.5, ..Sampling::default() }, "min_p"),
            (Sampling { repeat_penalty: 0.0, ..Sampling::default() }, "repeat_penalty"),
        ] {
            assert!(sampling.check().unwrap_err().to_string().contains(name));
        }
    }

    #[test]
    fn log_probabilities_are_sorted_and_sum_to_one() {
        let top = top_log_probabilities(&[1.0, 3.0, 2.0], 3);
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 0]);
        assert!((top.iter().map(|t| f64::from(t.1).exp()).sum::<f64>() - 1.0).abs() < 1e-6);
    }
}
