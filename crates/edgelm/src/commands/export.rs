//! `edgelm export`: a model in another container.

use crate::{adapters, failure::Usage, interrupt::Work, machine, options::Global, output, progress, resolve};
use anyhow::Context;
use clap::{Args, ValueEnum};
use edgelm_compress::{ExportReport, is_gguf};
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
    /// What to write: a .gguf file, or a folder (config.json, model.safetensors, tokenizer)
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Gguf,
    Safetensors,
}

pub fn run(args: ExportArgs, global: &Global) -> anyhow::Result<()> {
    match (args.format, is_gguf(&args.output)) {
        (Format::Gguf, false) => {
            return Err(Usage("--format gguf writes a file whose name ends in .gguf".into()).into());
        }
        (Format::Safetensors, true) => {
            return Err(Usage("--format safetensors writes a folder, not a .gguf file".into()).into());
        }
        _ => {}
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
