//! Mixtures of small models with random weights, by size and by quality.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::{Keep, Method};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

fn parent(name: &str) -> Checkpoint {
    Checkpoint::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/goldens").join(name)).unwrap()
}

fn windows(count: u32) -> Vec<Vec<u32>> {
    (0..count).map(|window| (0..40u32).map(|i| (window * 37 + i * i * 11 + i) % 170).collect()).collect()
}

fn within(output: &Path, max_kl: f64, work: Option<&Path>, mut steps: usize) -> Result<Within, CompressError> {
    let cpu = Arc::new(Cpu::new(Some(1), None).unwrap());
    let all = windows(9);
    // Fewer choices, less to try.
    let keep = vec!["blk.*.ffn_*=F16".parse::<Keep>().unwrap()];
    let limit = Limit { max_kl, held_out: &all[6..], windows: &all[..6], keep: &keep, method: Method::Rtn, work };
    quantize_within(&parent("qwen3"), &cpu, output, &limit, &mut |_, _, _| {
        steps -= 1;
        if steps == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

#[test]
fn quality_decides_the_size() {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["", ".gguf"] {
        let path = |name: &str| folder.path().join(format!("{name}{kind}"));
        let smallest = within(&path("smallest"), 10.0, None, usize::MAX).unwrap();
        assert_eq!((smallest.trials.len(), smallest.held_out_tokens), (1, 3 * 40));
        let max_kl = smallest.kl_divergence / 4.0;
        let found = within(&path("closer"), max_kl, None, usize::MAX).unwrap();
        assert!(found.kl_divergence <= max_kl && found.kl_divergence > 0.3 * max_kl, "{kind} {:?}", found.trials);
        assert!(found.report.output_bytes > smallest.report.output_bytes, "{kind}");
        let within_limit = found.trials.iter().filter(|trial| trial.measured_kl <= max_kl);
        assert_eq!(Some(found.front.chosen.matrix_bytes), within_limit.map(|trial| trial.matrix_bytes).min());
        assert_eq!(Checkpoint::open(&path("closer")).unwrap().parameters(), parent("qwen3").parameters());
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4, "something temporary is left");
}

#[test]
fn a_quality_that_no_format_has_is_an_error_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let error = within(&folder.path().join("out.gguf"), 1e-9, None, usize::MAX).unwrap_err();
    assert!(matches!(error, CompressError::KlTooSmall { .. }), "{error}");
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = within(&folder.path().join("out.gguf"), bad, None, usize::MAX).unwrap_err();
        assert!(error.to_string().contains("--max-kl"), "{error}");
    }
    assert!(matches!(within(&folder.path().join("out.gguf"), 1e-4, None, 12), Err(CompressError::Cancelled)));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_interrupted_search_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.gguf");
    within(&whole, 1e-3, None, usize::MAX).unwrap();
    let (work, path) = (folder.path().join("work"), folder.path().join("out.gguf"));
    std::fs::create_dir(&work).unwrap();
    let mut steps = 6;
    let mut interruptions = 0;
    while let Err(error) = within(&path, 1e-3, Some(&work), steps) {
        assert!(matches!(error, CompressError::Cancelled), "{error}");
        interruptions += 1;
        steps += 11;
    }
    assert!(interruptions > 1);
    assert_eq!(std::fs::read(path).unwrap(), std::fs::read(whole).unwrap());
}

#[test]
fn sizes_of_folders_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let model = parent("qwen3");
    let cpu = Cpu::new(Some(1), None).unwrap();
    let targets = [Target::FileBytes(90_000), Target::BitsPerWeight(5.0)];
    for (index, target) in targets.into_iter().enumerate() {
        let chosen = choose_formats(&model, &cpu, &windows(6), &[], (target, Palette::Ints), &mut |_, _| Ok(()));
        let (allocation, front) = chosen.unwrap();
        assert!(front.points.is_sorted_by(|a, b| a.matrix_bytes < b.matrix_bytes && a.expected_kl >= b.expected_kl));
        let path = folder.path().join(index.to_string());
        let options = crate::QuantizeOptions {
            formats: crate::Formats::Mixed(&allocation.formats),
            keep: &[],
            method: Method::Rtn,
            store: None,
        };
        let report = crate::quantize(&model, &path, &options, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
        match target {
            Target::FileBytes(bytes) => {
                let got = report.output_bytes;
                assert!(got <= bytes && got as f64 > 0.9 * bytes as f64, "{got} of {bytes}");
            }
            Target::BitsPerWeight(bits) => {
                let got = report.bits_per_weight;
                assert!(got <= bits && got > 0.97 * bits, "{got} of {bits}");
            }
        }
    }
}
