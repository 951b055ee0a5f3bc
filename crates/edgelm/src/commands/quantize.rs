//! `edgelm quantize`: one-step quantization to a GGUF file.

use crate::{failure::Usage, interrupt::Work, machine, options::Global, output, progress, resolve};
use anyhow::Context;
use clap::{Args, ValueEnum};
use edgelm_compress::{
    CalibrationOptions, FeedbackOptions, Formats, Importance, Keep, Method as How, QuantizeOptions, QuantizeReport,
    Scheme, calibration_windows, measure_importance, quantize_to_gguf,
};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use serde_json::{Map, Value, json};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

mod mixed;
mod size;

const DEFAULT_FORMAT: &str = "Q4_K_M";

#[derive(Args)]
pub struct QuantizeArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    model: String,
    /// File to write (.gguf)
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_K, Q4_0, IQ4_XS, Q3_K, Q2_K, … [default: Q4_K_M]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["target_bpw", "target_size"])]
    format: Option<String>,
    /// The best mixture of formats with so many bits per weight, all weights counted
    #[arg(long, value_name = "X", conflicts_with = "target_size", requires = "calibration")]
    target_bpw: Option<f64>,
    /// The best mixture of formats for a file of this size (`500MB`, `1.5GiB`, bytes)
    #[arg(long, value_name = "S", requires = "calibration", value_parser = size::parse)]
    target_size: Option<u64>,
    /// rtn: round to nearest; imatrix: weigh errors by calibration activations; gptq: let later codes make up for the
    /// errors of earlier ones
    #[arg(long, value_enum, default_value = "rtn")]
    method: Method,
    /// Another format for tensors by name (`blk.*.attn_v.weight=Q8_0`; repeatable)
    #[arg(long, value_name = "PATTERN=FORMAT")]
    keep: Vec<String>,
    /// Text, or JSON Lines with `text` or `messages`, for every method but `rtn`
    #[arg(long, value_name = "F", required_if_eq_any([("method", "imatrix"), ("method", "gptq")]))]
    calibration: Option<PathBuf>,
    /// Calibration windows (of up to 512 tokens)
    #[arg(long, value_name = "N", default_value_t = CalibrationOptions::default().samples)]
    samples: usize,
    /// Which windows are taken
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    Rtn,
    Imatrix,
    Gptq,
}

pub fn run(args: QuantizeArgs, global: &Global) -> anyhow::Result<()> {
    let is_gguf = args.output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    if !is_gguf {
        let what = format!("`{}`: the output must end in .gguf", args.output.display());
        return Err(Usage(what).into());
    }
    let is_mixed = args.target_bpw.is_some() || args.target_size.is_some();
    if args.method == Method::Rtn && args.calibration.is_some() && !is_mixed {
        return Err(Usage("--calibration has no use with --method rtn".into()).into());
    }
    let scheme = Scheme::from_name(args.format.as_deref().unwrap_or(DEFAULT_FORMAT));
    let scheme = scheme.map_err(|error| Usage(error.to_string()))?;
    let keep = args.keep.iter().map(|text| text.parse::<Keep>()).collect::<Result<Vec<_>, _>>();
    let keep = keep.map_err(|error| Usage(format!("--keep: {error}")))?;
    let checkpoint = resolve::checkpoint(&args.model, global)?;
    let cpu = machine::cpu(global)?;
    let windows = match &args.calibration {
        Some(path) => windows(&checkpoint, path, &args)?,
        None => Vec::new(),
    };
    let allocation = match is_mixed {
        true => Some(mixed::allocation(&checkpoint, &cpu, &windows, &keep, &args, global)?),
        false => None,
    };
    let importance = match args.method {
        Method::Imatrix => measure(&checkpoint, &cpu, &windows, global)?,
        Method::Rtn | Method::Gptq => Importance::default(),
    };
    let method = match args.method {
        Method::Rtn => How::Rtn,
        Method::Imatrix => How::Imatrix(&importance),
        Method::Gptq => How::Feedback { cpu: &cpu, windows: &windows, options: FeedbackOptions::default() },
    };
    let formats = allocation.as_ref().map_or(Formats::Scheme(scheme), |found| Formats::Mixed(&found.formats));
    let options = QuantizeOptions { formats, keep: &keep, method };
    let mut report = write(&checkpoint, &args.output, &options, global)?;
    if let Some(allocation) = &allocation {
        report
            .notes
            .push(format!("mixed formats: expected KL divergence {:.4} before error feedback", allocation.expected_kl));
    }
    if global.json {
        return output::json(&document(&report));
    }
    print(&report, &args.output)
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
        quantize_to_gguf(checkpoint, path, options, &mut |done, total, name| {
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
    let importance = measure_importance(checkpoint, cpu, windows, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    Ok(importance?)
}

/// The keys of CONTRACT.md.
fn document(report: &QuantizeReport) -> Value {
    let tensors: Map<String, Value> =
        report.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.format.into())).collect();
    json!({
        "input_bytes": report.input_bytes,
        "output_bytes": report.output_bytes,
        "bits_per_weight": report.bits_per_weight,
        "tensors": tensors,
        "details": report.tensors,
        "notes": report.notes,
        "seconds": report.seconds,
        "peak_rss_bytes": machine::peak_rss_bytes(),
    })
}

fn print(report: &QuantizeReport, path: &Path) -> anyhow::Result<()> {
    let mut table = output::table(&["tensor", "from", "to", "bytes", "relative error"]);
    for tensor in &report.tensors {
        let error = format!("{:.5}", tensor.relative_rms_error);
        table.add_row([&tensor.name, tensor.from, tensor.format, &output::bytes(tensor.bytes), &error]);
    }
    output::line(table)?;
    for note in &report.notes {
        output::line(format!("note: {note}"))?;
    }
    let formats: Vec<String> = report.formats().iter().map(|(name, count)| format!("{name} ×{count}")).collect();
    output::line(format!(
        "{}: {} → {}, {:.2} bits per weight ({}), {:.1} s",
        path.display(),
        output::bytes(report.input_bytes),
        output::bytes(report.output_bytes),
        report.bits_per_weight,
        formats.join(", "),
        report.seconds,
    ))
}
