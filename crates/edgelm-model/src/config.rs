//! The normalized configuration: the same whatever file it came from. Field names as in `config.json`.

use crate::Arch;

/// Which two components of a head rotate together (GGUF files of some architectures store Q and K permuted).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RopePairs {
    /// (i, i + R/2): Hugging Face's "rotate half", GGUF's NEOX.
    Halves,
    /// (2i, 2i + 1): GGUF's NORM, GPT-J.
    Interleaved,
}

/// Everything the engine, the passes and the exporters need to know.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The description this model is an instance of.
    pub arch: &'static Arch,
    /// D.
    pub hidden_size: usize,
    /// V.
    pub vocab_size: usize,
    /// Trained context length.
    pub max_position_embeddings: usize,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f32,
    /// Output head = token embedding.
    pub tie_word_embeddings: bool,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// One entry per decoder layer; widths may differ.
    pub layers: Vec<LayerConfig>,
    /// From config.json or GGUF.
    pub bos_token_id: Option<u32>,
    /// Union over config.json, generation_config.json, tokenizer_config.json and GGUF (eos, eot, eom …), sorted.
    pub eos_token_ids: Vec<u32>,
}

/// One decoder layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerConfig {
    /// H.
    pub num_attention_heads: usize,
    /// G.
    pub num_key_value_heads: usize,
    /// E.
    pub head_dim: usize,
    /// F.
    pub intermediate_size: usize,
    /// Positions seen, itself included; `None` = all.
    pub sliding_window: Option<usize>,
    /// Which projections have a bias.
    pub attention_bias: AttentionBias,
    /// gate/up/down have biases.
    pub mlp_bias: bool,
}

/// Which attention projections carry a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AttentionBias {
    None,
    Qkv,
    Qkvo,
}

/// Rotary embedding parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base.
    pub theta: f64,
    /// Components of a head that rotate.
    pub rotary_dim: usize,
    /// Pairing.
    pub pairs: RopePairs,
    /// Context extension.
    pub scaling: RopeScaling,
}

/// Context-extension schemes.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum RopeScaling {
    Default,
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
    Yarn {
        factor: f64,
        original_max_position_embeddings: usize,
        beta_fast: f64,
        beta_slow: f64,
        attention_factor: f64,
        truncate: bool,
    },
    /// Explicit divisors per frequency (GGUF `rope_freqs.weight`).
    Factors {
        factors: Vec<f32>,
        attention_factor: f64,
    },
}

impl RopeConfig {
    /// (inverse frequencies [R/2], factor on cos and sin) for an input of `total_len` positions in all (prompt and
    /// what was generated); only `Dynamic` depends on it.
    pub fn frequencies(&self, total_len: usize) -> (Vec<f64>, f64) {
        let _ = total_len;
        todo!()
    }
    /// True where frequencies change with the input's length.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. })
    }
}

/// Defaults for sampling that came with the model (generation_config.json).
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct GenerationConfig {
    pub do_sample: Option<bool>,
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub max_new_tokens: Option<usize>,
}

impl ModelConfig {
    /// TEMP
    pub fn gguf_row_source(&self, id: crate::TensorId, row: usize) -> usize {
        let _ = id;
        row
    }
}
