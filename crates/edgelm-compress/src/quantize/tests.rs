//! Integers in folders: written, read again, run.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    Activations, FeedbackOptions, IntSettings, LookupSettings, Strategy,
    layer_pass::decode,
    prune::{PruneMethod, PruneOptions, Sparsity, prune},
};
use edgelm_engine::{Engine, Step, Want, Workspace};
use edgelm_model::LayerTensor;
use edgelm_tensor::{IntFormat, LookupFormat};
use std::{path::PathBuf, sync::Arc};

fn parent(name: &str) -> Checkpoint {
    Checkpoint::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/goldens").join(name)).unwrap()
}

fn settings(bits: u32, symmetric: bool, strategy: Strategy) -> IntSettings {
    IntSettings { format: IntFormat::new(bits, symmetric).unwrap(), strategy }
}

fn scheme(linear: IntSettings, activations: Activations) -> IntScheme {
    IntScheme { linear, table: settings(8, true, Strategy::Channel), activations }
}

fn windows() -> Vec<Vec<u32>> {
    (0..6u32).map(|window| (0..40u32).map(|i| (window * 37 + i * i * 11 + i) % 170).collect()).collect()
}

fn logits(checkpoint: Checkpoint) -> Vec<f32> {
    let cpu = Arc::new(Cpu::new(Some(1), None).unwrap());
    let engine = Engine::load(Arc::new(checkpoint), cpu).unwrap();
    let mut sequence = engine.sequence(engine.default_kv());
    let mut workspace = Workspace::default();
    let tokens = &windows()[0][..];
    engine.forward(&mut [Step { sequence: &mut sequence, tokens, want: Want::All }], &mut workspace).unwrap();
    workspace.logits().to_vec()
}

/// Root of Σ difference² / Σ value².
fn relative(is: &[f32], was: &[f32]) -> f64 {
    crate::tensor_pass::Distortion::between(was, is).relative_rms()
}

fn write(
    parent: &Checkpoint,
    path: &Path,
    scheme: IntScheme,
    method: Method<'_>,
    keep: &[Keep],
) -> Result<QuantizeReport, CompressError> {
    write_folder(parent, path, FolderScheme::Ints(scheme), method, keep)
}

fn write_folder(
    parent: &Checkpoint,
    path: &Path,
    scheme: FolderScheme,
    method: Method<'_>,
    keep: &[Keep],
) -> Result<QuantizeReport, CompressError> {
    let options = QuantizeOptions { formats: Formats::Folder(scheme), keep, method, store: None };
    quantize(parent, path, &options, &mut |_, _, _| ControlFlow::Continue(()))
}

#[test]
fn folders_of_every_kind_of_integer_run() {
    let folder = tempfile::tempdir().unwrap();
    for model in ["llama-rope-llama3", "qwen3"] {
        let was = logits(parent(model));
        let mut errors = Vec::new();
        for (index, (linear, most)) in [
            (settings(8, true, Strategy::Channel), 0.05),
            (settings(8, true, Strategy::Tensor), 0.08),
            (settings(4, true, Strategy::Group(32)), 0.4),
            (settings(4, false, Strategy::Group(32)), 0.4),
            (settings(3, true, Strategy::Channel), 1.0),
            (settings(3, false, Strategy::Group(64)), 1.0),
            (settings(2, false, Strategy::Group(32)), 1.6),
        ]
        .into_iter()
        .enumerate()
        {
            let path = folder.path().join(format!("{model}-{index}"));
            let report = write(&parent(model), &path, scheme(linear, Activations::Any), Method::Rtn, &[]).unwrap();
            let back = Checkpoint::open(&path).unwrap();
            let q = TensorId::Layer(0, LayerTensor::Q);
            let [n, k] = *back.describe(q).unwrap().1 else { unreachable!() };
            let bytes = report.tensors.iter().find(|tensor| tensor.name.ends_with("layers.0.self_attn.q_proj.weight"));
            let scales = match linear.strategy {
                Strategy::Tensor => 1,
                _ => n * k / linear.run(k),
            };
            let words = |count: usize| 4 * (count * linear.format.bits() as usize).div_ceil(32);
            let zeros = if linear.format.is_symmetric() { 0 } else { scales / n * words(n) };
            // Beside these, `weight_shape`.
            let wanted = n * words(k) + 2 * scales + zeros + 16;
            assert_eq!(bytes.unwrap().bytes, wanted as u64, "{linear}");
            // What was written is what rounding gives, and what is run.
            let values = decode(&parent(model), q).unwrap();
            let rounded = MatrixFormat::Int(linear).rounded(&values, k, None).unwrap();
            assert_eq!(decode(&back, q).unwrap(), rounded, "{linear}");
            let error = relative(&logits(back), &was);
            assert!(error < most, "{model} {linear}: {error}");
            errors.push(error);
        }
        assert!(errors[0] < errors[2] && errors[2] < errors[6], "{errors:?}");
    }
}

#[test]
fn error_feedback_is_better_than_rounding() {
    let folder = tempfile::tempdir().unwrap();
    let (cpu, windows) = (Cpu::new(Some(1), None).unwrap(), windows());
    let layerwise = |codes| {
        Method::Layerwise(Layerwise { cpu: &cpu, windows: &windows, equalize: None, codes, static_inputs: None })
    };
    for linear in [settings(4, true, Strategy::Group(32)), settings(3, false, Strategy::Channel)] {
        let report = |name: &str, codes| {
            let scheme = scheme(linear, Activations::Any);
            let report =
                write(&parent("qwen3"), &folder.path().join(format!("{name} {linear}")), scheme, layerwise(codes), &[]);
            report.unwrap().tensors.iter().filter_map(|tensor| tensor.relative_output_error).sum::<f64>()
        };
        let (fed, rounded) =
            (report("fed", Codes::Feedback(FeedbackOptions::default())), report("rounded", Codes::Weighted));
        assert!(fed < 0.9 * rounded, "{linear}: {fed} {rounded}");
    }
}

#[test]
fn fixed_input_scales_are_stored_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let (cpu, windows) = (Cpu::new(Some(1), None).unwrap(), windows());
    let path = folder.path().join("static");
    let method = Method::Layerwise(Layerwise {
        cpu: &cpu,
        windows: &windows,
        equalize: None,
        codes: Codes::Weighted,
        static_inputs: Some(Calibrator::MinMax),
    });
    let scheme = scheme(settings(8, true, Strategy::Channel), Activations::Static);
    write(&parent("llama-rope-llama3"), &path, scheme, method, &[]).unwrap();
    let back = Checkpoint::open(&path).unwrap();
    for &id in back.tensor_ids() {
        let is_linear = matches!(id, TensorId::Layer(_, tensor) if tensor.is_linear());
        assert_eq!(back.input_scale(id).is_some(), is_linear, "{id:?}");
    }
    let scale = |tensor| back.input_scale(TensorId::Layer(1, tensor)).unwrap();
    assert_eq!(scale(LayerTensor::Q), scale(LayerTensor::V));
    assert_ne!(scale(LayerTensor::Q), scale(LayerTensor::Down));
    let error = relative(&logits(back), &logits(parent("llama-rope-llama3")));
    assert!(error < 0.1, "{error}");
}

#[test]
fn what_a_folder_cannot_be_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let ints = scheme(settings(4, true, Strategy::Group(32)), Activations::Any);
    let keep = |text: &str| vec![text.parse::<Keep>().unwrap()];
    let error = write(&parent("llama-tied"), &path, ints, Method::Rtn, &keep("token_embd.weight=Q8_0")).unwrap_err();
    assert!(error.to_string().contains("Q8_0"), "{error}");
    let error = write(&parent("llama-tied"), &path, ints, Method::Rtn, &keep("nothing=F16")).unwrap_err();
    assert!(matches!(error, CompressError::UnusedKeep(_)), "{error}");
    let mut steps = 0;
    let options = QuantizeOptions {
        formats: Formats::Folder(FolderScheme::Ints(ints)),
        keep: &[],
        method: Method::Rtn,
        store: None,
    };
    let stopped = quantize(&parent("llama-tied"), &path, &options, &mut |_, _, _| {
        steps += 1;
        if steps < 9 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert!(matches!(stopped, Err(CompressError::Cancelled)));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

    let kept = write(&parent("llama-tied"), &path, ints, Method::Rtn, &keep("token_embd.weight=F16")).unwrap();
    assert_eq!(kept.tensors.last().unwrap().format, "F16");
    // Its rows of 48 and 80 values are not whole groups.
    assert!(
        kept.notes.iter().any(|note| note.contains("rows of 80 are not whole int4 g32 blocks")),
        "{:?}",
        kept.notes
    );
    let again = write(&parent("llama-tied"), &path, ints, Method::Rtn, &[]).unwrap_err();
    assert!(matches!(again, CompressError::Format(edgelm_format::FormatError::OutputExists { .. })), "{again}");
    // A folder of integers is a model like others: it can become a GGUF file.
    let gguf = folder.path().join("from-ints.gguf");
    let formats = Formats::Scheme(Scheme::from_name("Q8_0").unwrap());
    let options = QuantizeOptions { formats, keep: &[], method: Method::Rtn, store: None };
    quantize(&Checkpoint::open(&path).unwrap(), &gguf, &options, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
    let error = relative(&logits(Checkpoint::open(&gguf).unwrap()), &logits(Checkpoint::open(&path).unwrap()));
    assert!(error < 0.05, "{error}");
}

#[test]
fn a_mixture_of_integers_has_its_formats_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let model = parent("qwen3");
    let kinds = [
        settings(8, true, Strategy::Channel),
        settings(4, true, Strategy::Group(32)),
        settings(3, false, Strategy::Group(64)),
        settings(2, false, Strategy::Group(32)),
    ];
    let matrices: Vec<TensorId> = model.tensor_ids().iter().copied().filter(|id| id.is_matrix()).collect();
    let mut formats: HashMap<TensorId, MatrixFormat> = HashMap::new();
    for (index, &id) in matrices.iter().enumerate() {
        formats.insert(id, MatrixFormat::Int(kinds[index % kinds.len()]));
    }
    formats.insert(matrices[1], MatrixFormat::Block(DType::BF16));
    let path = folder.path().join("mixed");
    let options = QuantizeOptions { formats: Formats::Mixed(&formats), keep: &[], method: Method::Rtn, store: None };
    let report = quantize(&model, &path, &options, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
    let back = Checkpoint::open(&path).unwrap();
    for (&id, format) in &formats {
        let (values, columns) = (decode(&model, id).unwrap(), *model.describe(id).unwrap().1.last().unwrap());
        assert_eq!(decode(&back, id).unwrap(), format.rounded(&values, columns, None).unwrap(), "{id:?} {format}");
        let name = model.config().arch.hf_tensor_name(id);
        let written = report.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        let rows = model.describe(id).unwrap().1[0];
        assert_eq!((written.format.clone(), Some(written.bytes)), (format.to_string(), format.bytes(rows, columns)));
    }
    let error = relative(&logits(back), &logits(parent("qwen3")));
    assert!(error < 1.5, "{error}");
    // GGUF has no integers with shared scales.
    let options = QuantizeOptions { formats: Formats::Mixed(&formats), ..options };
    let gguf = folder.path().join("mixed.gguf");
    let error = quantize(&model, &gguf, &options, &mut |_, _, _| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, CompressError::GgufFormat { .. }) && !gguf.exists(), "{error}");
}

#[test]
fn folders_of_table_codes_run_and_feedback_is_better_than_rounding() {
    let folder = tempfile::tempdir().unwrap();
    let (cpu, windows) = (Cpu::new(Some(1), None).unwrap(), windows());
    let feedback = Method::Layerwise(Layerwise {
        cpu: &cpu,
        windows: &windows,
        equalize: None,
        codes: Codes::Feedback(FeedbackOptions::default()),
        static_inputs: None,
    });
    let model = "qwen3";
    let was = logits(parent(model));
    for format in LookupFormat::ALL {
        for group_size in [64, 32] {
            let settings = LookupSettings { format, group_size };
            let path = folder.path().join(settings.to_string());
            let report = write_folder(&parent(model), &path, FolderScheme::Lookup(settings), Method::Rtn, &[]).unwrap();
            let back = Checkpoint::open(&path).unwrap();
            let q = TensorId::Layer(0, LayerTensor::Q);
            let (dtype, &[n, k]) = back.describe(q).unwrap() else { unreachable!() };
            assert_eq!(dtype, format.block_dtype());
            let stored = report.tensors.iter().find(|tensor| tensor.name.ends_with("layers.0.self_attn.q_proj.weight"));
            // Codes, scales and the table; the rest is the size of a line of text.
            let wanted = n * k / 2 + 4 * n * k / group_size + 64;
            assert!((wanted..wanted + 200).contains(&(stored.unwrap().bytes as usize)), "{settings}");
            let values = decode(&parent(model), q).unwrap();
            let rounded = MatrixFormat::Lookup(settings).rounded(&values, k, None).unwrap();
            assert_eq!(decode(&back, q).unwrap(), rounded, "{settings}");
            let embedding = back.describe(TensorId::TokenEmbedding).unwrap().0;
            assert_eq!(embedding, parent(model).describe(TensorId::TokenEmbedding).unwrap().0);
            let error = relative(&logits(back), &was);
            assert!(error < 0.4, "{settings}: {error}");

            let path = folder.path().join(format!("{settings} fed"));
            let fed = write_folder(&parent(model), &path, FolderScheme::Lookup(settings), feedback, &[]).unwrap();
            let fed_error = relative(&logits(Checkpoint::open(&path).unwrap()), &was);
            assert!(fed_error < error, "{settings}: {fed_error} {error}");
            assert!(fed.tensors.iter().any(|tensor| tensor.relative_output_error.is_some()));
        }
    }
    let out = folder.path().join("none");
    let settings = LookupSettings { format: LookupFormat::Nf4, group_size: 64 };
    let keep = ["token_embd.weight=Q8_0".parse::<Keep>().unwrap()];
    let error = write_folder(&parent(model), &out, FolderScheme::Lookup(settings), Method::Rtn, &keep).unwrap_err();
    assert!(matches!(error, CompressError::FolderFormat { .. }), "{error}");
    // GGUF has no such type, so it is a name of none.
    assert!("token_embd.weight=NF4".parse::<Keep>().is_err() && Scheme::from_name("nf4").is_err());
}

#[test]
fn two_of_four_weights_stay_zero_and_are_not_stored() {
    let folder = tempfile::tempdir().unwrap();
    let pruned = folder.path().join("pruned");
    let sparsity = Some(Sparsity::new(None, "2:4".parse().unwrap()).unwrap());
    let options = PruneOptions { sparsity, method: PruneMethod::Magnitude, ..PruneOptions::default() };
    let dense = parent("qwen3");
    prune(&dense, &pruned, &options, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
    let pruned = Checkpoint::open(&pruned).unwrap();
    let was = logits(Checkpoint::open(pruned.path()).unwrap());
    let (cpu, windows) = (Cpu::new(Some(1), None).unwrap(), windows());
    let layerwise = |equalize, codes| {
        Method::Layerwise(Layerwise { cpu: &cpu, windows: &windows, equalize, codes, static_inputs: None })
    };
    let feedback = Codes::Feedback(FeedbackOptions::default());
    let methods = [
        Method::Rtn,
        layerwise(None, feedback),
        layerwise(None, Codes::Feedback(FeedbackOptions { activation_order: true, ..FeedbackOptions::default() })),
        layerwise(Some(Equalize::Awq), Codes::Weighted),
    ];
    for (bits, strategy, most) in [(8, Strategy::Channel, 0.05), (4, Strategy::Group(32), 0.3)] {
        let linear = settings(bits, true, strategy);
        let sparse = IntSettings { format: linear.format.sparse().unwrap(), strategy };
        let mut errors = Vec::new();
        for (index, method) in methods.into_iter().enumerate() {
            let path = folder.path().join(format!("{bits}-{index}"));
            let report = write(&pruned, &path, scheme(sparse, Activations::Any), method, &[]).unwrap();
            let back = Checkpoint::open(&path).unwrap();
            for &id in back.tensor_ids().iter().filter(|id| matches!(id, TensorId::Layer(_, t) if t.is_linear())) {
                assert_eq!(back.describe(id).unwrap().0, sparse.format.block_dtype());
                let (is, was) = (decode(&back, id).unwrap(), decode(&pruned, id).unwrap());
                assert!(is.iter().zip(&was).all(|(is, was)| *was != 0.0 || *is == 0.0), "{sparse} {index} {id:?}");
            }
            // The same without leaving out zeros.
            let path = folder.path().join(format!("{bits}-{index}-dense"));
            let whole = write(&pruned, &path, scheme(linear, Activations::Any), method, &[]).unwrap();
            let of = |report: &QuantizeReport| -> u64 {
                report.tensors.iter().filter(|tensor| tensor.name.ends_with("proj.weight")).map(|t| t.bytes).sum()
            };
            let ratio = of(&report) as f64 / of(&whole) as f64;
            assert!(ratio < if bits == 8 { 0.66 } else { 0.81 }, "{sparse}: {ratio}");
            let error = relative(&logits(back), &was);
            assert!(error < most, "{sparse} {index}: {error}");
            errors.push(error);
        }
        assert!(errors[1] < errors[0], "{sparse}: {errors:?}");
    }

    // Floats.
    let path = folder.path().join("f16");
    write_folder(&pruned, &path, FolderScheme::TwoOfFour(DType::F16), Method::Rtn, &[]).unwrap();
    let back = Checkpoint::open(&path).unwrap();
    for &id in back.tensor_ids().iter().filter(|id| id.is_matrix()) {
        let half = |values: Vec<f32>| values.into_iter().map(|value| half::f16::from_f32(value).to_f32());
        assert!(decode(&back, id).unwrap().into_iter().eq(half(decode(&pruned, id).unwrap())), "{id:?}");
    }
    assert!((back.file_bytes() as f64) < 0.7 * pruned.file_bytes() as f64);

    let sparse = settings(8, true, Strategy::Channel);
    let sparse = IntSettings { format: sparse.format.sparse().unwrap(), ..sparse };
    let out = folder.path().join("none");
    let error = write(&dense, &out, scheme(sparse, Activations::Any), Method::Rtn, &[]).unwrap_err();
    assert!(matches!(error, CompressError::NotTwoOfFour { .. }), "{error}");
    assert!(!out.exists());
}

/// Logits of a few tokens that every golden of this test has.
fn short_logits(checkpoint: Checkpoint) -> Vec<f32> {
    let cpu = Arc::new(Cpu::new(Some(1), None).unwrap());
    let engine = Engine::load(Arc::new(checkpoint), cpu).unwrap();
    let (mut sequence, mut workspace) = (engine.sequence(engine.default_kv()), Workspace::default());
    let tokens: Vec<u32> = (0..30u32).map(|i| (i * i * 7 + i) % 60).collect();
    engine.forward(&mut [Step { sequence: &mut sequence, tokens: &tokens, want: Want::All }], &mut workspace).unwrap();
    workspace.logits().to_vec()
}

#[test]
fn mixers_that_are_not_attention_are_quantized_too() {
    let folder = tempfile::tempdir().unwrap();
    let cpu = Cpu::new(Some(1), None).unwrap();
    let windows: Vec<Vec<u32>> =
        (0..6u32).map(|window| (0..40u32).map(|i| (window * 37 + i * i * 11 + i) % 60).collect()).collect();
    for model in ["lfm2-autoff", "mamba2", "granitemoehybrid-dense", "falcon_h1", "qwen3_5"] {
        let was = short_logits(parent(model));
        let run = |name: &str, linear, codes| {
            let layerwise = Layerwise { cpu: &cpu, windows: &windows, equalize: None, codes, static_inputs: None };
            let path = folder.path().join(format!("{model} {name}"));
            let scheme = scheme(linear, Activations::Any);
            let report = write(&parent(model), &path, scheme, Method::Layerwise(layerwise), &[]).unwrap();
            let back = Checkpoint::open(&path).unwrap();
            for &id in back.tensor_ids() {
                // Rows that are not whole blocks stay floats.
                let is_whole = back.describe(id).unwrap().1.last().unwrap().is_multiple_of(32);
                if let TensorId::Layer(_, tensor) = id {
                    assert_eq!(back.is_coded(id).unwrap(), tensor.is_linear() && is_whole, "{model} {id:?}");
                }
            }
            let error: f64 = report.tensors.iter().filter_map(|tensor| tensor.relative_output_error).sum();
            (error, relative(&short_logits(back), &was))
        };
        let (_, eight) = run("int8", settings(8, true, Strategy::Channel), Codes::Weighted);
        assert!(eight < 0.1, "{model}: {eight}");
        let four = settings(4, false, Strategy::Channel);
        let (rounded, _) = run("rounded", four, Codes::Weighted);
        let (fed, _) = run("fed", four, Codes::Feedback(FeedbackOptions::default()));
        assert!(fed < 0.97 * rounded, "{model}: {fed} {rounded}");
    }
}

#[test]
fn convolutions_survive_gguf() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lfm2.gguf");
    let was = short_logits(parent("lfm2"));
    for (name, most) in [("F32", 0.0), ("Q8_0", 0.05)] {
        let formats = Formats::Scheme(Scheme::from_name(name).unwrap());
        let options = QuantizeOptions { formats, keep: &[], method: Method::Rtn, store: None };
        quantize(&parent("lfm2"), &path, &options, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
        let back = Checkpoint::open(&path).unwrap();
        assert_eq!(back.config().layers, parent("lfm2").config().layers);
        let error = relative(&short_logits(back), &was);
        assert!(error <= most, "{name}: {error}");
    }
    // llama.cpp has no place for these biases.
    let formats = Formats::Scheme(Scheme::from_name("Q8_0").unwrap());
    let options = QuantizeOptions { formats, keep: &[], method: Method::Rtn, store: None };
    let path = folder.path().join("lfm2-autoff.gguf");
    let parent = parent("lfm2-autoff");
    let error = quantize(&parent, &path, &options, &mut |_, _, _| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("GGUF"), "{error}");
    assert!(!path.exists());
}

#[test]
fn passes_that_rely_on_plain_layers_refuse_other_mixers() {
    let folder = tempfile::tempdir().unwrap();
    let sparsity = Some(Sparsity::new(None, "2:4".parse().unwrap()).unwrap());
    let options = PruneOptions { sparsity, method: PruneMethod::Magnitude, ..PruneOptions::default() };
    for model in ["lfm2", "falcon_h1", "qwen3_5", "mixtral"] {
        let path = folder.path().join(model);
        let error = prune(&parent(model), &path, &options, &mut |_, _, _| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(error, CompressError::Architecture { what: "sparsity", .. }), "{model}: {error}");
    }
}
