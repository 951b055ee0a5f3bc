//! What we write into GGUF files must be tokenized by llama.cpp as by us. Needs its `llama-tokenize`, by the variable
//! `EDGELM_LLAMA_TOKENIZE`.
#![allow(clippy::unwrap_used)]

use edgelm_format::gguf::{Metadata, Value, Writer};
use edgelm_model::Tokenizer;
use std::path::Path;
use std::process::Command;

/// A file with a vocabulary and no tensors, of which llama.cpp reads the vocabulary only.
fn write_vocabulary(path: &Path, tokenizer: &Tokenizer, rows: usize) {
    let number = |key: &str, value: u32| (key.to_owned(), Value::U32(value));
    let mut metadata: Metadata = vec![
        ("general.architecture".into(), Value::String("llama".into())),
        number("llama.context_length", 128),
        number("llama.embedding_length", 32),
        number("llama.block_count", 1),
        number("llama.feed_forward_length", 32),
        number("llama.attention.head_count", 1),
        ("llama.attention.layer_norm_rms_epsilon".into(), Value::F32(1e-5)),
    ];
    metadata.extend(tokenizer.to_gguf(rows).unwrap());
    Writer::create(path, &metadata, &[]).unwrap().finish().unwrap();
}

#[test]
fn llama_cpp_tokenizes_alike() {
    let Ok(program) = std::env::var("EDGELM_LLAMA_TOKENIZE") else {
        println!("skipped: EDGELM_LLAMA_TOKENIZE is not set");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let goldens = root.join("../../testdata/model/tokenizers");
    let read = |path: &Path| std::fs::read(path).unwrap();
    let mica = root.join("../edgelm/assets/mica-5m");
    let mut cases = vec![(
        "mica",
        Tokenizer::from_json(&read(&mica.join("tokenizer.json")), Some(&read(&mica.join("tokenizer_config.json"))))
            .unwrap(),
    )];
    for name in ["bytelevel-gpt2", "bytelevel-llama3", "bytelevel-qwen", "spm-bpe-llama"] {
        cases.push((name, Tokenizer::from_json(&read(&goldens.join(name).join("tokenizer.json")), None).unwrap()));
    }
    let expected: serde_json::Value =
        serde_json::from_slice(&read(&goldens.join("bytelevel-gpt2/expected.json"))).unwrap();
    let texts: Vec<&str> =
        expected["strings"].as_array().unwrap().iter().map(|case| case["text"].as_str().unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let mut different = Vec::new();
    for (name, tokenizer) in &cases {
        let file = folder.path().join(format!("{name}.gguf"));
        let rows = tokenizer.vocab_size() + 3;
        write_vocabulary(&file, tokenizer, rows);
        println!("{name}: {:?}", tokenizer.gguf_notes(rows).unwrap());
        for text in &texts {
            let input = folder.path().join("text");
            std::fs::write(&input, text).unwrap();
            let output = Command::new(&program)
                .args(["--log-disable", "--ids", "-m"])
                .arg(&file)
                .arg("-f")
                .arg(&input)
                .output()
                .unwrap();
            let printed = String::from_utf8_lossy(&output.stdout).into_owned();
            let ids: Result<Vec<u32>, _> = serde_json::from_str(printed.trim());
            let mut ids =
                ids.unwrap_or_else(|_| panic!("{name}: {printed} {}", String::from_utf8_lossy(&output.stderr)));
            // Where a text itself starts with bos, llama.cpp warns and puts a second one in front.
            if tokenizer.bos().is_some_and(|bos| ids.starts_with(&[bos, bos])) {
                ids.remove(0);
            }
            // llama.cpp does not compose characters; `gguf_notes` says so.
            if *name == "bytelevel-qwen" && text.contains('\u{301}') {
                continue;
            }
            let ours = tokenizer.encode_prompt(text).unwrap();
            if ids != ours {
                different.push(format!("{name}: {text:?}\n  llama.cpp {ids:?}\n  ours      {ours:?}"));
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}
