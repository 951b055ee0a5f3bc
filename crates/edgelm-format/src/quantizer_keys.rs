//! Keys of `quantization_config` as the tools write them that make GPTQ and AWQ checkpoints.
//!
//! Tools write the same thing under several names, and whatever they were run with. What changes the meaning of what is stored
//! is asked for by name; what cannot stands in [`HARMLESS`]; a key that is in neither is refused, because it might.

use crate::fault::{Fault, Name, malformed};
use serde_json::{Map, Value};

/// Keys that do not change what is stored, of AutoGPTQ 0.7, AutoAWQ 0.2.9, GPTQModel 7.7, AutoRound 0.16 and transformers 5.23.
const HARMLESS: [&str; 61] = [
    "quant_method",
    "method",
    // Zeros are stored, whatever it says.
    "sym",
    "zero_point",
    // Which modules are quantized, their tensors show.
    "lm_head",
    "modules_to_not_convert",
    "modules_in_block_to_quantize",
    "block_name_to_quantize",
    "to_quant_block_names",
    "quant_block_list",
    "module_name_preceding_first_block",
    "supported_types",
    // How the quants were found.
    "damp_percent",
    "damp_auto_increment",
    "true_sequential",
    "static_groups",
    "act_group_aware",
    "hyb_act",
    "mse",
    "gptaq",
    "gptaq_alpha",
    "foem",
    "dataset",
    "tokenizer",
    "model_seqlen",
    "batch_size",
    "pad_token_id",
    "cache_block_outputs",
    "amp",
    "iters",
    "lr",
    "minmax_lr",
    "nsamples",
    "seqlen",
    "low_gpu_mem_usage",
    "low_cpu_mem_usage",
    "enable_minmax_tuning",
    "enable_norm_bias_tuning",
    "enable_quanted_input",
    "gradient_accumulate_steps",
    "scale_dtype",
    "not_use_best_mse",
    "dynamic_max_gap",
    "enable_alg_ext",
    "enable_deterministic_algorithms",
    // Who made it, and with which kernels others run it.
    "provider",
    "autoround_version",
    "model_name_or_path",
    "model_file_base_name",
    "meta",
    "backend",
    "exllama_config",
    "use_exllama",
    "disable_exllama",
    "use_cuda_fp16",
    "max_input_length",
    "do_fuse",
    "fuse_max_seq_len",
    "modules_to_fuse",
    // Said of a cache or of scores that are not rounded, see `refuse`.
    "static_kv_granularity",
    "static_attention_granularity",
];

/// The keys, and which of them were asked for.
pub(crate) struct Keys<'a> {
    map: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(value: &'a Value) -> Result<Self, Fault> {
        match value.as_object() {
            Some(map) => Ok(Self { map, known: HARMLESS.to_vec() }),
            None => malformed!("must be an object"),
        }
    }

    /// The value that stands under one of these names, or under several, all the same; null is as good as none.
    pub(crate) fn get(&mut self, names: &[&'static str]) -> Result<Option<&'a Value>, Fault> {
        self.known.extend(names);
        let mut found: Option<(&str, &Value)> = None;
        for name in names {
            let Some(value) = self.map.get(*name).filter(|value| !value.is_null()) else { continue };
            match found {
                Some((other, first)) if first != value => {
                    return malformed!("`{other}` is {first} and `{name}` is {value}, which is the same thing");
                }
                _ => found = Some((name, value)),
            }
        }
        Ok(found.map(|(_, value)| value))
    }

    pub(crate) fn text(&mut self, names: &[&'static str]) -> Result<Option<&'a str>, Fault> {
        match self.get(names)? {
            None => Ok(None),
            Some(value) => match value.as_str() {
                Some(text) => Ok(Some(text)),
                None => malformed!("`{}` is {value}, must be text", names[0]),
            },
        }
    }

    pub(crate) fn flag(&mut self, names: &[&'static str]) -> Result<Option<bool>, Fault> {
        match self.get(names)? {
            None => Ok(None),
            Some(value) => match value.as_bool() {
                Some(flag) => Ok(Some(flag)),
                None => malformed!("`{}` is {value}, must be true or false", names[0]),
            },
        }
    }

    /// Bits of a quant.
    pub(crate) fn bits(&mut self, names: &[&'static str], supported: &[u32]) -> Result<u32, Fault> {
        let bits = self.get(names)?;
        let number = bits.and_then(Value::as_u64).and_then(|bits| u32::try_from(bits).ok());
        match (bits, number) {
            (_, Some(bits)) if supported.contains(&bits) => Ok(bits),
            (Some(bits), _) => Err(Fault::Unsupported(format!("`bits` {bits} is not supported"))),
            (None, _) => malformed!("`bits` is missing"),
        }
    }

    /// Inputs that share a scale; −1 stands for all.
    pub(crate) fn group_size(&mut self, names: &[&'static str]) -> Result<Option<usize>, Fault> {
        let Some(stored) = self.get(names)? else { return malformed!("`group_size` is missing") };
        match (stored.as_u64().and_then(|size| usize::try_from(size).ok()), stored.as_i64()) {
            (Some(size), _) if size > 0 => Ok(Some(size)),
            (_, Some(-1)) => Ok(None),
            _ => malformed!("`group_size` is {stored}, must be above 0, or -1"),
        }
    }

    /// Refuses a key that says anything but "none" or "no".
    pub(crate) fn refuse(&mut self, name: &'static str) -> Result<(), Fault> {
        let says_nothing = |value: &Value| match value {
            Value::Bool(flag) => !flag,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        match self.get(&[name])?.is_none_or(says_nothing) {
            true => Ok(()),
            false => Err(Fault::Unsupported(format!("`{name}` is not supported"))),
        }
    }

    /// Refuses whatever is left.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        match self.map.keys().find(|key| !self.known.contains(&key.as_str())) {
            Some(key) => Err(Fault::Unsupported(format!("key {} is not known", Name(key)))),
            None => Ok(()),
        }
    }
}
