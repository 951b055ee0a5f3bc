//! Architecture descriptions: one small file each; this is the vocabulary they are written in, and their list.
//!
//! The one thing a reader would get wrong: an `Arch` says what a family *may* do; what one model does is in its
//! `ModelConfig`. A new idea is a new field or enum variant whose value in `LLAMA` means "not here".

mod apertus;
mod arcee;
mod bitnet;
mod bloom;
mod codegen;
mod cohere;
mod cohere2;
mod deepseek_v2;
mod ernie4_5;
mod exaone4;
mod experts;
mod falcon;
mod falcon_h1;
mod gemma;
mod gemma2;
mod gemma3;
mod glm;
mod glm4;
mod gpt2;
mod gpt_bigcode;
mod gpt_neo;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
mod granite_swa;
mod granitemoe;
mod granitemoehybrid;
mod helium;
mod hunyuan;
mod hyperclovax;
mod latent;
mod lfm2;
mod lfm2_moe;
mod lfm3;
mod llama;
mod mamba2;
mod minicpm3;
mod ministral3;
mod mistral;
mod mixers;
mod mixtral;
mod mpt;
mod names;
mod nanochat;
mod nemotron;
mod olmo;
mod olmo2;
mod olmo3;
mod olmoe;
mod opt;
mod persimmon;
mod phi;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod qwen3_next;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;
mod vaultgemma;
mod youtu;

pub use names::{Names, Order, Prefix, Rows, Stored, Transposed};

use crate::{
    AttentionBias, LayerTensor, ModelConfig, ModelError, Style, TensorId,
    config::{GgufExperts, GgufKeys, GgufMixer, Keys, RopePairs, StyleKey},
};

/// Every architecture known. Where two share a GGUF name, the simpler one stands first.
pub const ARCHS: &[&Arch] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &ministral3::MINISTRAL3,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &phi::PHI,
    &phi3::PHI3,
    &gemma::GEMMA,
    &gemma2::GEMMA2,
    &gemma3::GEMMA3,
    &vaultgemma::VAULTGEMMA,
    &gpt_neox::GPT_NEOX,
    &persimmon::PERSIMMON,
    &falcon::FALCON,
    &bloom::BLOOM,
    &gpt2::GPT2,
    &gpt_bigcode::GPT_BIGCODE,
    &gpt_neo::GPT_NEO,
    &gptj::GPTJ,
    &codegen::CODEGEN,
    &opt::OPT,
    &mpt::MPT,
    &stablelm::STABLELM,
    &starcoder2::STARCODER2,
    &olmo::OLMO,
    &olmo2::OLMO2,
    &olmo3::OLMO3,
    &exaone4::EXAONE4,
    &granite::GRANITE,
    &granite_swa::GRANITE_SWA,
    &hyperclovax::HYPERCLOVAX,
    &smollm3::SMOLLM3,
    &cohere::COHERE,
    &cohere2::COHERE2,
    &glm::GLM,
    &glm4::GLM4,
    &nemotron::NEMOTRON,
    &nanochat::NANOCHAT,
    &arcee::ARCEE,
    &apertus::APERTUS,
    &bitnet::BITNET,
    &helium::HELIUM,
    &ernie4_5::ERNIE4_5,
    &hunyuan::HUNYUAN,
    &seed_oss::SEED_OSS,
    &mixtral::MIXTRAL,
    &qwen2_moe::QWEN2_MOE,
    &qwen3_moe::QWEN3_MOE,
    &olmoe::OLMOE,
    &granitemoe::GRANITEMOE,
    &gpt_oss::GPT_OSS,
    &lfm2::LFM2,
    &lfm2_moe::LFM2_MOE,
    &lfm3::LFM3,
    &mamba2::MAMBA2,
    &granitemoehybrid::GRANITEMOEHYBRID,
    &falcon_h1::FALCON_H1,
    &qwen3_next::QWEN3_NEXT,
    &qwen3_5::QWEN3_5,
    &deepseek_v2::DEEPSEEK_V2,
    &minicpm3::MINICPM3,
    &youtu::YOUTU,
];

/// What sets a family of decoders apart. A file states its difference from `LLAMA` and nothing else.
pub struct Arch {
    /// Short name, e.g. `qwen3`.
    pub name: &'static str,
    /// `architectures[0]` of config.json.
    pub hf_name: &'static str,
    /// `model_type` of config.json.
    pub hf_model_type: &'static str,
    /// `general.architecture` of GGUF; `None` where no form in such files is described.
    pub gguf_name: Option<&'static str>,
    /// Tensor names in safetensors files.
    pub hf_names: Names,
    /// Tensor names in GGUF files.
    pub gguf_names: Names,
    /// Buffers that old exports stored and that no forward pass reads; matched as the end of a name.
    pub hf_ignored: &'static [&'static str],
    /// Keys of config.json that this family calls otherwise: the usual name, its own.
    pub aliases: &'static [(&'static str, &'static str)],
    /// Further keys of which one value (JSON) is supported; null is too.
    pub only: &'static [(&'static str, &'static str)],
    /// Further keys that cannot change the forward pass.
    pub harmless: &'static [&'static str],
    /// What its layers compute.
    pub style: Style,
    /// Which attention projections have biases.
    pub attention_bias: BiasRule,
    /// Whether gate/up/down have biases.
    pub mlp_bias: MlpBiasRule,
    /// Which layers see a sliding window.
    pub window: WindowRule,
    /// What `layer_types` of config.json calls layers without attention.
    pub own_layer_types: &'static [&'static str],
    /// What config.json means where it leaves a key out.
    pub defaults: Defaults,
    /// How files from Hugging Face store Q and K.
    pub hf_rope_pairs: RopePairs,
    /// How GGUF files of this architecture store Q and K.
    pub gguf_rope_pairs: RopePairs,
    /// llama.cpp reads `rope_freqs.weight` for this architecture.
    pub gguf_rope_factors: bool,
    /// Files have `rope_factors_short.weight` and `rope_factors_long.weight` where frequencies follow the input's length.
    pub gguf_long_factors: bool,
    /// Keys of GGUF files beyond those of Llama that say what layers compute.
    pub gguf_keys: &'static [StyleKey],
    /// How GGUF files state experts, in families that have them.
    pub gguf_experts: Option<GgufExperts>,
    /// What stands in layers of GGUF files beside attention.
    pub gguf_mixer: GgufMixer,
    /// What a model becomes in GGUF files, where converters change numbers: see [`ModelConfig::gguf_form`].
    pub(crate) gguf_form: fn(&mut ModelConfig),
    /// What GGUF files of this family say without words, or in words that no other family has; read after all keys.
    pub(crate) read_gguf: fn(&GgufKeys<'_>, &mut ModelConfig) -> Result<(), ModelError>,
    /// Keys of config.json that no other family has, read after all others.
    pub(crate) read_hf: fn(&mut Keys<'_>, &mut ModelConfig) -> Result<(), ModelError>,
}

/// Where biases of the attention projections come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiasRule {
    /// Every model of the family has these.
    Always(AttentionBias),
    /// The second where config.json says this key is `true`, the first where it says `false`; the flag is the default.
    Key(&'static str, bool, AttentionBias, AttentionBias),
}

/// Where biases of the feed-forward network come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpBiasRule {
    /// Every model of the family has them, or none.
    Always(bool),
    /// As this key says; the flag is the default.
    Key(&'static str, bool),
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
    /// `sliding_window`, unless null, where `layer_types` says so, else in every layer but each n-th (n from
    /// `sliding_window_pattern`, else this).
    AllButEach(usize),
}

/// Values that transformers assumes for keys that config.json leaves out. Sizes have none: they must be stated.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub struct Defaults {
    /// `None` = `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Times `hidden_size`; 0 = no feed-forward half; `None` = it must be stated.
    pub intermediate_ratio: Option<usize>,
    /// `None` = it must be stated.
    pub num_attention_heads: Option<usize>,
    pub max_position_embeddings: usize,
    pub norm_eps: f64,
    pub rope_theta: f64,
    /// Of rope_theta on layers with a window, where they have their own.
    pub local_rope_theta: Option<f64>,
    /// Share of a head that rotates; `None` = all of it, and the key may say nothing else.
    pub partial_rotary_factor: Option<f64>,
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

    /// By `general.architecture` of GGUF. Files of Mistral and Mixtral call themselves `llama`, those of OLMo 3 `olmo2`: a
    /// window and experts tell them apart.
    pub fn from_gguf(name: &str, has_window: bool, has_experts: bool) -> Option<&'static Arch> {
        let named = || ARCHS.iter().copied().filter(|arch| arch.gguf_name == Some(name));
        if has_experts && let Some(arch) = named().find(|arch| arch.gguf_experts.is_some()) {
            return Some(arch);
        }
        let mut named = named();
        let first = named.next()?;
        if has_window && first.window == WindowRule::Never {
            return named.find(|arch| arch.window != WindowRule::Never).or(Some(first));
        }
        Some(first)
    }

    /// Hugging Face name, e.g. `model.layers.0.self_attn.q_proj.weight`; of the tensor it is a part of, where it is one.
    pub fn hf_tensor_name(&self, id: TensorId) -> String {
        self.hf_names.name(self.hf_names.prefixes[0], id)
    }

    /// GGUF name, e.g. `blk.0.attn_q.weight`; likewise.
    pub fn gguf_tensor_name(&self, id: TensorId) -> String {
        self.gguf_names.name(self.gguf_names.prefixes[0], id)
    }

    /// Linear layers of a block that read the same input (calibration statistics are shared).
    pub fn shared_inputs(&self) -> &'static [&'static [LayerTensor]] {
        use LayerTensor::*;
        &[
            &[Q, K, V, QGate, QDown, Latent],
            &[QUp],
            &[LatentK, LatentV],
            &[O],
            &[MixerIn, MixerGate],
            &[MixerOut],
            &[Gate, Up],
            &[Down],
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_fused_shares_a_name() {
        for arch in ARCHS {
            for names in [&arch.hf_names, &arch.gguf_names] {
                let ids = LayerTensor::ALL.map(|tensor| TensorId::Layer(7, tensor));
                let mut owners = std::collections::BTreeMap::new();
                for id in TensorId::FRONT.into_iter().chain(ids).chain(TensorId::BACK) {
                    let name = names.name(names.prefixes[0], id);
                    let is_named = |end: &str| name != format!("{}{end}", names.prefixes[0].0);
                    if !is_named(".weight") || !is_named(".bias") {
                        continue;
                    }
                    let norms = arch.style.norms;
                    let is_absent = match id {
                        TensorId::Layer(_, LayerTensor::FfnNorm | LayerTensor::FfnNormBias) => !norms.ffn,
                        TensorId::Layer(_, LayerTensor::PostAttnNorm) => !norms.post_attn,
                        TensorId::Layer(_, LayerTensor::PostFfnNorm) => !norms.post_ffn,
                        _ => false,
                    };
                    if is_absent {
                        continue;
                    }
                    let TensorId::Layer(_, tensor) = id else {
                        assert!(owners.insert(name, LayerTensor::AttnNorm).is_none(), "{} {id:?}", arch.name);
                        continue;
                    };
                    let Some(other) = owners.insert(name, tensor.weight()) else { continue };
                    let fused = names.fused.iter().any(|(parts, _)| {
                        parts.contains(&tensor.weight()) && parts.contains(&other)
                            || tensor.is_shared() && other.is_shared()
                    });
                    // A layer has a feed-forward network or a shared expert.
                    let never_both = tensor.is_shared() != other.is_shared();
                    assert!(fused || never_both, "{} {tensor:?} {other:?}", arch.name);
                }
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
        let found = |name, window, experts| Arch::from_gguf(name, window, experts).map(|arch| arch.name);
        assert_eq!(found("llama", false, false), Some("llama"));
        assert_eq!(found("llama", true, false), Some("mistral"));
        assert_eq!(found("llama", false, true), Some("mixtral"));
        assert_eq!(found("qwen3", true, false), Some("qwen3"));
        assert_eq!(found("olmo2", true, false), Some("olmo3"));
        assert_eq!(found("mamba", false, false), None);
    }
}
