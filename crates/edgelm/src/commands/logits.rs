//! `edgelm logits`: next-token logits of every position, for tests.

use crate::{
    adapters,
    commands::{
        engine::{EngineArgs, refuse},
        parse_ids,
    },
    failure::Usage,
    machine,
    options::Global,
    output, resolve,
};
use anyhow::Context;
use clap::{ArgGroup, Args};
use edgelm_engine::{Arithmetic, Decoding, Engine, Step, Want, Workspace};
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
#[command(group = ArgGroup::new("input").required(true))]
pub struct LogitsArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    model: String,
    /// Token ids, separated by commas
    #[arg(long, value_name = "IDS", group = "input")]
    tokens: Option<String>,
    /// File with token ids, separated by commas or white space
    #[arg(long, value_name = "F", group = "input")]
    tokens_file: Option<PathBuf>,
    /// Adapter beside the model: a PEFT folder or a .gguf file (repeatable: all together)
    #[arg(long, value_name = "DIR")]
    lora: Vec<PathBuf>,
    /// Only the last N positions
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// Quantized weights: in f32 as the file means them, or with the integer kernels of `run`
    #[arg(long, value_name = "exact|fast|auto", value_parser = super::run::parse_arithmetic, default_value = "exact")]
    arithmetic: Arithmetic,
    /// Cache format [default: f32; with --arithmetic fast as `run`]
    #[arg(long, value_name = "f32|f16|q8|q4", value_parser = super::run::parse_kv)]
    kv: Option<edgelm_kernels::KvDtype>,
    #[command(flatten)]
    engine: EngineArgs,
}

pub fn run(args: LogitsArgs, global: &Global) -> anyhow::Result<()> {
    let tokens = match (&args.tokens, &args.tokens_file) {
        (Some(text), _) => parse_ids(text)?,
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
            parse_ids(text.trim().trim_start_matches('[').trim_end_matches(']'))?
        }
        (None, None) => return Err(Usage("--tokens or --tokens-file is needed".into()).into()),
    };
    if args.engine.is_ort()? {
        refuse(&[("--lora", !args.lora.is_empty()), ("--kv", args.kv.is_some())])?;
        let mut model = args.engine.open(&args.model, args.arithmetic == Arithmetic::Exact, global)?;
        let (vocab_size, mut logits) = (model.vocab_size(), Vec::new());
        model.sequence().forward(&tokens, tokens.len(), &mut logits)?;
        return print(&tokens, &logits, vocab_size, args.last, global);
    }
    let checkpoint = resolve::checkpoint(&args.model, global)?;
    let engine = Engine::load_with(checkpoint, machine::cpu(global)?, args.arithmetic)?;
    let adapter = adapters::load(&args.lora, &engine)?;
    let mut sequence = engine.adapted_sequence(args.kv.unwrap_or_else(|| engine.default_kv()), adapter);
    let mut workspace = Workspace::default();
    let mut batch = [Step { sequence: &mut sequence, tokens: &tokens, want: Want::All }];
    engine.forward(&mut batch, &mut workspace)?;
    print(&tokens, workspace.logits(), engine.config().vocab_size, args.last, global)
}

fn print(
    tokens: &[u32],
    logits: &[f32],
    vocab_size: usize,
    last: Option<usize>,
    global: &Global,
) -> anyhow::Result<()> {
    let rows: Vec<&[f32]> = logits.chunks(vocab_size).collect();
    let first = last.map_or(0, |last| rows.len().saturating_sub(last));
    if global.json {
        return output::json(&json!({ "tokens": tokens, "logits": &rows[first..] }));
    }
    for row in &rows[first..] {
        let values: Vec<String> = row.iter().map(f32::to_string).collect();
        output::line(values.join(" "))?;
    }
    Ok(())
}
