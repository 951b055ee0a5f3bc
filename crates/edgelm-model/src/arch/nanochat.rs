//! nanochat (Karpathy 2025).
//! Baseline: Llama. Norms without gains, of embeddings too, and of queries and keys after their rotation, which turns the
//! other way; a feed-forward network without a gate; a soft cap on logits.

use super::{Arch, Names, llama::LLAMA, names::llama_layer};
use crate::{LayerTensor, NormKind, QkNorm, Style};
use edgelm_tensor::Activation;

pub(super) const NANOCHAT: Arch = Arch {
    name: "nanochat",
    hf_name: "NanoChatForCausalLM",
    hf_model_type: "nanochat",
    gguf_name: None,
    hf_names: Names {
        layer: |tensor| match tensor.weight() {
            LayerTensor::Up => "mlp.fc1",
            LayerTensor::Down => "mlp.fc2",
            _ => llama_layer(tensor),
        },
        ..LLAMA.hf_names
    },
    style: Style {
        norm: NormKind::RmsPlain,
        qk_norm: QkNorm::Head(NormKind::RmsPlain),
        rope_before_norm: true,
        activation: Activation::Relu2,
        gated: false,
        embedding_norm: true,
        ..LLAMA.style
    },
    read_hf: |keys, config| {
        config.rope.reversed = true;
        let cap =
            if keys.has("final_logit_softcapping") { keys.positive("final_logit_softcapping")? } else { Some(15.0) };
        config.style.logit_softcap = cap.map(|cap| cap as f32);
        Ok(())
    },
    ..LLAMA
};
