//! Architecture descriptions: one small file each; this is the vocabulary they are written in, and their list.

use crate::{LayerTensor, TensorId, config::RopePairs};

/// What sets a family of decoders apart. A file states its difference from `LLAMA` and nothing else.
#[derive(Debug)]
pub struct Arch {
    /// Short name, e.g. `qwen3`.
    pub name: &'static str,
    /// `architectures[0]` of config.json.
    pub hf_name: &'static str,
    /// `model_type` of config.json.
    pub hf_model_type: &'static str,
    /// `general.architecture` of GGUF.
    pub gguf_name: &'static str,
    /// RMSNorm on each query and key head.
    pub qk_norm: bool,
    /// How GGUF files of this architecture store Q and K (Hugging Face files always store halves).
    pub gguf_rope_pairs: RopePairs,
}

impl Arch {
    /// Hugging Face name, e.g. `model.layers.0.self_attn.q_proj.weight`.
    pub fn hf_tensor_name(&self, id: TensorId) -> String {
        let _ = id;
        todo!()
    }
    /// GGUF name, e.g. `blk.0.attn_q.weight`.
    pub fn gguf_tensor_name(&self, id: TensorId) -> String {
        let _ = id;
        todo!()
    }
    /// Linear layers of a block that read the same input (calibration statistics are shared).
    pub fn shared_inputs(&self) -> &'static [&'static [LayerTensor]] {
        use LayerTensor::*;
        &[&[Q, K, V], &[O], &[Gate, Up], &[Down]]
    }
}
