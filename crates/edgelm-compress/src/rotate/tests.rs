//! Rotated models compute what they did.
#![allow(clippy::unwrap_used)]

use super::*;
use edgelm_engine::{Engine, Step, Want, Workspace};
use edgelm_kernels::Cpu;
use edgelm_model::LayerTensor;
use std::{ops::ControlFlow, path::PathBuf, sync::Arc};

fn golden(name: &str) -> Checkpoint {
    Checkpoint::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/goldens").join(name)).unwrap()
}

fn logits(checkpoint: Checkpoint) -> Vec<f32> {
    let tokens: Vec<u32> = (0..24).map(|i| (i * i * 11 + i) % 170).collect();
    let engine = Engine::load(Arc::new(checkpoint), Arc::new(Cpu::new(Some(1), None).unwrap())).unwrap();
    let mut sequence = engine.sequence(engine.default_kv());
    let mut workspace = Workspace::default();
    engine.forward(&mut [Step { sequence: &mut sequence, tokens: &tokens, want: Want::All }], &mut workspace).unwrap();
    workspace.logits().to_vec()
}

fn assert_same(is: &[f32], was: &[f32], what: &str) {
    let difference = is.iter().zip(was).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(is.len() == was.len() && difference < 1e-4, "{what}: {difference}");
}

fn turn(checkpoint: &Checkpoint, path: &Path, parts: Parts, seed: u64) -> RotateReport {
    rotate(checkpoint, path, &RotateOptions { parts, seed }, &mut |_, _, _| ControlFlow::Continue(())).unwrap()
}

#[test]
fn rotated_models_compute_the_same() {
    for name in ["llama-bf16", "llama-bias", "llama-rope-llama3", "llama-tied", "mistral-swa", "qwen2-swa", "qwen3"] {
        let parent = golden(name);
        let was = logits(golden(name));
        let folder = tempfile::tempdir().unwrap();
        for parts in [Parts::All, Parts::Values] {
            for output in [format!("{parts:?}"), format!("{parts:?}.gguf")] {
                let path = folder.path().join(&output);
                let report = turn(&parent, &path, parts, 3);
                let turned = Checkpoint::open(&path).unwrap();
                assert_eq!(turned.parameters(), report.parameters);
                let stays_tied = parent.config().tie_word_embeddings && parts == Parts::Values;
                assert_eq!(turned.config().tie_word_embeddings, stays_tied, "{name} {output}");
                assert_same(&logits(turned), &was, &format!("{name} {output}"));
            }
        }
        // A GGUF file of the parent, turned: another way to name tensors and to pair rotary components.
        let again = folder.path().join("again.gguf");
        turn(&Checkpoint::open(&folder.path().join("All.gguf")).unwrap(), &again, Parts::All, 4);
        assert_same(&logits(Checkpoint::open(&again).unwrap()), &was, name);
    }
}

#[test]
fn seeds_decide_and_nothing_is_left_as_it_was() {
    let parent = golden("llama-bf16");
    let folder = tempfile::tempdir().unwrap();
    let tensor = |name: &str, id| {
        let checkpoint = Checkpoint::open(&folder.path().join(name)).unwrap();
        checkpoint.tensor(id).unwrap().bytes.into_owned()
    };
    for (name, seed) in [("a", 1), ("b", 1), ("c", 2)] {
        turn(&parent, &folder.path().join(name), Parts::All, seed);
    }
    for tensor_id in [
        TensorId::TokenEmbedding,
        TensorId::Output,
        TensorId::Layer(1, LayerTensor::V),
        TensorId::Layer(1, LayerTensor::O),
        TensorId::Layer(1, LayerTensor::Gate),
    ] {
        assert_eq!(tensor("a", tensor_id), tensor("b", tensor_id));
        assert_ne!(tensor("a", tensor_id), tensor("c", tensor_id), "{tensor_id:?}");
    }
    let ones: Vec<u8> = 1f32.to_le_bytes().repeat(parent.config().hidden_size);
    assert_eq!(tensor("a", TensorId::OutputNorm), ones);
    assert_eq!(tensor("a", TensorId::Layer(0, LayerTensor::FfnNorm)), ones);
}

#[test]
fn interrupted_work_leaves_nothing() {
    let parent = golden("llama-bf16");
    let folder = tempfile::tempdir().unwrap();
    for name in ["out", "out.gguf"] {
        let mut steps = 0;
        let result = rotate(&parent, &folder.path().join(name), &RotateOptions::default(), &mut |_, _, _| {
            steps += 1;
            if steps < 5 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert!(matches!(result, Err(CompressError::Cancelled)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
