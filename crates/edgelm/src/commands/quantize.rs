//! `edgelm quantize`: one-step quantization to a GGUF file, or of integers to a Hugging Face folder.

use crate::{failure::Usage, interrupt::Work, machine, options::Global, output, page, progress, resolve};
use anyhow::Context;
use clap::{Args, ValueEnum};
use edgelm_compress::{
    ActivationRounding, CalibrationOptions, Codes, CompressError, Equalize, FeedbackOptions, Formats, Importance, Keep,
    Layerwise, Method as How, QuantizeOptions, QuantizeReport, Scheme, calibration_windows, count_formats, is_gguf,
    measure_importance,
    mixed::{Allocation, ParetoFront, Target, choose_formats},
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

mod ints;
mod tables;

use ints::IntArgs;

const DEFAULT_FORMAT: &str = "Q4_K_M";
const DEFAULT_INTS: &str = "int4";

#[derive(Args)]
pub struct QuantizeArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    model: String,
    /// What to write: a .gguf file, or for int formats a folder
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_K, Q4_0, IQ4_XS, Q3_K, Q2_K, …; in a folder int8, int4, int3, int2, w8a8 [default:
    /// Q4_K_M, in a folder int4]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["target_bpw", "target_size"])]
    format: Option<String>,
    /// The best mixture of formats with so many bits per weight, all weights counted
    #[arg(long, value_name = "X", conflicts_with = "target_size", requires = "calibration")]
    target_bpw: Option<f64>,
    /// The best mixture of formats for a file of this size (`500MB`, `1.5GiB`, bytes)
    #[arg(long, value_name = "S", requires = "calibration", value_parser = parse_size)]
    target_size: Option<u64>,
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
    ints: IntArgs,
    /// Another format for tensors by name (`blk.*.attn_v.weight=Q8_0`; repeatable)
    #[arg(long, value_name = "PATTERN=FORMAT")]
    keep: Vec<String>,
    /// Text, or JSON Lines with `text` or `messages`, for every method but `rtn`
    #[arg(long, value_name = "F", required_if_eq_any(CALIBRATED))]
    calibration: Option<PathBuf>,
    /// Calibration windows (of up to 512 tokens)
    #[arg(long, value_name = "N", default_value_t = CalibrationOptions::default().samples)]
    samples: usize,
    /// Which windows are taken
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
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
        self.target_bpw.is_some() || self.target_size.is_some()
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
    let format = args.format.as_deref().unwrap_or(match args.output.extension().is_some() || args.has_target() {
        true => DEFAULT_FORMAT,
        false => DEFAULT_INTS,
    });
    let is_int = IntArgs::is_int(format);
    match is_int {
        true if is_gguf(&args.output) => {
            let path = args.output.display();
            return Err(Usage(format!("`{path}`: GGUF has no {format}; the output must be a folder")).into());
        }
        true => {}
        false => {
            check_output(&args.output)?;
            args.ints.refuse()?;
        }
    }
    let static_inputs = args.ints.calibrator()?;
    if static_inputs.is_some() && args.calibration.is_none() {
        return Err(Usage("--activations static needs --calibration".into()).into());
    }
    if let Some(bits) = args.target_bpw
        && !(bits.is_finite() && bits > 0.0)
    {
        return Err(Usage(format!("--target-bpw {bits}: must be more than 0")).into());
    }
    if args.method == Method::Rtn && args.calibration.is_some() && !args.has_target() && static_inputs.is_none() {
        return Err(Usage("--calibration has no use with --method rtn".into()).into());
    }
    let scheme = match is_int {
        true => None,
        false => Some(Scheme::from_name(format).map_err(|error| Usage(error.to_string()))?),
    };
    let keep = args.keep.iter().map(|text| text.parse::<Keep>()).collect::<Result<Vec<_>, _>>();
    let keep = keep.map_err(|error| Usage(format!("--keep: {error}")))?;
    let original = resolve::checkpoint(&args.model, global)?;
    let cpu = machine::cpu(global)?;
    let rotated = args.rotate.map(|parts| rotated(&original, parts, &args, global)).transpose()?;
    let checkpoint = rotated.as_ref().map_or(&*original, |rotated| &rotated.checkpoint);
    // Bits are counted by the weights of the model that was asked for.
    let growth = checkpoint.parameters() as f64 / original.parameters() as f64;
    let windows = match &args.calibration {
        Some(path) => windows(checkpoint, path, &args)?,
        None => Vec::new(),
    };
    let bits = args.target_bpw.map(|bits| Target::BitsPerWeight(bits / growth));
    let mixture = match bits.or(args.target_size.map(Target::FileBytes)) {
        Some(target) => Some(mixture(checkpoint, &cpu, &windows, &keep, target, global)?),
        None => None,
    };
    let importance = match args.method {
        Method::Imatrix => measure(checkpoint, &cpu, &windows, global)?,
        _ => Importance::default(),
    };
    let layerwise =
        |equalize, codes| How::Layerwise(Layerwise { cpu: &cpu, windows: &windows, equalize, codes, static_inputs });
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
    let formats = match (&mixture, scheme) {
        (Some((found, _)), _) => Formats::Mixed(&found.formats),
        (None, Some(scheme)) => Formats::Scheme(scheme),
        (None, None) => Formats::Ints(args.ints.scheme(format, checkpoint)?),
    };
    let options = QuantizeOptions { formats, keep: &keep, method, store: None };
    let mut report = write(checkpoint, &args.output, &options, global)?;
    report.bits_per_weight *= growth;
    report.notes.extend(rotated.iter().flat_map(|rotated| rotated.notes.clone()));
    if let Some((allocation, _)) = &mixture {
        report
            .notes
            .push(format!("mixed formats: expected KL divergence {:.4} before error feedback", allocation.expected_kl));
    }
    let wanted = match (args.target_bpw, args.target_size) {
        (Some(bits), _) => format!("{bits} bits per weight"),
        (None, Some(bytes)) => output::bytes(bytes),
        (None, None) => scheme.map_or(format, |scheme| scheme.name()).to_owned(),
    };
    let turned = if rotated.is_some() { ", rotated" } else { "" };
    let title = format!("quantize to {wanted} ({}{turned})", args.method.name());
    let front = mixture.map(|(_, front)| front);
    let pass = PassReport::of_quantization(title, original.parameters(), report, front);
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
        let options = RotateOptions { parts, seed: args.seed };
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
    target: Target,
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

/// Quantizes on as many threads as asked for, with a progress bar.
pub fn write(
    checkpoint: &Checkpoint,
    path: &Path,
    options: &QuantizeOptions<'_>,
    global: &Global,
) -> anyhow::Result<QuantizeReport> {
    let threads = machine::cpu(global)?.threads();
    let pool = edgelm_compress::thread_pool(threads).context("cannot start threads")?;
    let bar = progress::bar(0, "quantize", global.quiet);
    let work = Work::begin();
    let report = pool.install(|| {
        quantize(checkpoint, path, options, &mut |done, total, name| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(name.to_owned());
            if work.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    });
    bar.finish_and_clear();
    Ok(report?)
}

fn windows(checkpoint: &Checkpoint, path: &Path, args: &QuantizeArgs) -> anyhow::Result<Vec<Vec<u32>>> {
    if args.samples == 0 {
        return Err(Usage("--samples must be at least 1".into()).into());
    }
    let options = CalibrationOptions { samples: args.samples, seed: args.seed, ..CalibrationOptions::default() };
    Ok(calibration_windows(checkpoint, path, &options)?)
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
