//! Interactive chat: history, streaming, Ctrl-C stops an answer.

use super::{
    RunArgs,
    session::{SessionFile, Talk},
    with_model_limit,
};
use crate::{failure::Usage, interrupt::Work, options::Global, output};
use edgelm_engine::{GenerateOptions, Model};
use edgelm_model::Message;
use serde_json::json;
use std::{
    io::{BufRead, Write},
    ops::ControlFlow,
};

const HELP: &str = "/clear forgets the conversation, /system TEXT sets the system message, /exit or Ctrl-D ends";

pub(super) fn run(model: &Model, args: &RunArgs, options: &GenerateOptions, global: &Global) -> anyhow::Result<()> {
    let raw = args.raw;
    if raw && args.session.is_some() {
        return Err(Usage("--session: lines of a chat with --raw have nothing to do with each other".into()).into());
    }
    if !raw && model.chat_template()?.is_none() {
        return Err(edgelm_engine::EngineError::NoChatTemplate.into());
    }
    if !global.quiet {
        eprintln!("{}: {HELP}; Ctrl-C stops an answer", model.name());
    }
    let mut system = args.system.clone();
    let mut messages = first_messages(system.as_deref());
    let mut sequence = model.sequence(options);
    let mut file = None;
    if let Some(path) = &args.session
        && let (session, kept, Talk::Messages(said)) = SessionFile::open(path, args, false, model, options, global)?
    {
        (file, sequence, messages) = (Some(session), kept, said);
    }
    loop {
        eprint!(">>> ");
        std::io::stderr().flush()?;
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            eprintln!();
            return Ok(());
        }
        let line = line.trim();
        match line.split_once(' ').unwrap_or((line, "")) {
            ("", _) => continue,
            ("/exit" | "/bye" | "/quit", _) => return Ok(()),
            ("/help" | "/?", _) => eprintln!("{HELP}"),
            ("/clear", _) => messages = first_messages(system.as_deref()),
            ("/system", text) => {
                system = (!text.is_empty()).then(|| text.to_owned());
                messages = first_messages(system.as_deref());
            }
            (command, _) if command.starts_with('/') => eprintln!("unknown command `{command}`; {HELP}"),
            _ => {
                messages.push(json!({ "role": "user", "content": line }));
                let prompt =
                    if raw { model.tokenizer()?.encode_prompt(line)? } else { model.chat_prompt(&messages)? };
                match answer(model, &mut sequence, &prompt, options) {
                    Ok(text) => {
                        messages.push(json!({ "role": "assistant", "content": text }));
                        if let Some(file) = &file {
                            file.save(model, &sequence, &Talk::Messages(messages.clone()))?;
                        }
                    }
                    Err(error) => {
                        messages.pop();
                        crate::failure::report(&error);
                        eprintln!("{HELP}");
                    }
                }
            }
        }
    }
}

fn first_messages(system: Option<&str>) -> Vec<Message> {
    system.map(|text| json!({ "role": "system", "content": text })).into_iter().collect()
}

fn answer(
    model: &Model,
    sequence: &mut edgelm_engine::Sequence,
    prompt: &[u32],
    options: &GenerateOptions,
) -> anyhow::Result<String> {
    let work = Work::begin();
    let options = with_model_limit(model, prompt.len(), options);
    let mut on_piece = |piece: &edgelm_engine::Piece| {
        if output::stream(&piece.text).is_err() || work.is_interrupted() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    // Beams fork the state, so they start afresh each turn.
    let generation = if options.beams > 1 {
        model.generate(prompt, &options, &mut on_piece)
    } else {
        model.generate_in(sequence, prompt, &options, &mut on_piece)
    };
    let generation = generation?;
    output::line("")?;
    Ok(generation.text)
}
