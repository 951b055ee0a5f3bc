//! `edgelm export`: a model in another container.

use crate::{adapters, failure::Usage, interrupt::Work, machine, options::Global, output, progress, resolve};
use anyhow::Context;
use clap::{Args, ValueEnum};
use edgelm_compress::{ExportReport, is_gguf};
use edgelm_onnx::{Floats, OnnxOptions, OnnxStyle};
use serde_json::json;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

#[derive(Args)]
pub struct ExportArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    model: String,
    /// Container
    #[arg(long, value_enum)]
    format: Format,
    /// What to write: a .gguf file, or a folder (config.json, model.safetensors, tokenizer; model.onnx, model.onnx.data, tokenizer)
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// ONNX: for onnxruntime-genai, or standard operators with weights behind DequantizeLinear [default: genai]
    #[arg(long, value_enum)]
    onnx_style: Option<Style>,
    /// ONNX: what weights are written as that are not stored as integers [default: f32]
    #[arg(long, value_enum)]
    onnx_floats: Option<OnnxFloats>,
    /// ONNX, genai: products with integer weights may round their inputs to int8 (faster, less exact)
    #[arg(long)]
    onnx_int8_inputs: bool,
    /// ONNX: positions that the graph can be run at [default: the model's]
    #[arg(long, value_name = "N")]
    onnx_ctx: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Gguf,
    Safetensors,
    Onnx,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Style {
    Genai,
    Qdq,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnnxFloats {
    F32,
    F16,
}

pub fn run(args: ExportArgs, global: &Global) -> anyhow::Result<()> {
    match (args.format, is_gguf(&args.output)) {
        (Format::Gguf, false) => {
            return Err(Usage("--format gguf writes a file whose name ends in .gguf".into()).into());
        }
        (Format::Safetensors | Format::Onnx, true) => {
            return Err(Usage("--format safetensors and onnx write a folder, not a .gguf file".into()).into());
        }
        _ => {}
    }
    if args.format == Format::Onnx {
        return onnx(&args, global);
    }
    if args.onnx_style.is_some() || args.onnx_floats.is_some() || args.onnx_int8_inputs || args.onnx_ctx.is_some() {
        return Err(
            Usage("--onnx-style, --onnx-floats, --onnx-int8-inputs and --onnx-ctx need --format onnx".into()).into()
        );
    }
    let report = write(&args.model, &[], &args.output, global)?;
    if global.json {
        return output::json(&json!({
            "files": [args.output], "tensors_converted": report.converted, "input_bytes": report.input_bytes,
            "output_bytes": report.output_bytes,
        }));
    }
    let size = output::bytes(report.output_bytes);
    output::line(format!("{}: {size}, {} tensors converted", args.output.display(), report.converted))
}

fn onnx(args: &ExportArgs, global: &Global) -> anyhow::Result<()> {
    let style = match args.onnx_style {
        None | Some(Style::Genai) => OnnxStyle::Genai,
        Some(Style::Qdq) => OnnxStyle::Qdq,
    };
    let floats = match args.onnx_floats {
        None | Some(OnnxFloats::F32) => Floats::F32,
        Some(OnnxFloats::F16) => Floats::F16,
    };
    let options = OnnxOptions { style, floats, int8_inputs: args.onnx_int8_inputs, context: args.onnx_ctx };
    if options.int8_inputs && style == OnnxStyle::Qdq {
        return Err(Usage("--onnx-int8-inputs needs --onnx-style genai: with qdq the runtime decides".into()).into());
    }
    let checkpoint = resolve::checkpoint(&args.model, global)?;
    let bar = progress::bar(0, "export", global.quiet);
    let work = Work::begin();
    let report = edgelm_onnx::export(&checkpoint, options, &args.output, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        if work.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let report = report?;
    if global.json {
        let kinds = report.kinds.iter().map(|kind| {
            json!({ "role": kind.role, "from": kind.from, "to": kind.to, "reason": kind.reason, "count": kind.count })
        });
        return output::json(&json!({
            "files": report.files, "matrices": kinds.collect::<Vec<_>>(), "notes": report.notes,
            "input_bytes": report.input_bytes, "output_bytes": report.output_bytes,
        }));
    }
    for kind in &report.kinds {
        let reason = kind.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
        output::line(format!("{:>4} {}: {} as {}{reason}", kind.count, kind.role, kind.from, kind.to))?;
    }
    for note in &report.notes {
        output::line(format!("note: {note}"))?;
    }
    let (files, size) = (report.files.len(), output::bytes(report.output_bytes));
    output::line(format!("{}: {size} in {files} files", args.output.display()))
}

/// Writes a model with adapters folded in; what `merge` does too.
pub fn write(model: &str, lora: &[PathBuf], to: &Path, global: &Global) -> anyhow::Result<ExportReport> {
    let checkpoint = resolve::checkpoint(model, global)?;
    let adapters = adapters::open(lora, &checkpoint)?;
    let threads = machine::cpu(global)?.threads();
    let pool = edgelm_compress::thread_pool(threads).context("cannot start threads")?;
    let bar = progress::bar(0, "export", global.quiet);
    let work = Work::begin();
    let report = pool.install(|| {
        edgelm_compress::export(&checkpoint, &adapters, to, &mut |done, total, what| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(what.to_owned());
            if work.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    });
    bar.finish_and_clear();
    Ok(report?)
}
