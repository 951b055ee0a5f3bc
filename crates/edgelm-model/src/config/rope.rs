//! Rotary embeddings: parameters and frequencies, as transformers' `modeling_rope_utils` defines them.

use super::RopePairs;
use std::f64::consts::PI;

/// Rotary embedding parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base.
    pub theta: f64,
    /// Components of a head that rotate.
    pub rotary_dim: usize,
    /// Pairing.
    pub pairs: RopePairs,
    /// Pairs turn the other way (nanochat).
    pub reversed: bool,
    /// Context extension.
    pub scaling: RopeScaling,
    /// What queries are multiplied by after they are rotated.
    pub query_growth: Option<QueryGrowth>,
}

/// Queries at position p times 1 + β · ln(1 + ⌊p / P⌋), P the original context (Llama 4, Ministral 3).
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub struct QueryGrowth {
    pub beta: f64,
    pub original_max_position_embeddings: usize,
}

impl QueryGrowth {
    /// The factor at a position.
    pub fn factor(&self, position: usize) -> f32 {
        let times = (position / self.original_max_position_embeddings.max(1)) as f64;
        (1.0 + self.beta * times.ln_1p()) as f32
    }
}

/// Context-extension schemes.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum RopeScaling {
    Default,
    /// Position interpolation (Chen et al. 2023, arXiv:2306.15595).
    Linear {
        factor: f64,
    },
    /// NTK; frequencies depend on the length of the whole input.
    Dynamic {
        factor: f64,
        original_max_position_embeddings: usize,
    },
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
    /// Peng et al. 2023, arXiv:2309.00071.
    Yarn {
        factor: f64,
        original_max_position_embeddings: usize,
        beta_fast: f64,
        beta_slow: f64,
        attention_factor: f64,
        truncate: bool,
    },
    /// Divisors per frequency, others beyond the original context (Ding et al. 2024, arXiv:2402.13753).
    LongRope {
        short: Vec<f64>,
        long: Vec<f64>,
        original_max_position_embeddings: usize,
        attention_factor: f64,
    },
    /// Only the first pairs of a head turn, as fast as they would if all did (Gemma 4, LFM3).
    Proportional {
        pairs: usize,
        factor: f64,
    },
    /// Explicit divisors per frequency (GGUF `rope_freqs.weight`).
    Factors {
        factors: Vec<f32>,
        attention_factor: f64,
    },
}

/// YaRN's default factor on cos and sin: 0.1 · m · ln(s) + 1 for s > 1, else 1.
pub(super) fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

impl RopeConfig {
    /// (inverse frequencies [R/2], factor on cos and sin) for an input of `total_len` positions in all (prompt and
    /// what was generated); only `Dynamic` and `LongRope` depend on it.
    ///
    /// The angle of pair i at position p is p · freq[i]; unscaled, freq[i] = theta^(−2i/R). Units: radians per
    /// position; negative where pairs turn the other way. Numerics: f64 throughout (transformers computes in f32; they agree
    /// within 2e-6 relative).
    pub fn frequencies(&self, total_len: usize) -> (Vec<f64>, f64) {
        let (mut frequencies, factor) = self.speeds(total_len);
        if self.reversed {
            frequencies.iter_mut().for_each(|frequency| *frequency = -*frequency);
        }
        (frequencies, factor)
    }

    /// The same whichever way pairs turn.
    fn speeds(&self, total_len: usize) -> (Vec<f64>, f64) {
        let base = |theta: f64| -> Vec<f64> {
            let dim = self.rotary_dim as f64;
            (0..self.rotary_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim)).collect()
        };
        let plain = base(self.theta);
        match &self.scaling {
            RopeScaling::Default => (plain, 1.0),
            RopeScaling::Linear { factor } => (plain.iter().map(|freq| freq / factor).collect(), 1.0),
            RopeScaling::Dynamic { factor, original_max_position_embeddings } => {
                let (original, dim) = (*original_max_position_embeddings as f64, self.rotary_dim as f64);
                let len = (total_len as f64).max(original);
                let stretch = factor * len / original - (factor - 1.0);
                (base(self.theta * stretch.powf(dim / (dim - 2.0))), 1.0)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let original = *original_max_position_embeddings as f64;
                let scale = |freq: f64| {
                    // Turns that this pair makes over the original context.
                    let turns = original * freq / (2.0 * PI);
                    if turns > *high_freq_factor {
                        freq
                    } else if turns < *low_freq_factor {
                        freq / factor
                    } else {
                        let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * freq / factor + smooth * freq
                    }
                };
                (plain.into_iter().map(scale).collect(), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => {
                let (original, dim) = (*original_max_position_embeddings as f64, self.rotary_dim as f64);
                // The pair that makes `turns` turns over the original context.
                let pair = |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
                let (mut low, mut high) = (pair(*beta_fast), pair(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let scale = |(i, freq): (usize, f64)| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    freq / factor * ramp + freq * (1.0 - ramp)
                };
                (plain.into_iter().enumerate().map(scale).collect(), *attention_factor)
            }
            RopeScaling::LongRope { short, long, original_max_position_embeddings, attention_factor } => {
                let divisors = if total_len > *original_max_position_embeddings { long } else { short };
                (plain.iter().zip(divisors).map(|(freq, divisor)| freq / divisor).collect(), *attention_factor)
            }
            RopeScaling::Proportional { pairs, factor } => {
                let scale = |(i, freq): (usize, f64)| if i < *pairs { freq / factor } else { 0.0 };
                (plain.into_iter().enumerate().map(scale).collect(), 1.0)
            }
            RopeScaling::Factors { factors, attention_factor } => {
                let scaled = plain.iter().zip(factors).map(|(freq, &factor)| freq / f64::from(factor)).collect();
                (scaled, *attention_factor)
            }
        }
    }

    /// True where frequencies change with the input's length.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. } | RopeScaling::LongRope { .. })
    }

    /// Divisors [R/2] that turn the unscaled frequencies into this config's: what `rope_freqs.weight` holds.
    pub(super) fn factors(&self) -> Vec<f32> {
        let plain = RopeConfig { scaling: RopeScaling::Default, ..self.clone() };
        let (plain, _) = plain.frequencies(0);
        let (scaled, _) = self.frequencies(0);
        plain.iter().zip(&scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect()
    }
}
