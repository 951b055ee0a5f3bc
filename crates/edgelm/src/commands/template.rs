//! `edgelm template`: the chat template alone.

use crate::{failure::Usage, options::Global, output, resolve};
use anyhow::Context;
use clap::Args;
use edgelm_model::Message;
use serde_json::{Map, Value, json};
use std::{io::Read, path::PathBuf};

#[derive(Args)]
pub struct TemplateArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    model: String,
    /// JSON file with a list of messages (or an object with `messages`); `-` reads stdin
    #[arg(long, value_name = "F")]
    messages: PathBuf,
    /// End with the beginning of the assistant's turn
    #[arg(long)]
    add_generation_prompt: bool,
    /// JSON object of further template variables (`{"enable_thinking": false}`)
    #[arg(long, value_name = "JSON")]
    arguments: Option<String>,
}

pub fn run(args: TemplateArgs, global: &Global) -> anyhow::Result<()> {
    let texts = resolve::texts(&args.model, global)?;
    let template = texts.chat_template()?.ok_or(edgelm_engine::EngineError::NoChatTemplate)?;
    let messages = read_messages(&args.messages)?;
    let arguments: Map<String, Value> = match &args.arguments {
        Some(text) => {
            serde_json::from_str(text).map_err(|e| Usage(format!("--arguments is not a JSON object: {e}")))?
        }
        None => Map::new(),
    };
    let text = template.render(&messages, args.add_generation_prompt, &arguments)?;
    if global.json {
        return output::json(&json!({ "text": text }));
    }
    output::stream(&text)
}

fn read_messages(path: &std::path::Path) -> anyhow::Result<Vec<Message>> {
    let mut text = String::new();
    if path.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
    } else {
        text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    }
    let value: Value = serde_json::from_str(&text).with_context(|| format!("`{}`", path.display()))?;
    match value {
        Value::Array(messages) => Ok(messages),
        Value::Object(mut object) => match object.remove("messages") {
            Some(Value::Array(messages)) => Ok(messages),
            _ => anyhow::bail!("`{}`: key `messages` is missing or no list", path.display()),
        },
        _ => anyhow::bail!("`{}`: expected a list of messages", path.display()),
    }
}
