//! JSON schemas, regular expressions and grammars of requests: compiled within the limits or refused; whatever compiles can be
//! followed for some tokens.
#![no_main]

use edgelm_engine::{Constraint, EngineError, Grammars};
use edgelm_model::{ModelConfig, Tokenizer};
use libfuzzer_sys::fuzz_target;
use std::{fs, path::Path, sync::LazyLock};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/edgelm/assets/mica-5m");
/// Tokens of an answer.
const STEPS: usize = 12;

struct Setting {
    grammars: Grammars,
    vocab_size: usize,
}

static SETTING: LazyLock<Setting> = LazyLock::new(|| {
    let read = |name: &str| fs::read(Path::new(MODEL).join(name)).expect("the built-in model");
    let tokenizer =
        Tokenizer::from_json(&read("tokenizer.json"), Some(&read("tokenizer_config.json"))).expect("a tokenizer");
    let config = ModelConfig::from_hf(&read("config.json"), Path::new("config.json")).expect("a config");
    Setting { grammars: Grammars::new(&tokenizer, &config).expect("a vocabulary"), vocab_size: config.vocab_size }
});

fn constraint(kind: u8, text: &str) -> Option<Constraint> {
    Some(match kind % 4 {
        0 => Constraint::JsonSchema(serde_json::from_str(text).ok()?),
        1 => Constraint::Regex(text.to_owned()),
        2 => Constraint::Lark(text.to_owned()),
        _ => Constraint::Choice(text.lines().map(str::to_owned).collect()),
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((&first, text)) = data.split_first() else { return };
    let Some(constraint) = std::str::from_utf8(text).ok().and_then(|text| constraint(first, text)) else { return };
    let grammar = match SETTING.grammars.compile(&constraint) {
        Ok(grammar) => grammar,
        Err(EngineError::Constraint(what)) => return assert!(!what.is_empty() && !what.contains('\n'), "{what}"),
        Err(other) => panic!("{other}"),
    };
    let mut guide = grammar.guide();
    for step in 0..STEPS {
        let mut logits = vec![0.0; SETTING.vocab_size];
        // Too much work for a step is an error too.
        if guide.mask(&mut logits).is_err() {
            return;
        }
        let allowed: Vec<usize> = (0..logits.len()).filter(|&token| logits[token] == 0.0).collect();
        assert!(!allowed.is_empty(), "the answer cannot go on, and cannot end");
        // Any of them, but the same each time.
        let token = allowed[(step * 7919 + text.len()) % allowed.len()];
        match guide.accept(u32::try_from(token).expect("a token")) {
            Ok(false) => {}
            Ok(true) => return,
            Err(error) => panic!("an allowed token was refused: {error}"),
        }
    }
});
