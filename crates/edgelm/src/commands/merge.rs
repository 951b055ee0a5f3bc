//! `edgelm merge`: an adapter folded into its base model.

use crate::{commands::export, options::Global, output};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

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
    let report = export::write(&args.model, &args.lora, &args.output, global)?;
    if global.json {
        return output::json(&json!({
            "output": args.output, "tensors_changed": report.changed, "input_bytes": report.input_bytes,
            "output_bytes": report.output_bytes,
        }));
    }
    let size = output::bytes(report.output_bytes);
    output::line(format!("{}: {size}, {} matrices changed", args.output.display(), report.changed))
}
