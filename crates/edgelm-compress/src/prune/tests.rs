//! Masks and values against plain float64 references; whole models on their way to disk and back.
#![allow(clippy::unwrap_used)]

use super::{
    pattern::{Scope, Sparsity},
    *,
};
use crate::{
    CompressError,
    moments::{Factor, Moments},
    random::Random,
};
use edgelm_engine::{Engine, Step, Want, Workspace};
use edgelm_format::safetensors;
use edgelm_linalg::Mat;
use edgelm_tensor::DType;
use serde_json::json;
use std::ops::ControlFlow;
use std::{path::PathBuf, sync::Arc};

type Rows = Vec<Vec<f64>>;

/// Weights `[n, k]`, and the moments of inputs whose columns depend on each other and differ in size.
fn problem(n: usize, k: usize, seed: u64) -> (Vec<f32>, Moments) {
    let mut random = Random(seed);
    let rows = 4 * k;
    let mut x = random.values(rows * k);
    for row in x.chunks_mut(k) {
        for i in 1..k {
            row[i] = 0.6 * row[i - 1] + row[i] * (0.3 + (i % 7) as f32 * 0.2);
        }
    }
    let mut moments = Moments::new(k);
    moments.add(&x, rows);
    (random.values(n * k), moments)
}

fn damped(moments: &Moments) -> Mat<f32> {
    moments.damped(0.01, &(0..moments.columns()).collect::<Vec<_>>()).unwrap()
}

fn plain(h: &Mat<f32>) -> Rows {
    (0..h.nrows()).map(|i| (0..h.ncols()).map(|j| f64::from(h[(i, j)])).collect()).collect()
}

/// a⁻¹·b by Gauss-Jordan elimination with pivoting.
fn solve(mut a: Rows, mut b: Rows) -> Rows {
    let n = a.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|&p, &q| a[p][i].abs().total_cmp(&a[q][i].abs())).unwrap();
        a.swap(i, pivot);
        b.swap(i, pivot);
        let by = a[i][i];
        a[i].iter_mut().chain(&mut b[i]).for_each(|value| *value /= by);
        let (row_a, row_b) = (a[i].clone(), b[i].clone());
        for r in (0..n).filter(|&r| r != i) {
            let factor = a[r][i];
            a[r].iter_mut().zip(&row_a).for_each(|(value, by)| *value -= factor * by);
            b[r].iter_mut().zip(&row_b).for_each(|(value, by)| *value -= factor * by);
        }
    }
    b
}

/// Σ_n e·H·e.
fn error(before: &[f32], after: &[f64], h: &Rows) -> f64 {
    let k = h.len();
    let mut sum = 0.0;
    for (before, after) in before.chunks(k).zip(after.chunks(k)) {
        let e: Vec<f64> = before.iter().zip(after).map(|(b, a)| f64::from(*b) - a).collect();
        sum += (0..k).map(|i| e[i] * (0..k).map(|j| h[i][j] * e[j]).sum::<f64>()).sum::<f64>();
    }
    sum
}

fn as_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// The best weights with zeros outside `kept`, row by row.
fn least_squares(weights: &[f32], h: &Rows, kept: &[bool]) -> Vec<f64> {
    let k = h.len();
    let mut out = vec![0.0; weights.len()];
    for (row, weights) in weights.chunks(k).enumerate() {
        let places: Vec<usize> = (0..k).filter(|&i| kept[row * k + i]).collect();
        let a = places.iter().map(|&i| places.iter().map(|&j| h[i][j]).collect()).collect();
        let b = places.iter().map(|&i| vec![(0..k).map(|j| h[i][j] * f64::from(weights[j])).sum()]).collect();
        places.iter().zip(solve(a, b)).for_each(|(&i, value)| out[row * k + i] = value[0]);
    }
    out
}

/// SparseGPT as its authors wrote it: columns from the first to the last, by the upper Cholesky factor of H⁻¹.
fn paper_sparsegpt(weights: &Rows, h: &Rows, batches: &[usize], fraction: f64, group: Option<(usize, usize)>) -> Rows {
    let (n, k) = (weights.len(), h.len());
    let unit = (0..k).map(|i| (0..k).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    let inverse = solve(h.clone(), unit);
    // H⁻¹ = Uᵀ·U.
    let mut u = vec![vec![0.0; k]; k];
    for i in 0..k {
        for j in i..k {
            let rest: f64 = (0..i).map(|m| u[m][i] * u[m][j]).sum();
            u[i][j] = if i == j { (inverse[i][i] - rest).sqrt() } else { (inverse[i][j] - rest) / u[i][i] };
        }
    }
    let mut w = weights.clone();
    let mut start = 0;
    for width in batches {
        let end = start + width;
        let score = |w: &Rows, r: usize, i: usize| w[r][i].powi(2) / u[i][i].powi(2);
        let mut keep = vec![vec![true; k]; n];
        if group.is_none() {
            let mut all: Vec<(f64, usize, usize)> =
                (0..n).flat_map(|r| (start..end).map(move |i| (r, i))).map(|(r, i)| (score(&w, r, i), r, i)).collect();
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            let count = (all.len() as f64 * fraction).round() as usize;
            all[..count].iter().for_each(|&(_, r, i)| keep[r][i] = false);
        }
        for i in start..end {
            for r in 0..n {
                if let Some((least, of)) = group
                    && i % of == 0
                {
                    let mut places: Vec<usize> = (i..i + of).collect();
                    places.sort_by(|&a, &b| score(&w, r, a).total_cmp(&score(&w, r, b)));
                    places[..of - least].iter().for_each(|&place| keep[r][place] = false);
                }
                let q = if keep[r][i] { w[r][i] } else { 0.0 };
                let e = (w[r][i] - q) / u[i][i];
                (i..k).for_each(|j| w[r][j] -= e * u[i][j]);
                w[r][i] = q;
            }
        }
        start = end;
    }
    w
}

#[test]
fn sparsegpt_is_the_one_of_the_paper() {
    let (n, k) = (6, 160);
    let (weights, moments) = problem(n, k, 1);
    let h = damped(&moments);
    let factor = Factor::new(&h).unwrap();
    // Here columns go from the last to the first: the paper's order on reversed columns.
    let reversed: Rows = weights.chunks(k).map(|row| as_f64(row).into_iter().rev().collect()).collect();
    let reversed_h: Rows = plain(&h).into_iter().rev().map(|row| row.into_iter().rev().collect()).collect();
    for (fraction, pattern, group) in
        [(Some(0.5), "unstructured", None), (None, "2:4", Some((2, 4))), (None, "4:8", Some((4, 8)))]
    {
        let sparsity = Sparsity::new(fraction, pattern.parse().unwrap()).unwrap();
        let got = sparsegpt(&weights, &factor, &sparsity);
        let want = paper_sparsegpt(&reversed, &reversed_h, &[32, 128], 0.5, group);
        for (r, want) in want.iter().enumerate() {
            for (i, want) in want.iter().rev().enumerate() {
                let got = f64::from(got[r * k + i]);
                assert_eq!(got == 0.0, *want == 0.0, "{pattern}: row {r}, column {i}");
                assert!((got - want).abs() < 1e-3, "{pattern}: row {r}, column {i}: {got}, not {want}");
            }
        }
    }
}

#[test]
fn wanda_leaves_out_what_the_paper_does() {
    let (n, k) = (5, 24);
    let mut random = Random(3);
    let x = random.values(100 * k);
    let weights = random.values(n * k);
    let mut moments = Moments::new(k);
    moments.add(&x, 100);
    let half = Sparsity::new(Some(0.5), Pattern::Unstructured).unwrap();
    let got = half.mask(&layer_pass::wanda_scores(&weights, &moments), k, Scope::Row);
    for (r, row) in weights.chunks(k).enumerate() {
        let norm = |i: usize| (0..100).map(|t| f64::from(x[t * k + i]).powi(2)).sum::<f64>().sqrt();
        let mut places: Vec<usize> = (0..k).collect();
        let score = |i: usize| f64::from(row[i]).abs() * norm(i);
        places.sort_by(|&a, &b| score(a).total_cmp(&score(b)));
        places[..k / 2].iter().for_each(|&i| assert!(!got[r * k + i], "row {r}, column {i}"));
        places[k / 2..].iter().for_each(|&i| assert!(got[r * k + i], "row {r}, column {i}"));
    }
}

#[test]
fn patterns_hold_exactly_for_every_method() {
    let (n, k) = (8, 64);
    let (weights, moments) = problem(n, k, 7);
    let h = damped(&moments);
    let factor = Factor::new(&h).unwrap();
    for (pattern, fraction) in
        [("2:4", None), ("4:8", None), ("1:4", None), ("block:4x8", Some(0.25)), ("unstructured", Some(0.6))]
    {
        let sparsity = Sparsity::new(fraction, pattern.parse().unwrap()).unwrap();
        let start = sparsegpt(&weights, &factor, &sparsity);
        let splitting = alps(&weights, &start, &h, &sparsity, 60).unwrap();
        let plain: Vec<f32> = layer_pass::zero_out(
            &weights,
            &weights.iter().map(|w| w * w).collect::<Vec<_>>(),
            k,
            &sparsity,
            Scope::Row,
        );
        for mut values in [start, splitting, plain] {
            let kept: Vec<bool> = values.iter().map(|value| *value != 0.0).collect();
            refit(&weights, &mut values, &kept, &h, 30);
            let is_zero = |index: usize| values[index] == 0.0;
            let zeros = (0..n * k).filter(|&index| is_zero(index)).count() as f64 / (n * k) as f64;
            assert!((zeros - sparsity.fraction()).abs() < 0.01, "{pattern}: {zeros}");
            match sparsity.pattern() {
                Pattern::NOfM { keep, of } => {
                    for group in 0..n * k / of {
                        let zeros = (group * of..(group + 1) * of).filter(|&index| is_zero(index)).count();
                        assert_eq!(zeros, of - keep, "{pattern}: group {group}");
                    }
                }
                Pattern::Block { rows, columns } => {
                    for index in 0..n * k {
                        let corner = index / k / rows * rows * k + index % k / columns * columns;
                        assert_eq!(is_zero(index), is_zero(corner), "{pattern}: weight {index}");
                    }
                }
                Pattern::Unstructured => {}
            }
        }
    }
}

#[test]
fn refitted_weights_are_the_least_squares_solution() {
    let (n, k) = (4, 32);
    let (weights, moments) = problem(n, k, 11);
    let h = damped(&moments);
    let sparsity = Sparsity::new(Some(0.5), Pattern::Unstructured).unwrap();
    let mut values = sparsegpt(&weights, &Factor::new(&h).unwrap(), &sparsity);
    let before = error(&weights, &as_f64(&values), &plain(&h));
    let kept: Vec<bool> = values.iter().map(|value| *value != 0.0).collect();
    refit(&weights, &mut values, &kept, &h, 100);
    let want = least_squares(&weights, &plain(&h), &kept);
    let after = error(&weights, &as_f64(&values), &plain(&h));
    assert!(after <= before && after < 1.001 * error(&weights, &want, &plain(&h)), "{before} {after}");
    values
        .iter()
        .zip(&want)
        .for_each(|(got, want)| assert!((f64::from(*got) - want).abs() < 5e-3, "{got}, not {want}"));
}

#[test]
fn zeros_chosen_together_are_no_worse() {
    let (weights, moments) = problem(16, 96, 5);
    let h = damped(&moments);
    for (pattern, fraction) in [("unstructured", Some(0.6)), ("2:4", None)] {
        let sparsity = Sparsity::new(fraction, pattern.parse().unwrap()).unwrap();
        let best = |mut values: Vec<f32>| {
            let kept: Vec<bool> = values.iter().map(|value| *value != 0.0).collect();
            refit(&weights, &mut values, &kept, &h, 100);
            error(&weights, &as_f64(&values), &plain(&h))
        };
        let start = sparsegpt(&weights, &Factor::new(&h).unwrap(), &sparsity);
        let splitting = alps(&weights, &start, &h, &sparsity, 200).unwrap();
        let (start, splitting) = (best(start), best(splitting));
        assert!(splitting < 1.01 * start, "{pattern}: {splitting} after {start}");
    }
}

#[test]
fn compensated_columns_are_the_least_squares_solution() {
    let (n, k) = (5, 20);
    let (weights, moments) = problem(n, k, 13);
    let h = damped(&moments);
    let kept: Vec<usize> = (0..k).filter(|i| i % 3 != 1).collect();
    let mask: Vec<bool> = (0..n * k).map(|index| kept.contains(&(index % k))).collect();
    let want = least_squares(&weights, &plain(&h), &mask);
    let got = compensate(&weights, &h, &kept).unwrap();
    for (row, got) in got.chunks(kept.len()).enumerate() {
        for (&i, got) in kept.iter().zip(got) {
            assert!((f64::from(*got) - want[row * k + i]).abs() < 1e-4);
        }
    }
    let all: Vec<usize> = (0..k).collect();
    let same = compensate(&weights, &h, &all).unwrap();
    same.iter().zip(&weights).for_each(|(a, b)| assert!((a - b).abs() < 1e-4));
}

#[test]
fn groups_go_in_the_order_of_what_they_cost() {
    let (n, k) = (4, 12);
    for width in [1, 2, 3] {
        let (weights, moments) = problem(n, k, 17);
        let h = damped(&moments);
        let order = removal_order(&weights, &h, width, k / width - 1).unwrap();
        let mut gone = Vec::new();
        let cost = |gone: &[usize]| {
            let mask: Vec<bool> = (0..n * k).map(|index| !gone.contains(&(index % k / width))).collect();
            error(&weights, &least_squares(&weights, &plain(&h), &mask), &plain(&h))
        };
        for removal in order {
            let before = cost(&gone);
            let of = |group: usize| cost(&[&gone[..], &[group]].concat()) - before;
            let left = (0..k / width).filter(|group| !gone.contains(group));
            let least = left.map(of).fold(f64::INFINITY, f64::min);
            assert!((of(removal.group) - least).abs() < 1e-6 * (1.0 + least), "width {width}");
            assert!((removal.loss - least).abs() < 1e-3 * (1.0 + least), "width {width}: {} {least}", removal.loss);
            gone.push(removal.group);
        }
    }
}

const VOCAB: usize = 40;

/// A Llama of three layers with random weights in a folder, and calibration data for it.
struct Fixture {
    folder: tempfile::TempDir,
    cpu: Arc<Cpu>,
    windows: Vec<Vec<u32>>,
}

impl Fixture {
    fn new(dtype: DType, edit: impl Fn(&str, &mut Vec<f32>)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32,
            "intermediate_size": 128, "vocab_size": VOCAB, "num_hidden_layers": 3, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 8, "tie_word_embeddings": true, "attention_bias": true,
            "mlp_bias": true, "torch_dtype": "float32"});
        let text = config.to_string();
        let path = folder.path().join("parent");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("config.json"), &text).unwrap();
        let config = ModelConfig::from_hf(text.as_bytes(), &path).unwrap();
        let tensors: Vec<_> = config
            .tensor_ids()
            .into_iter()
            .map(|id| (config.arch.hf_tensor_name(id), dtype, config.tensor_shape(id).unwrap()))
            .collect();
        let mut writer =
            safetensors::Writer::create(&path.join("model.safetensors"), &tensors, &Default::default()).unwrap();
        let mut random = Random(23);
        for (name, dtype, shape) in &tensors {
            let size = if name.contains("norm") { 0.1 } else { 0.3 };
            let base = if name.contains("norm") { 1.0 } else { 0.0 };
            let mut values: Vec<f32> =
                random.values(shape.iter().product()).iter().map(|value| base + size * value).collect();
            edit(name, &mut values);
            let mut bytes = vec![0; dtype.row_bytes(values.len()).unwrap()];
            // F32 as it is: the encoder refuses NaN, which one test is about.
            match dtype {
                DType::F32 => bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                _ => edgelm_tensor::block::encode_row(*dtype, &values, None, &mut bytes).unwrap(),
            }
            writer.write(&bytes).unwrap();
        }
        writer.finish().unwrap();
        let mut token = || ((random.next() + 1.0) * 0.5 * VOCAB as f32) as u32 % VOCAB as u32;
        let windows = (0..12).map(|_| (0..32).map(|_| token()).collect()).collect();
        Self { folder, cpu: Arc::new(Cpu::new(Some(1), None).unwrap()), windows }
    }

    fn plain() -> Self {
        Self::new(DType::F32, |_, _| ())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn checkpoint(&self, name: &str) -> Checkpoint {
        Checkpoint::open(&self.path(name)).unwrap()
    }

    fn options(&self) -> PruneOptions<'_> {
        let calibration = PruneCalibration { cpu: &self.cpu, windows: &self.windows };
        PruneOptions { calibration: Some(calibration), ..PruneOptions::default() }
    }

    fn prune(&self, name: &str, options: &PruneOptions<'_>) -> Result<PruneReport, CompressError> {
        prune(&self.checkpoint("parent"), &self.path(name), options, &mut |_, _, _| ControlFlow::Continue(()))
    }

    fn logits(&self, name: &str) -> Vec<f32> {
        let engine = Engine::load(Arc::new(self.checkpoint(name)), Arc::clone(&self.cpu)).unwrap();
        let mut sequence = engine.sequence(engine.default_kv());
        let mut workspace = Workspace::default();
        let mut step = [Step { sequence: &mut sequence, tokens: &self.windows[0], want: Want::All }];
        engine.forward(&mut step, &mut workspace).unwrap();
        workspace.logits().to_vec()
    }

    /// Of the logits of what `options` make of the parent from its own: Σ of squares.
    fn distance(&self, name: &str, options: &PruneOptions<'_>) -> f64 {
        self.prune(name, options).unwrap();
        let (pruned, parent) = (self.logits(name), self.logits("parent"));
        pruned.iter().zip(&parent).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }

    fn entries(&self) -> usize {
        std::fs::read_dir(self.folder.path()).unwrap().count()
    }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn models_of_uneven_layers_run_and_survive_both_kinds_of_file() {
    let fixture = Fixture::plain();
    let mut options = fixture.options();
    options.layers = 1;
    options.heads = Some(0.25);
    options.ffn = Some(0.25);
    options.allocation = Allocation::Global;
    for method in [PruneMethod::Magnitude, PruneMethod::Wanda, PruneMethod::SparseGpt] {
        options.method = method;
        let name = format!("{method:?}");
        let report = fixture.prune(&name, &options).unwrap();
        let same = fixture.prune(&format!("{name}.gguf"), &options).unwrap();
        let (folder, file) = (fixture.checkpoint(&name), fixture.checkpoint(&format!("{name}.gguf")));
        assert_eq!(folder.config().layers, file.config().layers);
        assert_eq!(folder.config().layers.len(), 2);
        assert_eq!(report.layers_removed.len(), 1);
        let widths =
            |get: fn(&edgelm_model::LayerConfig) -> usize| folder.config().layers.iter().map(get).sum::<usize>();
        assert_eq!(widths(|layer| layer.num_key_value_heads), 6);
        assert_eq!(widths(|layer| layer.num_attention_heads), 12);
        assert_eq!(widths(|layer| layer.intermediate_size), 192);
        assert!(folder.config().layers.iter().all(|layer| layer.intermediate_size % 32 == 0));
        assert_eq!(report.parameters_after, folder.parameters());
        assert_eq!(same.parameters_after, report.parameters_after);
        assert!(report.parameters_after < report.parameters_before);
        let (a, b) = (fixture.logits(&name), fixture.logits(&format!("{name}.gguf")));
        assert!(a.iter().all(|logit| logit.is_finite()));
        assert!(largest_difference(&a, &b) < 1e-4, "{name}: {}", largest_difference(&a, &b));
        // Once more from the GGUF file, whose metadata is copied where it still holds.
        let again = fixture.path(&format!("{name}-again.gguf"));
        let fewer = PruneOptions { layers: 0, heads: None, ..options.clone() };
        prune(&file, &again, &fewer, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(Checkpoint::open(&again).unwrap().config().layers.len(), 2);
    }
}

#[test]
fn adjusted_models_are_nearer_to_the_parent() {
    let fixture = Fixture::plain();
    let magnitude = PruneOptions { method: PruneMethod::Magnitude, ..PruneOptions::default() };
    for (what, heads, ffn) in [("heads", Some(0.25), None), ("ffn", None, Some(0.25))] {
        let plain = fixture.distance(&format!("{what}-plain"), &PruneOptions { heads, ffn, ..magnitude.clone() });
        let adjusted = fixture.distance(&format!("{what}-adjusted"), &PruneOptions { heads, ffn, ..fixture.options() });
        assert!(adjusted < plain, "{what}: {adjusted} after {plain}");
    }
}

#[test]
fn what_stays_follows_the_parent() {
    let fixture = Fixture::plain();
    // Which layers go does not depend on the method, and by Wanda no other changes.
    let layers = |method| PruneOptions { layers: 1, method, ..fixture.options() };
    let left = fixture.distance("left", &layers(PruneMethod::Wanda));
    let following = fixture.distance("following", &layers(PruneMethod::SparseGpt));
    assert!(following < 0.9 * left, "{following} after {left}");
    let (before, after) = (fixture.checkpoint("parent"), fixture.checkpoint("following"));
    let changed: Vec<String> = after
        .config()
        .tensor_ids()
        .into_iter()
        .filter(|&id| !before.config().tensor_ids().iter().any(|&was| same_bytes(&before, was, &after, id)))
        .map(|id| after.stored_name(id))
        .collect();
    assert!(!changed.is_empty() && changed.iter().all(|name| name.contains("o_proj") || name.contains("down_proj")));
}

fn same_bytes(a: &Checkpoint, of_a: TensorId, b: &Checkpoint, of_b: TensorId) -> bool {
    a.tensor(of_a).unwrap().bytes == b.tensor(of_b).unwrap().bytes
}

#[test]
fn sparse_models_have_the_zeros_asked_for() {
    let fixture = Fixture::new(DType::BF16, |_, _| ());
    for (pattern, fraction) in [("2:4", None), ("unstructured", Some(0.5)), ("block:4x4", Some(0.5))] {
        for method in [PruneMethod::Magnitude, PruneMethod::Wanda, PruneMethod::SparseGpt, PruneMethod::Alps] {
            let sparsity = Some(Sparsity::new(fraction, pattern.parse().unwrap()).unwrap());
            let name = format!("{method:?}-{}", pattern.replace(':', "-"));
            let report = fixture.prune(&name, &PruneOptions { sparsity, method, ..fixture.options() }).unwrap();
            assert!((report.sparsity - 0.5).abs() < 0.01, "{name}: {}", report.sparsity);
            assert_eq!(report.parameters_after, report.parameters_before);
            let checkpoint = fixture.checkpoint(&name);
            let down = checkpoint.tensor(TensorId::Layer(2, LayerTensor::Down)).unwrap();
            assert_eq!(down.dtype, DType::BF16);
            if pattern == "2:4" {
                for group in down.bytes.chunks(8) {
                    assert_eq!(group.chunks(2).filter(|value| *value == [0, 0]).count(), 2, "{name}");
                }
            }
        }
    }
}

#[test]
fn everything_at_once() {
    let fixture = Fixture::plain();
    let sparsity = Some(Sparsity::new(None, "2:4".parse().unwrap()).unwrap());
    let options = PruneOptions { layers: 1, heads: Some(0.5), ffn: Some(0.5), sparsity, ..fixture.options() };
    let report = fixture.prune("all", &options).unwrap();
    assert!((report.sparsity - 0.5).abs() < 1e-9, "{}", report.sparsity);
    let checkpoint = fixture.checkpoint("all");
    let layers = &checkpoint.config().layers;
    assert!(layers.iter().all(|layer| (layer.num_key_value_heads, layer.intermediate_size) == (2, 64)));
    assert!(fixture.logits("all").iter().all(|logit| logit.is_finite()));
}

#[test]
fn what_cannot_be_done_says_why_and_leaves_nothing() {
    let fixture = Fixture::plain();
    let message = |options: &PruneOptions<'_>| {
        let error = fixture.prune("out", options).unwrap_err();
        let mut text = error.to_string();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(source) = cause.source() {
            text += &format!(": {source}");
            cause = source;
        }
        assert_eq!(fixture.entries(), 1, "{text}");
        text
    };
    let with = fixture.options();
    for (options, part) in [
        (PruneOptions { heads: Some(1.5), ..with.clone() }, "between 0 and 1"),
        (PruneOptions { heads: Some(f64::NAN), ..with.clone() }, "between 0 and 1"),
        (PruneOptions { heads: Some(0.9), ..with.clone() }, "removes all of 4 KV heads"),
        (PruneOptions { ffn: Some(0.01), ..with.clone() }, "removes none of 4 steps"),
        (PruneOptions { layers: 3, ..with.clone() }, "one must stay"),
        (PruneOptions { hidden: Some(0.5), heads: Some(0.25), ..with.clone() }, "no other kind of pruning"),
        (PruneOptions { hidden: Some(0.999), ..with.clone() }, "removes all of 32 steps of 1"),
        (
            PruneOptions { hidden: Some(0.5), method: PruneMethod::Magnitude, ..PruneOptions::default() },
            "--hidden needs calibration data",
        ),
        (PruneOptions { ffn: Some(0.25), ..PruneOptions::default() }, "needs calibration data"),
        (
            PruneOptions { layers: 1, method: PruneMethod::Magnitude, ..PruneOptions::default() },
            "--layers needs calibration data",
        ),
        (
            PruneOptions {
                ffn: Some(0.25),
                calibration: Some(PruneCalibration { cpu: &fixture.cpu, windows: &[] }),
                ..PruneOptions::default()
            },
            "empty",
        ),
        (
            PruneOptions { sparsity: Some(Sparsity::new(None, "1:3".parse().unwrap()).unwrap()), ..with.clone() },
            "model.layers.0.self_attn.q_proj.weight`: 64 rows of 32 are not whole groups of pattern 1:3",
        ),
    ] {
        let text = message(&options);
        assert!(text.contains(part), "{text}, not {part}");
    }
    let broken = |part: &'static str| {
        Fixture::new(DType::F32, move |name, values| {
            if name.contains(part) {
                values[7] = f32::NAN;
            }
        })
    };
    let down = broken("layers.1.mlp.down_proj.weight");
    for method in [PruneMethod::Magnitude, PruneMethod::SparseGpt] {
        let options = PruneOptions { ffn: Some(0.25), method, ..down.options() };
        let error = down.prune("out", &options).unwrap_err();
        assert!(error.to_string().contains("layers.1.mlp.down_proj"), "{error}");
        assert_eq!(down.entries(), 1);
    }
    let norm = broken("layers.0.input_layernorm");
    let options = PruneOptions { ffn: Some(0.25), ..norm.options() };
    assert!(matches!(norm.prune("out", &options), Err(CompressError::NotFinite { .. })));
}

#[test]
fn outputs_are_never_half_written_nor_in_the_way() {
    let fixture = Fixture::plain();
    let options = PruneOptions { ffn: Some(0.25), ..fixture.options() };
    for name in ["out", "out.gguf"] {
        let mut steps = 0;
        let result = prune(&fixture.checkpoint("parent"), &fixture.path(name), &options, &mut |_, _, _| {
            steps += 1;
            if steps < 6 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert!(matches!(result, Err(CompressError::Cancelled)));
        assert_eq!(fixture.entries(), 1);
    }
    assert!(matches!(fixture.prune("parent", &options), Err(CompressError::OutputIsInput { .. })));
    std::fs::create_dir(fixture.path("full")).unwrap();
    std::fs::write(fixture.path("full/file"), "kept").unwrap();
    assert!(matches!(
        fixture.prune("full", &options),
        Err(CompressError::Format(edgelm_format::FormatError::OutputExists { .. }))
    ));
    std::fs::create_dir(fixture.path("free")).unwrap();
    fixture.prune("free", &options).unwrap();
    assert_eq!(std::fs::read_dir(fixture.path("free")).unwrap().count(), 2);
}

/// Changes channels of the residual stream, of which there are 32, where it is written.
fn with_stream(change: impl Fn(&mut [f32])) -> impl Fn(&str, &mut Vec<f32>) {
    move |name, values| {
        if name.contains("embed_tokens") {
            values.chunks_mut(32).for_each(&change);
        } else if name.contains("o_proj") || name.contains("down_proj") {
            let columns = values.len() / 32;
            for column in 0..columns {
                let mut channels: Vec<f32> = (0..32).map(|row| values[row * columns + column]).collect();
                change(&mut channels);
                channels.iter().enumerate().for_each(|(row, value)| values[row * columns + column] = *value);
            }
        }
    }
}

#[test]
fn hidden_dimensions_that_carry_nothing_are_not_missed() {
    let silence = |stream: &mut [f32]| [3, 8, 21, 30].iter().for_each(|&channel| stream[channel] = 0.0);
    let fixture = Fixture::new(DType::F32, with_stream(silence));
    let wanted = fixture.logits("parent");
    let options = PruneOptions { hidden: Some(0.125), ..fixture.options() };
    let report = fixture.prune("channels", &options).unwrap();
    let hidden = report.hidden.unwrap();
    assert_eq!((hidden.hidden_size_before, hidden.hidden_size, hidden.basis), (32, 28, HiddenBasis::Channels));
    assert!(hidden.tried.iter().all(|(basis, perplexity)| *basis == HiddenBasis::Channels && perplexity.is_finite()));
    let narrow = fixture.checkpoint("channels");
    assert!(narrow.config().tie_word_embeddings);
    assert_eq!(narrow.parameters(), report.parameters_after);
    let is = fixture.logits("channels");
    assert!(largest_difference(&is, &wanted) < 2e-3, "{}", largest_difference(&is, &wanted));
    // In another basis no channel is silent, but four directions are.
    let turned = fixture.path("turned");
    let options_of_turn = crate::rotate::RotateOptions::default();
    crate::rotate::rotate(&fixture.checkpoint("parent"), &turned, &options_of_turn, &mut |_, _, _| {
        ControlFlow::Continue(())
    })
    .unwrap();
    for (name, basis) in [("asked.gguf", Some(HiddenBasis::Principal)), ("chosen", None)] {
        let options = PruneOptions { hidden_basis: basis, ..options.clone() };
        let path = fixture.path(name);
        let report =
            prune(&fixture.checkpoint("turned"), &path, &options, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(report.hidden.unwrap().basis, HiddenBasis::Principal);
        let is = fixture.logits(name);
        assert!(largest_difference(&is, &wanted) < 2e-3, "{name}: {}", largest_difference(&is, &wanted));
    }
    // A tied head is untied where principal components are asked for.
    let principal = PruneOptions { hidden_basis: Some(HiddenBasis::Principal), ..options };
    let report = fixture.prune("untied", &principal).unwrap();
    assert!(report.notes.iter().any(|note| note.contains("no longer the embedding")), "{:?}", report.notes);
    assert!(!fixture.checkpoint("untied").config().tie_word_embeddings);
    let is = fixture.logits("untied");
    assert!(largest_difference(&is, &wanted) < 2e-3, "{}", largest_difference(&is, &wanted));
}

#[test]
fn narrower_models_make_up_for_what_went() {
    let repeat = |stream: &mut [f32]| [0, 8, 16, 24].iter().for_each(|&channel| stream[channel + 1] = stream[channel]);
    let fixture = Fixture::new(DType::BF16, with_stream(repeat));
    let distance = |name: &str, damping: f32| {
        fixture.distance(name, &PruneOptions { hidden: Some(0.125), damping, ..fixture.options() })
    };
    // So much damping that nothing is solved for: the channels that stay are read as they were.
    let (adjusted, plain) = (distance("adjusted", 0.01), distance("plain", 1e6));
    assert!(adjusted < plain / 2.0, "{adjusted} after {plain}");
    distance("adjusted.gguf", 0.01);
    let difference = largest_difference(&fixture.logits("adjusted"), &fixture.logits("adjusted.gguf"));
    assert!(difference < 1e-2, "{difference}");
}

#[test]
fn hidden_sizes_stay_whole_blocks_where_that_is_near() {
    let narrower = |size, part| hidden::narrower(size, part).unwrap();
    assert_eq!([narrower(512, 0.125), narrower(512, 0.25), narrower(256, 0.25)], [448, 384, 192]);
    assert_eq!([narrower(2048, 0.125), narrower(4096, 0.3), narrower(896, 0.25)], [1792, 2816, 672]);
    assert!(hidden::narrower(4096, 0.01).unwrap_err().to_string().contains("removes none of 16 steps of 256"));
}
