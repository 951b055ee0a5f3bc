//! GPT-J (Wang and Komatsuzaki 2021).
//! Baseline: GPT-2. Rotation of a part of each head, in interleaved pairs; both halves of a layer on one norm; no biases
//! in attention.

use super::{Arch, BiasRule, Defaults, Names, Transposed, gpt2::GPT2, llama::LLAMA};
use crate::{AttentionBias, LayerTensor, Norms, Residual, RopePairs, Style};

pub(super) const GPTJ: Arch = Arch {
    name: "gptj",
    hf_name: "GPTJForCausalLM",
    hf_model_type: "gptj",
    gguf_name: None,
    hf_names: Names { position_embedding: "", layer, fused: &[], transposed: Transposed::None, ..GPT2.hf_names },
    hf_ignored: &["attn.bias", "attn.masked_bias", "attn.causal_mask"],
    harmless: &[
        "n_ctx",
        "scale_attn_weights",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "rotary",
    ],
    style: Style {
        norms: Norms { ffn: false, ..LLAMA.style.norms },
        residual: Residual::Parallel,
        position_embedding: None,
        output_bias: true,
        ..GPT2.style
    },
    attention_bias: BiasRule::Always(AttentionBias::None),
    defaults: Defaults { max_position_embeddings: 2048, tie_word_embeddings: false, ..GPT2.defaults },
    hf_rope_pairs: RopePairs::Interleaved,
    read_hf: |keys, config| {
        if let Some(rotary) = keys.size("rotary_dim", 1 << 12)? {
            config.rope.rotary_dim = rotary;
        }
        Ok(())
    },
    ..GPT2
};

pub(super) fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        Q => "attn.q_proj",
        K => "attn.k_proj",
        V => "attn.v_proj",
        O => "attn.out_proj",
        Up => "mlp.fc_in",
        Down => "mlp.fc_out",
        _ => super::gpt2::layer(tensor),
    }
}
