//! StarCoder2 (Lozhkov et al. 2024, arXiv:2402.19173).
//! Baseline: Mistral. Layer norms, biases everywhere, an ungated feed-forward network.

use super::{Arch, BiasRule, Defaults, MlpBiasRule, Names, llama::LLAMA, mistral::MISTRAL, names::llama_layer};
use crate::{AttentionBias, LayerTensor, NormKind, RopePairs, Style};
use edgelm_tensor::Activation;

pub(super) const STARCODER2: Arch = Arch {
    name: "starcoder2",
    hf_name: "Starcoder2ForCausalLM",
    hf_model_type: "starcoder2",
    gguf_name: Some("starcoder2"),
    hf_names: Names { layer, ..LLAMA.hf_names },
    aliases: &[("rms_norm_eps", "norm_epsilon")],
    harmless: &["embedding_dropout", "residual_dropout"],
    style: Style { norm: NormKind::Layer, activation: Activation::GeluTanh, gated: false, ..LLAMA.style },
    attention_bias: BiasRule::Key("use_bias", true, AttentionBias::None, AttentionBias::Qkvo),
    mlp_bias: MlpBiasRule::Key("use_bias", true),
    defaults: Defaults {
        max_position_embeddings: 4096,
        norm_eps: 1e-5,
        sliding_window: None,
        tie_word_embeddings: true,
        ..MISTRAL.defaults
    },
    gguf_rope_pairs: RopePairs::Halves,
    gguf_rope_factors: false,
    ..MISTRAL
};

fn layer(tensor: LayerTensor) -> &'static str {
    match tensor.weight() {
        LayerTensor::Up => "mlp.c_fc",
        LayerTensor::Down => "mlp.c_proj",
        _ => llama_layer(tensor),
    }
}
