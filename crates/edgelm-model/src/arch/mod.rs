//! Architecture descriptions: one small file each; this is the vocabulary they are written in, and their list.
//!
//! The one thing a reader would get wrong: an `Arch` says what a family *may* do; what one model does is in its
//! `ModelConfig`. A new idea is a new field or enum variant whose value in `LLAMA` means "not here".

mod llama;
mod mistral;
mod names;
mod qwen2;
mod qwen3;

pub use names::HfNames;

use crate::{AttentionBias, LayerTensor, TensorId, config::RopePairs};

/// Every architecture known. Where two share a GGUF name, the simpler one stands first.
pub const ARCHS: &[&Arch] = &[&llama::LLAMA, &mistral::MISTRAL, &qwen2::QWEN2, &qwen3::QWEN3];

/// What sets a family of decoders apart. A file states its difference from `LLAMA` and nothing else.
pub struct Arch {
    /// Short name, e.g. `qwen3`.
    pub name: &'static str,
    /// `architectures[0]` of config.json.
    pub hf_name: &'static str,
    /// `model_type` of config.json.
    pub hf_model_type: &'static str,
    /// `general.architecture` of GGUF.
    pub gguf_name: &'static str,
    /// Tensor names in safetensors files.
    pub hf_names: HfNames,
    /// Buffers that old exports stored and that no forward pass reads; matched as the end of a name.
    pub hf_ignored: &'static [&'static str],
    /// RMSNorm on each query and key head.
    pub qk_norm: bool,
    /// Which attention projections have biases.
    pub attention_bias: BiasRule,
    /// gate/up/down may have biases (`mlp_bias`).
    pub mlp_bias: bool,
    /// Which layers see a sliding window.
    pub window: WindowRule,
    /// What config.json means where it leaves a key out.
    pub defaults: Defaults,
    /// How GGUF files of this architecture store Q and K (Hugging Face files always store halves).
    pub gguf_rope_pairs: RopePairs,
    /// llama.cpp reads `rope_freqs.weight` for this architecture.
    pub gguf_rope_factors: bool,
}

/// Where biases of the attention projections come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiasRule {
    /// Every model of the family has these.
    Always(AttentionBias),
    /// These where config.json says `attention_bias: true`, else none.
    Key(AttentionBias),
}

/// Where sliding windows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowRule {
    /// Full attention everywhere.
    Never,
    /// `sliding_window`, unless null, in every layer (Jiang et al. 2023, arXiv:2310.06825).
    EveryLayer,
    /// `sliding_window` where `layer_types` says so, else from layer `max_window_layers` on; only if `use_sliding_window`.
    SomeLayers,
}

/// Values that transformers assumes for keys that config.json leaves out. Sizes have none: they must be stated.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub struct Defaults {
    /// `None` = `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub sliding_window: Option<usize>,
    pub max_window_layers: usize,
    pub tie_word_embeddings: bool,
}

impl PartialEq for Arch {
    /// Descriptions are constants: the name is the identity.
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl std::fmt::Debug for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Arch({})", self.name)
    }
}

impl Arch {
    /// By `model_type` of config.json.
    pub fn from_hf(model_type: &str) -> Option<&'static Arch> {
        ARCHS.iter().copied().find(|arch| arch.hf_model_type == model_type)
    }

    /// By `general.architecture` of GGUF. Mistral files call themselves `llama`: a window tells them apart.
    pub fn from_gguf(name: &str, has_window: bool) -> Option<&'static Arch> {
        let mut named = ARCHS.iter().copied().filter(|arch| arch.gguf_name == name);
        let first = named.next()?;
        if has_window && first.window == WindowRule::Never {
            return named.find(|arch| arch.window != WindowRule::Never).or(Some(first));
        }
        Some(first)
    }

    /// Hugging Face name, e.g. `model.layers.0.self_attn.q_proj.weight`.
    pub fn hf_tensor_name(&self, id: TensorId) -> String {
        self.hf_names.name(id)
    }

    /// GGUF name, e.g. `blk.0.attn_q.weight`.
    pub fn gguf_tensor_name(&self, id: TensorId) -> String {
        names::gguf_name(id)
    }

    /// Linear layers of a block that read the same input (calibration statistics are shared).
    pub fn shared_inputs(&self) -> &'static [&'static [LayerTensor]] {
        use LayerTensor::*;
        &[&[Q, K, V], &[O], &[Gate, Up], &[Down]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_complete() {
        for arch in ARCHS {
            let mut hf = std::collections::BTreeSet::new();
            let mut gguf = std::collections::BTreeSet::new();
            let mut ids = vec![TensorId::TokenEmbedding, TensorId::OutputNorm, TensorId::Output];
            ids.extend(LayerTensor::ALL.iter().map(|&tensor| TensorId::Layer(7, tensor)));
            for id in ids {
                assert!(hf.insert(arch.hf_tensor_name(id)), "{id:?}");
                assert!(gguf.insert(arch.gguf_tensor_name(id)), "{id:?}");
            }
        }
        let q = TensorId::Layer(3, LayerTensor::QBias);
        assert_eq!(llama::LLAMA.hf_tensor_name(q), "model.layers.3.self_attn.q_proj.bias");
        assert_eq!(llama::LLAMA.gguf_tensor_name(q), "blk.3.attn_q.bias");
    }

    #[test]
    fn architectures_are_found_by_every_name() {
        for arch in ARCHS {
            assert_eq!(Arch::from_hf(arch.hf_model_type), Some(*arch));
        }
        assert_eq!(Arch::from_gguf("llama", false).map(|arch| arch.name), Some("llama"));
        assert_eq!(Arch::from_gguf("llama", true).map(|arch| arch.name), Some("mistral"));
        assert_eq!(Arch::from_gguf("qwen3", true).map(|arch| arch.name), Some("qwen3"));
        assert_eq!(Arch::from_gguf("mamba", false), None);
    }
}
