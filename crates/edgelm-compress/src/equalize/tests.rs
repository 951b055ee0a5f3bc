//! Folding against the logits of the model; searches against the papers' formulas and plain float64; whole models.
#![allow(clippy::unwrap_used)]

use super::{
    fold::fold,
    problem::{Matrix, Problem},
    statistics::Statistics,
    *,
};
use crate::random::Random;
use crate::{
    FeedbackOptions, Formats, LayerStore, Layerwise, MatrixFormat, Method, QuantizeOptions, Scheme, logits::Logits,
    quantize,
};
use edgelm_format::safetensors;
use edgelm_kernels::{Cpu, Linear, Scratch};
use edgelm_model::{Checkpoint, ModelConfig};
use edgelm_tensor::DType;
use edgelm_tensor::block::{decode_row, encode_row};
use serde_json::json;
use std::{ops::ControlFlow, path::PathBuf};

const K: usize = 256;
const POSITIONS: usize = 256;

/// A group of two matrices, and inputs `[T, K]` that depend on each other and have one channel twenty times the others.
fn group(dtype: DType, seed: u64) -> (Vec<Matrix>, Vec<f32>, Statistics) {
    let mut random = Random(seed);
    let mut x = random.values(POSITIONS * K);
    for row in x.chunks_mut(K) {
        for i in 1..K {
            row[i] = 0.6 * row[i - 1] + row[i] * (0.3 + (i % 7) as f32 * 0.2);
        }
        row[77] *= 20.0;
    }
    let mut statistics = Statistics::new(K, POSITIONS);
    x.chunks(64 * K).for_each(|part| statistics.add(part, part.len() / K));
    let matrices = [24, 9].map(|rows| Matrix::sampled(MatrixFormat::Block(dtype), &random.values(rows * K), K));
    (matrices.into(), x, statistics)
}

fn identity() -> Vec<usize> {
    (0..K).collect()
}

/// tr(ΔW · XᵀX · ΔWᵀ) / T of the matrices rounded at W · s, in f64 and without H.
fn plain_weight_error(matrices: &[Matrix], x: &[f32], scales: &[f64]) -> f64 {
    let positions = x.len() / K;
    let importance: Vec<f32> = (0..K)
        .map(|k| {
            let square: f64 = x.chunks(K).map(|row| f64::from(row[k]).powi(2)).sum::<f64>() / positions as f64;
            (square / (scales[k] * scales[k])) as f32
        })
        .collect();
    let mut sum = 0.0;
    for matrix in matrices {
        let mut bytes = vec![0; matrix.format.dtype().row_bytes(K).unwrap()];
        for row in matrix.rows.chunks(K) {
            let scaled: Vec<f32> = row.iter().zip(scales).map(|(w, s)| (f64::from(*w) * s) as f32).collect();
            encode_row(matrix.format.dtype(), &scaled, Some(&importance), &mut bytes).unwrap();
            let mut decoded = vec![0.0; K];
            decode_row(matrix.format.dtype(), &bytes, &mut decoded).unwrap();
            let error = |k: usize| f64::from(decoded[k]) / scales[k] - f64::from(row[k]);
            let errors: Vec<f64> = (0..K).map(error).collect();
            for x in x.chunks(K) {
                sum += errors.iter().zip(x).map(|(e, x)| e * f64::from(*x)).sum::<f64>().powi(2);
            }
        }
    }
    sum / positions as f64
}

#[test]
fn awq_finds_what_a_plain_search_finds() {
    for dtype in [DType::Q4_0, DType::Q3_K] {
        let (matrices, x, statistics) = group(dtype, 5);
        let channels = identity();
        let problem = Problem::new(&matrices, &statistics, &channels);
        let found = awq::search(&problem).unwrap();

        let mean = |k: usize| x.chunks(K).map(|row| f64::from(row[k]).abs()).sum::<f64>() / POSITIONS as f64;
        let magnitudes: Vec<f64> = (0..K).map(mean).collect();
        let plain = |step: usize| {
            let powers: Vec<f64> = magnitudes.iter().map(|m| m.powf(step as f64 / 20.0)).collect();
            let (least, largest) = powers.iter().fold((f64::MAX, 0.0f64), |(a, b), &p| (a.min(p), b.max(p)));
            powers.iter().map(|p| p / (least * largest).sqrt()).collect::<Vec<f64>>()
        };
        let errors: Vec<f64> = (0..=20).map(|step| plain_weight_error(&matrices, &x, &plain(step))).collect();
        let least = errors.iter().copied().fold(f64::INFINITY, f64::min);
        let scales: Vec<f64> = found.iter().map(|&s| f64::from(s)).collect();
        let ours = plain_weight_error(&matrices, &x, &scales);
        assert!((ours / least - 1.0).abs() < 0.01, "{dtype}: {ours}, not {least}");
        assert!(ours < errors[0], "{dtype}: {ours} after {}", errors[0]);

        let h = statistics.moments.full().unwrap();
        let own = problem.weight_error(&h, &found).unwrap();
        assert!((own / ours - 1.0).abs() < 0.01, "{dtype}: {own}, not {ours}");
    }
}

/// Mean of |W' · x' − W · x|², in f64.
fn plain_output_error(matrices: &[Matrix], x: &[f32], scales: &[f32], rounding: ActivationRounding) -> f64 {
    let peak = x.chunks(K).flat_map(|row| row.iter().zip(scales)).map(|(x, s)| f64::from((x / s).abs()));
    let peak = peak.fold(0.0, f64::max);
    let round = |part: &[f64], peak: f64| -> Vec<f64> {
        part.iter().map(|x| (x / (peak / 127.0)).round() * (peak / 127.0)).collect()
    };
    let mut sum = 0.0;
    let mut weights = Vec::new();
    for matrix in matrices {
        let scaled: Vec<f32> = matrix.rows.iter().zip(scales.iter().cycle()).map(|(w, s)| w * s).collect();
        let importance: Vec<f32> = (0..K)
            .map(|k| x.chunks(K).map(|row| (row[k] / scales[k]).powi(2)).sum::<f32>() / POSITIONS as f32)
            .collect();
        let bytes = matrix.format.encode(&scaled, K, Some(&importance)).unwrap();
        weights.push(crate::layer_pass::decode_blocks(matrix.format.dtype(), &bytes, K, scaled.len()).unwrap());
    }
    for x in x.chunks(K) {
        let divided: Vec<f64> = x.iter().zip(scales).map(|(x, s)| f64::from(x / s)).collect();
        let rounded: Vec<f64> = match rounding {
            ActivationRounding::Tensor => round(&divided, peak),
            ActivationRounding::Groups(width) => {
                let of = |part: &[f64]| round(part, part.iter().fold(0.0, |peak: f64, x| peak.max(x.abs())));
                divided.chunks(width).flat_map(of).collect()
            }
        };
        for (matrix, weights) in matrices.iter().zip(&weights) {
            for (was, is) in matrix.rows.chunks(K).zip(weights.chunks(K)) {
                let wanted: f64 = was.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                let got: f64 = is.iter().zip(&rounded).map(|(w, x)| f64::from(*w) * x).sum();
                sum += (got - wanted).powi(2);
            }
        }
    }
    sum / POSITIONS as f64
}

#[test]
fn smoothing_takes_an_outlier_out_of_the_activations() {
    let (matrices, x, statistics) = group(DType::Q8_0, 9);
    let channels = identity();
    let problem = Problem::new(&matrices, &statistics, &channels);
    for rounding in [ActivationRounding::ENGINE, ActivationRounding::Tensor] {
        let found = smoothquant::search(&problem, rounding).unwrap();
        let error = |scales: &[f32]| plain_output_error(&matrices, &x, scales, rounding);
        let (before, after) = (error(&problem.ones()), error(&found));
        assert!(after < 0.5 * before, "{rounding:?}: {after} after {before}");
        let h = statistics.moments.full().unwrap();
        let own = problem.output_error(&h, &found, rounding, |matrix, by| problem.rounded(matrix, by)).unwrap();
        assert!((own / after - 1.0).abs() < 0.1, "{rounding:?}: {own}, not {after}");
    }
}

#[test]
fn smoothing_scales_are_those_of_the_paper() {
    let (inputs, weights) = ([4.0f32, 9.0, 0.25, 1.0], [1.0f32, 0.25, 2.0, 0.5]);
    for exponent in [0.0f32, 0.5, 0.85, 1.0] {
        let got = smoothquant::scales(&inputs, &weights, exponent);
        let paper = |j: usize| {
            f64::from(inputs[j]).powf(exponent.into()) / f64::from(weights[j]).powf(1.0 - f64::from(exponent))
        };
        // Up to a common factor, which changes nothing.
        let factor = f64::from(got[0]) / paper(0);
        for (j, &got) in got.iter().enumerate() {
            assert!((f64::from(got) / (factor * paper(j)) - 1.0).abs() < 1e-5, "{exponent}: {j}");
        }
    }
    let unused = smoothquant::scales(&[1.0, 0.0], &[0.0, 1.0], 0.5);
    assert!(unused.iter().all(|scale| scale.is_finite() && *scale > 0.0), "{unused:?}");
    assert_eq!(smoothquant::scales(&[0.0; 3], &[0.0; 3], 0.5), [1.0; 3]);
}

#[test]
fn best_is_no_worse_than_what_it_chooses_from() {
    let (matrices, _, statistics) = group(DType::Q4_0, 13);
    let channels = identity();
    let problem = Problem::new(&matrices, &statistics, &channels);
    let rounding = ActivationRounding::ENGINE;
    let h = statistics.moments.full().unwrap();
    for codes in [Codes::Weighted, Codes::Feedback(FeedbackOptions::default())] {
        let error = |scales: &[f32]| {
            let moments = statistics.moments.divided(scales);
            let quantized = |matrix: &Matrix, columns: &[f32]| {
                let scaled = problem::scaled(&matrix.rows, columns);
                let bytes = crate::layer_pass::choose_codes(matrix.format, &scaled, &moments, &codes)?.bytes;
                Ok(crate::layer_pass::decode_blocks(matrix.format.dtype(), &bytes, K, scaled.len())?)
            };
            problem.output_error(&h, scales, rounding, quantized).unwrap()
        };
        let found = error(&best::search(&problem, rounding, &codes).unwrap());
        let others = [problem.ones(), awq::search(&problem).unwrap(), smoothquant::search(&problem, rounding).unwrap()];
        others.iter().for_each(|scales| assert!(found <= error(scales), "{codes:?}"));
        assert!(found < error(&problem.ones()), "{codes:?}");
    }
}

#[test]
fn activations_are_rounded_as_the_engine_does() {
    let cpu = Cpu::new(Some(1), None).unwrap();
    let mut random = Random(3);
    let (mut x, weights) = (random.values(2 * K), random.values(K));
    x[5] = 30.0;
    x[200] = -9.0;
    let mut bytes = MatrixFormat::Block(DType::Q8_0).encode(&weights, K, None).unwrap();
    // One scale for all blocks, 128.0 of the units that packing rounds scales to.
    bytes.chunks_mut(34).for_each(|block| block[..2].copy_from_slice(&0x2002u16.to_le_bytes()));
    let weights = crate::layer_pass::decode_blocks(DType::Q8_0, &bytes, K, K).unwrap();
    let matrix = edgelm_kernels::Matrix::pack(&cpu, DType::Q8_0, 1, K, &bytes).unwrap();
    let mut out = [0.0; 2];
    cpu.matmul(&x, 2, &mut [Linear { weight: &matrix, bias: None, out: &mut out }], &mut Scratch::default());
    let mut rounded = x.clone();
    ActivationRounding::ENGINE.round(&mut rounded, K, 0.0);
    let product = |x: &[f32]| -> f64 { x.iter().zip(&weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum() };
    for (row, &got) in out.iter().enumerate() {
        let (exact, want) = (product(&x[row * K..][..K]), product(&rounded[row * K..][..K]));
        let (far, apart) = ((f64::from(got) - want).abs(), (exact - want).abs());
        assert!(far < 0.05 * apart, "{got}: {want}, {exact}");
    }
}

const VOCAB: usize = 96;

/// A model with random weights in a folder, and calibration data for it.
struct Fixture {
    folder: tempfile::TempDir,
    cpu: Cpu,
    windows: Vec<Vec<u32>>,
}

impl Fixture {
    /// Grouped queries and biases everywhere, layers of different widths.
    fn llama() -> Self {
        Self::new(&json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
            "intermediate_size": [96, 160], "vocab_size": VOCAB, "num_hidden_layers": 2,
            "num_attention_heads": [8, 6], "num_key_value_heads": [4, 2], "head_dim": 16, "tie_word_embeddings": true,
            "attention_bias": true, "mlp_bias": true, "torch_dtype": "float32"}))
    }

    fn qwen2() -> Self {
        Self::new(&json!({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 64,
            "intermediate_size": 128, "vocab_size": VOCAB, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": true, "torch_dtype": "float32"}))
    }

    fn new(config: &serde_json::Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = config.to_string();
        let path = folder.path().join("parent");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("config.json"), &text).unwrap();
        let config = ModelConfig::from_hf(text.as_bytes(), &path).unwrap();
        let shape = |id: TensorId| (config.arch.hf_tensor_name(id), DType::F32, config.tensor_shape(id).unwrap());
        let tensors: Vec<_> = config.tensor_ids().into_iter().map(shape).collect();
        let mut writer =
            safetensors::Writer::create(&path.join("model.safetensors"), &tensors, &Default::default()).unwrap();
        let mut random = Random(23);
        for (name, _, shape) in &tensors {
            let (base, size) = if name.contains("norm") { (1.0, 0.8) } else { (0.0, 0.3) };
            let values = random.values(shape.iter().product());
            let bytes: Vec<u8> = values.iter().flat_map(|value| (base + size * value).to_le_bytes()).collect();
            writer.write(&bytes).unwrap();
        }
        writer.finish().unwrap();
        let mut token = || ((random.next() + 1.0) * 0.5 * VOCAB as f32) as u32 % VOCAB as u32;
        let windows = (0..6).map(|_| (0..32).map(|_| token()).collect()).collect();
        Self { folder, cpu: Cpu::new(Some(1), None).unwrap(), windows }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn parent(&self) -> Checkpoint {
        Checkpoint::open(&self.path("parent")).unwrap()
    }

    fn logits(&self, tensors: &dyn Tensors) -> Vec<f32> {
        let mut walk = Walk::begin(tensors, &self.cpu, &self.windows[..1]).unwrap();
        (0..tensors.config().layers.len()).for_each(|_| walk.advance(tensors).unwrap());
        Logits::load(tensors, &self.cpu).unwrap().of(&walk.hidden(0).unwrap())
    }

    /// Quantizes to Q4_0, ending after `steps`. Returns the bytes and how many steps it took.
    fn quantize(
        &self,
        equalize: Equalize,
        codes: Codes,
        store: Option<&LayerStore>,
        steps: usize,
    ) -> Result<(Vec<u8>, usize), CompressError> {
        let method = Method::Layerwise(Layerwise {
            cpu: &self.cpu,
            windows: &self.windows,
            equalize: Some(equalize),
            codes,
            static_inputs: None,
        });
        let formats = Formats::Scheme(Scheme::from_name("Q4_0").unwrap());
        // One matrix that stays in floats, and yet takes the scales of its group.
        let keep = ["blk.*.attn_k.weight=F16".parse().unwrap()];
        let path = self.path("out.gguf");
        let mut taken = 0;
        let options = QuantizeOptions { formats, keep: &keep, method, store };
        quantize(&self.parent(), &path, &options, &mut |_, _, _| {
            taken += 1;
            if taken <= steps { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok((std::fs::read(path).unwrap(), taken))
    }
}

#[test]
fn folding_changes_no_logits() {
    for fixture in [Fixture::llama(), Fixture::qwen2()] {
        let parent = fixture.parent();
        let before = fixture.logits(&parent);
        let mut edited = Edited::new(&parent);
        let mut random = Random(31);
        for layer in 0..parent.config().layers.len() {
            for (group, source) in GROUPS.into_iter().zip(SOURCES) {
                let columns = edited.tensor(TensorId::Layer(layer, group[0])).unwrap().row_len();
                let channels = channels(&parent.config().layers[layer], group[0], columns);
                let count = channels.iter().max().unwrap() + 1;
                let scales: Vec<f32> = (0..count).map(|_| (2.0 * random.next()).exp2()).collect();
                fold(&mut edited, layer, group, source, &channels, &scales).unwrap();
            }
        }
        let after = fixture.logits(&edited);
        let size = before.iter().map(|logit| logit.abs()).fold(0.0, f32::max);
        let far = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far > 0.0 && far < 1e-4 * size, "{far} of {size}");
    }
}

#[test]
fn interrupted_runs_end_with_the_same_bytes() {
    let feedback = Codes::Feedback(FeedbackOptions::default());
    for (equalize, codes) in [(Equalize::Awq, Codes::Weighted), (Equalize::Best(ActivationRounding::ENGINE), feedback)]
    {
        let fixture = Fixture::qwen2();
        let (whole, steps) = fixture.quantize(equalize, codes, None, usize::MAX).unwrap();
        let store = LayerStore::open(&fixture.path("layers")).unwrap();
        let interrupted = fixture.quantize(equalize, codes, Some(&store), steps / 2);
        assert!(matches!(interrupted, Err(CompressError::Cancelled)));
        let finished = store.finished(3);
        assert!((1..3).contains(&finished), "{finished}");
        let (resumed, taken) = fixture.quantize(equalize, codes, Some(&store), usize::MAX).unwrap();
        assert!(taken < steps, "{taken} of {steps}");
        assert!(resumed == whole, "{equalize:?}: the bytes differ");
    }
}

#[test]
fn layers_without_calibration_data_are_refused() {
    let mut fixture = Fixture::llama();
    fixture.windows.clear();
    let error = fixture.quantize(Equalize::Awq, Codes::Weighted, None, usize::MAX).unwrap_err();
    assert!(matches!(error, CompressError::NeedsCalibration { what: "awq" }), "{error}");
}
