//! A config as GGUF metadata, in the keys that llama.cpp reads.
//!
//! Two keys are our own, where GGUF has none and llama.cpp, which ignores them, still computes the right thing within
//! the trained context: `edgelm.rope.dynamic_factor` and `edgelm.rope.yarn_truncate`.

use super::{
    LayerConfig, Mixer, ModelConfig, RopeScaling, gguf_experts, gguf_mixers, gguf_mixers::GgufMixer,
    gguf_read::gguf_epsilon, rope::yarn_mscale,
};
use crate::ModelError;
use edgelm_format::gguf::{Array, Metadata, Value};

/// YaRN as llama.cpp computes it for these architectures, whatever the file says.
pub(super) const LLAMA_CPP_BETAS: (f64, f64) = (32.0, 1.0);

impl ModelConfig {
    /// `general.architecture` and every `{arch}.*` key. Errors where the GGUF reader of this program could
    /// not get the same model back.
    pub fn gguf_metadata(&self) -> Result<Metadata, ModelError> {
        self.gguf_form().metadata_as_it_is()
    }

    fn metadata_as_it_is(&self) -> Result<Metadata, ModelError> {
        let refuse = |what: &str| Err(ModelError::Export(what.to_owned()));
        let Some(arch) = self.arch.gguf_name else {
            return refuse(&format!(
                "architecture `{}` has no GGUF form here: llama.cpp does not run it, or not by this description",
                self.arch.name
            ));
        };
        let mut out: Metadata = vec![("general.architecture".to_owned(), Value::String(arch.to_owned()))];
        let mut put = |key: &str, value: Value| out.push((format!("{arch}.{key}"), value));
        let Some(first) = self.layers.first() else { return refuse("a model without layers") };
        let has_heads = |layer: &&LayerConfig| layer.mixer.has_attention();
        let first = self.layers.iter().find(has_heads).unwrap_or(first);
        if self.layers.iter().filter(has_heads).any(|layer| layer.head_dim != first.head_dim) {
            return refuse("GGUF has one head size for all layers, this model several");
        }
        put("block_count", count(self.layers.len()));
        put("context_length", count(self.max_position_embeddings));
        put("embedding_length", count(self.hidden_size));
        put("feed_forward_length", self.per_layer(gguf_experts::feed_forward_length(self)));
        let heads = |layer: &LayerConfig| match self.arch.gguf_mixer {
            GgufMixer::OnlyMamba2 => 0,
            _ => layer.num_attention_heads,
        };
        put("attention.head_count", self.per_layer(heads));
        put("attention.head_count_kv", self.per_layer(gguf_mixers::kv_heads(self)));
        for (key, value) in gguf_mixers::written(self)? {
            put(key, value);
        }
        put(gguf_epsilon(self.style.norm), Value::F32(self.norm_eps));
        let is_plain = matches!(first.mixer, Mixer::Attention | Mixer::AttentionAndMamba2(_));
        if is_plain && (self.hidden_size != first.num_attention_heads * first.head_dim || self.widths_differ()) {
            put("attention.key_length", count(first.head_dim));
            put("attention.value_length", count(first.head_dim));
        }
        put("vocab_size", count(self.vocab_size));
        for (key, value) in gguf_experts::written(self) {
            put(key, value);
        }
        for (key, value) in self.arch.gguf_keys.iter().filter_map(|key| key.written(self)) {
            put(key, value);
        }
        if !self.style.has_no_rotation() && self.arch.gguf_mixer != GgufMixer::OnlyMamba2 {
            put("rope.dimension_count", count(self.rope.rotary_dim));
            put("rope.freq_base", Value::F32(self.rope.theta as f32));
        }
        if self.arch.defaults.local_rope_theta.is_some() {
            let local = self.local_rope.as_ref().unwrap_or(&self.rope);
            put("rope.freq_base_swa", Value::F32(local.theta as f32));
        }
        if let Some(window) = self.layers.iter().find_map(|layer| layer.sliding_window) {
            put("attention.sliding_window", count(window));
            if self.layers.iter().any(|layer| layer.sliding_window.is_some_and(|other| other != window)) {
                return refuse("GGUF has one sliding window for all layers, this model several");
            }
            let pattern: Vec<bool> = self.layers.iter().map(|layer| layer.sliding_window.is_some()).collect();
            if pattern.contains(&false) {
                put("attention.sliding_window_pattern", Value::Array(Array::Bool(pattern)));
            }
        }
        match &self.rope.scaling {
            RopeScaling::Default | RopeScaling::Llama3 { .. } => {}
            RopeScaling::Factors { attention_factor, .. } => {
                if *attention_factor != 1.0 {
                    put("rope.scaling.attn_factor", Value::F32(*attention_factor as f32));
                }
            }
            RopeScaling::Linear { factor } => {
                put("rope.scaling.type", Value::String("linear".to_owned()));
                put("rope.scaling.factor", Value::F32(*factor as f32));
            }
            RopeScaling::Proportional { .. } => {
                return refuse("proportional rotary embeddings have no form in GGUF files here");
            }
            RopeScaling::LongRope { .. } if !self.arch.gguf_long_factors => {
                return refuse(&format!("files of architecture `{arch}` cannot hold longrope scaling"));
            }
            RopeScaling::LongRope { original_max_position_embeddings, attention_factor, .. } => {
                put("rope.scaling.type", Value::String("longrope".to_owned()));
                put("rope.scaling.original_context_length", count(*original_max_position_embeddings));
                put("rope.scaling.attn_factor", Value::F32(*attention_factor as f32));
            }
            RopeScaling::Dynamic { factor, .. } => {
                out.push(("edgelm.rope.dynamic_factor".to_owned(), Value::F32(*factor as f32)));
            }
            RopeScaling::Yarn { attention_factor, .. } if self.needs_factors() => {
                if *attention_factor != 1.0 {
                    put("rope.scaling.attn_factor", Value::F32(*attention_factor as f32));
                }
            }
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => {
                put("rope.scaling.type", Value::String("yarn".to_owned()));
                put("rope.scaling.factor", Value::F32(*factor as f32));
                put("rope.scaling.original_context_length", count(*original_max_position_embeddings));
                put("rope.scaling.yarn_beta_fast", Value::F32(*beta_fast as f32));
                put("rope.scaling.yarn_beta_slow", Value::F32(*beta_slow as f32));
                // llama.cpp derives YaRN's own factor and multiplies this one in.
                let own = gguf_mixers::latent_factor_beside(self).unwrap_or_else(|| yarn_mscale(*factor, 1.0));
                let rest = attention_factor / own;
                if (rest - 1.0).abs() > 1e-6 {
                    put("rope.scaling.attn_factor", Value::F32(rest as f32));
                }
                if !truncate {
                    out.push(("edgelm.rope.yarn_truncate".to_owned(), Value::Bool(false)));
                }
            }
        }
        if self.needs_factors() && !self.arch.gguf_rope_factors {
            let scaling = &self.rope.scaling;
            return refuse(&format!("files of architecture `{arch}` cannot hold this rotary scaling ({scaling:?})"));
        }
        self.check_gguf(&out)?;
        Ok(out)
    }

    /// Tensors that exist only in GGUF files: `rope_freqs.weight` [R/2] where frequencies are scaled one by one,
    /// `rope_factors_short.weight` and `rope_factors_long.weight` [R/2] for longrope. Name, shape, values; to be stored
    /// as F32.
    pub fn gguf_extra_tensors(&self) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let tensor = |name: &str, values: Vec<f32>| (format!("{name}.weight"), vec![values.len()], values);
        if let RopeScaling::LongRope { short, long, .. } = &self.rope.scaling
            && self.arch.gguf_long_factors
        {
            let narrowed = |factors: &[f64]| factors.iter().map(|&factor| factor as f32).collect();
            return vec![tensor("rope_factors_long", narrowed(long)), tensor("rope_factors_short", narrowed(short))];
        }
        if !self.needs_factors() || !self.arch.gguf_rope_factors {
            return Vec::new();
        }
        vec![tensor("rope_freqs", self.rope.factors())]
    }

    /// True where the scaling can only be written as one divisor per frequency.
    pub(super) fn needs_factors(&self) -> bool {
        match self.rope.scaling {
            RopeScaling::Llama3 { .. } | RopeScaling::Factors { .. } => true,
            RopeScaling::Yarn { beta_fast, beta_slow, truncate, .. } => {
                self.arch.gguf_rope_factors && ((beta_fast, beta_slow) != LLAMA_CPP_BETAS || !truncate)
            }
            _ => false,
        }
    }

    pub(super) fn widths_differ(&self) -> bool {
        let feed_forward = gguf_experts::feed_forward_length(self);
        let widths = |layer: &LayerConfig| (layer.num_attention_heads, layer.num_key_value_heads, feed_forward(layer));
        self.layers.windows(2).any(|pair| widths(&pair[0]) != widths(&pair[1]))
    }

    /// One number where all layers agree, else an array.
    fn per_layer(&self, size: impl Fn(&LayerConfig) -> usize) -> Value {
        let sizes: Vec<u32> = self.layers.iter().map(|layer| clamp(size(layer))).collect();
        match sizes[..] {
            [first, ..] if sizes.iter().all(|size| *size == first) => Value::U32(first),
            _ => Value::Array(Array::U32(sizes)),
        }
    }
}

fn count(value: usize) -> Value {
    Value::U32(clamp(value))
}

/// Sizes are bounded far below `u32::MAX` when a config is read.
fn clamp(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
