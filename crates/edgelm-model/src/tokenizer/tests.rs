#![allow(clippy::unwrap_used)]

use super::*;
use edgelm_format::gguf::{Array, Metadata, Value as Meta};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/model/tokenizers")
}

fn golden(name: &str) -> (Tokenizer, Value) {
    let directory = testdata().join(name);
    let tokenizer = Tokenizer::from_json(&std::fs::read(directory.join("tokenizer.json")).unwrap(), None).unwrap();
    let expected = serde_json::from_slice(&std::fs::read(directory.join("expected.json")).unwrap()).unwrap();
    (tokenizer, expected)
}

fn mica() -> Tokenizer {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../edgelm/assets/mica-5m");
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
    Tokenizer::from_json(&read("tokenizer.json"), Some(&read("tokenizer_config.json"))).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

const GOLDENS: [&str; 7] = [
    "bytelevel-gpt2",
    "bytelevel-llama3",
    "bytelevel-qwen",
    "spm-bpe-gemma",
    "spm-bpe-llama",
    "spm-bpe-metaspace",
    "unigram",
];

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> (Vec<Option<String>>, Option<String>) {
    let mut stream = tokenizer.stream(false);
    let pieces = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    (pieces, stream.finish().unwrap())
}

#[test]
fn goldens() {
    for name in GOLDENS {
        let (tokenizer, expected) = golden(name);
        assert_eq!(tokenizer.vocab_size() as u64, expected["vocab_size"].as_u64().unwrap(), "{name}");
        for case in expected["strings"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let plain = tokenizer.encode(text, false).unwrap();
            assert_eq!(plain, ids(&case["ids"]), "{name}: {text:?}");
            let full = tokenizer.encode(text, true).unwrap();
            assert_eq!(full, ids(&case["ids_with_special"]), "{name}: {text:?}");
            // The library's tokens keep the text where the id is the unknown token.
            let encoding = tokenizer.inner.encode(text, false).unwrap();
            assert_eq!(serde_json::to_value(encoding.get_tokens()).unwrap(), case["tokens"], "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&plain, false).unwrap(), case["decoded"], "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&full, true).unwrap(), case["decoded_skip_special"], "{name}: {text:?}");
            let (pieces, rest) = streamed(&tokenizer, &plain);
            assert_eq!(serde_json::to_value(&pieces).unwrap(), case["stream"], "{name}: {text:?}");
            assert_eq!(rest, None, "{name}: {text:?}");
        }
        for case in expected["odd_ids"].as_array().unwrap() {
            let odd = ids(&case["ids"]);
            assert_eq!(tokenizer.decode(&odd, false).unwrap(), case["decoded"], "{name}: {odd:?}");
            let (pieces, rest) = streamed(&tokenizer, &odd);
            assert_eq!(serde_json::to_value(&pieces).unwrap(), case["stream"], "{name}: {odd:?}");
            let missing = pieces.last().unwrap().is_none() && case["decoded"] != "";
            assert_eq!(rest.is_some(), missing, "{name}: {odd:?}");
        }
    }
}

#[test]
fn an_unknown_id_is_named_and_has_no_text_in_a_stream() {
    let (tokenizer, _) = golden("bytelevel-gpt2");
    let error = tokenizer.decode(&[1, 4711], false).unwrap_err();
    assert!(error.to_string().contains("4711"), "{error}");
    let ids = tokenizer.encode("a quiet harbour", false).unwrap();
    let padded: Vec<u32> = ids.iter().flat_map(|&id| [id, 4711]).collect();
    let (pieces, rest) = streamed(&tokenizer, &padded);
    assert_eq!((pieces.into_iter().flatten().collect::<String>().as_str(), rest), ("a quiet harbour", None));
}

#[test]
fn a_stream_of_noise_stays_bounded() {
    let (tokenizer, _) = golden("spm-bpe-llama");
    let byte = tokenizer.token_to_id("<0x80>").unwrap();
    let mut stream = tokenizer.stream(false);
    let mut characters = 0;
    for _ in 0..10_000 {
        characters += stream.push(byte).unwrap().map_or(0, |text| text.chars().count());
    }
    characters += stream.finish().unwrap().map_or(0, |text| text.chars().count());
    assert!((9_000..=10_000).contains(&characters), "{characters}");
}

#[test]
fn special_ids_are_left_out_of_a_stream() {
    let mica = mica();
    let ids = mica.encode("a<|im_end|>b", false).unwrap();
    let text = |skip| {
        let mut stream = mica.stream(skip);
        ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect::<String>()
    };
    assert_eq!((text(false).as_str(), text(true).as_str()), ("a<|im_end|>b", "ab"));
}

#[test]
fn bos_comes_once() {
    let mica = mica();
    assert_eq!((mica.bos(), mica.eos()), (Some(0), Some(2)));
    for text in ["x", "<|endoftext|>x"] {
        let ids = mica.encode_prompt(text).unwrap();
        assert_eq!((ids[0], ids.iter().filter(|&&id| id == 0).count()), (0, 1));
    }
    let chat = mica.encode_chat("<|im_start|>user\nhi<|im_end|>\n").unwrap();
    assert_eq!(chat[..2], [0, 1]);
    assert_eq!(mica.encode("x", true).unwrap(), mica.encode("x", false).unwrap());

    let (llama3, _) = golden("bytelevel-llama3");
    let bos = llama3.bos().unwrap();
    for text in ["x", "<|begin_of_text|>x"] {
        for ids in [llama3.encode_prompt(text).unwrap(), llama3.encode_chat(text).unwrap()] {
            assert_eq!((ids[0], ids.iter().filter(|&&id| id == bos).count()), (bos, 1), "{text}");
        }
    }
    let (gpt2, _) = golden("bytelevel-gpt2");
    assert_eq!(gpt2.encode_prompt("x").unwrap(), gpt2.encode("x", false).unwrap());
}

#[test]
fn config_tokens_may_be_objects_and_must_exist() {
    let json = std::fs::read(testdata().join("spm-bpe-gemma/tokenizer.json")).unwrap();
    let config = br#"{"bos_token": {"__type": "AddedToken", "content": "<bos>"}, "eos_token": "<eos>",
        "pad_token": "<pad>", "add_bos_token": false, "model_max_length": 1e30}"#;
    let tokenizer = Tokenizer::from_json(&json, Some(config)).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(2), Some(1)));
    assert_ne!(tokenizer.encode_chat("x").unwrap()[0], 2);

    let error = Tokenizer::from_json(&json, Some(br#"{"eos_token": "<nope>"}"#)).err().unwrap();
    assert!(error.to_string().contains("<nope>"), "{error}");
}

#[test]
fn tokens_that_only_the_config_lists_are_known() {
    let json = std::fs::read(testdata().join("bytelevel-gpt2/tokenizer.json")).unwrap();
    let config = |id: u32| format!(r#"{{"added_tokens_decoder": {{"{id}": {{"content": "<x>", "special": true}}}}}}"#);
    let tokenizer = Tokenizer::from_json(&json, Some(config(1001).as_bytes())).unwrap();
    assert_eq!(tokenizer.encode("<x>", false).unwrap(), [1001]);
    assert_eq!(tokenizer.vocab_size(), 1002);
    let error = Tokenizer::from_json(&json, Some(config(2000).as_bytes())).err().unwrap();
    assert!(error.to_string().contains("2000"), "{error}");
}

#[test]
fn truncation_and_padding_of_the_file_are_off() {
    let mut json: Value =
        serde_json::from_slice(&std::fs::read(testdata().join("bytelevel-gpt2/tokenizer.json")).unwrap()).unwrap();
    json["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = serde_json::json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap();
    let (whole, _) = golden("bytelevel-gpt2");
    let text = "a text of more than four tokens";
    assert_eq!(tokenizer.encode(text, true).unwrap(), whole.encode(text, true).unwrap());
}

fn without_json(metadata: &Metadata) -> Metadata {
    metadata.iter().filter(|(key, _)| key != "tokenizer.huggingface.json").cloned().collect()
}

fn texts() -> Vec<String> {
    let (_, expected) = golden("bytelevel-gpt2");
    expected["strings"].as_array().unwrap().iter().map(|case| case["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn gguf_round_trip_is_exact() {
    let texts = texts();
    let tokenizers = GOLDENS.map(|name| (name, golden(name).0)).into_iter().chain([("mica", mica())]);
    for (name, tokenizer) in tokenizers {
        let rows = tokenizer.vocab_size() + 5;
        let back = Tokenizer::from_gguf(&tokenizer.to_gguf(rows).unwrap()).unwrap();
        assert_eq!((back.bos(), back.eos()), (tokenizer.bos(), tokenizer.eos()), "{name}");
        assert_eq!(back.vocab_size(), tokenizer.vocab_size());
        for text in &texts {
            assert_eq!(back.encode_prompt(text).unwrap(), tokenizer.encode_prompt(text).unwrap(), "{name}: {text:?}");
            assert_eq!(back.encode_chat(text).unwrap(), tokenizer.encode_chat(text).unwrap(), "{name}: {text:?}");
        }
        assert_eq!(back.to_gguf(rows).unwrap(), tokenizer.to_gguf(rows).unwrap(), "{name}");
    }
}

#[test]
fn a_vocabulary_alone_gives_the_same_ids() {
    let texts = texts();
    for name in ["mica", "bytelevel-gpt2", "bytelevel-llama3", "bytelevel-qwen", "spm-bpe-llama", "spm-bpe-gemma"] {
        let tokenizer = if name == "mica" { mica() } else { golden(name).0 };
        let metadata = without_json(&tokenizer.to_gguf(tokenizer.vocab_size()).unwrap());
        let back = Tokenizer::from_gguf(&metadata).unwrap();
        assert_eq!((back.bos(), back.vocab_size()), (tokenizer.bos(), tokenizer.vocab_size()), "{name}");
        for text in &texts {
            let want = tokenizer.encode(text, false).unwrap();
            assert_eq!(back.encode(text, false).unwrap(), want, "{name}: {text:?}");
            assert_eq!(back.encode_prompt(text).unwrap(), tokenizer.encode_prompt(text).unwrap(), "{name}: {text:?}");
            assert_eq!(back.encode_chat(text).unwrap(), tokenizer.encode_chat(text).unwrap(), "{name}: {text:?}");
            assert_eq!(back.decode(&want, false).unwrap(), tokenizer.decode(&want, false).unwrap(), "{name}: {text:?}");
        }
    }
}

#[test]
fn names_of_pre_tokenizers() {
    let written = |tokenizer: &Tokenizer| {
        let metadata = tokenizer.to_gguf(tokenizer.vocab_size()).unwrap();
        metadata
            .iter()
            .find(|(key, _)| key == "tokenizer.ggml.pre")
            .and_then(|(_, name)| Some(name.as_str()?.to_owned()))
    };
    let cases =
        [("bytelevel-gpt2", "gpt-2"), ("bytelevel-llama3", "llama-bpe"), ("bytelevel-qwen", "qwen2"), ("unigram", "")];
    for (name, pre) in cases {
        assert_eq!(written(&golden(name).0).unwrap_or_default(), pre);
    }
    assert_eq!(written(&mica()).unwrap(), "smollm");
    assert!(mica().gguf_notes(8192).unwrap().is_empty());
}

#[test]
fn every_named_pre_tokenizer_compiles_and_splits() {
    let metadata = without_json(&mica().to_gguf(8192).unwrap());
    for pre in pre::PRE_TOKENIZERS.iter().filter(|pre| !pre.raw) {
        for name in pre.names {
            let mut metadata = metadata.clone();
            let key = metadata.iter_mut().find(|(key, _)| key == "tokenizer.ggml.pre").unwrap();
            key.1 = Meta::String((*name).to_owned());
            let tokenizer = Tokenizer::from_gguf(&metadata).unwrap_or_else(|error| panic!("{name}: {error}"));
            let text = "It's 12345 words,\r\n\n  \tand: 日本語 (naïve) — IMGIMGABZ 👍  ";
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{name}");
            let nfc = tokenizer.inner.get_normalizer().is_some();
            let structure = serde_json::to_value(tokenizer.inner.get_pre_tokenizer()).unwrap();
            let found = pre::by_structure(&structure, pre.ignore_merges, nfc).unwrap();
            assert_eq!((found.splits, found.nfc), (pre.splits, pre.nfc), "{name}");
        }
    }
}

#[test]
fn padding_fills_up_and_too_few_rows_are_refused() {
    let mica = mica();
    let metadata = mica.to_gguf(8200).unwrap();
    let strings = metadata.iter().find(|(key, _)| key == "tokenizer.ggml.tokens").unwrap().1.as_strings().unwrap();
    assert_eq!((strings.len(), strings[8199].as_str()), (8200, "[PAD8199]"));
    assert!(mica.to_gguf(100).unwrap_err().to_string().contains("100"));
}

#[test]
fn malformed_gguf_vocabularies_are_refused_with_the_key() {
    let base = without_json(&golden("spm-bpe-llama").0.to_gguf(1000).unwrap());
    let with = |key: &str, value: Option<Meta>| {
        let mut metadata: Metadata = base.iter().filter(|(name, _)| name != key).cloned().collect();
        metadata.extend(value.map(|value| (key.to_owned(), value)));
        Tokenizer::from_gguf(&metadata).err().map(|error| error.to_string()).unwrap_or_default()
    };
    let strings = |values: &[&str]| Meta::Array(Array::String(values.iter().map(|&text| text.to_owned()).collect()));
    let cases = [
        ("tokenizer.ggml.tokens", None, "tokenizer.ggml.tokens"),
        ("tokenizer.ggml.tokens", Some(strings(&["a"])), "scores"),
        ("tokenizer.ggml.tokens", Some(Meta::U32(1)), "tokenizer.ggml.tokens"),
        ("tokenizer.ggml.scores", Some(Meta::Array(Array::F32(vec![0.0; 7]))), "scores"),
        ("tokenizer.ggml.scores", Some(Meta::Array(Array::F32(vec![f32::NAN; 1000]))), "scores"),
        ("tokenizer.ggml.token_type", Some(Meta::Array(Array::I32(vec![1; 999]))), "token_type"),
        ("tokenizer.ggml.bos_token_id", Some(Meta::U32(1000)), "bos_token_id"),
        ("tokenizer.ggml.model", Some(Meta::String("rwkv".into())), "rwkv"),
        ("tokenizer.ggml.model", None, "tokenizer.ggml.model"),
        ("tokenizer.ggml.merges", Some(strings(&["nospace"])), "nospace"),
        ("tokenizer.ggml.merges", Some(strings(&[""])), "merges"),
        ("tokenizer.ggml.merges", Some(strings(&["zzz yyy"])), "zzz yyy"),
        ("tokenizer.huggingface.json", Some(Meta::String("{}".into())), "tokenizer.json"),
    ];
    for (key, value, named) in cases {
        let error = with(key, value.clone());
        assert!(error.contains(named), "{key} = {value:?}: {error:?}");
    }
    let gpt2 = without_json(&golden("bytelevel-gpt2").0.to_gguf(1001).unwrap());
    let replaced = |name: Option<&str>| -> Metadata {
        let kept = gpt2.iter().filter(|(key, _)| key != "tokenizer.ggml.pre").cloned();
        kept.chain(name.map(|name| ("tokenizer.ggml.pre".to_owned(), Meta::String(name.to_owned())))).collect()
    };
    assert!(Tokenizer::from_gguf(&replaced(Some("odd-one"))).err().unwrap().to_string().contains("odd-one"));
    assert!(Tokenizer::from_gguf(&replaced(None)).unwrap().notes()[0].contains("default"));
}

#[test]
fn scores_say_as_much_as_merges_of_a_sentencepiece_model() {
    // All splits of every token, so that scores are enough and no merges are written.
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [
            {"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "ab": 4, "▁a": 5, "▁ab": 6, "ba": 7, "aba": 8},
            "merges": [["b", "a"], ["a", "b"], ["▁", "a"], ["▁", "ab"], ["▁a", "b"], ["a", "ba"], ["ab", "a"]]}
    });
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap();
    let metadata = without_json(&tokenizer.to_gguf(9).unwrap());
    assert!(metadata.iter().all(|(key, _)| key != "tokenizer.ggml.merges"));
    let back = Tokenizer::from_gguf(&metadata).unwrap();
    for text in ["ab", "aba", "abab ba aab", "babababab a", "bb aa ab"] {
        assert_eq!(back.encode(text, false).unwrap(), tokenizer.encode(text, false).unwrap(), "{text}");
    }
}

#[test]
fn a_library_panic_is_an_error() {
    let json = serde_json::json!({"version": "1.0", "added_tokens": [], "model": {"type": "BPE",
        "continuing_subword_prefix": "####", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}});
    assert!(Tokenizer::from_json(json.to_string().as_bytes(), None).is_err());
}
