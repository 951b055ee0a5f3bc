//! Folders packed by other libraries, against what these make of them.

use edgelm_engine::{Arithmetic, Engine, Step, Want, Workspace};
use edgelm_format::{Source, safetensors::SafeTensors};
use edgelm_kernels::{Cpu, Isa};
use edgelm_model::{Checkpoint, TensorId};
use edgelm_tensor::block::decode_row;
use serde_json::Value;
use std::{path::Path, sync::Arc};

/// The weights as the library decodes them, all or some rows.
pub fn dequantized(folder: &Path) -> SafeTensors {
    let bytes = std::fs::read(folder.join("dequantized.safetensors")).unwrap();
    SafeTensors::from_sources(vec![Source::owned("dequantized", bytes)]).unwrap()
}

/// All values of a tensor.
pub fn decoded(checkpoint: &Checkpoint, id: TensorId) -> Vec<f32> {
    let view = checkpoint.tensor(id).unwrap();
    let mut values = vec![0.0; view.elements()];
    let row_bytes = view.dtype.row_bytes(view.row_len()).unwrap();
    for (row, bytes) in values.chunks_mut(view.row_len()).zip(view.bytes.chunks(row_bytes)) {
        decode_row(view.dtype, bytes, row).unwrap();
    }
    values
}

/// Root of Σ difference² / Σ reference² of the logits that torch has for a folder.
pub fn difference(folder: &Path, isa: Isa, arithmetic: Arithmetic) -> f64 {
    let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let numbers =
        |value: &Value| -> Vec<f64> { value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
    let ids: Vec<u32> = numbers(&expected["ids"]).iter().map(|id| *id as u32).collect();
    let want: Vec<f64> = expected["logits"].as_array().unwrap().iter().flat_map(numbers).collect();
    let cpu = Arc::new(Cpu::new(Some(1), Some(isa)).unwrap());
    let engine = Engine::load_with(Arc::new(Checkpoint::open(folder).unwrap()), cpu, arithmetic).unwrap();
    let mut sequence = engine.sequence(engine.default_kv());
    let mut workspace = Workspace::default();
    engine.forward(&mut [Step { sequence: &mut sequence, tokens: &ids, want: Want::All }], &mut workspace).unwrap();
    let got = workspace.logits();
    assert_eq!(got.len(), want.len());
    let error: f64 = got.iter().zip(&want).map(|(got, want)| (f64::from(*got) - want).powi(2)).sum();
    (error / want.iter().map(|value| value * value).sum::<f64>()).sqrt()
}
