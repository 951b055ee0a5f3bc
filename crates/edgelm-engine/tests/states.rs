//! Layers whose memory of the past has a fixed size: it cannot be rewound, and must never be silently wrong.
#![allow(clippy::unwrap_used)]

use edgelm_engine::{Engine, Sequence, Step, Want, Workspace, state_bytes};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use std::{path::Path, sync::Arc};

/// One model of every kind of mixer; most have attention in other layers, or beside it.
const MODELS: [&str; 4] = ["lfm2", "mamba2", "falcon_h1", "qwen3_next"];

fn engine(name: &str) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/goldens").join(name);
    let cpu = Arc::new(Cpu::new(Some(2), None).unwrap());
    Engine::load(Arc::new(Checkpoint::open(&folder).unwrap()), cpu).unwrap()
}

fn prompt(length: u32, seed: u32) -> Vec<u32> {
    (0..length).map(|i| (i * i * 7 + i * 3 + seed * 11) % 61 + 1).collect()
}

fn empty(engine: &Engine) -> Sequence {
    engine.sequence(engine.default_kv())
}

/// Logits after the last of `tokens`.
fn feed(engine: &Engine, sequence: &mut Sequence, tokens: &[u32]) -> Vec<f32> {
    let mut workspace = Workspace::default();
    engine.forward(&mut [Step { sequence, tokens, want: Want::Last }], &mut workspace).unwrap();
    workspace.logits().to_vec()
}

#[test]
fn a_truncated_sequence_goes_on_as_one_that_never_was_longer() {
    for name in MODELS {
        let engine = engine(name);
        let (tokens, more) = (prompt(40, 1), prompt(5, 2));
        for length in [0, 1, 17, 39, 40, 50] {
            let mut sequence = empty(&engine);
            feed(&engine, &mut sequence, &tokens);
            sequence.truncate(length);
            assert_eq!(sequence.tokens().len(), length.min(40));
            let mut fresh = empty(&engine);
            let whole: Vec<u32> = tokens.iter().take(length).chain(&more).copied().collect();
            let want = feed(&engine, &mut fresh, &whole);
            assert_eq!(feed(&engine, &mut sequence, &more), want, "{name}: cut to {length}");
            assert_eq!(sequence.tokens(), whole, "{name}: cut to {length}");
            // And the state it is left with is the right one too.
            assert_eq!(
                feed(&engine, &mut sequence, &more),
                feed(&engine, &mut fresh, &more),
                "{name}: {length}, later"
            );
        }
    }
}

#[test]
fn truncating_twice_before_going_on_is_truncating_to_the_shorter() {
    let engine = engine("mamba2");
    let mut sequence = empty(&engine);
    feed(&engine, &mut sequence, &prompt(30, 1));
    sequence.truncate(20);
    sequence.truncate(10);
    let whole: Vec<u32> = prompt(10, 1).into_iter().chain(prompt(3, 3)).collect();
    assert_eq!(feed(&engine, &mut sequence, &prompt(3, 3)), feed(&engine, &mut empty(&engine), &whole));
}

#[test]
fn clones_go_their_own_ways() {
    for name in MODELS {
        let engine = engine(name);
        let mut first = empty(&engine);
        feed(&engine, &mut first, &prompt(20, 1));
        let mut second = first.clone();
        let got = [feed(&engine, &mut first, &prompt(4, 2)), feed(&engine, &mut second, &prompt(6, 3))];
        for (got, more) in got.iter().zip([prompt(4, 2), prompt(6, 3)]) {
            let whole: Vec<u32> = prompt(20, 1).into_iter().chain(more).collect();
            assert_eq!(*got, feed(&engine, &mut empty(&engine), &whole), "{name}");
        }
    }
}

#[test]
fn neighbours_in_a_batch_change_nothing() {
    for name in MODELS {
        let engine = engine(name);
        // Three prompts of 700 rows in all: the last is cut where a chunk ends. One goes on after a truncation.
        let prompts = [prompt(240, 1), prompt(220, 2), prompt(240, 3)];
        let mut sequences = [empty(&engine), empty(&engine), empty(&engine)];
        feed(&engine, &mut sequences[1], &prompt(9, 4));
        sequences[1].truncate(0);
        let mut workspace = Workspace::default();
        let mut batch: Vec<_> = sequences
            .iter_mut()
            .zip(&prompts)
            .map(|(sequence, tokens)| Step { sequence, tokens, want: Want::Last })
            .collect();
        engine.forward(&mut batch, &mut workspace).unwrap();
        for (tokens, got) in prompts.iter().zip(workspace.logits().chunks(engine.config().vocab_size)) {
            assert_eq!(got, feed(&engine, &mut empty(&engine), tokens), "{name}");
        }
    }
}

#[test]
fn states_are_counted() {
    for (name, values) in [
        // Two of three layers: two inputs of 32 channels each.
        ("lfm2", 2 * 2 * 32),
        // Three inputs of 96 channels of 64 + 2·2·8, states of 64 · 8; two layers.
        ("mamba2", 2 * (3 * 96 + 64 * 8)),
    ] {
        let engine = engine(name);
        assert_eq!(state_bytes(engine.config()), values * 4, "{name}");
        assert_eq!(empty(&engine).kv_bytes(), values * 4, "{name}");
    }
    assert_eq!(state_bytes(engine("qwen3").config()), 0);
}
