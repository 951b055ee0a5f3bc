//! Calibration text that the model writes itself: no data is needed.
//!
//! Text sampled from a model is distributed as what it was trained on, as far as it learned that, and so are the activations
//! that flow through it. The first word is drawn from the whole vocabulary (Liu et al. 2023, LLM-QAT, arXiv:2305.17888): what
//! a model says by itself may be little of what it can say. A quarter of the windows of a model with a chat template are
//! chats of which it writes both sides (Xu et al. 2024, Magpie, arXiv:2406.08464). The one thing a reader would get wrong:
//! a text that ends early is followed by the next one in the same window, as in training, so that all windows are full.

use super::{Draw, LEAST_TOKENS, OnStep, first_token};
use crate::{CompressError, Formats, Method, QuantizeOptions, Scheme, quantize};
use edgelm_engine::{Engine, Sampler, Sampling, Sequence, Step, Want, Workspace};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use rayon::prelude::*;
use serde_json::{Map, json};
use std::{ops::ControlFlow, sync::Arc};

/// Windows written together: enough that reading the weights no longer counts, with a small cache.
const BATCH: usize = 32;

/// Of so many windows, one is a chat.
const CHAT_EVERY: usize = 4;

/// What the model wrote.
pub(super) struct Written {
    /// As many as asked for, unless some hold too little text.
    pub windows: Vec<Vec<u32>>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Writes `count` windows of `length` tokens at temperature 1, beginning with the token that begins documents. The same for
/// the same seed, whatever the number of threads.
///
/// A model that is not quantized writes as Q8_0, out of a temporary file: more than twice as fast, and its text is as good.
pub(super) fn write(
    checkpoint: &Arc<Checkpoint>,
    cpu: &Arc<Cpu>,
    count: usize,
    length: usize,
    seed: u64,
    on_step: &mut OnStep<'_>,
) -> Result<Written, CompressError> {
    let (script, notes) = Script::of(checkpoint)?;
    let folder = tempfile::tempdir().map_err(CompressError::Spill)?;
    let is_quantized = |dtype: edgelm_tensor::DType| dtype.is_quantized();
    let ids = checkpoint.tensor_ids().iter();
    let dtypes = ids.map(|&id| Ok(checkpoint.describe(id)?.0)).collect::<Result<Vec<_>, CompressError>>()?;
    let writer = if dtypes.into_iter().any(is_quantized) {
        Arc::clone(checkpoint)
    } else {
        let path = folder.path().join("writer.gguf");
        let formats = Formats::Scheme(Scheme::from_name("Q8_0")?);
        let options = QuantizeOptions { formats, keep: &[], method: Method::Rtn, store: None };
        let mut stopped = Ok(());
        let made = quantize(checkpoint, &path, &options, &mut |_, _, _| {
            stopped = on_step(0, count * length);
            if stopped.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        stopped?;
        made?;
        Arc::new(Checkpoint::open(&path)?)
    };
    let engine = Engine::load(writer, Arc::clone(cpu))?;
    let mut workspace = Workspace::default();
    let mut windows = Vec::new();
    let mut index = 0;
    while index < count {
        let batch = BATCH.min(count - index);
        let texts = (index..index + batch).map(|index| Text::begin(&engine, &script, index, length, seed));
        let mut texts = texts.collect::<Result<Vec<_>, _>>()?;
        while texts.iter().any(|text| text.tokens.len() < length) {
            next_tokens(&engine, &script, length, &mut texts, &mut workspace)?;
            let done = texts.iter().map(|text| text.tokens.len()).min().unwrap_or(length).min(length);
            on_step(index * length + done * batch, count * length)?;
        }
        let least = LEAST_TOKENS.min(length / 2);
        windows.extend(texts.into_iter().filter(|text| text.written >= least).map(|text| text.tokens));
        index += batch;
    }
    drop(engine);
    if windows.is_empty() {
        return Err(CompressError::OwnText("it ends every text at once".to_owned()));
    }
    let mut notes: Vec<String> = notes.into_iter().collect();
    if windows.len() < count {
        let (got, empty) = (windows.len(), count - windows.len());
        notes.push(format!("calibration: of {count} windows the model left {empty} without text; {got} are used"));
    }
    Ok(Written { windows, notes })
}

/// What texts begin and end with.
struct Script {
    /// Begins a document.
    first: u32,
    /// What may come after that: all tokens that are text.
    words: Vec<u32>,
    /// End a text.
    ends: Vec<u32>,
    chat: Option<Chat>,
}

/// The template around what is said.
struct Chat {
    /// Up to what the user says, from the beginning of a document on.
    opening: Vec<u32>,
    /// From there to where the answer begins.
    between: Vec<u32>,
}

/// What stands for the user's words while the template is taken apart.
const WORDS: &str = "edgelm";

impl Script {
    /// A word to begin a document with.
    fn word(&self, draw: &mut Draw) -> Option<u32> {
        (!self.words.is_empty()).then(|| self.words[draw.below(self.words.len())])
    }

    /// Also what the user should know.
    fn of(checkpoint: &Checkpoint) -> Result<(Self, Option<String>), CompressError> {
        let (tokenizer, config) = (checkpoint.tokenizer()?, checkpoint.config());
        let mut ends = config.eos_token_ids.clone();
        ends.extend(tokenizer.eos());
        ends.extend(tokenizer.end_of_turn());
        let Some(first) = first_token(checkpoint)? else {
            return Err(CompressError::OwnText("it has no token that begins or ends a text".to_owned()));
        };
        let vocab = u32::try_from(tokenizer.vocab_size().min(config.vocab_size)).unwrap_or(u32::MAX);
        let words: Vec<u32> = (0..vocab).filter(|&id| !tokenizer.is_special(id)).collect();
        let mut script = Self { first, words, ends, chat: None };
        let Some(template) = checkpoint.chat_template()? else { return Ok((script, None)) };
        let messages = [json!({ "role": "user", "content": WORDS })];
        let rendered = template.render(&messages, true, &Map::new());
        let parts = match rendered.as_deref().map(|text| text.split(WORDS).collect::<Vec<_>>()) {
            Ok(parts) => match parts[..] {
                [opening, between] => Ok((opening.to_owned(), between.to_owned())),
                _ => Err("does not repeat what the user says once".to_owned()),
            },
            Err(error) => Err(error.to_string()),
        };
        match parts {
            Ok((opening, between)) => {
                let mut opening = tokenizer.encode_chat(&opening)?;
                if opening.first() != Some(&first) {
                    opening.insert(0, first);
                }
                script.chat = Some(Chat { opening, between: tokenizer.encode(&between, false)? });
                Ok((script, None))
            }
            Err(what) => {
                let note =
                    format!("calibration: the model writes no chats, because its template cannot be used: {what}");
                Ok((script, Some(note)))
            }
        }
    }
}

/// Whose words come next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Document,
    User,
    Answer,
}

/// A window in work.
struct Text {
    sequence: Sequence,
    sampler: Sampler,
    draw: Draw,
    turn: Turn,
    tokens: Vec<u32>,
    /// How many of them the sequence has seen.
    seen: usize,
    /// How many of them the model chose, ends of texts left out.
    written: usize,
}

impl Text {
    fn begin(engine: &Engine, script: &Script, index: usize, length: usize, seed: u64) -> Result<Self, CompressError> {
        // Another odd factor than the generators' own, so that neighbouring seeds share no windows.
        let seed = seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(index as u64);
        let mut draw = Draw(seed);
        let (turn, mut tokens) = match &script.chat {
            Some(chat) if index % CHAT_EVERY == 1 => (Turn::User, chat.opening.clone()),
            _ => (Turn::Document, [script.first].into_iter().chain(script.word(&mut draw)).collect()),
        };
        tokens.truncate(length);
        let sampler = Sampler::new(&Sampling { temperature: 1.0, seed, ..Sampling::default() })?;
        let sequence = engine.sequence(engine.default_kv());
        Ok(Self { sequence, sampler, draw, turn, tokens, seen: 0, written: 0 })
    }

    /// Picks what comes next, and what must follow.
    fn go_on(&mut self, script: &Script, logits: &mut [f32]) -> Result<(), CompressError> {
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(CompressError::NotFinite { what: "a logit of the model's own text".to_owned() });
        }
        let token = self.sampler.pick(logits, &[], &[]);
        self.tokens.push(token);
        if token != script.first && !script.ends.contains(&token) {
            self.written += 1;
            return Ok(());
        }
        match (&script.chat, self.turn) {
            (Some(chat), Turn::User) => {
                let ends_itself = chat.between.first() == Some(&token);
                self.tokens.extend(&chat.between[usize::from(ends_itself)..]);
                self.turn = Turn::Answer;
            }
            (Some(chat), Turn::Answer) => {
                let begins_itself = token == script.first;
                self.tokens.extend(&chat.opening[usize::from(begins_itself)..]);
                self.turn = Turn::User;
            }
            // A chat that it began by itself goes on.
            (Some(chat), Turn::Document) if chat.between.first() == Some(&token) => {}
            _ => {
                let first = (token != script.first).then_some(script.first);
                self.tokens.extend(first.into_iter().chain(script.word(&mut self.draw)));
            }
        }
        Ok(())
    }
}

/// One step of all texts that are not full.
fn next_tokens(
    engine: &Engine,
    script: &Script,
    length: usize,
    texts: &mut [Text],
    workspace: &mut Workspace,
) -> Result<(), CompressError> {
    let mut open: Vec<&mut Text> = texts.iter_mut().filter(|text| text.tokens.len() < length).collect();
    let steps = open.iter_mut().map(|text| {
        let tokens = &text.tokens[text.seen..];
        text.seen = text.tokens.len();
        Step { sequence: &mut text.sequence, tokens, want: Want::Last }
    });
    let mut steps: Vec<Step<'_>> = steps.collect();
    engine.forward(&mut steps, workspace)?;
    drop(steps);
    let mut logits = workspace.logits().to_vec();
    let rows = logits.par_chunks_mut(engine.config().vocab_size.max(1));
    open.par_iter_mut().zip(rows).try_for_each(|(text, logits)| {
        text.go_on(script, logits)?;
        text.tokens.truncate(length);
        Ok(())
    })
}
