//! CodeGen (Nijkamp et al. 2022, arXiv:2203.13474).
//! Baseline: GPT-J. Queries, keys and values in one tensor.

use super::{Arch, Names, Order, gptj::GPTJ};
use crate::LayerTensor;

pub(super) const CODEGEN: Arch = Arch {
    name: "codegen",
    hf_name: "CodeGenForCausalLM",
    hf_model_type: "codegen",
    hf_names: Names {
        layer: |tensor| match tensor {
            LayerTensor::Q | LayerTensor::K | LayerTensor::V => "attn.qkv_proj",
            _ => super::gptj::layer(tensor),
        },
        fused: &[(&[LayerTensor::Q, LayerTensor::K, LayerTensor::V], Order::CodeGen)],
        ..GPTJ.hf_names
    },
    ..GPTJ
};
