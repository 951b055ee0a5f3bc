//! `edgelm tokenize` and `edgelm detokenize`: the tokenizer alone.

use crate::{commands::parse_ids, options::Global, output, resolve};
use clap::Args;
use serde_json::json;

#[derive(Args)]
pub struct TokenizeArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    model: String,
    /// Text; special tokens in it are recognized
    #[arg(allow_hyphen_values = true)]
    text: String,
    /// Add what the model expects around a prompt (bos, post-processor)
    #[arg(long)]
    add_special: bool,
}

pub fn tokenize(args: TokenizeArgs, global: &Global) -> anyhow::Result<()> {
    let texts = resolve::texts(&args.model, global)?;
    let tokenizer = texts.tokenizer()?;
    let tokens =
        if args.add_special { tokenizer.encode_prompt(&args.text)? } else { tokenizer.encode(&args.text, false)? };
    if global.json {
        return output::json(&json!({ "tokens": tokens }));
    }
    let ids: Vec<String> = tokens.iter().map(u32::to_string).collect();
    output::line(ids.join(","))
}

#[derive(Args)]
pub struct DetokenizeArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    model: String,
    /// Token ids, separated by commas or spaces
    #[arg(required = true)]
    ids: Vec<String>,
    /// Leave special tokens out of the text
    #[arg(long)]
    skip_special: bool,
}

pub fn detokenize(args: DetokenizeArgs, global: &Global) -> anyhow::Result<()> {
    let texts = resolve::texts(&args.model, global)?;
    let text = texts.tokenizer()?.decode(&parse_ids(&args.ids.join(","))?, args.skip_special)?;
    if global.json {
        return output::json(&json!({ "text": text }));
    }
    output::line(text)
}
