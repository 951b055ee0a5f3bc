//! `run --engine ort`: one prompt through ONNX Runtime.

use super::{RunArgs, finish, limited, read_file, read_stdin, streamed};
use crate::{commands::engine::refuse, commands::parse_ids, options::Global};
use anyhow::Context;
use edgelm_engine::{Arithmetic, EngineError, sample};
use edgelm_model::{Message, Texts};
use serde_json::json;
use std::{io::IsTerminal, time::Instant};

pub(super) fn run(args: &RunArgs, global: &Global) -> anyhow::Result<()> {
    refuse(&[
        ("--lora", !args.lora.is_empty()),
        ("--trace", args.trace.is_some()),
        ("--session", args.session.is_some()),
        ("--window", args.window.is_some()),
        ("--draft and --lookup", args.speculation.is_set()),
        ("--beams", args.generation.beams > 1),
        ("--kv", args.generation.kv.is_some()),
        ("--json-schema", args.generation.json_schema.is_some()),
        ("--grammar", args.generation.grammar.is_some()),
        ("chat without a PROMPT", is_chat(args)),
    ])?;
    let begin = Instant::now();
    let mut model = args.engine.open(&args.model, args.arithmetic == Arithmetic::Exact, global)?;
    let load_ms = begin.elapsed().as_secs_f64() * 1e3;
    let options = args.generation.options(model.generation());
    let prompt = match &args.tokens {
        Some(ids) => parse_ids(ids)?,
        None => prompt(model.texts(), args, global)?,
    };
    let options = limited(model.context_length(), model.generation(), prompt.len(), &options);
    // Its own: the model is borrowed while it generates.
    let texts = Texts::open(args.model.as_ref())?;
    let tokenizer = match texts.has_tokenizer() || !options.stop.is_empty() {
        true => Some(texts.tokenizer()?),
        false => None,
    };
    let generation =
        streamed(!global.json, |on_piece| sample(&mut model.sequence(), tokenizer, &prompt, &options, on_piece))?;
    finish(&generation, tokenizer.is_some(), load_ms, global)
}

fn is_chat(args: &RunArgs) -> bool {
    args.prompt.is_none() && args.file.is_none() && args.tokens.is_none() && std::io::stdin().is_terminal()
}

/// The user's text as prompt, through the chat template where there is one and `--raw` does not say otherwise.
fn prompt(texts: &Texts, args: &RunArgs, global: &Global) -> anyhow::Result<Vec<u32>> {
    let mut text = match args.prompt.as_deref() {
        Some("-") => read_stdin()?,
        Some(prompt) => prompt.to_owned(),
        None if args.file.is_none() => read_stdin()?,
        None => String::new(),
    };
    if let Some(path) = &args.file {
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        text.push_str(&read_file(path)?);
    }
    let template = if args.raw { None } else { texts.chat_template()? };
    let Some(template) = template else {
        if args.system.is_some() {
            return Err(EngineError::NoChatTemplate).context("--system");
        }
        if !args.raw {
            global.note("this model has no chat template: the prompt is used as it is");
        }
        return Ok(texts.tokenizer()?.encode_prompt(&text)?);
    };
    let system = args.system.iter().map(|text| json!({ "role": "system", "content": text }));
    let messages: Vec<Message> = system.chain([json!({ "role": "user", "content": text })]).collect();
    let text = template.render(&messages, true, &serde_json::Map::new())?;
    Ok(texts.tokenizer()?.encode_chat(&text)?)
}
