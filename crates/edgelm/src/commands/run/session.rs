//! `run --session`: a conversation that goes on later, from a file.
//!
//! The file holds what was said and what the model computed of it. It belongs to one model, cache format and kernel family: with
//! another the numbers in it would mean something else, so it is refused.

use super::RunArgs;
use crate::{failure::Usage, options::Global, resolve};
use anyhow::Context;
use edgelm_engine::{GenerateOptions, Model, Sequence};
use edgelm_format::{create_sibling, rename_synced};
use edgelm_model::Message;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
};

/// Where a conversation is kept, and of which model it is.
pub(super) struct SessionFile {
    path: PathBuf,
    identity: String,
}

/// What was said.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Talk {
    /// `--raw`: one text, prompts and answers.
    Text(String),
    /// Through the chat template.
    Messages(Vec<Message>),
}

impl Talk {
    /// The prompt that goes on with `text`.
    pub(super) fn go_on(&mut self, model: &Model, text: &str) -> anyhow::Result<Vec<u32>> {
        Ok(match self {
            Self::Text(all) => {
                all.push_str(text);
                model.tokenizer()?.encode_prompt(all)?
            }
            Self::Messages(messages) => {
                messages.push(json!({ "role": "user", "content": text }));
                model.chat_prompt(messages)?
            }
        })
    }

    /// What the model said to that.
    pub(super) fn answer(&mut self, text: &str) {
        match self {
            Self::Text(all) => all.push_str(text),
            Self::Messages(messages) => messages.push(json!({ "role": "assistant", "content": text })),
        }
    }
}

impl SessionFile {
    /// The conversation in a file, or the beginning of one where there is no such file. `raw`: without a chat template.
    pub(super) fn open(
        path: &Path,
        args: &RunArgs,
        raw: bool,
        model: &Model,
        options: &GenerateOptions,
        global: &Global,
    ) -> anyhow::Result<(Self, Sequence, Talk)> {
        let digest = resolve::digest(&args.model, global)?;
        let file = Self { path: path.into(), identity: format!("{digest} {:?}", args.arithmetic) };
        let in_file = || format!("`{}`", path.display());
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let system = args.system.as_ref().map(|text| json!({ "role": "system", "content": text }));
                let talk = if raw { Talk::Text(String::new()) } else { Talk::Messages(system.into_iter().collect()) };
                return Ok((file, model.sequence(options), talk));
            }
            Err(error) => return Err(error).with_context(in_file),
        };
        let (sequence, note) = model.sequence_from_bytes(&bytes, &file.identity, options).with_context(in_file)?;
        let talk: Talk = serde_json::from_slice(note).with_context(in_file)?;
        let is_raw = matches!(talk, Talk::Text(_));
        if is_raw != raw {
            let with = if is_raw { "with" } else { "without" };
            return Err(Usage(format!("--session: {} was begun {with} --raw", in_file())).into());
        }
        if let (Some(system), Talk::Messages(messages)) = (&args.system, &talk)
            && messages.first() != Some(&json!({ "role": "system", "content": system }))
        {
            return Err(Usage(format!("--system: {} was begun with another system message", in_file())).into());
        }
        Ok((file, sequence, talk))
    }

    /// Replaces the file, when the new one is complete and on disk. It is for its owner alone: what was said can be read off it.
    pub(super) fn save(&self, model: &Model, sequence: &Sequence, talk: &Talk) -> anyhow::Result<()> {
        let bytes = model.sequence_to_bytes(sequence, &self.identity, &serde_json::to_vec(talk)?)?;
        let (temporary, mut file) = create_sibling(&self.path, |path| {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            options.open(path)
        })?;
        let written = file.write_all(&bytes).and_then(|()| file.sync_all());
        let saved = written.with_context(|| format!("cannot write `{}`", self.path.display()));
        let saved = saved.and_then(|()| Ok(rename_synced(&temporary, &self.path)?));
        if saved.is_err() {
            // What could not be written is not left behind; that it cannot be removed either is the lesser trouble.
            drop(std::fs::remove_file(&temporary));
        }
        saved
    }
}
