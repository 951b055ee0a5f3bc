//! GGUF metadata of llama.cpp's making, and of ours.
//!
//! The one thing a reader would get wrong: what config.json says in keys, GGUF partly says by which tensors exist
//! (biases, tied embeddings, vocabulary size), so the tensor directory is an input here.

use super::{
    AttentionBias, LayerConfig, LayerRope, Mixer, ModelConfig, NormKind, RopeConfig, RopeScaling, StyleKey,
    gguf_experts,
    gguf_keys::GgufKeys,
    gguf_mixers::{self, GgufMixer},
    limits::{MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_HIDDEN, MAX_INTERMEDIATE, MAX_LAYERS, MAX_VOCAB},
    rope::yarn_mscale,
};
use crate::{
    Arch, LayerTensor, ModelError, Style, TensorId,
    arch::{ARCHS, BiasRule, WindowRule},
};
use edgelm_format::gguf::{Array, Metadata, Value};
use std::path::Path;

/// What the config needs to know of the tensors.
pub(crate) struct GgufTensors<'a> {
    /// Row-major shape by name, `None` if there is no such tensor.
    pub shape: &'a dyn Fn(&str) -> Option<Vec<usize>>,
    /// Values of `rope_freqs.weight`, if it is there.
    pub rope_factors: Option<Vec<f32>>,
    /// Values of `rope_factors_short.weight` and `rope_factors_long.weight`, if both are there.
    pub long_factors: Option<(Vec<f32>, Vec<f32>)>,
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
        let has = |key: &str| find(&format!("{name}.{key}")).and_then(Value::as_u64).is_some_and(|count| count > 0);
        let arch = Arch::from_gguf(name, has("attention.sliding_window"), has("expert_count")).ok_or_else(|| {
            let mut supported: Vec<_> = ARCHS.iter().filter_map(|arch| arch.gguf_name).collect();
            supported.sort_unstable();
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
        let keys = GgufKeys::new(path, name, metadata, tensors.shape);

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
        let mut layers = read_layers(&keys, arch, hidden_size, &tensors)?;
        gguf_mixers::read(&keys, arch, hidden_size, &mut layers)?;
        gguf_experts::read(&keys, arch, &mut layers)?;
        let head_dim = layers.first().map_or(0, |layer| layer.head_dim);
        let rope = read_rope(&keys, arch, head_dim, max_position_embeddings, &tensors)?;
        let attention_scale = gguf_mixers::latent_scale(&keys, &layers, &rope)?;
        let local_rope = read_local_rope(&keys, arch, &rope, &mut layers)?;
        if keys.get("attention.causal").is_some_and(|causal| causal.as_bool() != Some(true)) {
            return Err(keys.bad("attention.causal", "only true is supported"));
        }
        let id = |key: &str| find(key).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        let mut eos_token_ids: Vec<u32> =
            ["eos", "eot", "eom"].iter().filter_map(|kind| id(&format!("tokenizer.ggml.{kind}_token_id"))).collect();
        eos_token_ids.sort_unstable();
        eos_token_ids.dedup();
        let mut config = ModelConfig {
            arch,
            hidden_size,
            embedding_size: hidden_size,
            vocab_size,
            max_position_embeddings,
            norm_eps: norm_eps as f32,
            tie_word_embeddings: (tensors.shape)(&arch.gguf_tensor_name(TensorId::Output)).is_none(),
            style: Style {
                attention_scale: attention_scale.or(arch.style.attention_scale),
                ..arch.style.with_whole_gains()
            },
            rope,
            local_rope,
            layers,
            bos_token_id: id("tokenizer.ggml.bos_token_id"),
            eos_token_ids,
        };
        for key in arch.gguf_keys {
            key.read(&keys, &mut config)?;
        }
        (arch.read_gguf)(&keys, &mut config)?;
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
    keys: &GgufKeys<'_>,
    arch: &Arch,
    hidden_size: usize,
    tensors: &GgufTensors<'_>,
) -> Result<Vec<LayerConfig>, ModelError> {
    let count = keys.required("block_count", keys.size("block_count", MAX_LAYERS))?;
    let least = u64::from(!arch.gguf_mixer.is_by_heads());
    let heads = keys.per_layer_from(least, "attention.head_count", count, MAX_HEADS);
    let heads = keys.required("attention.head_count", heads)?;
    let kv_heads = keys.per_layer_from(least, "attention.head_count_kv", count, MAX_HEADS)?;
    let kv_heads = kv_heads.unwrap_or_else(|| heads.clone());
    // Of a layer without heads, what those with them have: nobody reads it.
    let most = heads.iter().copied().max().unwrap_or(1).max(1);
    let heads: Vec<usize> = heads.into_iter().map(|count| if count == 0 { most } else { count }).collect();
    let least = u64::from(arch.defaults.intermediate_ratio != Some(0));
    let ffn = keys.per_layer_from(least, "feed_forward_length", count, MAX_INTERMEDIATE);
    let ffn = keys.required("feed_forward_length", ffn)?;
    let head_dim = match keys.size("attention.key_length", MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None => hidden_size / heads[0],
    };
    let value_length = keys.size("attention.value_length", MAX_HEAD_DIM)?;
    if arch.gguf_mixer != GgufMixer::Latent && value_length.is_some_and(|length| length != head_dim) {
        return Err(keys.bad("attention.value_length", &format!("must equal the key length, {head_dim}")));
    }
    if !(1..=MAX_HEAD_DIM).contains(&head_dim) {
        return Err(keys.bad("attention.head_count", &format!("makes heads of {head_dim} components")));
    }
    let window = match keys.get("attention.sliding_window").and_then(Value::as_u64) {
        // How converters of Phi-3 say "none".
        Some(0) => None,
        _ => keys.size("attention.sliding_window", MAX_CONTEXT)?,
    };
    let pattern = match keys.get("attention.sliding_window_pattern") {
        None => match arch.window {
            WindowRule::AllButEach(each) => (1..=count).map(|number| !number.is_multiple_of(each)).collect(),
            _ => vec![true; count],
        },
        Some(number @ Value::U32(_)) => {
            let each = number.as_u64().and_then(|each| usize::try_from(each).ok()).unwrap_or(0);
            (1..=count).map(|number| each == 0 || !number.is_multiple_of(each)).collect()
        }
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
                    (false, true) => AttentionBias::O,
                    (true, true) => AttentionBias::Qkvo,
                },
            };
            LayerConfig {
                mixer: Mixer::Attention,
                num_attention_heads: heads[index],
                num_key_value_heads: kv_heads[index],
                head_dim,
                intermediate_size: ffn[index],
                experts: None,
                sliding_window: window.filter(|_| pattern[index]),
                rope: if arch.style.has_no_rotation() { LayerRope::None } else { LayerRope::Global },
                attention_bias,
                mlp_bias: stored(index, &[GateBias, UpBias, DownBias]),
            }
        })
        .collect())
}

fn read_rope(
    keys: &GgufKeys<'_>,
    arch: &Arch,
    head_dim: usize,
    context: usize,
    tensors: &GgufTensors<'_>,
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
    let log_multiplier = keys.nonzero("rope.scaling.yarn_log_multiplier")?;
    let is_latent = arch.gguf_mixer == GgufMixer::Latent;
    if log_multiplier.is_some() && !is_latent && !arch.gguf_keys.contains(&StyleKey::QueryGrowth) {
        return Err(keys.bad("rope.scaling.yarn_log_multiplier", "only 0 is supported for this architecture"));
    }
    if keys.get("rope.scaling.yarn_ext_factor").is_some_and(|value| value.as_f64() != Some(1.0)) {
        return Err(keys.bad("rope.scaling.yarn_ext_factor", "only 1 is supported"));
    }
    let yarn_factor = |factor: f64| match log_multiplier {
        log if is_latent => gguf_mixers::latent_attention_factor(log, factor),
        Some(log) => yarn_mscale(factor, 1.0) / yarn_mscale(factor, log),
        None => yarn_mscale(factor, 1.0),
    };
    let truncate = keys.get("edgelm.rope.yarn_truncate").and_then(Value::as_bool).unwrap_or(true);
    let dynamic = keys.positive("edgelm.rope.dynamic_factor")?.filter(|factor| *factor >= 1.0);

    let long_factors = tensors.long_factors.as_ref().filter(|_| arch.gguf_long_factors);
    let scaling = match keys.text("rope.scaling.type")?.unwrap_or("linear") {
        "longrope" if arch.gguf_long_factors && long_factors.is_none() => {
            return Err(keys.bad("rope.scaling.type", "needs tensors `rope_factors_short` and `rope_factors_long`"));
        }
        "longrope" if arch.gguf_long_factors => RopeScaling::Default,
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
            attention_factor: yarn_attn_factor.unwrap_or_else(|| yarn_factor(factor)) * attn_factor,
            truncate,
        },
        _ => {
            return Err(keys.bad("rope.scaling.type", "this rope type is not supported; supported: none, linear, yarn"));
        }
    };
    let checked = |name: &str, factors: &[f32]| {
        if factors.len() != rotary_dim / 2 || factors.iter().any(|factor| !(factor.is_finite() && *factor > 0.0)) {
            let want = rotary_dim / 2;
            return Err(keys.fail(format!("tensor `{name}.weight` must hold {want} finite numbers above 0")));
        }
        Ok(factors.to_vec())
    };
    if let Some((short, long)) = long_factors {
        if scaling != RopeScaling::Default {
            return Err(
                keys.bad("rope.scaling.type", "is not supported together with tensor `rope_factors_long.weight`")
            );
        }
        let widened = |name: &str, factors: &[f32]| {
            checked(name, factors).map(|factors| factors.into_iter().map(f64::from).collect::<Vec<_>>())
        };
        let scaling = RopeScaling::LongRope {
            short: widened("rope_factors_short", short)?,
            long: widened("rope_factors_long", long)?,
            original_max_position_embeddings: original,
            attention_factor: attn_factor,
        };
        return Ok(RopeConfig {
            theta,
            rotary_dim,
            pairs: arch.gguf_rope_pairs,
            reversed: false,
            scaling,
            query_growth: None,
        });
    }
    let scaling = match (tensors.rope_factors.as_deref(), scaling) {
        (Some(factors), RopeScaling::Default) => {
            RopeScaling::Factors { factors: checked("rope_freqs", factors)?, attention_factor: attn_factor }
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
    Ok(RopeConfig { theta, rotary_dim, pairs: arch.gguf_rope_pairs, reversed: false, scaling, query_growth: None })
}

/// The rotary embedding of layers with a window, where it is another one. Errors where the file gives them a base of their
/// own and the family has none.
fn read_local_rope(
    keys: &GgufKeys<'_>,
    arch: &Arch,
    rope: &RopeConfig,
    layers: &mut [LayerConfig],
) -> Result<Option<RopeConfig>, ModelError> {
    let given = keys.positive("rope.freq_base_swa")?;
    let with_window = |layer: &&mut LayerConfig| layer.sliding_window.is_some();
    match arch.defaults.local_rope_theta {
        Some(theta) if layers.iter().any(|layer| layer.sliding_window.is_some()) => {
            layers.iter_mut().filter(with_window).for_each(|layer| layer.rope = LayerRope::Local);
            let theta = given.unwrap_or(theta);
            Ok(Some(RopeConfig { theta, scaling: RopeScaling::Default, ..rope.clone() }))
        }
        None if given.is_some_and(|theta| theta != rope.theta) => {
            Err(keys.bad("rope.freq_base_swa", "only the value of `rope.freq_base` is supported for this architecture"))
        }
        _ => Ok(None),
    }
}
