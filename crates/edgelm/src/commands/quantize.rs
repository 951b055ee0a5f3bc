//! `edgelm quantize`: one-step quantization to a GGUF file or a Hugging Face folder.

use crate::{
    calibration::CalibrationArgs, failure::Usage, interrupt::Work, machine, options::Global, output, page, progress,
    resolve,
};
use anyhow::Context;
use clap::{Args, ValueEnum};
use edgelm_compress::{
    ActivationRounding, CalibrationSource, Codes, CompressError, Equalize, FeedbackOptions, Formats, HELD_OUT_WINDOWS,
    Importance, Keep, Layerwise, Method as How, OnTensor, QuantizeOptions, QuantizeReport, Scheme, count_formats,
    is_gguf, measure_importance,
    mixed::{Allocation, Limit, Palette, ParetoFront, Target, choose_formats, quantize_within},
    parse_size, quantize,
    recipe::PassReport,
    rotate::{Parts, RotateOptions, Rotated},
};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use serde_json::{Map, Value, json};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

mod folder_formats;
mod ints;
mod tables;

use folder_formats::FolderArgs;

const DEFAULT_FORMAT: &str = "Q4_K_M";
const DEFAULT_IN_FOLDERS: &str = "int4";

#[derive(Args)]
pub struct QuantizeArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    model: String,
    /// What to write: a .gguf file, or a folder for the formats that GGUF does not have
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_K, Q4_0, IQ4_XS, Q3_K, Q2_K, …; in a folder int8, int4, int3, int2, w8a8, nf4, fp4
    /// [default: Q4_K_M, in a folder int4]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["target_bpw", "target_size", "max_kl"])]
    format: Option<String>,
    /// The best mixture of formats with so many bits per weight, all weights counted; of integers if OUT is a folder
    #[arg(long, value_name = "X", conflicts_with_all = ["target_size", "max_kl"], requires = "calibration")]
    target_bpw: Option<f64>,
    /// The best mixture of formats for a file of this size (`500MB`, `1.5GiB`, bytes)
    #[arg(long, value_name = "S", conflicts_with = "max_kl", requires = "calibration", value_parser = parse_size)]
    target_size: Option<u64>,
    /// The smallest mixture of formats whose mean KL divergence from MODEL, in nats per token, is at most X when measured on
    /// calibration windows that are held out
    #[arg(long, value_name = "X", requires = "calibration")]
    max_kl: Option<f64>,
    /// rtn: round to nearest; imatrix: weigh errors by calibration activations; gptq: let later codes make up for the
    /// errors of earlier ones; awq, smoothquant: imatrix after scaling the inputs' channels, for less error of weights,
    /// or of weights and int8 activations; best: gptq after whichever scaling, or none, leaves the least error
    #[arg(long, value_enum, default_value = "rtn")]
    method: Method,
    /// Turn the model into a basis without outlier channels first (a randomized Hadamard transform, exact up to rounding).
    /// all: the residual stream and the values of each head, which unties an output head that is the embedding; values: the
    /// latter alone. Takes room for the model in F32 beside the output
    #[arg(long, value_enum, value_name = "WHAT", num_args = 0..=1, default_missing_value = "all")]
    rotate: Option<Rotate>,
    #[command(flatten)]
    folder: FolderArgs,
    /// Another format for tensors by name (`blk.*.attn_v.weight=Q8_0`; repeatable)
    #[arg(long, value_name = "PATTERN=FORMAT")]
    keep: Vec<String>,
    /// Text, or JSON Lines with `text` or `messages`, for every method but `rtn`; or `self`: the model writes it (repeatable)
    #[arg(long, value_name = "F|self", required_if_eq_any(CALIBRATED))]
    calibration: Vec<CalibrationSource>,
    #[command(flatten)]
    which: CalibrationArgs,
    /// Write a self-contained HTML report
    #[arg(long, value_name = "F.html")]
    report: Option<PathBuf>,
}

/// What makes `--calibration` necessary.
const CALIBRATED: [(&str, &str); 5] =
    [("method", "imatrix"), ("method", "gptq"), ("method", "awq"), ("method", "smoothquant"), ("method", "best")];

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    Rtn,
    Imatrix,
    Gptq,
    Awq,
    Smoothquant,
    Best,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rotate {
    All,
    Values,
}

impl QuantizeArgs {
    fn has_target(&self) -> bool {
        self.target_bpw.is_some() || self.target_size.is_some() || self.max_kl.is_some()
    }
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Rtn => "rtn",
            Method::Imatrix => "imatrix",
            Method::Gptq => "gptq",
            Method::Awq => "awq",
            Method::Smoothquant => "smoothquant",
            Method::Best => "best",
        }
    }
}

pub fn run(args: QuantizeArgs, global: &Global) -> anyhow::Result<()> {
    let format = args.format.as_deref().unwrap_or(match args.output.extension().is_some() {
        true => DEFAULT_FORMAT,
        false => DEFAULT_IN_FOLDERS,
    });
    let is_for_folders = args.folder.has(format);
    match is_for_folders {
        true if is_gguf(&args.output) => {
            let path = args.output.display();
            let what = if args.folder.is_sparse() { "2:4 weights" } else { format };
            return Err(Usage(format!("`{path}`: GGUF has no {what}; the output must be a folder")).into());
        }
        true => {}
        false => check_output(&args.output)?,
    }
    args.folder.check(format, args.has_target())?;
    let static_inputs = args.folder.calibrator(format);
    if static_inputs.is_some() && args.calibration.is_empty() {
        return Err(Usage("--activations static needs --calibration".into()).into());
    }
    if let Some(bits) = args.target_bpw
        && !(bits.is_finite() && bits > 0.0)
    {
        return Err(Usage(format!("--target-bpw {bits}: must be more than 0")).into());
    }
    if let Some(max_kl) = args.max_kl
        && !(max_kl.is_finite() && max_kl > 0.0)
    {
        return Err(Usage(format!("--max-kl {max_kl}: must be more than 0")).into());
    }
    if args.method == Method::Rtn && !args.calibration.is_empty() && !args.has_target() && static_inputs.is_none() {
        return Err(Usage("--calibration has no use with --method rtn".into()).into());
    }
    let scheme = match is_for_folders {
        true => None,
        false => Some(Scheme::from_name(format).map_err(|error| Usage(error.to_string()))?),
    };
    let keep = args.keep.iter().map(|text| text.parse::<Keep>()).collect::<Result<Vec<_>, _>>();
    let keep = keep.map_err(|error| Usage(format!("--keep: {error}")))?;
    let original = resolve::checkpoint(&args.model, global)?;
    let cpu = machine::cpu(global)?;
    let pool = edgelm_compress::thread_pool(cpu.threads()).context("cannot start threads")?;
    let rotated = args.rotate.map(|parts| rotated(&original, parts, &args, global)).transpose()?;
    let checkpoint = rotated.as_ref().map_or(&original, |rotated| &rotated.checkpoint);
    // Bits are counted by the weights of the model that was asked for.
    let growth = checkpoint.parameters() as f64 / original.parameters() as f64;
    let held_out = if args.max_kl.is_some() { HELD_OUT_WINDOWS } else { 0 };
    let calibration = pool.install(|| args.which.load(&args.calibration, held_out, checkpoint, &cpu, global))?;
    let windows = &calibration.windows[..];
    let bits = args.target_bpw.map(|bits| Target::BitsPerWeight(bits / growth));
    let mixture = match bits.or(args.target_size.map(Target::FileBytes)) {
        Some(target) => {
            let target = (target, Palette::of(&args.output));
            Some(pool.install(|| mixture(checkpoint, &cpu, windows, &keep, target, global))?)
        }
        None => None,
    };
    let importance = match args.method {
        Method::Imatrix => measure(checkpoint, &cpu, windows, global)?,
        _ => Importance::default(),
    };
    let layerwise = |equalize, codes| How::Layerwise(Layerwise { cpu: &cpu, windows, equalize, codes, static_inputs });
    let rounding = if static_inputs.is_some() { ActivationRounding::Tensor } else { ActivationRounding::ENGINE };
    let feedback = Codes::Feedback(FeedbackOptions::default());
    let method = match args.method {
        Method::Rtn | Method::Imatrix if static_inputs.is_some() => layerwise(None, Codes::Weighted),
        Method::Rtn => How::Rtn,
        Method::Imatrix => How::Imatrix(&importance),
        Method::Gptq => layerwise(None, feedback),
        Method::Awq => layerwise(Some(Equalize::Awq), Codes::Weighted),
        Method::Smoothquant => layerwise(Some(Equalize::SmoothQuant(rounding)), Codes::Weighted),
        Method::Best => layerwise(Some(Equalize::Best(rounding)), feedback),
    };
    let wanted = match (args.target_bpw, args.target_size, args.max_kl) {
        (Some(bits), _, _) => format!("{bits} bits per weight"),
        (None, Some(bytes), _) => output::bytes(bytes),
        (None, None, Some(max_kl)) => format!("KL {max_kl}"),
        (None, None, None) => scheme.map_or(format, |scheme| scheme.name()).to_owned(),
    };
    let turned = if rotated.is_some() { ", rotated" } else { "" };
    let title = format!("quantize to {wanted} ({}{turned})", args.method.name());
    let mut pass = if let Some(max_kl) = args.max_kl {
        let held_out = &calibration.held_out[..];
        let limit = Limit { max_kl, held_out, windows, keep: &keep, method, work: None };
        let within = with_bar(global, |on_step| quantize_within(checkpoint, &cpu, &args.output, &limit, on_step))?;
        PassReport::of_limit(title, original.parameters(), max_kl, within)
    } else {
        let formats = match (&mixture, scheme) {
            (Some((found, _)), _) => Formats::Mixed(&found.formats),
            (None, Some(scheme)) => Formats::Scheme(scheme),
            (None, None) => Formats::Folder(args.folder.scheme(format, checkpoint)?),
        };
        let options = QuantizeOptions { formats, keep: &keep, method, store: None };
        let mut report = write(checkpoint, &args.output, &options, global)?;
        if let Some((allocation, _)) = &mixture {
            report.notes.push(format!(
                "mixed formats: expected KL divergence {:.4} before error feedback",
                allocation.expected_kl
            ));
        }
        let front = mixture.map(|(_, front)| front);
        PassReport::of_quantization(title, original.parameters(), report, front)
    };
    pass.bits_per_weight *= growth;
    pass.notes.splice(0..0, calibration.notes.iter().cloned());
    pass.notes.extend(rotated.iter().flat_map(|rotated| rotated.notes.clone()));
    if let Some(path) = &args.report {
        let page = page::Page {
            model: checkpoint.name(),
            output: &args.output,
            recipe: None,
            input_bytes: pass.input_bytes,
            passes: std::slice::from_ref(&pass),
            gates: &[],
        };
        page::write(path, &page)?;
    }
    if global.json {
        return output::json(&document(&pass));
    }
    print_pass(&format!("{}: ", args.output.display()), &pass)
}

/// The rotated model, with a progress bar.
fn rotated(checkpoint: &Checkpoint, parts: Rotate, args: &QuantizeArgs, global: &Global) -> anyhow::Result<Rotated> {
    let parts = match parts {
        Rotate::All => Parts::All,
        Rotate::Values => Parts::Values,
    };
    let pool = edgelm_compress::thread_pool(machine::cpu(global)?.threads()).context("cannot start threads")?;
    let bar = progress::bar(0, "rotate", global.quiet);
    let work = Work::begin();
    let rotated = pool.install(|| {
        let options = RotateOptions { parts, seed: args.which.seed() };
        Rotated::beside(&args.output, checkpoint, &options, &mut |done, total, _| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            if work.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    });
    bar.finish_and_clear();
    Ok(rotated?)
}

/// Block formats are written to GGUF files.
pub fn check_output(path: &Path) -> Result<(), Usage> {
    if is_gguf(path) {
        return Ok(());
    }
    Err(Usage(format!("`{}`: the output must end in .gguf", path.display())))
}

/// The formats for `--target-bpw` and `--target-size`, with a progress bar.
fn mixture(
    checkpoint: &Checkpoint,
    cpu: &Cpu,
    windows: &[Vec<u32>],
    keep: &[Keep],
    target: (Target, Palette),
    global: &Global,
) -> anyhow::Result<(Allocation, ParetoFront)> {
    let bar = progress::bar(0, "measure sensitivity", global.quiet);
    let work = Work::begin();
    let found = choose_formats(checkpoint, cpu, windows, keep, target, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        if work.is_interrupted() { Err(CompressError::Cancelled) } else { Ok(()) }
    });
    bar.finish_and_clear();
    Ok(found?)
}

/// Quantizes.
pub fn write(
    checkpoint: &Checkpoint,
    path: &Path,
    options: &QuantizeOptions<'_>,
    global: &Global,
) -> anyhow::Result<QuantizeReport> {
    with_bar(global, |on_step| quantize(checkpoint, path, options, on_step))
}

/// Runs `make` on as many threads as asked for, with a progress bar.
fn with_bar<T: Send>(
    global: &Global,
    make: impl FnOnce(&mut OnTensor<'_>) -> Result<T, CompressError> + Send,
) -> anyhow::Result<T> {
    let threads = machine::cpu(global)?.threads();
    let pool = edgelm_compress::thread_pool(threads).context("cannot start threads")?;
    let bar = progress::bar(0, "quantize", global.quiet);
    let work = Work::begin();
    let made = pool.install(|| {
        make(&mut |done, total, name| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(name.to_owned());
            if work.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    });
    bar.finish_and_clear();
    Ok(made?)
}

fn measure(checkpoint: &Checkpoint, cpu: &Cpu, windows: &[Vec<u32>], global: &Global) -> anyhow::Result<Importance> {
    let bar = progress::bar(0, "calibrate", global.quiet);
    let work = Work::begin();
    let importance = measure_importance(checkpoint, cpu, windows, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        if work.is_interrupted() { Err(CompressError::Cancelled) } else { Ok(()) }
    });
    bar.finish_and_clear();
    Ok(importance?)
}

/// The keys of CONTRACT.md.
fn document(pass: &PassReport) -> Value {
    let tensors: Map<String, Value> =
        pass.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.format.clone().into())).collect();
    let mut document = json!({
        "input_bytes": pass.input_bytes,
        "output_bytes": pass.output_bytes,
        "bits_per_weight": pass.bits_per_weight,
        "tensors": tensors,
        "details": pass.tensors,
        "notes": pass.notes,
        "seconds": pass.seconds,
        "peak_rss_bytes": machine::peak_rss_bytes(),
    });
    for key in ["kl_divergence", "held_out_tokens", "trials"] {
        if let Some(value) = pass.details.get(key) {
            document[key] = value.clone();
        }
    }
    if let Some(pareto) = &pass.pareto {
        document["pareto"] = json!(pareto);
    }
    document
}

/// Tables and a summary; `label` stands before the latter.
pub fn print_pass(label: &str, pass: &PassReport) -> anyhow::Result<()> {
    if !pass.tensors.is_empty() {
        output::line(tables::tensors(&pass.tensors))?;
    }
    if let Some(front) = &pass.pareto {
        output::line("best mixtures by size:")?;
        output::line(tables::pareto(front))?;
    }
    for note in &pass.notes {
        output::line(format!("note: {note}"))?;
    }
    let formats: Vec<String> =
        count_formats(&pass.tensors).iter().map(|(name, count)| format!("{name} ×{count}")).collect();
    let formats = if formats.is_empty() { String::new() } else { format!(" ({})", formats.join(", ")) };
    output::line(format!(
        "{label}{}: {} → {}, {:.2} bits per weight{formats}, {:.1} s{}",
        pass.title,
        output::bytes(pass.input_bytes),
        output::bytes(pass.output_bytes),
        pass.bits_per_weight,
        pass.seconds,
        if pass.resumed { ", done before" } else { "" },
    ))
}
