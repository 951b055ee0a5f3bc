//! Hunyuan dense (Tencent 2025).
//! Baseline: Llama. Norms of each query and key head, after the rotation.

use super::{Arch, Defaults, MlpBiasRule, Names, llama::LLAMA, names::llama_layer};
use crate::{LayerTensor, NormKind, QkNorm, RopePairs, Style};

pub(super) const HUNYUAN: Arch = Arch {
    name: "hunyuan_v1_dense",
    hf_name: "HunYuanDenseV1ForCausalLM",
    hf_model_type: "hunyuan_v1_dense",
    gguf_name: Some("hunyuan-dense"),
    hf_names: Names {
        layer: |tensor| match tensor {
            LayerTensor::QNorm => "self_attn.query_layernorm",
            LayerTensor::KNorm => "self_attn.key_layernorm",
            _ => llama_layer(tensor),
        },
        ..LLAMA.hf_names
    },
    harmless: &["eod_token_id", "sep_token_id"],
    style: Style { qk_norm: QkNorm::Head(NormKind::Rms), rope_before_norm: true, ..LLAMA.style },
    mlp_bias: MlpBiasRule::Always(false),
    defaults: Defaults { norm_eps: 1e-5, ..LLAMA.defaults },
    gguf_rope_pairs: RopePairs::Halves,
    gguf_rope_factors: false,
    ..LLAMA
};
