//! GGUF metadata of llama.cpp's making, and of ours.
//!
//! The one thing a reader would get wrong: what config.json says in keys, GGUF partly says by which tensors exist
//! (biases, tied embeddings, vocabulary size), so the tensor directory is an input here.

use super::{
    AttentionBias, LayerConfig, LayerRope, Mixer, ModelConfig, NormKind, RopeConfig, RopeScaling, ShortConv,
    limits::{MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_HIDDEN, MAX_INTERMEDIATE, MAX_KERNEL, MAX_LAYERS, MAX_VOCAB},
    rope::yarn_mscale,
};
use crate::{
    Arch, LayerTensor, ModelError, TensorId,
    arch::{ARCHS, BiasRule},
};
use edgelm_format::gguf::{Array, Metadata, Value};
use std::{cell::RefCell, collections::BTreeSet, path::Path};

/// What the config needs to know of the tensors.
pub(crate) struct GgufTensors<'a> {
    /// Row-major shape by name, `None` if there is no such tensor.
    pub shape: &'a dyn Fn(&str) -> Option<Vec<usize>>,
    /// Values of `rope_freqs.weight`, if it is there.
    pub rope_factors: Option<Vec<f32>>,
}

/// Keys after `{arch}.` that cannot change the forward pass, whatever their value.
const HARMLESS: &[&str] = &["vocab_size", "rope.scaling.finetuned", "tensor_data_layout"];

/// Counts that say "not here" when 0.
const ONLY_ZERO: &[&str] = &["expert_count", "expert_used_count", "nextn_predict_layers", "leading_dense_block_count"];

/// The keys of one architecture, each of which must be accounted for.
struct Keys<'a> {
    path: &'a Path,
    arch: &'a str,
    metadata: &'a Metadata,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    fn fail(&self, what: String) -> ModelError {
        ModelError::Config { path: self.path.to_owned(), what }
    }

    fn bad(&self, key: &str, what: &str) -> ModelError {
        let value = self.raw(key).map_or_else(|| "absent".to_owned(), brief);
        self.fail(format!("key `{}.{key}` is {value}: {what}", self.arch))
    }

    /// The value of `{arch}.{key}` or, for our own keys, of `{key}`.
    fn raw(&self, key: &str) -> Option<&'a Value> {
        let full = format!("{}.{key}", self.arch);
        self.metadata
            .iter()
            .find(|(name, _)| *name == full || (*name == key && key.starts_with("edgelm.")))
            .map(|(_, value)| value)
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(format!("{}.{key}", self.arch));
        self.raw(key)
    }

    fn size(&self, key: &str, max: usize) -> Result<Option<usize>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| bounded(n, max)) {
                Some(n) => Ok(Some(n)),
                None => Err(self.bad(key, &format!("must be a whole number from 1 to {max}"))),
            },
        }
    }

    fn required<T>(&self, key: &str, value: Result<Option<T>, ModelError>) -> Result<T, ModelError> {
        value?.ok_or_else(|| self.fail(format!("key `{}.{key}` is missing", self.arch)))
    }

    /// One size for all layers, or an array with one per layer.
    fn per_layer(&self, key: &str, layers: usize, max: usize) -> Result<Option<Vec<usize>>, ModelError> {
        self.per_layer_from(1, key, layers, max)
    }

    /// The same with a least size of each layer in an array.
    fn per_layer_from(
        &self,
        least: u64,
        key: &str,
        layers: usize,
        max: usize,
    ) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(value @ Value::Array(_)) = self.get(key) else {
            return Ok(self.size(key, max)?.map(|value| vec![value; layers]));
        };
        let values = value.as_u64s().filter(|values| values.len() == layers);
        let size = |n: u64| if n == 0 && least == 0 { Some(0) } else { bounded(n, max) };
        match values.map(|values| values.into_iter().map(size).collect::<Option<Vec<_>>>()) {
            Some(Some(values)) => Ok(Some(values)),
            _ => Err(self.bad(key, &format!("must hold {layers} whole numbers from {least} to {max}"))),
        }
    }

    /// A finite number above 0.
    fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|n| n.is_finite() && *n > 0.0) {
                Some(n) => Ok(Some(n)),
                None => Err(self.bad(key, "must be a finite number above 0")),
            },
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.bad(key, "must be a string")),
        }
    }

    fn finish(self) -> Result<(), ModelError> {
        let prefix = format!("{}.", self.arch);
        let read = self.read.borrow();
        for (name, value) in self.metadata {
            let Some(key) = name.strip_prefix(&prefix) else { continue };
            if ONLY_ZERO.contains(&key) && value.as_u64() != Some(0) {
                return Err(self.bad(key, "only 0 is supported"));
            }
            if !read.contains(name) && !HARMLESS.contains(&key) && !ONLY_ZERO.contains(&key) {
                let value = brief(value);
                return Err(
                    self.fail(format!("unknown key `{name}` ({value}): it could change what the model computes"))
                );
            }
        }
        Ok(())
    }
}

impl ModelConfig {
    /// From the metadata and tensor directory of a GGUF file; defaults for missing keys are llama.cpp's.
    /// `path` is for messages.
    pub(crate) fn from_gguf(
        metadata: &Metadata,
        tensors: GgufTensors<'_>,
        path: &Path,
    ) -> Result<ModelConfig, ModelError> {
        let find = |key: &str| metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value);
        let fail = |what: &str| ModelError::Config { path: path.to_owned(), what: what.to_owned() };
        let name = find("general.architecture")
            .and_then(Value::as_str)
            .ok_or_else(|| fail("key `general.architecture` is missing"))?;
        let has_window = find(&format!("{name}.attention.sliding_window")).is_some();
        let arch = Arch::from_gguf(name, has_window).ok_or_else(|| {
            let mut supported: Vec<_> = ARCHS.iter().filter_map(|arch| arch.gguf_name).collect();
            supported.dedup();
            ModelError::UnknownArchitecture {
                path: path.to_owned(),
                name: name.to_owned(),
                supported: supported.join(", "),
            }
        })?;
        if find("general.type").and_then(Value::as_str).is_some_and(|kind| kind != "model") {
            return Err(fail("key `general.type`: the file is not a whole model"));
        }
        let keys = Keys { path, arch: name, metadata, read: RefCell::default() };

        let hidden_size = keys.required("embedding_length", keys.size("embedding_length", MAX_HIDDEN))?;
        let embedding = arch.gguf_tensor_name(TensorId::TokenEmbedding);
        let shape = (tensors.shape)(&embedding)
            .ok_or_else(|| ModelError::MissingTensor { path: path.to_owned(), name: embedding.clone() })?;
        let vocab_size = match shape[..] {
            [vocab, hidden] if hidden == hidden_size && (1..=MAX_VOCAB).contains(&vocab) => vocab,
            _ => {
                let want = vec![keys.size("vocab_size", MAX_VOCAB)?.unwrap_or(0), hidden_size];
                return Err(ModelError::TensorShape { name: embedding, got: shape, want });
            }
        };
        let max_position_embeddings = keys.required("context_length", keys.size("context_length", MAX_CONTEXT))?;
        let epsilon = gguf_epsilon(arch.style.norm);
        let norm_eps = keys.required(epsilon, keys.positive(epsilon))?;
        if norm_eps > 1.0 {
            return Err(keys.bad(epsilon, "must be from 0 to 1"));
        }
        let layers = read_layers(&keys, arch, hidden_size, &tensors)?;
        let head_dim = layers.first().map_or(0, |layer| layer.head_dim);
        let rope = read_rope(&keys, arch, head_dim, max_position_embeddings, tensors.rope_factors)?;
        if keys.get("attention.causal").is_some_and(|causal| causal.as_bool() != Some(true)) {
            return Err(keys.bad("attention.causal", "only true is supported"));
        }
        let id = |key: &str| find(key).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        let mut eos_token_ids: Vec<u32> =
            ["eos", "eot", "eom"].iter().filter_map(|kind| id(&format!("tokenizer.ggml.{kind}_token_id"))).collect();
        eos_token_ids.sort_unstable();
        eos_token_ids.dedup();
        let config = ModelConfig {
            arch,
            hidden_size,
            embedding_size: hidden_size,
            vocab_size,
            max_position_embeddings,
            norm_eps: norm_eps as f32,
            tie_word_embeddings: (tensors.shape)(&arch.gguf_tensor_name(TensorId::Output)).is_none(),
            style: arch.style,
            rope,
            local_rope: None,
            layers,
            bos_token_id: id("tokenizer.ggml.bos_token_id"),
            eos_token_ids,
        };
        config.check().map_err(|what| keys.fail(what))?;
        keys.finish()?;
        Ok(config)
    }
}

/// The key of ε.
pub(super) fn gguf_epsilon(norm: NormKind) -> &'static str {
    match norm {
        NormKind::Rms | NormKind::RmsPlusOne | NormKind::RmsPlain => "attention.layer_norm_rms_epsilon",
        _ => "attention.layer_norm_epsilon",
    }
}

fn read_layers(
    keys: &Keys<'_>,
    arch: &Arch,
    hidden_size: usize,
    tensors: &GgufTensors<'_>,
) -> Result<Vec<LayerConfig>, ModelError> {
    let count = keys.required("block_count", keys.size("block_count", MAX_LAYERS))?;
    let heads = keys.required("attention.head_count", keys.per_layer("attention.head_count", count, MAX_HEADS))?;
    // Layers without key heads are convolutions, in the one family that has them.
    let kernel = match arch.own_layer_types.contains(&"conv") {
        true => keys.size("shortconv.l_cache", MAX_KERNEL)?,
        false => None,
    };
    let least = u64::from(kernel.is_none());
    let kv_heads = keys.per_layer_from(least, "attention.head_count_kv", count, MAX_HEADS)?;
    let kv_heads = kv_heads.unwrap_or_else(|| heads.clone());
    let ffn = keys.required("feed_forward_length", keys.per_layer("feed_forward_length", count, MAX_INTERMEDIATE))?;
    let head_dim = match keys.size("attention.key_length", MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None => hidden_size / heads[0],
    };
    if keys.size("attention.value_length", MAX_HEAD_DIM)?.is_some_and(|length| length != head_dim) {
        return Err(keys.bad("attention.value_length", &format!("must equal the key length, {head_dim}")));
    }
    if !(1..=MAX_HEAD_DIM).contains(&head_dim) {
        return Err(keys.bad("attention.head_count", &format!("makes heads of {head_dim} components")));
    }
    let window = keys.size("attention.sliding_window", MAX_CONTEXT)?;
    let pattern = match keys.get("attention.sliding_window_pattern") {
        None => vec![true; count],
        Some(Value::Array(Array::Bool(pattern))) if pattern.len() == count => pattern.clone(),
        Some(_) => {
            return Err(keys.bad("attention.sliding_window_pattern", &format!("must hold {count} booleans")));
        }
    };
    let stored = |index: usize, of: &[LayerTensor]| {
        of.iter().any(|&tensor| (tensors.shape)(&arch.gguf_tensor_name(TensorId::Layer(index, tensor))).is_some())
    };
    Ok((0..count)
        .map(|index| {
            use LayerTensor::*;
            // A family that always has biases is checked for them with all other tensors.
            let attention_bias = match arch.attention_bias {
                BiasRule::Always(bias) if bias != AttentionBias::None => bias,
                _ => match (stored(index, &[QBias, KBias, VBias]), stored(index, &[OBias])) {
                    (false, false) => AttentionBias::None,
                    (true, false) => AttentionBias::Qkv,
                    (_, true) => AttentionBias::Qkvo,
                },
            };
            let mixer = match (kv_heads[index], kernel) {
                (0, Some(kernel)) => Mixer::ShortConv(ShortConv { channels: hidden_size, kernel, bias: false }),
                _ => Mixer::Attention,
            };
            LayerConfig {
                mixer,
                num_attention_heads: heads[index],
                num_key_value_heads: kv_heads[index],
                head_dim,
                intermediate_size: ffn[index],
                experts: None,
                sliding_window: window.filter(|_| pattern[index]),
                rope: LayerRope::Global,
                attention_bias,
                mlp_bias: stored(index, &[GateBias, UpBias, DownBias]),
            }
        })
        .collect())
}

fn read_rope(
    keys: &Keys<'_>,
    arch: &Arch,
    head_dim: usize,
    context: usize,
    factors: Option<Vec<f32>>,
) -> Result<RopeConfig, ModelError> {
    let theta = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
    let rotary_dim = keys.size("rope.dimension_count", MAX_HEAD_DIM)?.unwrap_or(head_dim);
    // 0 is how old converters said "none".
    let unset = |key: &str| keys.get(key).and_then(Value::as_f64) == Some(0.0);
    let mut factor = 1.0;
    for key in ["rope.scaling.factor", "rope.scale_linear"] {
        if !unset(key)
            && let Some(given) = keys.positive(key)?
        {
            factor = given;
            break;
        }
    }
    keys.get("rope.scale_linear");
    let original = keys.size("rope.scaling.original_context_length", MAX_CONTEXT)?.unwrap_or(context);
    let attn_factor = keys.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
    let yarn_attn_factor = keys.positive("rope.scaling.yarn_attn_factor")?;
    let beta_fast = keys.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0);
    let beta_slow = keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0);
    for (key, only) in [("rope.scaling.yarn_ext_factor", 1.0), ("rope.scaling.yarn_log_multiplier", 0.0)] {
        if keys.get(key).is_some_and(|value| value.as_f64() != Some(only)) {
            return Err(keys.bad(key, &format!("only {only} is supported")));
        }
    }
    let truncate = keys.get("edgelm.rope.yarn_truncate").and_then(Value::as_bool).unwrap_or(true);
    let dynamic = keys.positive("edgelm.rope.dynamic_factor")?.filter(|factor| *factor >= 1.0);

    let scaling = match keys.text("rope.scaling.type")?.unwrap_or("linear") {
        "none" => RopeScaling::Default,
        "linear" if factor == 1.0 => match dynamic {
            Some(factor) => RopeScaling::Dynamic { factor, original_max_position_embeddings: context },
            None => RopeScaling::Default,
        },
        "linear" => RopeScaling::Linear { factor },
        "yarn" => RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast,
            beta_slow,
            attention_factor: yarn_attn_factor.unwrap_or_else(|| yarn_mscale(factor, 1.0)) * attn_factor,
            truncate,
        },
        _ => {
            return Err(keys.bad("rope.scaling.type", "this rope type is not supported; supported: none, linear, yarn"));
        }
    };
    let scaling = match (factors, scaling) {
        (Some(factors), RopeScaling::Default) => {
            if factors.len() != rotary_dim / 2 || factors.iter().any(|factor| !(factor.is_finite() && *factor > 0.0)) {
                let want = rotary_dim / 2;
                return Err(keys.fail(format!("tensor `rope_freqs.weight` must hold {want} finite numbers above 0")));
            }
            RopeScaling::Factors { factors, attention_factor: attn_factor }
        }
        (Some(_), _) => {
            return Err(keys.bad("rope.scaling.type", "is not supported together with tensor `rope_freqs.weight`"));
        }
        (None, scaling @ RopeScaling::Yarn { .. }) => scaling,
        (None, RopeScaling::Default) if attn_factor != 1.0 => {
            RopeScaling::Factors { factors: vec![1.0; rotary_dim / 2], attention_factor: attn_factor }
        }
        (None, scaling) if attn_factor == 1.0 => scaling,
        (None, _) => return Err(keys.bad("rope.scaling.attn_factor", "is not supported with this rope type")),
    };
    Ok(RopeConfig { theta, rotary_dim, pairs: arch.gguf_rope_pairs, scaling, query_growth: None })
}

fn bounded(value: u64, max: usize) -> Option<usize> {
    usize::try_from(value).ok().filter(|n| (1..=max).contains(n))
}

/// A value for a message, cut where it is long.
fn brief(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Bool(flag) => flag.to_string(),
        Value::Array(_) => "an array".to_owned(),
        number => number
            .as_u64()
            .map(|n| n.to_string())
            .or_else(|| number.as_f64().map(|n| n.to_string()))
            .unwrap_or_else(|| "negative".to_owned()),
    };
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}
