//! config.json of transformers 4 and 5.
//!
//! The one thing a reader would get wrong: a key that is not understood is an error, because it could change what
//! the model computes. The lists below are the exceptions, each known not to.

use super::{
    AttentionBias, LayerConfig, LayerRope, Mixer, ModelConfig, hf_rope,
    json::{Keys, parse_object},
    limits::{MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_HIDDEN, MAX_INTERMEDIATE, MAX_LAYERS, MAX_VOCAB},
};
use crate::{
    Arch, ModelError,
    arch::{ARCHS, BiasRule, MlpBiasRule, WindowRule},
};
use edgelm_tensor::Activation;
use serde_json::Value;
use std::path::Path;

/// Keys that cannot change the forward pass, whatever their value.
const HARMLESS: &[&str] = &[
    // Where the file came from and how it was stored.
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "auto_map",
    "dtype",
    "is_llama_config",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    // Training.
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "embd_pdrop",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "initializer_range",
    "label2id",
    "id2label",
    "num_labels",
    "problem_type",
    "finetuning_task",
    "resid_pdrop",
    "rope_scaling_finetuned",
    "task_specific_params",
    // How the library runs the model, not what it computes.
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_flash_attn_2_enabled",
    "attn_implementation",
    "is_decoder",
    "max_sequence_length",
    "model_max_length",
    "onnx",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict",
    "return_dict_in_generate",
    "seq_length",
    "tf_legacy_loss",
    "torchscript",
    "use_bfloat16",
    "use_cache",
    "use_flash_attn",
    // Tokens and text.
    "decoder_start_token_id",
    "pad_token_id",
    "prefix",
    "sep_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "tokenizer_class",
    "unk_token_id",
    // Generation settings that transformers 4 wrote into config.json.
    "bad_words_ids",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "remove_invalid_values",
    "repetition_penalty",
    "temperature",
    "tie_encoder_decoder",
    "top_k",
    "top_p",
    "typical_p",
];

/// For messages.
const ACTIVATIONS: &str = "silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu, relu2";

/// Keys of which one value is harmless, as JSON; null is too.
const ONLY: &[(&str, &str)] = &[
    ("add_cross_attention", "false"),
    ("chunk_size_feed_forward", "0"),
    ("cross_attention_hidden_size", "null"),
    ("is_encoder_decoder", "false"),
    ("pretraining_tp", "1"),
    ("pruned_heads", "{}"),
    ("qkv_bias", "true"),
    ("rope_interleaved", "false"),
    ("use_mrope", "false"),
    ("use_qk_norm", "false"),
    ("use_parallel_residual", "false"),
];

/// Keys beside `text_config` that concern the decoder inside it.
pub(crate) const BESIDE_TEXT: &[&str] = &["tie_word_embeddings", "eos_token_id", "bos_token_id", "quantization_config"];

impl ModelConfig {
    /// From the bytes of a config.json alone. `path` is for messages.
    ///
    /// Errors on unknown architectures, on keys nobody knows, and on values that are missing, out of bounds, not
    /// supported or at odds with each other; every message names the key. `eos_token_ids` holds only what this file
    /// says.
    pub fn from_hf(config_json: &[u8], path: &Path) -> Result<ModelConfig, ModelError> {
        let mut map = parse_object(config_json, path)?;
        let mut within = "";
        // A model of several modalities: the decoder's config lies inside.
        if let Some(Value::Object(mut inner)) = map.remove("text_config") {
            within = "text_config.";
            for &key in BESIDE_TEXT {
                if let (Some(value), None) = (map.remove(key), inner.get(key)) {
                    inner.insert(key.to_owned(), value);
                }
            }
            map = inner;
        }
        let mut keys = Keys::new(path, within, &map);
        let arch = read_arch(&mut keys, path)?;
        // Says how the weights are stored; `Checkpoint::open` reads it.
        keys.get("quantization_config");
        keys.alias(arch.aliases);
        if keys.get("compression_config").is_some() {
            return Err(keys.fail("key `compression_config`: this old form of checkpoints is not supported".to_owned()));
        }
        let mut style = arch.style;
        for key in ["hidden_act", "hidden_activation"] {
            if let Some(name) = keys.text(key)? {
                style.xielu &= name == "xielu";
                if style.xielu {
                    continue;
                }
                style.activation = Activation::from_hf(name).ok_or_else(|| {
                    keys.bad(key, &format!("this activation is not supported; supported: {ACTIVATIONS}"))
                })?;
            }
        }

        let hidden_size = keys.required_size("hidden_size", MAX_HIDDEN)?;
        let vocab_size = keys.required_size("vocab_size", MAX_VOCAB)?;
        let max_position_embeddings =
            keys.size("max_position_embeddings", MAX_CONTEXT)?.unwrap_or(arch.defaults.max_position_embeddings);
        let norm_eps = keys.number("rms_norm_eps")?.unwrap_or(arch.defaults.norm_eps);
        if !(0.0..=1.0).contains(&norm_eps) {
            return Err(keys.bad("rms_norm_eps", "must be from 0 to 1"));
        }
        let tie_word_embeddings = keys.flag("tie_word_embeddings")?.unwrap_or(arch.defaults.tie_word_embeddings);
        let mut layers = read_layers(&mut keys, arch, hidden_size)?;
        let head_dim = layers.first().map_or(0, |layer| layer.head_dim);
        let (rope, local_rope) = hf_rope::read(&mut keys, path, arch, head_dim, max_position_embeddings)?;
        if local_rope.is_some() {
            layers
                .iter_mut()
                .filter(|layer| layer.sliding_window.is_some())
                .for_each(|layer| layer.rope = LayerRope::Local);
        }
        let bos_token_id = keys.token_ids("bos_token_id")?.first().copied();
        let mut eos_token_ids = keys.token_ids("eos_token_id")?;
        eos_token_ids.sort_unstable();
        eos_token_ids.dedup();
        let mut config = ModelConfig {
            arch,
            hidden_size,
            embedding_size: hidden_size,
            vocab_size,
            max_position_embeddings,
            norm_eps: norm_eps as f32,
            tie_word_embeddings,
            style,
            rope,
            local_rope,
            layers,
            bos_token_id,
            eos_token_ids,
        };
        (arch.read_hf)(&mut keys, &mut config)?;
        for &(key, only) in arch.only.iter().chain(ONLY) {
            if keys.was_read(key) {
                continue;
            }
            let allowed: Option<Value> = serde_json::from_str(only).ok();
            if keys.get(key).is_some_and(|value| Some(value) != allowed.as_ref()) {
                return Err(keys.bad(key, &format!("only `{only}` is supported")));
            }
        }
        config.check().map_err(|what| keys.fail(what))?;
        keys.finish(&[HARMLESS, arch.harmless])?;
        Ok(config)
    }
}

/// `model_type` decides; `architectures[0]` must agree where it is given.
fn read_arch(keys: &mut Keys<'_>, path: &Path) -> Result<&'static Arch, ModelError> {
    let unknown = |name: &str| ModelError::UnknownArchitecture {
        path: path.to_owned(),
        name: name.to_owned(),
        supported: ARCHS.iter().map(|arch| arch.hf_name).collect::<Vec<_>>().join(", "),
    };
    let class = match keys.get("architectures") {
        None => None,
        Some(Value::Array(list)) => match list.first() {
            None => None,
            Some(Value::String(class)) => Some(class.as_str()),
            Some(_) => return Err(keys.bad("architectures", "must be a list of names")),
        },
        Some(_) => return Err(keys.bad("architectures", "must be a list of names")),
    };
    let Some(model_type) = keys.text("model_type")? else {
        return Err(keys.fail("key `model_type` is missing".to_owned()));
    };
    let arch = Arch::from_hf(model_type).ok_or_else(|| unknown(class.unwrap_or(model_type)))?;
    match class {
        // The first Llama exports were spelt `LLaMAForCausalLM`.
        Some(class) if !class.eq_ignore_ascii_case(arch.hf_name) => {
            if ARCHS.iter().any(|arch| arch.hf_name == class) {
                return Err(keys.bad("architectures", &format!("does not go with `model_type` `{model_type}`")));
            }
            Err(unknown(class))
        }
        _ => Ok(arch),
    }
}

fn read_layers(keys: &mut Keys<'_>, arch: &Arch, hidden_size: usize) -> Result<Vec<LayerConfig>, ModelError> {
    let count = keys.required_size("num_hidden_layers", MAX_LAYERS)?;
    let missing = |keys: &Keys<'_>, key: &str| keys.fail(format!("key `{key}` is missing"));
    let heads = match (keys.per_layer("num_attention_heads", count, MAX_HEADS)?, arch.defaults.num_attention_heads) {
        (Some(heads), _) => heads,
        (None, Some(heads)) => vec![heads; count],
        (None, None) => return Err(missing(keys, "num_attention_heads")),
    };
    let ffn = match (keys.per_layer("intermediate_size", count, MAX_INTERMEDIATE)?, arch.defaults.intermediate_ratio) {
        (Some(sizes), _) => sizes,
        (None, Some(ratio)) => vec![hidden_size * ratio; count],
        (None, None) => return Err(missing(keys, "intermediate_size")),
    };
    let kv_heads = keys.per_layer("num_key_value_heads", count, MAX_HEADS)?.unwrap_or_else(|| heads.clone());
    let uniform = heads.windows(2).all(|pair| pair[0] == pair[1]);
    let default = if keys.has("head_dim") { None } else { arch.defaults.head_dim };
    let head_dim = match keys.size("head_dim", MAX_HEAD_DIM)?.or(default) {
        Some(head_dim) => head_dim,
        None if !uniform => {
            return Err(keys.bad("head_dim", "must be given where layers differ in `num_attention_heads`"));
        }
        None if hidden_size < heads[0] => {
            let what = format!("`hidden_size` {hidden_size} is less than `num_attention_heads` {}", heads[0]);
            return Err(keys.fail(what));
        }
        // Rounded down, as transformers does: Qwen2 checkpoints may have a hidden size that heads do not divide.
        None => hidden_size / heads[0],
    };
    if head_dim > MAX_HEAD_DIM {
        return Err(keys.fail(format!("`hidden_size` / `num_attention_heads` is {head_dim}, more than {MAX_HEAD_DIM}")));
    }
    let attention_bias = match arch.attention_bias {
        BiasRule::Key(key, default, without, with) => {
            if keys.flag(key)?.unwrap_or(default) {
                with
            } else {
                without
            }
        }
        BiasRule::Always(bias)
            if keys.flag("attention_bias")?.is_some_and(|flag| flag != (bias != AttentionBias::None)) =>
        {
            let what = if bias == AttentionBias::None { "has no biases" } else { "always has biases" };
            return Err(keys.bad("attention_bias", &format!("this architecture {what}")));
        }
        BiasRule::Always(bias) => bias,
    };
    let mlp_bias = match arch.mlp_bias {
        MlpBiasRule::Key(key, default) => keys.flag(key)?.unwrap_or(default),
        MlpBiasRule::Always(bias) if keys.flag("mlp_bias")?.is_some_and(|flag| flag != bias) => {
            let what = if bias { "always has biases" } else { "has no biases" };
            return Err(keys.bad("mlp_bias", &format!("this architecture {what} here")));
        }
        MlpBiasRule::Always(bias) => bias,
    };
    let windows = read_windows(keys, arch, count)?;
    Ok((0..count)
        .map(|index| LayerConfig {
            mixer: Mixer::Attention,
            num_attention_heads: heads[index],
            num_key_value_heads: kv_heads[index],
            head_dim,
            intermediate_size: ffn[index],
            experts: None,
            sliding_window: windows[index],
            rope: LayerRope::Global,
            attention_bias,
            mlp_bias,
        })
        .collect())
}

fn read_windows(keys: &mut Keys<'_>, arch: &Arch, count: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let given = keys.has("sliding_window");
    // 0 is how some writers say "none".
    let size = match keys.get("sliding_window").and_then(Value::as_u64) {
        Some(0) => None,
        _ => keys.size("sliding_window", MAX_CONTEXT)?,
    };
    let size = if given { size } else { arch.defaults.sliding_window };
    let switched_on = keys.flag("use_sliding_window")?;
    // Read even where it decides nothing: every family may carry it. 0 means "from the first layer on".
    let first = match keys.get("max_window_layers").and_then(Value::as_u64) {
        Some(first) => usize::try_from(first).unwrap_or(usize::MAX),
        None if keys.get("max_window_layers").is_some() => {
            return Err(keys.bad("max_window_layers", "must be a whole number"));
        }
        None => arch.defaults.max_window_layers,
    };
    let types = read_layer_types(keys, arch, count)?;
    let windows: Vec<Option<usize>> = match arch.window {
        WindowRule::Never if given && size.is_some() && switched_on != Some(false) => {
            return Err(keys.bad("sliding_window", "this architecture has no sliding window"));
        }
        WindowRule::Never => vec![None; count],
        WindowRule::EveryLayer if switched_on == Some(false) && size.is_some() => {
            return Err(keys.bad("use_sliding_window", "this architecture ignores it and `sliding_window` is set"));
        }
        WindowRule::EveryLayer => vec![size; count],
        WindowRule::SomeLayers => {
            let size = size.filter(|_| switched_on == Some(true));
            match &types {
                Some(types) => types.iter().map(|&sliding| size.filter(|_| sliding)).collect(),
                None => (0..count).map(|index| size.filter(|_| index >= first)).collect(),
            }
        }
        WindowRule::AllButEach(n) => {
            let n = match keys.get("sliding_window_pattern") {
                // L for each layer with a window, then G for the one without.
                Some(Value::String(pattern))
                    if pattern.ends_with('G') && !pattern[..pattern.len() - 1].contains('G') =>
                {
                    pattern.len()
                }
                Some(Value::Number(number)) if number.as_u64() == Some(0) => n,
                _ => keys.size("sliding_window_pattern", MAX_LAYERS)?.unwrap_or(n),
            };
            match &types {
                Some(types) => types.iter().map(|&sliding| size.filter(|_| sliding)).collect(),
                None => (1..=count).map(|number| size.filter(|_| !number.is_multiple_of(n))).collect(),
            }
        }
    };
    if let Some(types) = types
        && let Some(index) = (0..count).find(|&index| types[index] != windows[index].is_some())
    {
        let what = format!("layer {index} is at odds with `sliding_window` and `use_sliding_window`");
        return Err(keys.bad("layer_types", &what));
    }
    Ok(windows)
}

/// True per layer for `sliding_attention`.
fn read_layer_types(keys: &mut Keys<'_>, arch: &Arch, count: usize) -> Result<Option<Vec<bool>>, ModelError> {
    let list = match keys.get("layer_types") {
        None => return Ok(None),
        Some(Value::Array(list)) if list.len() == count => list,
        Some(_) => return Err(keys.bad("layer_types", &format!("must have one entry per layer ({count})"))),
    };
    let sliding = |value: &Value| match value.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        Some("attention") if !arch.own_layer_types.is_empty() => Ok(false),
        Some(own) if arch.own_layer_types.contains(&own) => Ok(false),
        _ => {
            let known = ["full_attention", "sliding_attention"].iter().chain(arch.own_layer_types);
            let known: Vec<&str> = known.copied().collect();
            let what = format!("`{value}` is not supported; supported: {}", known.join(", "));
            Err(keys.bad("layer_types", &what))
        }
    };
    list.iter().map(sliding).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
pub(in crate::config) mod tests {
    use super::*;

    /// A one-layer Llama; `keys` (JSON without braces) are added, and win.
    pub(in crate::config) fn tiny(keys: &str) -> ModelConfig {
        let base = r#"{"model_type": "llama", "hidden_size": 12, "intermediate_size": 10, "vocab_size": 11,
            "num_hidden_layers": 1, "num_attention_heads": 2"#;
        ModelConfig::from_hf(format!("{base}, {keys}}}").as_bytes(), Path::new("config.json")).expect("a good config")
    }
}
