//! OLMo 2 (OLMo Team 2025, arXiv:2501.00656).
//! Baseline: Llama. Norms after the halves of a layer instead of before, and of all queries and all keys at once.

use super::{Arch, Defaults, MlpBiasRule, Names, llama::LLAMA, names::llama_layer};
use crate::{LayerTensor, NormKind, Norms, QkNorm, RopePairs, Style};

pub(super) const OLMO2: Arch = Arch {
    name: "olmo2",
    hf_name: "Olmo2ForCausalLM",
    hf_model_type: "olmo2",
    gguf_name: Some("olmo2"),
    hf_names: Names { layer, ..LLAMA.hf_names },
    style: Style {
        norms: Norms { attn: false, post_attn: true, ffn: false, post_ffn: true },
        qk_norm: QkNorm::All(NormKind::Rms),
        ..LLAMA.style
    },
    mlp_bias: MlpBiasRule::Always(false),
    defaults: Defaults { norm_eps: 1e-5, ..LLAMA.defaults },
    gguf_rope_pairs: RopePairs::Halves,
    gguf_rope_factors: false,
    ..LLAMA
};

pub(super) fn layer(tensor: LayerTensor) -> &'static str {
    match tensor {
        LayerTensor::PostAttnNorm => "post_attention_layernorm",
        _ => llama_layer(tensor),
    }
}
