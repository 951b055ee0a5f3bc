//! Guesses change when tokens come, never which.
#![allow(clippy::unwrap_used)]

use edgelm_engine::{
    Batch, BatchOptions, EngineError, FinishReason, GenerateOptions, Generation, Model, Sampling, Speculation,
};
use edgelm_kernels::{Cpu, KvDtype};
use edgelm_model::Checkpoint;
use std::{ops::ControlFlow, path::Path, sync::Arc};

fn model(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/goldens").join(name);
    Model::load(Arc::new(Checkpoint::open(&folder).unwrap()), Arc::new(Cpu::new(Some(2), None).unwrap())).unwrap()
}

/// Repeats itself, so that there is something to look up.
fn prompt(length: u32, seed: u32) -> Vec<u32> {
    (0..length).map(|i| ((i % 9) * 13 + seed * 11) % 61 + 1).collect()
}

fn options(temperature: f32, kv: KvDtype) -> GenerateOptions {
    let sampling = Sampling { temperature, seed: 3, frequency_penalty: 0.3, ..Sampling::default() };
    GenerateOptions { max_tokens: Some(40), sampling, ignore_eos: true, kv: Some(kv), ..Default::default() }
}

fn generate(model: &Model, prompt: &[u32], options: &GenerateOptions) -> (Generation, Vec<u32>) {
    let mut pieces = Vec::new();
    let generation = model
        .generate(prompt, options, &mut |piece| {
            pieces.extend(piece.token);
            ControlFlow::Continue(())
        })
        .unwrap();
    (generation, pieces)
}

fn draft(name: &str) -> Speculation {
    Speculation::Draft(Arc::new(model(name)))
}

#[test]
fn guesses_never_change_an_answer() {
    let (mut made, mut right) = (0, 0);
    // Grouped and whole attention, a window, experts, one vector for all heads.
    for (name, other) in [
        ("llama-tied", "minicpm3"),
        ("qwen3", "mistral-swa"),
        ("mistral-swa", "qwen3"),
        ("mixtral", "smollm3"),
        ("minicpm3", "llama-tied"),
    ] {
        let target = model(name);
        for (temperature, kv) in [(0.0, KvDtype::F16), (0.0, KvDtype::F32), (0.7, KvDtype::F32)] {
            let plain = options(temperature, kv);
            let (want, _) = generate(&target, &prompt(30, 1), &plain);
            assert_eq!(want.guesses.made, 0);
            for speculation in [Speculation::Lookup, draft(name), draft(other)] {
                let guessing = GenerateOptions { speculation: Some(speculation.clone()), ..plain.clone() };
                let (got, pieces) = generate(&target, &prompt(30, 1), &guessing);
                assert_eq!(got.tokens, want.tokens, "{name} {temperature} {kv:?} {speculation:?}");
                assert_eq!(pieces, want.tokens);
                assert_eq!(got.finish_reason, FinishReason::Length);
                made += got.guesses.made;
                right += got.guesses.right;
            }
        }
    }
    // How many depends on what they cost.
    assert!(right > 10 && made > right, "{right} of {made}: both kinds have to occur");
}

#[test]
fn a_model_guesses_itself_right() {
    let target = model("qwen3");
    for temperature in [0.0, 0.9] {
        // Also with draws: the draft has the same random numbers.
        let options = GenerateOptions { speculation: Some(draft("qwen3")), ..options(temperature, KvDtype::F32) };
        let (generation, _) = generate(&target, &prompt(30, 2), &options);
        // Not many more: it costs as much as it saves, and that is noticed.
        assert!(generation.guesses.made >= 3, "{:?}", generation.guesses);
        assert_eq!(generation.guesses.made, generation.guesses.right);
    }
}

#[test]
fn an_answer_ends_among_guesses_as_it_would_without() {
    let target = model("qwen3");
    let plain = options(0.0, KvDtype::F32);
    let (whole, _) = generate(&target, &prompt(30, 2), &plain);
    for max_tokens in 0..12 {
        for speculation in [None, Some(draft("qwen3")), Some(Speculation::Lookup)] {
            let options = GenerateOptions { max_tokens: Some(max_tokens), speculation, ..plain.clone() };
            assert_eq!(generate(&target, &prompt(30, 2), &options).0.tokens, whole.tokens[..max_tokens]);
        }
    }
    // Cancelled in the middle of a run of right guesses.
    let options = GenerateOptions { speculation: Some(draft("qwen3")), ..plain };
    let mut count = 0;
    let generation = target
        .generate(&prompt(30, 2), &options, &mut |_| {
            count += 1;
            if count == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(generation.finish_reason, FinishReason::Cancelled);
    assert_eq!(generation.tokens, whole.tokens[..7]);
}

#[test]
fn lanes_of_a_batch_come_out_as_if_alone_and_without_guesses() {
    let target = model("llama-tied");
    let wishes: Vec<_> = (0..5u32)
        .map(|i| {
            let sampling = Sampling { temperature: 0.4 * (i % 2) as f32, seed: i.into(), ..Sampling::default() };
            let max_tokens = Some(10 + 7 * i as usize);
            let options = GenerateOptions { max_tokens, sampling, ignore_eos: true, ..Default::default() };
            (prompt(20 + 30 * i, i % 2), options)
        })
        .collect();
    let alone: Vec<_> = wishes.iter().map(|(prompt, options)| generate(&target, prompt, options).0.tokens).collect();
    let mut ways = vec![(Speculation::Lookup, None), (draft("llama-tied"), None)];
    // From one that holds little more than the longest lane alone to one that holds nearly all.
    ways.extend((350_000..=900_000).step_by(50_000).map(|budget| (draft("llama-tied"), Some(budget))));
    for (speculation, kv_budget) in ways {
        let options = BatchOptions { speculation: Some(speculation), kv_budget, ..BatchOptions::default() };
        let mut batch = Batch::new(&target, options).unwrap();
        let lanes: Vec<_> = wishes.iter().map(|(prompt, it)| batch.begin(prompt, it.clone()).unwrap()).collect();
        let mut tokens = vec![Vec::new(); lanes.len()];
        let mut over = vec![false; lanes.len()];
        let (mut made, mut pauses) = (0, 0);
        for round in 0.. {
            let mut plan = Vec::new();
            for (lane, _) in lanes.iter().zip(&over).filter(|(_, over)| !**over) {
                plan.push((*lane, batch.pending(*lane)));
            }
            if plan.is_empty() {
                break;
            }
            while !batch.reserve(&plan) || (round % 5 == 2 && plan.len() > 2) {
                batch.pause(plan.pop().unwrap().0);
                pauses += 1;
            }
            let plain: Vec<_> = plan.clone();
            batch.speculate(&mut plan).unwrap();
            assert!(plan.iter().zip(&plain).all(|(more, rows)| more.0 == rows.0 && more.1 >= rows.1));
            let after_guesses = batch.memory().used_bytes;
            batch.forward(&plan).unwrap();
            if let Some(budget) = kv_budget {
                let used = batch.memory().used_bytes;
                assert!(after_guesses.max(used) <= budget, "{after_guesses}, then {used} of {budget} bytes");
            }
            for (lane, _) in plan {
                let index = lanes.iter().position(|other| *other == lane).unwrap();
                let progress = batch.take(lane).unwrap();
                tokens[index].extend(progress.pieces.iter().filter_map(|piece| piece.token));
                if progress.finished.is_some() {
                    over[index] = true;
                    made += progress.guesses.made;
                    batch.end(lane);
                }
            }
        }
        assert_eq!(tokens, alone);
        assert!(made > 0 && pauses > 0, "{made} guesses, {pauses} pauses, {kv_budget:?}");
    }
}

#[test]
fn what_cannot_be_guessed_is_refused() {
    let refused = |target: &Model, speculation: Speculation| {
        let options = BatchOptions { speculation: Some(speculation.clone()), ..BatchOptions::default() };
        assert!(Batch::new(target, options).is_err());
        let options = GenerateOptions { speculation: Some(speculation), ..GenerateOptions::default() };
        target.generate(&[1, 2, 3], &options, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    // A state cannot be rewound.
    assert!(refused(&model("lfm2"), Speculation::Lookup).contains("lfm2"));
    assert!(refused(&model("qwen3"), draft("mamba2")).contains("mamba2"));
    let beams = GenerateOptions { speculation: Some(Speculation::Lookup), beams: 2, ..GenerateOptions::default() };
    let error = model("qwen3").generate(&[1], &beams, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, EngineError::Option { option: "speculation", .. }));
}
