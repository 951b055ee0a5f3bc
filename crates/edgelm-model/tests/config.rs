//! config.json → `ModelConfig`: both spellings, published configs, every refusal with its message, rotary frequencies.

#![allow(clippy::unwrap_used)]

use edgelm_model::{
    AttentionBias, GatedNorm, Mixer, ModelConfig, ModelError, NormKind, QkNorm, RopePairs, RopeScaling, TensorId,
};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name)
}

fn read(path: &Path) -> ModelConfig {
    ModelConfig::from_hf(&std::fs::read(path).unwrap(), Path::new("config.json")).unwrap()
}

fn shared() -> Option<PathBuf> {
    let default = || concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared").to_owned();
    let path = PathBuf::from(std::env::var("EDGELM_SHARED").unwrap_or_else(|_| default()));
    path.is_dir().then_some(path)
}

/// Both files of a golden give the same config.
fn check_golden(folder: &Path) -> ModelConfig {
    let new = read(&folder.join("config.json"));
    assert_eq!(new, read(&folder.join("config.v4.json")), "{}", folder.display());
    new
}

#[test]
fn goldens_of_both_versions_agree() {
    let mut count = 0;
    for entry in std::fs::read_dir(testdata("goldens")).unwrap() {
        let folder = entry.unwrap().path();
        if folder.join("config.v4.json").exists() {
            check_golden(&folder);
            count += 1;
        }
    }
    assert!(count >= 10);

    let swa = read(&testdata("goldens/qwen2-swa/config.json"));
    assert_eq!(swa.layers.iter().map(|layer| layer.sliding_window).collect::<Vec<_>>(), [None, Some(32), Some(32)]);
    assert_eq!(swa.layers[0].attention_bias, AttentionBias::Qkv);
    let mistral = read(&testdata("goldens/mistral-swa/config.json"));
    assert!(mistral.layers.iter().all(|layer| layer.sliding_window == Some(32)));
    let bias = read(&testdata("goldens/llama-bias/config.json"));
    assert!(bias.layers[0].attention_bias == AttentionBias::Qkvo && bias.layers[0].mlp_bias);
    let qwen3 = read(&testdata("goldens/qwen3/config.json"));
    assert_eq!(qwen3.style.qk_norm, QkNorm::Head(NormKind::Rms));
    assert!(qwen3.layers[0].head_dim == 24 && qwen3.rope.rotary_dim == 24);
    assert_eq!(qwen3.rope.pairs, RopePairs::Halves);
    let dynamic = read(&testdata("goldens/llama-rope-dynamic/config.json"));
    assert_eq!(dynamic.rope.scaling, RopeScaling::Dynamic { factor: 4.0, original_max_position_embeddings: 64 });
    assert_eq!((dynamic.max_position_embeddings, dynamic.context_length()), (64, 256));
}

#[test]
fn shared_goldens_of_these_families_agree() {
    let Some(shared) = shared() else {
        println!("skipped: no folder of shared goldens");
        return;
    };
    let mut count = 0;
    for entry in std::fs::read_dir(shared.join("goldens")).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(text) = std::fs::read_to_string(folder.join("config.json")) else { continue };
        match ModelConfig::from_hf(text.as_bytes(), Path::new("config.json")) {
            Ok(_) => {
                // Families that transformers 4 does not have come without its config.
                if folder.join("config.v4.json").exists() {
                    check_golden(&folder);
                }
                count += 1;
            }
            Err(error) => {
                assert!(matches!(error, ModelError::UnknownArchitecture { .. }), "{}: {error}", folder.display());
                let Ok(old) = std::fs::read(folder.join("config.v4.json")) else { continue };
                let error = ModelConfig::from_hf(&old, Path::new("config.json")).unwrap_err();
                assert!(matches!(error, ModelError::UnknownArchitecture { .. }), "{}: {error}", folder.display());
            }
        }
    }
    assert!(count >= 72, "{count}");
}

#[test]
fn published_configs_are_read() {
    // Parameters as the tensors of each checkpoint add up.
    let known = [
        ("tinyllama-1.1b-chat", 1_100_048_384),
        ("llama-2-7b-chat", 6_738_415_616),
        ("llama-3.2-1b-instruct", 1_235_814_400),
        ("smollm2-135m-instruct", 134_515_008),
        ("mistral-7b-v0.1", 7_241_732_096),
        ("mistral-7b-instruct-v0.3", 7_248_023_552),
        ("qwen1.5-0.5b-chat", 463_987_712),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen3-0.6b", 596_049_920),
    ];
    for (name, parameters) in known {
        let config = read(&testdata("model/published").join(format!("{name}.json")));
        let elements = |id: &TensorId| config.tensor_shape(*id).unwrap().iter().product::<usize>();
        assert_eq!(config.tensor_ids().iter().map(elements).sum::<usize>(), parameters, "{name}");
    }
    let config = read(&testdata("model/published/llama-3.2-1b-instruct.json"));
    assert_eq!((config.bos_token_id, &config.eos_token_ids[..]), (Some(128_000), &[128_001, 128_008, 128_009][..]));
    let config = read(&testdata("model/published/mistral-7b-v0.1.json"));
    assert_eq!(config.layers[31].sliding_window, Some(4096));
}

#[test]
fn frequencies_are_those_of_transformers() {
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(testdata("model/rope.json")).unwrap()).unwrap();
    for case in cases {
        let config = ModelConfig::from_hf(case["config"].to_string().as_bytes(), Path::new("config.json")).unwrap();
        let (freq, factor) = config.rope.frequencies(case["total_len"].as_u64().unwrap() as usize);
        let want: Vec<f64> = serde_json::from_value(case["inv_freq"].clone()).unwrap();
        assert_eq!(freq.len(), want.len());
        for (got, want) in freq.iter().zip(&want) {
            assert!((got / want - 1.0).abs() < 2e-6, "{got} {want} in {case}");
        }
        assert!((factor - case["attention_factor"].as_f64().unwrap()).abs() < 1e-12, "{case}");
        assert_eq!(config.rope.depends_on_length(), config.rope.frequencies(1) != config.rope.frequencies(100_000));
    }
}

fn base() -> Map<String, Value> {
    let base = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 12,
        "intermediate_size": 10, "vocab_size": 11, "num_hidden_layers": 2, "num_attention_heads": 2});
    base.as_object().unwrap().clone()
}

/// The base config with `keys` over it; a key whose value is the string `absent` is removed.
fn with(keys: &Value) -> Result<ModelConfig, ModelError> {
    let mut map = base();
    for (key, value) in keys.as_object().unwrap() {
        map.insert(key.clone(), value.clone());
        if value == "absent" {
            map.remove(key);
        }
    }
    ModelConfig::from_hf(Value::Object(map).to_string().as_bytes(), Path::new("config.json"))
}

#[test]
fn absent_keys_mean_what_transformers_means() {
    let config = with(&json!({})).unwrap();
    assert_eq!(config.layers[0].num_key_value_heads, 2);
    assert_eq!((config.layers[0].head_dim, config.rope.theta, config.norm_eps), (6, 10000.0, 1e-6));
    assert_eq!((config.tie_word_embeddings, config.bos_token_id, config.eos_token_ids.len()), (false, None, 0));
    let mistral = json!({"model_type": "mistral", "architectures": null});
    assert_eq!(with(&mistral).unwrap().layers[0].sliding_window, Some(4096));
    let qwen3 = json!({"model_type": "qwen3", "architectures": []});
    assert_eq!(with(&qwen3).unwrap().layers[0].head_dim, 128);
    let null = json!({"model_type": "qwen3", "architectures": "absent", "head_dim": null});
    assert_eq!(with(&null).unwrap().layers[0].head_dim, 6);
    let qwen2 = json!({"model_type": "qwen2", "architectures": "absent", "use_sliding_window": true,
        "sliding_window": 3, "max_window_layers": 0});
    assert!(with(&qwen2).unwrap().layers.iter().all(|layer| layer.sliding_window == Some(3)));
}

#[test]
fn layers_may_differ_in_width() {
    let keys = json!({"num_hidden_layers": 3, "num_attention_heads": [2, 3, 6], "num_key_value_heads": [1, 3, 2],
        "intermediate_size": [10, 7, 1], "head_dim": 4});
    let config = with(&keys).unwrap();
    let widths = |layer: &edgelm_model::LayerConfig| {
        (layer.num_attention_heads, layer.num_key_value_heads, layer.intermediate_size)
    };
    assert_eq!(config.layers.iter().map(widths).collect::<Vec<_>>(), [(2, 1, 10), (3, 3, 7), (6, 2, 1)]);
}

#[test]
fn refusals_name_key_and_value() {
    let huge = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0});
    let cases = [
        (json!({"shrink": 3}), "unknown key `shrink` (`3`): it could change what the model computes"),
        (json!({"model_type": "absent"}), "key `model_type` is missing"),
        (
            json!({"architectures": ["MistralForCausalLM"]}),
            "key `architectures` is `[\"MistralForCausalLM\"]`: does not go with `model_type` `llama`",
        ),
        (json!({"architectures": "x"}), "key `architectures` is `\"x\"`: must be a list of names"),
        (
            json!({"hidden_act": "mish"}),
            "key `hidden_act` is `\"mish\"`: this activation is not supported; supported: silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu, relu2",
        ),
        (json!({"hidden_size": "absent"}), "key `hidden_size` is missing"),
        (json!({"hidden_size": 0}), "key `hidden_size` is `0`: must be a whole number from 1 to 131072"),
        (json!({"hidden_size": "12"}), "key `hidden_size` is `\"12\"`: must be a whole number from 1 to 131072"),
        (json!({"hidden_size": -12}), "key `hidden_size` is `-12`: must be a whole number from 1 to 131072"),
        (json!({"hidden_size": 1e300}), "key `hidden_size` is `1e+300`: must be a whole number from 1 to 131072"),
        (
            json!({"vocab_size": 5_000_000_000_000_u64}),
            "key `vocab_size` is `5000000000000`: must be a whole number from 1 to 4194304",
        ),
        (
            json!({"num_hidden_layers": 2_000_000_000}),
            "key `num_hidden_layers` is `2000000000`: must be a whole number from 1 to 1024",
        ),
        (json!({"num_attention_heads": 13}), "`hidden_size` 12 is less than `num_attention_heads` 13"),
        (
            json!({"num_attention_heads": [2, 1]}),
            "key `head_dim` is absent: must be given where layers differ in `num_attention_heads`",
        ),
        (
            json!({"intermediate_size": [1, 2, 3]}),
            "key `intermediate_size` is `[1,2,3]`: must have one entry per layer (2)",
        ),
        (
            json!({"intermediate_size": [1, 0]}),
            "key `intermediate_size` is `[1,0]`: must be a whole number from 1 to 1048576",
        ),
        (
            json!({"num_key_value_heads": 3, "head_dim": 2}),
            "layer 0: `num_attention_heads` 2 is not a multiple of `num_key_value_heads` 3",
        ),
        (
            json!({"num_attention_heads": 4096, "head_dim": 4096}),
            "layer 0: `num_attention_heads` × `head_dim` is 16777216, more than 1048576",
        ),
        (json!({"head_dim": 5}), "`head_dim`: the number of rotary components is 5, must be even"),
        (json!({"rms_norm_eps": "Infinity"}), "key `rms_norm_eps` is `\"Infinity\"`: must be a finite number"),
        (json!({"rms_norm_eps": -1.0}), "key `rms_norm_eps` is `-1.0`: must be from 0 to 1"),
        (json!({"pretraining_tp": 2}), "key `pretraining_tp` is `2`: only `1` is supported"),
        (json!({"rope_interleaved": true}), "key `rope_interleaved` is `true`: only `false` is supported"),
        (
            json!({"compression_config": {"format": "dense"}}),
            "key `compression_config`: this old form of checkpoints is not supported",
        ),
        (json!({"tie_word_embeddings": "yes"}), "key `tie_word_embeddings` is `\"yes\"`: must be true or false"),
        (json!({"eos_token_id": [1, -1]}), "key `eos_token_id` is `[1,-1]`: must be token ids"),
        (json!({"sliding_window": 8}), "key `sliding_window` is `8`: this architecture has no sliding window"),
        (
            json!({"layer_types": ["full_attention", "conv"]}),
            "key `layer_types` is `[\"full_attention\",\"conv\"]`: `\"conv\"` is not supported; supported: full_attention, sliding_attention",
        ),
        (
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
            "key `layer_types` is `[\"full_attention\",\"sliding_attention\"]`: layer 1 is at odds with `sliding_window` and `use_sliding_window`",
        ),
        (
            json!({"partial_rotary_factor": 0.5}),
            "key `partial_rotary_factor` is `0.5`: only 1 is supported for this architecture",
        ),
        (json!({"rope_theta": 0.0}), "key `rope_theta` is `0.0`: must be above 0"),
        (json!({"rope_theta": 1}), "`rope_theta` is `1`: must be above 1 and at most 1e15"),
        (
            json!({"rope_scaling": {"type": "spiral", "factor": 2.0}}),
            "key `rope_scaling.type` is `\"spiral\"`: this rope type is not supported; supported: default, linear, dynamic, llama3, yarn, longrope, proportional",
        ),
        (
            json!({"rope_parameters": {"rope_type": "ntk"}}),
            "key `rope_parameters.rope_type` is `\"ntk\"`: this rope type is not supported; supported: default, linear, dynamic, llama3, yarn, longrope, proportional",
        ),
        (
            json!({"rope_scaling": {"type": "linear"}}),
            "key `rope_scaling.factor` is absent: rope type `linear` needs it",
        ),
        (json!({"rope_scaling": {"type": "linear", "factor": 0}}), "key `rope_scaling.factor` is `0`: must be above 0"),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2e-7}}),
            "rotary scaling: `factor` is `2e-7`: must be from 1e-6 to 1e9",
        ),
        (
            json!({"rope_scaling": {"factor": 2.0}}),
            "key `rope_scaling.rope_type` is absent: a scaling factor without a type has no meaning",
        ),
        (
            json!({"rope_scaling": {"type": "dynamic", "factor": 0.5}}),
            "key `rope_scaling.factor` is `0.5`: must be at least 1",
        ),
        (
            json!({"rope_scaling": huge}),
            "key `rope_scaling.high_freq_factor` is `4.0`: must be above `low_freq_factor`",
        ),
        (
            json!({"rope_scaling": {"type": "yarn", "factor": 2.0, "attn_factor": 2.0}}),
            "unknown key `rope_scaling.attn_factor` (`2.0`): it could change what the model computes",
        ),
        (json!({"rope_scaling": 2}), "key `rope_scaling` is `2`: must be an object"),
        (
            json!({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
            "`rope_type` `dynamic` needs more than 2 rotary components",
        ),
    ];
    for (keys, message) in cases {
        let error = with(&keys).expect_err(message);
        assert_eq!(error.to_string(), format!("`config.json`: {message}"));
    }
    let qwen2 = json!({"model_type": "qwen2", "architectures": null, "mlp_bias": true});
    assert_eq!(
        with(&qwen2).unwrap_err().to_string(),
        "`config.json`: key `mlp_bias` is `true`: this architecture has no biases here"
    );
    let mistral = json!({"model_type": "mistral", "architectures": null, "attention_bias": true});
    assert_eq!(
        with(&mistral).unwrap_err().to_string(),
        "`config.json`: key `attention_bias` is `true`: this architecture has no biases"
    );
    let unknown = json!({"model_type": "mamba", "architectures": ["MambaForCausalLM"]});
    let message = with(&unknown).unwrap_err().to_string();
    let want = "`config.json`: architecture `MambaForCausalLM` is not supported; supported: LlamaForCausalLM, ";
    assert!(message.starts_with(want), "{message}");
    let other = json!({"architectures": ["LlamaForSequenceClassification"]});
    assert!(with(&other).unwrap_err().to_string().contains("architecture `LlamaForSequenceClassification` is not"));
}

#[test]
fn non_finite_numbers_matter_only_where_they_are_read() {
    let text = br#"{"model_type": "llama", "hidden_size": 12, "intermediate_size": 10, "vocab_size": 11,
        "num_hidden_layers": 1, "num_attention_heads": 2, "temperature": Infinity, "bad_words_ids": [NaN]}"#;
    assert!(ModelConfig::from_hf(text, Path::new("config.json")).is_ok());
}

proptest::proptest! {
    #[test]
    fn any_bytes_give_an_answer(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = ModelConfig::from_hf(&bytes, Path::new("config.json"));
    }

    /// Any value under any known key is read or refused, and what is read can be walked.
    #[test]
    fn any_value_of_a_known_key_gives_an_answer(index in 0usize..24, kind in 0usize..12) {
        let keys = ["model_type", "architectures", "hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps",
            "rope_theta", "rope_scaling", "rope_parameters", "sliding_window", "layer_types", "max_window_layers",
            "eos_token_id", "bos_token_id", "tie_word_embeddings", "attention_bias", "hidden_act",
            "original_max_position_embeddings", "quantization_config"];
        let values = [json!(null), json!(0), json!(-1), json!(1), json!(3), json!(1e308), json!(0.5), json!("x"),
            json!([]), json!({}), json!(true), json!(u64::MAX)];
        let mut map = base();
        map.insert(keys[index].to_owned(), values[kind].clone());
        let result = ModelConfig::from_hf(Value::Object(map).to_string().as_bytes(), Path::new("config.json"));
        if let Ok(config) = result {
            assert!(config.tensor_ids().len() >= 3);
            assert!(config.rope.frequencies(usize::MAX).0.iter().all(|freq| freq.is_finite()));
        }
    }
}

/// A golden's config.json with some keys changed.
fn golden_with(name: &str, keys: &Value) -> Result<ModelConfig, ModelError> {
    let text = std::fs::read(testdata("goldens").join(name).join("config.json")).unwrap();
    let mut map: Map<String, Value> = serde_json::from_slice(&text).unwrap();
    for (key, value) in keys.as_object().unwrap() {
        match value == "absent" {
            true => drop(map.remove(key)),
            false => drop(map.insert(key.clone(), value.clone())),
        }
    }
    ModelConfig::from_hf(Value::Object(map).to_string().as_bytes(), Path::new("config.json"))
}

#[test]
fn mixers_other_than_attention() {
    let kinds =
        |config: &ModelConfig| -> Vec<bool> { config.layers.iter().map(|layer| layer.mixer.has_attention()).collect() };
    let lfm2 = |keys: Value| golden_with("lfm2", &keys).unwrap();
    assert_eq!(kinds(&lfm2(json!({}))), [false, true, false]);
    // Without `layer_types`: those of `full_attn_idxs`, or all.
    assert_eq!(kinds(&lfm2(json!({"layer_types": "absent", "full_attn_idxs": [2]}))), [false, false, true]);
    assert_eq!(kinds(&lfm2(json!({"layer_types": "absent"}))), [true, true, true]);
    let width = |keys: Value| lfm2(keys).layers[0].intermediate_size;
    assert_eq!(width(json!({"intermediate_size": 48, "block_auto_adjust_ff_dim": "absent"})), 256);
    let null = json!({"intermediate_size": 50, "block_auto_adjust_ff_dim": true, "block_ffn_dim_multiplier": null});
    assert_eq!(width(null), 33);
    assert_eq!(width(json!({"block_ff_dim": 24})), 24);
    // The last but each fourth.
    let qwen = golden_with("qwen3_5", &json!({"layer_types": "absent"})).unwrap();
    assert_eq!(kinds(&qwen), [false, false, false, true]);
    assert!(!qwen.is_plain() && qwen.style.output_gate.is_some());

    let Mixer::Mamba2(mamba) = golden_with("mamba2", &json!({"time_step_limit": [0.01, 0.5]})).unwrap().layers[0].mixer
    else {
        panic!("not Mamba-2")
    };
    assert_eq!((mamba.time_step_limit, mamba.channels()), ((0.01, 0.5), 64 + 2 * 2 * 8));
    let auto = golden_with("falcon_h1", &json!({"mamba_d_head": "auto", "mamba_rms_norm": true})).unwrap();
    assert!(matches!(auto.layers[1].mixer, Mixer::AttentionAndMamba2(mamba) if mamba.norm == GatedNorm::BeforeGate));

    let refusals = [
        ("llama-tied", json!({"layer_types": ["conv", "conv"]}), "key `layer_types`"),
        (
            "lfm2",
            json!({"layer_types": ["mamba", "conv", "conv"]}),
            "`\"mamba\"` is not supported; supported: full_attention, sliding_attention, conv",
        ),
        ("lfm2", json!({"conv_L_cache": 0}), "key `conv_L_cache` is `0`"),
        ("mamba2", json!({"num_heads": 5}), "key `num_heads` is `5`: times 16 components is not 64"),
        ("mamba2", json!({"n_groups": 3}), "layer 0: 4 heads cannot share 3 groups of keys evenly"),
        ("mamba2", json!({"time_step_limit": [0.5, 0.1]}), "key `time_step_limit`"),
        ("mamba2", json!({"time_step_limit": [0.0, "NaN"]}), "key `time_step_limit`"),
        ("mamba2", json!({"state_size": 5000}), "key `state_size` is `5000`"),
        (
            "mamba2",
            json!({"hidden_size": 131_072, "num_heads": 4096, "head_dim": 64, "state_size": 4096, "n_groups": 4}),
            "a state of 1073741824 values",
        ),
        ("falcon_h1", json!({"ssm_multipliers": [1.0]}), "key `ssm_multipliers` is `[1.0]`: must hold 5 numbers"),
        ("granitemoehybrid", json!({"position_embedding_type": "alibi"}), "only `rope` and `nope` are supported"),
        ("qwen3_next", json!({"linear_num_value_heads": 3}), "3 heads cannot share 2 groups"),
    ];
    for (name, keys, want) in refusals {
        let message = golden_with(name, &keys).unwrap_err().to_string();
        assert!(message.contains(want), "{name} {keys}: {message}");
    }
}
