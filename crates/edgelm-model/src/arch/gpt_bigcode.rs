//! GPTBigCode, StarCoder (Li et al. 2023, arXiv:2305.06161).
//! Baseline: GPT-2. One key and value head for all queries; matrices stored [out, in].

use super::{Arch, Names, Transposed, gpt_neox::FUSED, gpt2::GPT2};
use crate::LayerRope;

pub(super) const GPT_BIGCODE: Arch = Arch {
    name: "gpt_bigcode",
    hf_name: "GPTBigCodeForCausalLM",
    hf_model_type: "gpt_bigcode",
    gguf_name: Some("starcoder"),
    hf_names: Names { fused: FUSED, transposed: Transposed::None, ..GPT2.hf_names },
    harmless: &[
        "attention_softmax_in_fp32",
        "inference_runner",
        "max_batch_size",
        "max_sequence_length",
        "n_ctx",
        "num_key_value_heads",
        "pad_key_length",
        "pre_allocate_kv_cache",
        "scale_attention_softmax_in_fp32",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "validate_runner_input",
    ],
    read_hf: |keys, config| {
        let multi_query = keys.flag("multi_query")? != Some(false);
        for layer in &mut config.layers {
            layer.rope = LayerRope::None;
            layer.num_key_value_heads = if multi_query { 1 } else { layer.num_attention_heads };
        }
        Ok(())
    },
    ..GPT2
};
