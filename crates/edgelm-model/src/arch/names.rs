//! Tensor names: Hugging Face's differ by family, GGUF's do not.

use crate::{LayerTensor, TensorId};

/// Names in safetensors files.
#[derive(Debug, Clone, Copy)]
pub struct HfNames {
    /// [`TensorId::TokenEmbedding`].
    pub token_embedding: &'static str,
    /// [`TensorId::OutputNorm`].
    pub output_norm: &'static str,
    /// [`TensorId::Output`].
    pub output: &'static str,
    /// What stands before a layer's number, e.g. `model.layers.`.
    pub layers: &'static str,
    /// What stands after a layer's number and a dot.
    pub layer: fn(LayerTensor) -> &'static str,
}

impl HfNames {
    pub(super) fn name(&self, id: TensorId) -> String {
        match id {
            TensorId::TokenEmbedding => self.token_embedding.to_owned(),
            TensorId::OutputNorm => self.output_norm.to_owned(),
            TensorId::Output => self.output.to_owned(),
            TensorId::Layer(index, tensor) => format!("{}{index}.{}", self.layers, (self.layer)(tensor)),
        }
    }
}

/// The Llama family's names inside a layer, which most later families took over.
pub(super) fn llama_layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor {
        AttnNorm => "input_layernorm.weight",
        Q => "self_attn.q_proj.weight",
        QBias => "self_attn.q_proj.bias",
        K => "self_attn.k_proj.weight",
        KBias => "self_attn.k_proj.bias",
        V => "self_attn.v_proj.weight",
        VBias => "self_attn.v_proj.bias",
        QNorm => "self_attn.q_norm.weight",
        KNorm => "self_attn.k_norm.weight",
        O => "self_attn.o_proj.weight",
        OBias => "self_attn.o_proj.bias",
        FfnNorm => "post_attention_layernorm.weight",
        Gate => "mlp.gate_proj.weight",
        GateBias => "mlp.gate_proj.bias",
        Up => "mlp.up_proj.weight",
        UpBias => "mlp.up_proj.bias",
        Down => "mlp.down_proj.weight",
        DownBias => "mlp.down_proj.bias",
    }
}

/// Names in GGUF files, as llama.cpp spells them.
pub(super) fn gguf_name(id: TensorId) -> String {
    use LayerTensor::*;
    let (index, tensor) = match id {
        TensorId::TokenEmbedding => return "token_embd.weight".to_owned(),
        TensorId::OutputNorm => return "output_norm.weight".to_owned(),
        TensorId::Output => return "output.weight".to_owned(),
        TensorId::Layer(index, tensor) => (index, tensor),
    };
    let suffix = match tensor {
        AttnNorm => "attn_norm.weight",
        Q => "attn_q.weight",
        QBias => "attn_q.bias",
        K => "attn_k.weight",
        KBias => "attn_k.bias",
        V => "attn_v.weight",
        VBias => "attn_v.bias",
        QNorm => "attn_q_norm.weight",
        KNorm => "attn_k_norm.weight",
        O => "attn_output.weight",
        OBias => "attn_output.bias",
        FfnNorm => "ffn_norm.weight",
        Gate => "ffn_gate.weight",
        GateBias => "ffn_gate.bias",
        Up => "ffn_up.weight",
        UpBias => "ffn_up.bias",
        Down => "ffn_down.weight",
        DownBias => "ffn_down.bias",
    };
    format!("blk.{index}.{suffix}")
}
