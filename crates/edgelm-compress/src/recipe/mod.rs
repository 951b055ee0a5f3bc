//! Recipes: a list of passes in a TOML file, with the calibration data they share and the gates they must pass.
//!
//! `Pass` is the one list of passes; each has a file here that says what its keys are and how it runs. `run` takes a model
//! through them from file to file, `work` is the folder beside the output in which this happens and from which an
//! interrupted run goes on. The one thing a reader would get wrong: gates are judged here and measured by the caller,
//! because quality is measured by a crate above this one.

mod gates;
mod pass;
mod prune;
mod quantize;
mod ready;
mod report;
mod run;
#[cfg(test)]
mod tests;
mod work;

pub use gates::{Fraction, GateReport, Gates, Measured};
pub use pass::{Job, Pass, Settings};
pub use prune::PrunePass;
pub use quantize::{QuantizeMethod, QuantizePass, Size};
pub use ready::{READY, Ready};
pub use report::{PassReport, RecipeReport};
pub use run::{Hooks, RunOptions, run_recipe};
pub use work::Start;

use crate::{CalibrationOptions, CalibrationSource, CompressError, HELD_OUT_WINDOWS, Select, is_gguf};
use edgelm_format::refuse_replacing;
use serde::{Deserialize, Deserializer};
use std::path::{Path, PathBuf};
use toml::Spanned;

/// A recipe, checked.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// File, or name of a ready one.
    pub name: String,
    /// Of everything that is drawn at random.
    pub seed: u64,
    /// Shared by all passes.
    pub calibration: Calibration,
    /// After the last pass; what they are measured on holds for the gates of passes too.
    pub gates: Gates,
    /// In order.
    pub passes: Vec<Pass>,
}

/// `[calibration]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Text, or JSON Lines with `text` or `messages`; or `self`: the model writes it. One, or a list.
    #[serde(default, rename = "file", deserialize_with = "one_or_more")]
    pub sources: Vec<CalibrationSource>,
    /// Windows at most.
    pub samples: Option<usize>,
    /// Tokens per window at most.
    pub window: Option<usize>,
    /// How windows are chosen.
    #[serde(default)]
    pub select: Select,
}

/// A value or a list of values.
fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<CalibrationSource>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "`file` must be a path, \"self\", or a list of these")]
    enum OneOrMore {
        One(CalibrationSource),
        More(Vec<CalibrationSource>),
    }
    Ok(match OneOrMore::deserialize(from)? {
        OneOrMore::One(one) => vec![one],
        OneOrMore::More(more) => more,
    })
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    calibration: Calibration,
    #[serde(default)]
    gates: Gates,
    #[serde(default, rename = "pass")]
    passes: Vec<Spanned<Pass>>,
}

/// A recipe longer than this is none.
const MAX_BYTES: u64 = 1 << 20;

impl Recipe {
    /// A ready recipe by its name, else the file of that name. Paths in a file are relative to its folder.
    pub fn open(name: &str) -> Result<Self, CompressError> {
        if let Some(ready) = READY.iter().find(|ready| ready.name == name) {
            return Self::parse(name, ready.text, Path::new(""));
        }
        let path = Path::new(name);
        let failed = |what: String| CompressError::Recipe { recipe: name.to_owned(), what };
        let size = match std::fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) => {
                let names: Vec<&str> = READY.iter().map(|ready| ready.name).collect();
                return Err(failed(format!("{error}; ready recipes: {}", names.join(", "))));
            }
        };
        if size > MAX_BYTES {
            return Err(failed(format!("has {size} bytes, more than the {MAX_BYTES} that a recipe may have")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        Self::parse(name, &text, path.parent().unwrap_or(Path::new("")))
    }

    /// Reads and checks a recipe. `name` is for messages; relative paths are taken from `folder`.
    pub fn parse(name: &str, text: &str, folder: &Path) -> Result<Self, CompressError> {
        let failed = |what: String| CompressError::Recipe { recipe: name.to_owned(), what };
        let document: Document = toml::from_str(text).map_err(|error| {
            let place = error.span().map(|span| format!("{}: ", place(text, span.start)));
            failed(format!("{}{}", place.unwrap_or_default(), error.message().replace('\n', " ")))
        })?;
        let Document { seed, mut calibration, mut gates, passes } = document;
        if passes.is_empty() {
            return Err(failed("no `[[pass]]`".to_owned()));
        }
        if calibration.samples == Some(0) || calibration.window == Some(0) {
            return Err(failed("`calibration`: samples and window must be at least 1".to_owned()));
        }
        calibration.sources.iter_mut().for_each(|source| source.relative_to(folder));
        gates.check(false).map_err(|what| failed(format!("`gates`: {what}")))?;
        gates.relative_to(folder);
        let mut checked = Vec::new();
        for (index, spanned) in passes.into_iter().enumerate() {
            let line = place(text, spanned.span().start);
            let mut pass = spanned.into_inner();
            let settings = pass.settings_mut();
            let own = settings.check().and_then(|()| match settings.gates_mut() {
                Some(gates) => {
                    gates.relative_to(folder);
                    gates.check(true).map_err(|what| format!("gates: {what}"))
                }
                None => Ok(()),
            });
            own.map_err(|what| failed(format!("{line}: pass {} (`{}`): {what}", index + 1, pass.kind())))?;
            checked.push(pass);
        }
        Ok(Self { name: name.to_owned(), seed, calibration, gates, passes: checked })
    }

    /// Which part of the calibration data is used.
    pub fn calibration_options(&self) -> CalibrationOptions {
        let default = CalibrationOptions::default();
        CalibrationOptions {
            samples: self.calibration.samples.unwrap_or(default.samples),
            window: self.calibration.window.unwrap_or(default.window),
            seed: self.seed,
            select: self.calibration.select,
            held_out: if self.passes.iter().any(|pass| pass.settings().holds_out()) { HELD_OUT_WINDOWS } else { 0 },
        }
    }

    /// The gates after pass `index`: its own and, after the last one, those of the recipe.
    pub fn gates_after(&self, index: usize) -> Vec<Gates> {
        let own = self.passes[index].settings().gates().map(|gates| gates.over(&self.gates));
        let last = (index + 1 == self.passes.len()).then(|| self.gates.clone());
        own.into_iter().chain(last).filter(Gates::has_limit).collect()
    }

    /// True if some gate is about perplexity or divergence.
    pub fn has_gates_on_text(&self) -> bool {
        (0..self.passes.len()).any(|index| self.gates_after(index).iter().any(Gates::needs_text))
    }

    /// True if some gate is about accuracy.
    pub fn has_gates_on_tasks(&self) -> bool {
        (0..self.passes.len()).any(|index| self.gates_after(index).iter().any(Gates::needs_tasks))
    }

    /// Other data in place of what the recipe names.
    pub fn set_data(&mut self, calibration: &[CalibrationSource], text: Option<&Path>, tasks: Option<&Path>) {
        let set = |file: &mut Option<PathBuf>, other: Option<&Path>| {
            if let Some(other) = other {
                *file = Some(other.to_owned());
            }
        };
        if !calibration.is_empty() {
            self.calibration.sources = calibration.to_vec();
        }
        let of_passes = self.passes.iter_mut().filter_map(|pass| pass.settings_mut().gates_mut());
        for gates in of_passes.chain([&mut self.gates]) {
            set(&mut gates.text, text);
            set(&mut gates.tasks, tasks);
        }
    }

    /// True if some pass looks at calibration data.
    pub fn uses_calibration(&self) -> bool {
        self.passes.iter().any(|pass| pass.settings().uses_calibration())
    }

    /// Errors if a pass cannot write that kind of output.
    pub fn check_output(&self, output: &Path) -> Result<(), CompressError> {
        let is_folder = !is_gguf(output);
        if is_folder {
            refuse_replacing(output)?;
        }
        for (index, pass) in self.passes.iter().enumerate() {
            pass.settings().check_output(is_folder).map_err(|what| CompressError::Recipe {
                recipe: self.name.clone(),
                what: format!("pass {} (`{}`): {what}", index + 1, pass.kind()),
            })?;
        }
        Ok(())
    }

    /// Errors if data is needed that is not named.
    pub fn check_data(&self) -> Result<(), CompressError> {
        let missing =
            |needs: String, flag, key| Err(CompressError::RecipeNeeds { recipe: self.name.clone(), needs, flag, key });
        for (index, pass) in self.passes.iter().enumerate() {
            if let Some(what) = pass.settings().calibration_for()
                && self.calibration.sources.is_empty()
            {
                let needs = format!("pass {} needs calibration data for `{what}`", index + 1);
                return missing(needs, "--calibration", "calibration.file");
            }
            for gates in self.gates_after(index) {
                if gates.needs_text() && gates.text.is_none() {
                    return missing("its gates are measured on a text".to_owned(), "--text", "gates.text");
                }
                if gates.needs_tasks() && gates.tasks.is_none() {
                    return missing("its gates are measured on tasks".to_owned(), "--tasks", "gates.tasks");
                }
            }
        }
        Ok(())
    }
}

/// `line 3, column 7` of a byte.
fn place(text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or(text);
    let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count());
    format!("line {}, column {}", before.matches('\n').count() + 1, column + 1)
}
