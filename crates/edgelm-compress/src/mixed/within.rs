//! The smallest mixture whose divergence from its parent is within a limit: expected, made, measured, corrected.

use super::{
    Allocation, FormatCost, Item, Palette, ParetoFront, ProbeOptions, Sensitivity, Trial, allocation,
    divergence::Reference,
    items,
    knapsack::{Solution, Table},
    search::smallest,
    target::{front, measure},
};
use crate::{
    CompressError, Formats, Keep, LayerStore, MatrixFormat, Method, OnTensor, QuantizeOptions, QuantizeReport, go_on,
    quantize, quantize::refuse_overwriting_input,
};
use edgelm_format::{create_sibling, refuse_replacing, replace, write_file};
use edgelm_kernels::Cpu;
use edgelm_model::{Checkpoint, TensorId};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// What the mixture must keep, and how it is made.
#[derive(Clone, Copy)]
pub struct Limit<'a> {
    /// Mean KL divergence from the parent at most, in nats per token.
    pub max_kl: f64,
    /// What that is measured on.
    pub held_out: &'a [Vec<u32>],
    /// What sensitivities are measured on.
    pub windows: &'a [Vec<u32>],
    /// Formats of tensors named by pattern.
    pub keep: &'a [Keep],
    /// How codes are chosen.
    pub method: Method<'a>,
    /// A folder for what should be found again after an interruption; without it, it lies in a temporary one.
    pub work: Option<&'a Path>,
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Within {
    /// The mixture.
    pub report: QuantizeReport,
    /// What could be had for other sizes.
    pub front: ParetoFront,
    /// Measured, at most the limit.
    pub kl_divergence: f64,
    /// Positions it was measured on.
    pub held_out_tokens: usize,
    /// All that were made, in order.
    pub trials: Vec<Trial>,
}

/// Tokens for a first look at which formats could have a place in the mixture.
const ROUGH_TOKENS: usize = 512;

/// Quantizes to the smallest mixture of formats whose divergence from `checkpoint`, measured on held-out windows, is at most
/// `limit.max_kl`. The kind of output follows its name. `on_step` is called with steps done, steps in all, and what is in work.
///
/// Sensitivities say what each mixture can be expected to diverge by, without error feedback and as if tensors did not see each
/// other's errors. So mixtures are made and measured, and the expectation is corrected by what was found, usually two or
/// three times.
///
/// Errors where even the largest formats at hand diverge by more. Memory: that of the sensitivities and of a quantization; while
/// a mixture is measured, that mixture.
pub fn quantize_within(
    checkpoint: &Checkpoint,
    cpu: &Arc<Cpu>,
    output: &Path,
    limit: &Limit<'_>,
    on_step: &mut OnTensor<'_>,
) -> Result<Within, CompressError> {
    let begin = Instant::now();
    let Limit { max_kl, held_out, .. } = *limit;
    if !(max_kl.is_finite() && max_kl > 0.0) {
        let problem = "must be more than 0".to_owned();
        return Err(CompressError::Setting { what: "--max-kl", value: max_kl.to_string(), problem });
    }
    if held_out.is_empty() {
        return Err(CompressError::NeedsCalibration { what: "--max-kl" });
    }
    refuse_overwriting_input(checkpoint, output)?;
    let palette = Palette::of(output);
    if palette == Palette::Ints {
        refuse_replacing(output)?;
    }
    let work = Work::begin(output, limit.work)?;
    let measured = work.sensitivities(checkpoint, cpu, limit, palette, on_step)?;
    let reference = Reference::new(checkpoint, cpu, held_out, &mut |done, total| {
        go_on(on_step(done, total, "running the parent on held-out data"))
    })?;
    let items: Vec<Item> = items(&measured);
    let table = Table::of_all(&items);
    let table = table.ok_or(CompressError::KlTooSmall { max_kl, bits: f64::INFINITY, reached: f64::INFINITY })?;
    let mut trials = work.trials()?;
    let mut done = 0;
    let mut best: Option<(PathBuf, u64, QuantizeReport)> = None;
    let make = |number: usize, solution: &Solution, on_step: &mut OnTensor<'_>| {
        let path = work.path(number, palette);
        let formats = allocation(&measured, solution).formats;
        let store = LayerStore::open(&work.layers(number))?;
        let options = QuantizeOptions {
            formats: Formats::Mixed(&formats),
            keep: limit.keep,
            method: limit.method,
            store: Some(&store),
        };
        remove(&path)?;
        let report = quantize(checkpoint, &path, &options, &mut |done, total, name| {
            on_step(done, total, &format!("mixture {}: {name}", number + 1))
        })?;
        Ok::<_, CompressError>((path, solution.bytes, report))
    };
    let found = smallest(&table, max_kl, &mut |solution| {
        let number = done;
        done += 1;
        // Made and measured before an interruption. If it is the one, it is made again.
        if let Some(trial) = trials.get(number).filter(|trial| trial.matrix_bytes == solution.bytes) {
            return Ok(trial.measured_kl);
        }
        let made = make(number, solution, on_step)?;
        go_on(on_step(number, number + 1, &format!("measuring mixture {}", number + 1)))?;
        let measured_kl = short(reference.divergence(&made.0)?);
        trials.truncate(number);
        trials.push(Trial { matrix_bytes: solution.bytes, expected_kl: solution.cost, measured_kl });
        work.keep_trials(&trials)?;
        remove(&work.layers(number))?;
        // Whichever passes is smaller than what passed before.
        let useless = if measured_kl <= max_kl { best.replace(made) } else { Some(made) };
        if let Some((path, ..)) = useless {
            remove(&path)?;
        }
        Ok(measured_kl)
    })?;
    let Some(solution) = found.best else {
        let (bits, reached) = found.trials.last().map_or((0.0, f64::NAN), |trial| {
            let vectors = palette.vector_bytes(checkpoint).unwrap_or_default();
            ((trial.matrix_bytes + vectors) as f64 * 8.0 / checkpoint.parameters().max(1) as f64, trial.measured_kl)
        });
        return Err(CompressError::KlTooSmall { max_kl, bits, reached });
    };
    let is_best = |trial: &Trial| trial.matrix_bytes == solution.bytes;
    let number = found.trials.iter().position(is_best).unwrap_or_default();
    let (path, _, mut report) = match best.filter(|best| best.1 == solution.bytes) {
        Some(made) => made,
        None => make(number, &solution, on_step)?,
    };
    let chosen: Allocation = allocation(&measured, &solution);
    let front = front(checkpoint, palette, &measured, &chosen)?;
    replace(&path, output)?;
    report.seconds = begin.elapsed().as_secs_f64();
    Ok(Within {
        report,
        front,
        kl_divergence: found.trials[number].measured_kl,
        held_out_tokens: reference.tokens(),
        trials: found.trials,
    })
}

/// To nine digits, which JSON gives back as they were: an interrupted run must decide as one that was not.
fn short(value: f64) -> f64 {
    format!("{value:.8e}").parse().unwrap_or(value)
}

/// Removes a file or folder if it is there.
fn remove(path: &Path) -> Result<(), CompressError> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(edgelm_format::FormatError::Io { path: path.to_owned(), action: "remove", source: error }.into())
        }
        _ => Ok(()),
    }
}

/// The folder in which mixtures are made.
struct Work {
    folder: PathBuf,
    is_temporary: bool,
}

/// Format, bytes, and expected divergence.
type StoredCosts = Vec<(MatrixFormat, u64, f64)>;

/// A tensor's choices as they lie there: measuring them again would take as long as it did.
#[derive(Serialize, Deserialize)]
struct Stored {
    tensors: Vec<(String, StoredCosts)>,
}

impl Work {
    fn begin(output: &Path, folder: Option<&Path>) -> Result<Self, CompressError> {
        match folder {
            Some(folder) => Ok(Self { folder: folder.to_owned(), is_temporary: false }),
            None => {
                let (folder, ()) = create_sibling(output, |path| fs::create_dir(path))?;
                Ok(Self { folder, is_temporary: true })
            }
        }
    }

    fn path(&self, trial: usize, palette: Palette) -> PathBuf {
        let kind = if palette == Palette::Blocks { ".gguf" } else { "" };
        self.folder.join(format!("mixture-{}{kind}", trial + 1))
    }

    fn layers(&self, trial: usize) -> PathBuf {
        self.folder.join(format!("layers-{}", trial + 1))
    }

    fn damaged(path: &Path, what: impl ToString) -> CompressError {
        CompressError::WorkDamaged { path: path.to_owned(), what: what.to_string() }
    }

    fn read<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Result<Option<T>, CompressError> {
        let path = self.folder.join(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| Self::damaged(&path, error)),
            Err(_) => Ok(None),
        }
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<(), CompressError> {
        let path = self.folder.join(name);
        let bytes = serde_json::to_vec_pretty(value).map_err(|error| Self::damaged(&path, error))?;
        Ok(write_file(&path, &bytes)?)
    }

    fn trials(&self) -> Result<Vec<Trial>, CompressError> {
        Ok(self.read("trials.json")?.unwrap_or_default())
    }

    fn keep_trials(&self, trials: &[Trial]) -> Result<(), CompressError> {
        self.write("trials.json", &trials)
    }

    /// Measured, or as they were measured before an interruption.
    fn sensitivities(
        &self,
        checkpoint: &Checkpoint,
        cpu: &Cpu,
        limit: &Limit<'_>,
        palette: Palette,
        on_step: &mut OnTensor<'_>,
    ) -> Result<Vec<Sensitivity>, CompressError> {
        const NAME: &str = "sensitivity.json";
        let name = |id: TensorId| checkpoint.config().arch.gguf_tensor_name(id);
        if let Some(stored) = self.read::<Stored>(NAME)? {
            let tensor = |(stored, formats): (String, StoredCosts)| {
                let id = checkpoint.tensor_ids().iter().copied().find(|&id| name(id) == stored);
                let id = id.ok_or_else(|| Self::damaged(&self.folder.join(NAME), format!("no tensor `{stored}`")))?;
                let cost = |(format, bytes, kl)| FormatCost { format, bytes, kl };
                Ok(Sensitivity { id, formats: formats.into_iter().map(cost).collect() })
            };
            return stored.tensors.into_iter().map(tensor).collect();
        }
        let mut measure = |formats: &[MatrixFormat], options: &ProbeOptions| {
            let (windows, keep) = (limit.windows, limit.keep);
            measure(checkpoint, cpu, windows, keep, (palette, formats), options, &mut |done, total| {
                go_on(on_step(done, total, "measuring sensitivity"))
            })
        };
        let rough = measure(&palette.rough(), &ProbeOptions { tokens: ROUGH_TOKENS })?;
        let rough = items(&rough);
        let most: u64 = rough.iter().filter_map(|item| item.iter().map(|choice| choice.0).max()).sum();
        let bytes = Table::of_all(&rough).and_then(|table| table.budget_for(limit.max_kl)).unwrap_or(most);
        let mean = bytes as f64 * 8.0 / checkpoint.parameters().max(1) as f64;
        let mut measured = measure(&palette.around(mean), &ProbeOptions::default())?;
        measured.iter_mut().flat_map(|tensor| &mut tensor.formats).for_each(|cost| cost.kl = short(cost.kl));
        let choices =
            |tensor: &Sensitivity| tensor.formats.iter().map(|cost| (cost.format, cost.bytes, cost.kl)).collect();
        let tensors = measured.iter().map(|tensor| (name(tensor.id), choices(tensor))).collect();
        self.write(NAME, &Stored { tensors })?;
        Ok(measured)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.is_temporary {
            // Nobody is left to tell; a stale temporary folder harms nothing.
            drop(fs::remove_dir_all(&self.folder));
        }
    }
}
