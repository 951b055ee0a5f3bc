//! `edgelm merge`: an adapter folded into its base model.

use crate::{adapters, interrupt::Work, machine, options::Global, output, progress, resolve};
use anyhow::Context;
use clap::Args;
use serde_json::json;
use std::{ops::ControlFlow, path::PathBuf};

#[derive(Args)]
pub struct MergeArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    model: String,
    /// Adapter to fold in: a PEFT folder or a .gguf file (repeatable, in order)
    #[arg(long, value_name = "DIR", required = true)]
    lora: Vec<PathBuf>,
    /// What to write: a .gguf file, or a folder (config.json, model.safetensors, tokenizer)
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

pub fn run(args: MergeArgs, global: &Global) -> anyhow::Result<()> {
    let checkpoint = resolve::checkpoint(&args.model, global)?;
    let adapters = adapters::open(&args.lora, &checkpoint)?;
    let threads = machine::cpu(global)?.threads();
    let pool = edgelm_compress::thread_pool(threads).context("cannot start threads")?;
    let bar = progress::bar(0, "merge", global.quiet);
    let work = Work::begin();
    let report = pool.install(|| {
        edgelm_compress::merge(&checkpoint, &adapters, &args.output, &mut |done, total, what| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(what.to_owned());
            if work.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    });
    bar.finish_and_clear();
    let report = report?;
    if global.json {
        return output::json(&json!({
            "output": args.output, "tensors_changed": report.changed, "input_bytes": report.input_bytes,
            "output_bytes": report.output_bytes,
        }));
    }
    let size = output::bytes(report.output_bytes);
    output::line(format!("{}: {} matrices changed, {size}", args.output.display(), report.changed))
}
