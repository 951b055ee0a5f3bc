//! Constrained output, checked by an independent validator.

#![allow(clippy::unwrap_used)]

use edgelm_engine::{Constraint, EngineError, FinishReason, GenerateOptions, Generation, Model, Pooling, Sampling};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use serde_json::{Value, json};
use std::{ops::ControlFlow, path::Path, sync::Arc};

const MICA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../edgelm/assets/mica-5m");
const SCHEMAS: &str = include_str!("constraint/schemas.json");

fn mica() -> Model {
    let checkpoint = Checkpoint::open(Path::new(MICA)).unwrap();
    Model::load(Arc::new(checkpoint), Arc::new(Cpu::new(Some(2), None).unwrap())).unwrap()
}

fn answer(model: &Model, constraint: &Constraint, sampling: Sampling, max_tokens: usize) -> Generation {
    let prompt = model.chat_prompt(&[json!({"role": "user", "content": "Give me an example."})]).unwrap();
    let options = GenerateOptions {
        max_tokens: Some(max_tokens),
        sampling,
        constraint: Some(model.grammar(constraint).unwrap_or_else(|error| panic!("{constraint:?}: {error}"))),
        logprobs: Some(1),
        ..GenerateOptions::default()
    };
    model.generate(&prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn warm(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, seed, ..Sampling::default() }
}

/// Every answer that ended by itself is valid, however tokens are picked; most do end.
#[test]
fn every_answer_validates() {
    let model = mica();
    let cases: Vec<Value> = serde_json::from_str(SCHEMAS).unwrap();
    let (mut ended, mut cut) = (0, 0);
    let mut wrong = Vec::new();
    for case in &cases {
        let (name, schema) = (case["name"].as_str().unwrap(), &case["schema"]);
        let validator = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
        for sampling in [Sampling::default(), warm(1), Sampling { temperature: 2.0, ..warm(2) }] {
            let generation = answer(&model, &Constraint::JsonSchema(schema.clone()), sampling, 160);
            if generation.finish_reason == FinishReason::Length {
                cut += 1;
                continue;
            }
            ended += 1;
            match serde_json::from_str::<Value>(&generation.text) {
                Ok(value) if validator.is_valid(&value) => {}
                _ => wrong.push(format!("{name}: {}", generation.text)),
            }
        }
    }
    println!("{} schemas: {ended} answers ended, {cut} were cut", cases.len());
    assert!(wrong.is_empty(), "{} of {ended}: {wrong:#?}", wrong.len());
    assert!(ended > 9 * cut, "{ended} answers ended, {cut} were cut");
}

#[test]
fn what_cannot_be_enforced_is_refused_by_name() {
    let model = mica();
    for (schema, named) in [
        (json!({"not": {"type": "string"}}), "not"),
        (json!({"if": {"type": "string"}, "then": {"const": "x"}}), "if"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"type": "array", "contains": {"const": 1}}), "contains"),
        (json!({"type": "object", "dependentRequired": {"a": ["b"]}}), "dependentRequired"),
        (json!({"type": "object", "propertyNames": {"pattern": "^a"}}), "propertyNames"),
        (json!({"type": "object", "unevaluatedProperties": false}), "unevaluatedProperties"),
        (json!({"type": "string", "format": "no-such-format"}), "no-such-format"),
        (json!({"type": "text"}), "text"),
        (json!({"$ref": "https://example.org/schema.json"}), "example.org"),
        (json!({"$ref": "#/$defs/none"}), "none"),
        (json!({"type": "string", "pattern": "(?<=a)b"}), "look"),
        (json!({"dependentSchemas": {"a": {}}}), "dependentSchemas"),
        (json!({"dependencies": {"a": ["b"]}}), "dependencies"),
        (json!({"type": "array", "unevaluatedItems": false}), "unevaluatedItems"),
        (json!({"$dynamicRef": "#a"}), "$dynamicRef"),
        (json!({"type": "array", "items": {"properties": {"a": {"not": {}}}}}), "not"),
        (json!({"allOf": [{"type": "string"}, {"type": "integer"}]}), "nsatisf"),
        (json!({"x-guidance": {"lenient": true}, "not": {}}), "x-guidance"),
        (json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}), "$ref"),
        (json!(false), "schema"),
        (json!("string"), "schema"),
    ] {
        match model.grammar(&Constraint::JsonSchema(schema.clone())) {
            Err(EngineError::Constraint(what)) => assert!(what.contains(named), "{schema}: {what}"),
            Err(other) => panic!("{schema}: {other}"),
            Ok(_) => panic!("{schema} was accepted"),
        }
    }
    for constraint in [
        Constraint::Regex("(".into()),
        Constraint::Regex("(a)\\1".into()),
        Constraint::Lark("start: nothing".into()),
        Constraint::Lark("begin: \"a\"".into()),
        Constraint::Lark(String::new()),
        Constraint::Choice(Vec::new()),
    ] {
        assert!(matches!(model.grammar(&constraint), Err(EngineError::Constraint(_))), "{constraint:?} was accepted");
    }
}

#[test]
fn too_much_work_is_refused() {
    let model = mica();
    let deep = (0..100_000).map(|i| json!({"const": format!("{i:030}")})).collect::<Vec<_>>();
    let deep = Constraint::JsonSchema(json!({"type": "array", "prefixItems": deep, "minItems": 100_000}));
    assert!(matches!(model.grammar(&deep), Err(EngineError::Constraint(_))));
}

#[test]
fn regexes_choices_and_grammars() {
    let model = mica();
    for seed in 0..4 {
        let date = answer(&model, &Constraint::Regex("[0-9]{4}-[0-1][0-9]".into()), warm(seed), 20);
        assert_eq!((date.finish_reason, date.text.len(), &date.text[4..5]), (FinishReason::Stop, 7, "-"), "{date:?}");
        let texts = ["yes", "no \"q\"", "é\n/", "\\"].map(str::to_owned).to_vec();
        let choice = answer(&model, &Constraint::Choice(texts.clone()), warm(seed), 20);
        assert!(texts.contains(&choice.text), "{}", choice.text);
        let sum = answer(&model, &Constraint::Lark("start: NUM (\" + \" NUM){2}\nNUM: /[0-9]/".into()), warm(seed), 20);
        assert_eq!((sum.finish_reason, sum.text.len()), (FinishReason::Stop, 9), "{}", sum.text);
        let object = answer(&model, &Constraint::JsonObject, warm(seed), 300);
        if object.finish_reason == FinishReason::Stop {
            assert!(serde_json::from_str::<Value>(&object.text).unwrap().is_object());
        }
    }
    let same = |seed| answer(&model, &Constraint::JsonObject, warm(seed), 40).tokens;
    assert_eq!(same(5), same(5));
}

/// The grammar of free text with calls in it, as the server builds it: no text can go past the mark of a call.
#[test]
fn marks_in_free_text_bind() {
    let model = mica();
    let lark = r#"start: (head body)* tail
call: "{\"name\": \"f\", \"arguments\": " %json {"type": "object", "properties": {}, "additionalProperties": false} "}"
body: "\n" call "\n" "</tool_call>"
TEXT: /(.|\n)*/
tail: TEXT
head[lazy]: TEXT "<tool_call>"
"#;
    let mut guide = model.grammar(&Constraint::Lark(lark.into())).unwrap().guide();
    let tokenizer = model.tokenizer().unwrap();
    let end = model.engine().config().eos_token_ids[0];
    let allowed = |guide: &mut edgelm_engine::Guide, token: u32| {
        let mut logits = vec![0.0; model.engine().config().vocab_size];
        guide.mask(&mut logits).unwrap();
        logits[token as usize] == 0.0
    };
    let feed = |guide: &mut edgelm_engine::Guide, text: &str| {
        for token in tokenizer.encode(text, false).unwrap() {
            assert!(allowed(guide, token), "{:?} in {text:?}", tokenizer.id_to_token(token));
            assert!(!guide.accept(token).unwrap());
        }
    };
    let plain = tokenizer.encode("x", false).unwrap()[0];
    for round in 0..2 {
        feed(&mut guide, "Let me see: a < b, <tool.\n<tool_call>");
        let mut logits = vec![0.0; model.engine().config().vocab_size];
        guide.mask(&mut logits).unwrap();
        assert!(logits[plain as usize] < 0.0 && logits[end as usize] < 0.0, "round {round}");
        feed(&mut guide, "\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>");
    }
    feed(&mut guide, " Done.");
    let mut logits = vec![0.0; model.engine().config().vocab_size];
    guide.mask(&mut logits).unwrap();
    assert!(logits[end as usize] == 0.0);
}

#[test]
fn a_cut_answer_says_length() {
    let model = mica();
    let constraint = Constraint::JsonSchema(json!({"type": "string", "minLength": 200}));
    let generation = answer(&model, &constraint, Sampling::default(), 10);
    assert_eq!((generation.finish_reason, generation.tokens.len()), (FinishReason::Length, 10));
}

#[test]
fn log_probabilities_stay_the_models() {
    let model = mica();
    let constraint = Constraint::Choice(vec!["zzz".into()]);
    let prompt = model.tokenizer().unwrap().encode_prompt("One").unwrap();
    let mut seen = Vec::new();
    let options = GenerateOptions {
        constraint: Some(model.grammar(&constraint).unwrap()),
        logprobs: Some(2),
        ..GenerateOptions::default()
    };
    model
        .generate(&prompt, &options, &mut |piece| {
            seen.extend(piece.logprob.map(|logprob| (logprob, piece.top_logprobs.clone())));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(seen[0].0 < -1.0 && seen[0].0 < seen[0].1[0].1, "an unlikely token, though the only one: {seen:?}");
}

#[test]
fn beams_and_ignored_ends_are_refused() {
    let model = mica();
    let constraint = Some(model.grammar(&Constraint::JsonObject).unwrap());
    for options in [
        GenerateOptions { constraint: constraint.clone(), beams: 2, ..GenerateOptions::default() },
        GenerateOptions { constraint, ignore_eos: true, ..GenerateOptions::default() },
    ] {
        let refused = model.generate(&[1], &options, &mut |_| ControlFlow::Continue(()));
        assert!(matches!(refused, Err(EngineError::Option { option: "constraint", .. })));
    }
}

#[test]
fn embeddings_have_length_one_and_see_the_text() {
    let model = mica();
    let embed = |text: &str, pooling| {
        let tokens = model.tokenizer().unwrap().encode_prompt(text).unwrap();
        model.embed(&tokens, pooling, &GenerateOptions::default()).unwrap()
    };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    for pooling in [Pooling::Last, Pooling::Mean] {
        let (a, b, c) = (embed("The cat sat.", pooling), embed("The cat sat.", pooling), embed("Stocks fell", pooling));
        assert_eq!((a.len(), &a), (256, &b));
        assert!((dot(&a, &a) - 1.0).abs() < 1e-5 && dot(&a, &c) < 0.999);
    }
    // The mean of one token is its state.
    let one = |pooling| model.embed(&[5], pooling, &GenerateOptions::default()).unwrap();
    assert_eq!(one(Pooling::Last), one(Pooling::Mean));
    assert!(matches!(model.embed(&[], Pooling::Last, &GenerateOptions::default()), Err(EngineError::EmptyPrompt)));
    let small = GenerateOptions { context: Some(2), ..GenerateOptions::default() };
    assert!(matches!(model.embed(&[1, 2, 3], Pooling::Last, &small), Err(EngineError::ContextLength { .. })));
}
