//! What a model has to say, kept in a file: so that the first probe of a process has something to be compared with, too.
//!
//! Without it, the first load is taken to be good. With it, a device shows that it computes what was computed where the model was
//! approved: the same files (by digest), the same prompt, the same tokens, the same bits of all logits. Bits are promised for one
//! family of kernels, cache format and version only, so a file holds a run for each; where there is none for this machine, the
//! perplexity has to be near that of another.

use super::{Probe, probe::ProbeText};
use crate::models::{BoxError, ModelSpec, Room};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

/// |ln(perplexity / perplexity of another family)| up to here is rounding: a tenth of what a wrong bit in a scale usually does.
pub(crate) const MAX_DRIFT: f64 = 0.05;
/// Larger files are none of ours.
const MAX_FILE_BYTES: u64 = 1 << 20;
const MAX_PROMPT_TOKENS: usize = 512;
const MAX_GENERATED: usize = 64;

/// A file of baselines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthBaseline {
    /// Of the form of the file: 1.
    version: u32,
    models: Vec<ModelBaseline>,
}

/// What one model has to say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelBaseline {
    /// The id under which it was served.
    model: String,
    /// `sha256:` and the digest of its files.
    digest: String,
    /// What it is given to read.
    prompt: String,
    /// As many tokens of it.
    prompt_tokens: usize,
    /// At least one.
    runs: Vec<Run>,
}

/// What it said on one family of kernels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    /// See [`Probe::numerics`].
    numerics: String,
    tokens: Vec<u32>,
    logits_sha256: String,
    perplexity: f64,
}

/// Why there is no baseline.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BaselineError {
    /// The file cannot be read or written.
    #[error("health baseline `{path}`")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("health baseline `{path}`: {what}")]
    Form {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A model could not be loaded or probed.
    #[error("the baseline of `{model}`")]
    Model {
        /// Its id.
        model: String,
        /// Why.
        source: BoxError,
    },
}

/// How a probe compares.
pub(crate) enum Match {
    /// Bit by bit.
    Same,
    /// Nothing of this family is there, but the perplexity is near: `drift` from that of `other`.
    Near {
        other: String,
        drift: f64,
    },
    Different(String),
}

impl Default for HealthBaseline {
    fn default() -> Self {
        Self { version: 1, models: Vec::new() }
    }
}

impl HealthBaseline {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, or holds something else.
    pub fn read(path: &Path) -> Result<Self, BaselineError> {
        let file = |source| BaselineError::File { path: path.into(), source };
        let form = |what: String| BaselineError::Form { path: path.into(), what };
        if fs::metadata(path).map_err(file)?.len() > MAX_FILE_BYTES {
            return Err(form(format!("is larger than {MAX_FILE_BYTES} bytes")));
        }
        let text = fs::read_to_string(path).map_err(file)?;
        let baseline: Self = serde_json::from_str(&text).map_err(|error| form(error.to_string()))?;
        baseline.check().map_err(form)?;
        Ok(baseline)
    }

    fn check(&self) -> Result<(), String> {
        if self.version != 1 {
            return Err(format!("`version` {} is not known", self.version));
        }
        for ModelBaseline { model, digest, prompt_tokens, runs, .. } in &self.models {
            let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit());
            if !digest.strip_prefix("sha256:").is_some_and(is_digest) {
                return Err(format!("`{model}`: `digest` is not `sha256:` and 64 hexadecimal digits"));
            }
            if !(1..=MAX_PROMPT_TOKENS).contains(prompt_tokens) {
                return Err(format!("`{model}`: `prompt_tokens` must be from 1 to {MAX_PROMPT_TOKENS}"));
            }
            let Some(first) = runs.first() else { return Err(format!("`{model}`: `runs` is empty")) };
            for run in runs {
                if !(1..=MAX_GENERATED).contains(&run.tokens.len()) || run.tokens.len() != first.tokens.len() {
                    return Err(format!("`{model}`: `tokens` must be 1 to {MAX_GENERATED}, as many in each run"));
                }
                if run.perplexity.is_nan() || run.perplexity < 1.0 {
                    return Err(format!("`{model}`: `perplexity` must be 1 or more"));
                }
            }
        }
        Ok(())
    }

    /// Writes the file: all of it or, where that fails, nothing.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, path: &Path) -> Result<(), BaselineError> {
        let file = |source| BaselineError::File { path: path.into(), source };
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| BaselineError::Form { path: path.into(), what: error.to_string() })?;
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let write = || {
            let mut out = File::create(&new)?;
            out.write_all(text.as_bytes())?;
            out.write_all(b"\n")?;
            out.sync_all()?;
            fs::rename(&new, path)
        };
        write().map_err(file)
    }

    /// Loads each artifact of a model, probes it, and notes what it says on this machine; runs on others stay, if the files are the
    /// same. Takes as long as loading them all does.
    ///
    /// # Errors
    /// An artifact that cannot be loaded or probed.
    pub fn record(&mut self, spec: &ModelSpec) -> Result<(), BaselineError> {
        for artifact in &spec.artifacts {
            let say = || -> Result<(String, ProbeText, Probe), BoxError> {
                let digest = format!("sha256:{}", artifact.digest_anew()?);
                let text = self.of_digest(&digest).map_or_else(ProbeText::default, ModelBaseline::text);
                let backend = artifact.load(&artifact.plan(&Room::default())?)?;
                let probe = backend.probe(&text, &mut || true)?.ok_or("the probe was given up")?;
                Ok((digest, text, probe))
            };
            let said = say().map_err(|source| BaselineError::Model { model: spec.id.clone(), source })?;
            self.add(&spec.id, said);
        }
        Ok(())
    }

    fn add(&mut self, id: &str, (digest, text, probe): (String, ProbeText, Probe)) {
        let Probe { tokens, logits_sha256, perplexity, prompt_tokens, numerics } = probe;
        let run = Run { numerics, tokens, logits_sha256, perplexity };
        match self.models.iter_mut().find(|model| model.digest == digest) {
            Some(model) => {
                model.runs.retain(|other| other.numerics != run.numerics);
                model.runs.push(run);
            }
            None => self.models.push(ModelBaseline {
                model: id.to_owned(),
                digest,
                prompt: text.text,
                prompt_tokens,
                runs: vec![run],
            }),
        }
    }

    fn of_digest(&self, digest: &str) -> Option<&ModelBaseline> {
        self.models.iter().find(|model| model.digest == digest)
    }

    /// What a model with these files has to be given; an error names what is wrong with them.
    pub(crate) fn text(&self, id: &str, digest: Option<&str>) -> Result<ProbeText, String> {
        Ok(self.model(id, digest)?.text())
    }

    fn model(&self, id: &str, digest: Option<&str>) -> Result<&ModelBaseline, String> {
        let Some(digest) = digest.map(|digest| format!("sha256:{digest}")) else {
            return Err("its files cannot be read for the health baseline".to_owned());
        };
        if let Some(model) = self.of_digest(&digest) {
            return Ok(model);
        }
        Err(match self.models.iter().find(|model| model.model == id) {
            Some(model) => format!("its files are {digest}, those of the health baseline {}", model.digest),
            None => format!("the health baseline has nothing for its files, {digest}"),
        })
    }

    /// Compares what a model with these files says with what it has to say.
    pub(crate) fn compare(&self, id: &str, digest: Option<&str>, probe: &Probe) -> Match {
        let runs = match self.model(id, digest) {
            Ok(model) => &model.runs,
            Err(what) => return Match::Different(what),
        };
        match runs.iter().find(|run| run.numerics == probe.numerics) {
            Some(run) if run.tokens == probe.tokens && run.logits_sha256 == probe.logits_sha256 => Match::Same,
            Some(run) => Match::Different(format!(
                "it says {:?} where the health baseline has {:?}; perplexity {:.4}, not {:.4}",
                probe.tokens, run.tokens, probe.perplexity, run.perplexity
            )),
            None => {
                let Some(run) = runs.first() else { return Match::Different("the baseline is empty".to_owned()) };
                let (other, drift) = (run.numerics.clone(), (probe.perplexity / run.perplexity).ln());
                match drift.abs() <= MAX_DRIFT {
                    true => Match::Near { other, drift },
                    false => Match::Different(format!(
                        "its perplexity is {:.4} on {}, and {:.4} on {other} by the health baseline",
                        probe.perplexity, probe.numerics, run.perplexity
                    )),
                }
            }
        }
    }
}

impl ModelBaseline {
    fn text(&self) -> ProbeText {
        let generated = self.runs.first().map_or(1, |run| run.tokens.len());
        ProbeText { text: self.prompt.clone(), max_tokens: self.prompt_tokens, generated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(numerics: &str, bits: &str, perplexity: f64) -> Probe {
        let (tokens, prompt_tokens) = (vec![1, 2], 5);
        Probe { tokens, logits_sha256: bits.to_owned(), perplexity, prompt_tokens, numerics: numerics.to_owned() }
    }

    fn baseline() -> HealthBaseline {
        let mut baseline = HealthBaseline::default();
        let digest = || format!("sha256:{}", "a".repeat(64));
        baseline.add("m", (digest(), ProbeText::default(), probe("old", "x", 3.0)));
        baseline.add("m", (digest(), ProbeText::default(), probe("other", "y", 3.0)));
        baseline.add("m", (digest(), ProbeText::default(), probe("old", "z", 3.0)));
        baseline
    }

    #[test]
    fn what_is_compared_with_what() {
        let (baseline, good) = (baseline(), "a".repeat(64));
        let compare = |digest: &str, probe: &Probe| match baseline.compare("m", Some(digest), probe) {
            Match::Same => "same".to_owned(),
            Match::Near { other, .. } => format!("near {other}"),
            Match::Different(what) => what,
        };
        assert_eq!(compare(&good, &probe("old", "z", 3.0)), "same", "the newest run of a family");
        assert_eq!(compare(&good, &probe("other", "y", 3.0)), "same");
        assert!(compare(&good, &probe("old", "y", 3.0)).starts_with("it says"));
        assert_eq!(compare(&good, &probe("new", "?", 3.1)), "near other");
        assert!(compare(&good, &probe("new", "?", 3.3)).starts_with("its perplexity"));
        assert!(compare(&good, &probe("new", "?", f64::NAN)).starts_with("its perplexity"));
        assert!(compare(&"b".repeat(64), &probe("old", "z", 3.0)).starts_with("its files are"));
        assert!(matches!(baseline.compare("m", None, &probe("old", "z", 3.0)), Match::Different(_)));
        let text = baseline.text("any", Some(&good)).expect("known by its files");
        assert_eq!((text.max_tokens, text.generated), (5, 2));
    }

    #[test]
    fn files_are_read_strictly() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("baseline.json");
        baseline().write(&path).expect("written");
        assert_eq!(HealthBaseline::read(&path).expect("read"), baseline());
        let good = fs::read_to_string(&path).expect("there");
        for (from, to, named) in [
            ("\"version\": 1", "\"version\": 2", "version"),
            ("\"prompt_tokens\": 5", "\"prompt_tokens\": 5000", "prompt_tokens"),
            ("\"prompt_tokens\": 5", "\"prompt_tokens\": 5, \"more\": 1", "more"),
            ("sha256:", "md5:", "digest"),
            ("\"perplexity\": 3.0", "\"perplexity\": 0.1", "perplexity"),
            ("\"models\"", "\"model\"", "model"),
        ] {
            assert!(good.contains(from), "{from}");
            fs::write(&path, good.replace(from, to)).expect("written");
            let error = HealthBaseline::read(&path).expect_err("wrong").to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(matches!(HealthBaseline::read(&folder.path().join("none")), Err(BaselineError::File { .. })));
    }
}
