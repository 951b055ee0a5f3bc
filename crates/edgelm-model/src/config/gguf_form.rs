//! The same model as GGUF files of its family hold it: where llama.cpp's converters change numbers, not only names.
//!
//! The config says what a file holds, so that a reader of the file and a writer mean the same. What changes the numbers on
//! the way there stands beside the checkpoint that they come from.

use super::{Decay, GgufMixer, Mixer, ModelConfig, Multipliers, ValueOrder};
use crate::{LayerTensor, TensorId};

impl ModelConfig {
    /// This model as a GGUF file has it; itself where it came from one, or where files have it as it is. Gains of norms are not
    /// part of this: see [`Self::gguf_offset`].
    pub fn gguf_form(&self) -> ModelConfig {
        let mut form = self.clone();
        for layer in &mut form.layers {
            match &mut layer.mixer {
                Mixer::Mamba2(mamba) | Mixer::AttentionAndMamba2(mamba) => mamba.decay = Decay::Whole,
                Mixer::DeltaNet(net) => net.decay = Decay::Whole,
                Mixer::LatentAttention(_) => form.rope.pairs = self.arch.gguf_rope_pairs,
                Mixer::Attention | Mixer::ShortConv(_) => {}
            }
        }
        (self.arch.gguf_form)(&mut form);
        form
    }

    /// True for a tensor of a model from a GGUF file that has other numbers, or others in its places, than the folder that
    /// such files are made of.
    pub(crate) fn is_converted(&self, id: TensorId) -> bool {
        use LayerTensor::*;
        let (index, tensor) = match id {
            TensorId::TokenEmbedding | TensorId::Output => return self.arch.gguf_mixer == GgufMixer::BesideMamba2,
            TensorId::Layer(index, tensor) => (index, tensor.weight()),
            _ => return false,
        };
        match self.layers.get(index).map(|layer| layer.mixer) {
            Some(Mixer::AttentionAndMamba2(_)) => true,
            Some(Mixer::DeltaNet(net)) => {
                net.order == ValueOrder::Tiled && matches!(tensor, MixerIn | MixerGate | MixerOut)
            }
            Some(Mixer::LatentAttention(latent)) => latent.transposed_keys && tensor == LatentK,
            _ => false,
        }
    }

    /// Factors that files have no words for become part of weights. A tied head stays tied where both uses of it have the
    /// same factor.
    pub(crate) fn fold_factors(&mut self) {
        let style = &mut self.style;
        if style.embedding_scale != style.logit_scale {
            self.tie_word_embeddings = false;
        }
        (style.embedding_scale, style.logit_scale, style.multipliers) = (1.0, 1.0, Multipliers::NONE);
        for layer in &mut self.layers {
            if let Mixer::AttentionAndMamba2(mamba) = &mut layer.mixer {
                (mamba.input_scale, mamba.scales, mamba.output_scale) = (1.0, [1.0; 5], 1.0);
            }
        }
    }

    /// What makes keys of latent attention is stored as queries use it.
    pub(crate) fn transpose_latent_keys(&mut self) {
        for layer in &mut self.layers {
            if let Mixer::LatentAttention(latent) = &mut layer.mixer {
                latent.transposed_keys = true;
            }
        }
    }

    /// Heads of values in the order in which heads of keys, written down again and again, meet them.
    pub(crate) fn tile_values(&mut self) {
        for layer in &mut self.layers {
            if let Mixer::DeltaNet(net) = &mut layer.mixer
                && net.value_heads != net.key_heads
            {
                net.order = ValueOrder::Tiled;
            }
        }
    }
}
