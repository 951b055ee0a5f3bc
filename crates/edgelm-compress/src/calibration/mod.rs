//! Calibration data: windows of tokens, out of a file or written by the model itself.
//!
//! `file` reads text and chats, `diverse` chooses among many windows, `own` lets the model write; several sources share the
//! windows equally. The one thing a reader would get wrong: windows held out to measure quality are drawn at random, however those
//! for statistics are selected.

mod diverse;
mod draw;
mod file;
mod own;
#[cfg(test)]
mod tests;

use crate::CompressError;
use draw::Draw;
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use serde::{Deserialize, Serialize};
use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

/// Windows shorter than this say too little of what a model does with text.
const LEAST_TOKENS: usize = 16;

/// Windows that are usually held out: with 512 tokens each, a mean KL divergence of 0.01 is known to 2 % (standard error).
pub const HELD_OUT_WINDOWS: usize = 32;

/// Where calibration data comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum CalibrationSource {
    /// Text, or JSON Lines of passages or chats.
    File(PathBuf),
    /// The model writes it.
    Own,
}

impl From<String> for CalibrationSource {
    fn from(text: String) -> Self {
        if text == "self" { Self::Own } else { Self::File(text.into()) }
    }
}

impl FromStr for CalibrationSource {
    type Err = Infallible;

    /// `self`, or else a path (`./self` for a file of that name).
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.to_owned().into())
    }
}

impl CalibrationSource {
    /// A relative path as seen from `folder`.
    pub(crate) fn relative_to(&mut self, folder: &Path) {
        if let Self::File(path) = self {
            *path = folder.join(&*path);
        }
    }
}

/// How windows are chosen where there are more than asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Select {
    /// All are as likely.
    #[default]
    Random,
    /// The one nearest to each centre of a k-means clustering of their embeddings.
    Diverse,
}

/// Which part of the data is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CalibrationOptions {
    /// Windows at most.
    pub samples: usize,
    /// Tokens per window at most.
    pub window: usize,
    /// Which windows.
    pub seed: u64,
    /// How they are chosen.
    pub select: Select,
    /// Further windows at most that are no part of the statistics; at least one in five of all there are, if more than 0.
    pub held_out: usize,
}

impl Default for CalibrationOptions {
    /// 128 windows of 512 tokens: 65,000 positions, where the statistics of mica-40m stop moving the third digit.
    fn default() -> Self {
        Self { samples: 128, window: 512, seed: 0, select: Select::Random, held_out: 0 }
    }
}

/// Calibration data, chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CalibrationSet {
    /// For statistics. At least one of each source.
    pub windows: Vec<Vec<u32>>,
    /// For measuring what became of the model. At least one of each source if any were asked for.
    pub held_out: Vec<Vec<u32>>,
    /// What the user should know: fewer windows than asked for, a template without use.
    pub notes: Vec<String>,
}

/// How far the work has come, in steps done and in all.
pub type OnStep<'a> = dyn FnMut(usize, usize) -> Result<(), CompressError> + 'a;

impl CalibrationSet {
    /// Reads or writes the data and chooses windows; the same for the same seed. Every source gives as many, in turns, so that
    /// beginnings of the set have some of each; no sources give an empty set.
    ///
    /// Errors: fewer samples than sources, files that cannot be read or hold no passage of 16 tokens, too few windows to hold any
    /// out, a model that cannot write. `on_step` is called while the model writes.
    pub fn load(
        sources: &[CalibrationSource],
        checkpoint: &Arc<Checkpoint>,
        cpu: &Arc<Cpu>,
        options: &CalibrationOptions,
        on_step: &mut OnStep<'_>,
    ) -> Result<Self, CompressError> {
        let count = sources.len();
        if options.samples < count {
            return Err(CompressError::Setting {
                what: "--samples",
                value: options.samples.to_string(),
                problem: format!("less than the {count} sources of calibration data"),
            });
        }
        let share = |of: usize, index: usize| of / count + usize::from(index < of % count);
        let mut set = Self::default();
        let (mut windows, mut held_out) = (Vec::new(), Vec::new());
        for (index, source) in sources.iter().enumerate() {
            // Some of every source where any are held out.
            let held = share(options.held_out, index).max(usize::from(options.held_out > 0));
            let options = CalibrationOptions { samples: share(options.samples, index), held_out: held, ..*options };
            let one = Self::load_one(source, checkpoint, cpu, &options, on_step)?;
            windows.push(one.windows);
            held_out.push(one.held_out);
            set.notes.extend(one.notes);
        }
        (set.windows, set.held_out) = (in_turns(windows), in_turns(held_out));
        Ok(set)
    }

    fn load_one(
        source: &CalibrationSource,
        checkpoint: &Arc<Checkpoint>,
        cpu: &Arc<Cpu>,
        options: &CalibrationOptions,
        on_step: &mut OnStep<'_>,
    ) -> Result<Self, CompressError> {
        let window = options.window.min(checkpoint.config().max_position_embeddings);
        match source {
            CalibrationSource::File(path) => {
                let windows = file::windows(checkpoint, path, window)?;
                let bad = |what: String| CompressError::Calibration { path: path.clone(), what };
                if windows.len() < 2 && options.held_out > 0 {
                    return Err(bad(format!(
                        "{} tokens are one window; of two or more, some are held out to measure quality on",
                        windows[0].len()
                    )));
                }
                Self::choose(windows, checkpoint, options, &path.display().to_string())
            }
            CalibrationSource::Own if options.select == Select::Diverse => Err(CompressError::Setting {
                what: "--select",
                value: "diverse".to_owned(),
                problem: "has no use where the model writes as many windows as are needed".to_owned(),
            }),
            CalibrationSource::Own => {
                let wanted = options.samples + options.held_out;
                let own::Written { mut windows, notes } =
                    own::write(checkpoint, cpu, wanted, window, options.seed, on_step)?;
                if windows.len() < 2 && options.held_out > 0 {
                    return Err(CompressError::OwnText("one window is too little to hold any out".to_owned()));
                }
                let held_out = windows.split_off(windows.len() - held_out(windows.len(), options));
                Ok(Self { windows, held_out, notes })
            }
        }
    }

    fn choose(
        mut windows: Vec<Vec<u32>>,
        checkpoint: &Checkpoint,
        options: &CalibrationOptions,
        name: &str,
    ) -> Result<Self, CompressError> {
        let all = windows.len();
        let mut draw = Draw(options.seed);
        let held = held_out(all, options);
        let (windows, held_out) = match options.select {
            Select::Random => {
                draw.move_to_front(&mut windows, options.samples.saturating_add(held));
                windows.truncate(options.samples.saturating_add(held));
                let held_out = windows.split_off(windows.len() - held);
                (windows, held_out)
            }
            Select::Diverse => {
                draw.move_to_front(&mut windows, held);
                let rest = windows.split_off(held);
                (diverse::choose(rest, checkpoint, options.samples, &mut draw)?, windows)
            }
        };
        let mut notes = Vec::new();
        if windows.len() < options.samples {
            let (got, wanted) = (windows.len(), options.samples);
            notes.push(match held {
                0 => format!("calibration: `{name}` has {all} windows; {wanted} were asked for"),
                held => format!(
                    "calibration: `{name}` has {all} windows; {held} are held out to measure quality on, and {got} left of \
                     the {wanted} that were asked for"
                ),
            });
        }
        Ok(Self { windows, held_out, notes })
    }
}

/// The first of each, the second of each, and so on.
fn in_turns<T>(lists: Vec<Vec<T>>) -> Vec<T> {
    let mut lists: Vec<_> = lists.into_iter().map(Vec::into_iter).collect();
    let mut all = Vec::new();
    loop {
        let before = all.len();
        all.extend(lists.iter_mut().filter_map(Iterator::next));
        if all.len() == before {
            return all;
        }
    }
}

/// The token that begins documents: bos, or where there is none the one that ends them.
pub(crate) fn first_token(checkpoint: &Checkpoint) -> Result<Option<u32>, CompressError> {
    let config = checkpoint.config();
    let tokenizer = if checkpoint.has_tokenizer() { Some(checkpoint.tokenizer()?) } else { None };
    let bos = tokenizer.and_then(|tokenizer| tokenizer.bos()).or(config.bos_token_id);
    let eos = tokenizer.and_then(|tokenizer| tokenizer.eos());
    Ok(bos.or(eos).or(config.eos_token_ids.first().copied()))
}

/// How many of `all` windows are held out: what is asked for beyond the samples, but of few windows a fifth.
fn held_out(all: usize, options: &CalibrationOptions) -> usize {
    options.held_out.min((all / 5).max(all.saturating_sub(options.samples))).max(usize::from(options.held_out > 0))
}
