//! Folders packed by the `compressed-tensors` library (`testdata/compressed-tensors`, with its generator): weights against its
//! dequantization, logits against torch.
#![allow(clippy::unwrap_used)]

mod packed;

use edgelm_engine::Arithmetic;
use edgelm_kernels::Isa;
use edgelm_model::Checkpoint;
use edgelm_tensor::{DType, block::decode_row};
use packed::{decoded, dequantized, difference};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/compressed-tensors").join(name)
}

#[test]
fn weights_are_those_of_the_library() {
    for name in ["packed", "w8a8-static"] {
        let checkpoint = Checkpoint::open(&folder(name)).unwrap();
        let reference = dequantized(&folder(name));
        let mut compared = 0;
        for &id in checkpoint.tensor_ids() {
            let Some(want) = reference.get(&checkpoint.stored_name(id)).unwrap() else { continue };
            assert!(checkpoint.describe(id).unwrap().0.is_quantized());
            let mut values = vec![0.0; want.elements()];
            decode_row(DType::F32, &want.bytes, &mut values).unwrap();
            let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            for (got, want) in decoded(&checkpoint, id).iter().zip(&values) {
                // Zeros are exact in steps; minima are rounded to f16.
                assert!((got - want).abs() <= largest / 2048.0, "{name} {id:?}: {got} {want}");
            }
            let (dtype, row) = checkpoint.row(id, 3).unwrap();
            let view = checkpoint.tensor(id).unwrap();
            assert_eq!((dtype, &*row), (view.dtype, &view.bytes[3 * row.len()..4 * row.len()]));
            compared += 1;
        }
        assert_eq!(compared, 14, "{name}");
    }
}

#[test]
fn sparse_weights_are_those_of_the_library() {
    let checkpoint = Checkpoint::open(&folder("sparse-24")).unwrap();
    let reference = dequantized(&folder("sparse-24"));
    let mut found = [0; 2];
    for &id in checkpoint.tensor_ids() {
        let Some(want) = reference.get(&checkpoint.stored_name(id)).unwrap() else { continue };
        let mut values = vec![0.0; want.elements()];
        decode_row(DType::F32, &want.bytes, &mut values).unwrap();
        let got = decoded(&checkpoint, id);
        // The first and the last four rows.
        let half = values.len() / 2;
        let got: Vec<f32> = got[..half].iter().chain(&got[got.len() - half..]).copied().collect();
        assert_eq!(got, values, "{id:?}");
        match checkpoint.describe(id).unwrap().0 {
            DType::Q8_24 => found[0] += 1,
            DType::F16 => found[1] += 1,
            other => panic!("{id:?} is {other}"),
        }
        let (_, row) = checkpoint.row(id, 3).unwrap();
        let view = checkpoint.tensor(id).unwrap();
        assert_eq!(*row, view.bytes[3 * row.len()..4 * row.len()]);
    }
    assert_eq!(found, [8, 6]);
}

#[test]
fn logits_are_those_of_torch_within_int8_activations() {
    // The same weights with inputs rounded as the engine likes.
    let dynamic = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(folder("w8a8-static")).unwrap() {
        let file = file.unwrap();
        let mut content = std::fs::read(file.path()).unwrap();
        if file.file_name() == "config.json" {
            let mut config: Value = serde_json::from_slice(&content).unwrap();
            config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = Value::Null;
            content = serde_json::to_vec(&config).unwrap();
        }
        std::fs::write(dynamic.path().join(file.file_name()), content).unwrap();
    }
    for isa in Isa::available() {
        let error = difference(&folder("packed"), isa, Arithmetic::Fast);
        assert!(error < 0.04, "packed on {isa}: {error}");
        let error = difference(&folder("sparse-24"), isa, Arithmetic::Fast);
        assert!(error < 0.02, "sparse-24 on {isa}: {error}");
        // Here the reference rounds inputs in the same way, and clamps them. Values near the middle of two steps go either
        // way, but with other scales all would be further off.
        let error = difference(&folder("w8a8-static"), isa, Arithmetic::Fast);
        let with_others = difference(dynamic.path(), isa, Arithmetic::Fast);
        assert!(error < 0.06 && 2.0 * error < with_others, "w8a8-static on {isa}: {error}, {with_others}");
    }
}
