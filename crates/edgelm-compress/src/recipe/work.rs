//! The folder beside the output in which a recipe is followed, and what it must agree with to be gone on with.

use super::{GateReport, Gates, PassReport, Recipe};
use crate::{CalibrationSet, CompressError, is_gguf};
use edgelm_format::{FormatError, replace, write_file};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    ffi::OsString,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
};

/// What happens to what an earlier run left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// There must be nothing.
    #[default]
    Fresh,
    /// It is gone on with; it must be there.
    Resume,
    /// It is removed.
    Restart,
}

/// What decides the output's bytes. Gates do not: they can be changed and the run resumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Of the program.
    version: String,
    /// Kernel family: another one rounds elsewhere.
    kernels: String,
    /// Seed, passes, which part of the calibration data.
    recipe: String,
    model: String,
    /// Token ids.
    calibration: String,
}

/// A pass that is done: its file is in the folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) report: PassReport,
    /// Gates that were passed after it.
    pub(super) gates: Vec<(Gates, Vec<GateReport>)>,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    identity: Identity,
    finished: Vec<Finished>,
}

/// The folder, held by this process.
pub(super) struct Work {
    folder: PathBuf,
    /// Of the names of what passes write.
    ending: &'static str,
    manifest: Manifest,
    /// Released with the file.
    lock: File,
}

/// Bytes at both ends of a tensor that its digest takes in: all of it would mean to read the whole model twice.
const SAMPLE_BYTES: usize = 4096;

impl Identity {
    pub(super) fn of(
        recipe: &Recipe,
        checkpoint: &Checkpoint,
        calibration: &CalibrationSet,
        cpu: &Cpu,
    ) -> Result<Self, CompressError> {
        let options = recipe.calibration_options();
        let passes = serde_json::to_string(&recipe.passes)
            .map_err(|error| CompressError::Recipe { recipe: recipe.name.clone(), what: error.to_string() })?;
        let select = options.select;
        let settings = format!("{} {} {} {select:?} {passes}", recipe.seed, options.samples, options.window);
        let mut tokens = Sha256::new();
        for windows in [&calibration.windows, &calibration.held_out] {
            tokens.update((windows.len() as u64).to_le_bytes());
            for window in windows {
                tokens.update((window.len() as u64).to_le_bytes());
                window.iter().for_each(|token| tokens.update(token.to_le_bytes()));
            }
        }
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernels: cpu.isa().to_string(),
            recipe: hex(&Sha256::digest(settings.as_bytes())),
            model: model_digest(checkpoint)?,
            calibration: hex(&tokens.finalize()),
        })
    }

    /// What is not the same, for people.
    fn differences(&self, other: &Identity) -> Vec<&'static str> {
        let parts = [
            ("version of the program", self.version == other.version),
            ("kernel family", self.kernels == other.kernels),
            ("recipe (seed, passes or calibration settings)", self.recipe == other.recipe),
            ("model", self.model == other.model),
            ("set of calibration data", self.calibration == other.calibration),
        ];
        parts.into_iter().filter(|part| !part.1).map(|part| part.0).collect()
    }
}

/// Config, names, shapes and both ends of every tensor; size and time of change of the files.
fn model_digest(checkpoint: &Checkpoint) -> Result<String, CompressError> {
    let mut hasher = Sha256::new();
    hasher.update(format!("{:?}", checkpoint.config()));
    for &id in checkpoint.tensor_ids() {
        let view = checkpoint.tensor(id)?;
        hasher.update(format!("{} {} {:?} {}", checkpoint.stored_name(id), view.dtype, view.shape, view.bytes.len()));
        hasher.update(&view.bytes[..view.bytes.len().min(SAMPLE_BYTES)]);
        hasher.update(&view.bytes[view.bytes.len().saturating_sub(SAMPLE_BYTES)..]);
    }
    let path = checkpoint.path();
    let mut files = vec![path.to_owned()];
    if let Ok(entries) = std::fs::read_dir(path) {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort_unstable();
    for file in files {
        // An embedded model has no files; what cannot be read here was not read for the model either.
        if let Ok(metadata) = std::fs::metadata(&file)
            && metadata.is_file()
        {
            let name = file.file_name().unwrap_or_default();
            hasher.update(format!("{} {} {:?}", name.display(), metadata.len(), metadata.modified().ok()));
        }
    }
    Ok(hex(&hasher.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> CompressError {
    let path = path.to_owned();
    move |source| FormatError::Io { path, action, source }.into()
}

impl Work {
    /// `.OUT.work`, beside `OUT`.
    pub(super) fn folder_of(output: &Path) -> PathBuf {
        let mut name = OsString::from(".");
        name.push(output.file_name().unwrap_or_default());
        name.push(".work");
        output.with_file_name(name)
    }

    /// Whether a run may begin, before anything is measured.
    pub(super) fn look(output: &Path, start: Start) -> Result<(), CompressError> {
        let path = Self::folder_of(output);
        match (start, path.exists()) {
            (Start::Fresh, true) => Err(CompressError::WorkExists { path }),
            (Start::Resume, false) => Err(CompressError::NoWork { path }),
            _ => Ok(()),
        }
    }

    /// Makes or finds the folder and takes hold of it.
    pub(super) fn begin(output: &Path, start: Start, identity: Identity) -> Result<Self, CompressError> {
        Self::look(output, start)?;
        let folder = Self::folder_of(output);
        if !folder.exists() {
            std::fs::create_dir(&folder).map_err(io(&folder, "create"))?;
        }
        let lock = File::create(folder.join("lock")).map_err(io(&folder, "create"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(CompressError::WorkInUse { path: folder }),
            Err(TryLockError::Error(error)) => return Err(io(&folder, "lock")(error)),
        }
        for entry in std::fs::read_dir(&folder).map_err(io(&folder, "read"))? {
            let path = entry.map_err(io(&folder, "read"))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // A killed run leaves a file as large as the model that was half written.
            let is_stale = name.ends_with(".tmp");
            if is_stale || (start == Start::Restart && name != "lock") {
                let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
                removed.map_err(io(&path, "remove"))?;
            }
        }
        let path = folder.join("manifest.json");
        let manifest = match std::fs::read(&path) {
            Ok(bytes) => {
                let stored: Manifest = serde_json::from_slice(&bytes)
                    .map_err(|error| CompressError::WorkDamaged { path: path.clone(), what: error.to_string() })?;
                let differences = stored.identity.differences(&identity);
                if !differences.is_empty() {
                    return Err(CompressError::WorkDiffers { path: folder, what: differences.join(" and ") });
                }
                stored
            }
            // Interrupted before there was one: there is nothing else in the folder.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Manifest { identity, finished: Vec::new() },
            Err(error) => return Err(io(&path, "read")(error)),
        };
        let ending = if is_gguf(output) { ".gguf" } else { ".model" };
        let mut work = Self { folder, ending, manifest, lock };
        let missing = (0..work.manifest.finished.len()).find(|&index| !work.file(index).exists());
        work.manifest.finished.truncate(missing.unwrap_or(usize::MAX));
        work.save()?;
        Ok(work)
    }

    pub(super) fn path(&self) -> &Path {
        &self.folder
    }

    /// What pass `index` writes.
    pub(super) fn file(&self, index: usize) -> PathBuf {
        self.folder.join(format!("pass-{}{}", index + 1, self.ending))
    }

    /// What pass `index` keeps to itself until it is done.
    pub(super) fn pass_folder(&self, index: usize) -> Result<PathBuf, CompressError> {
        let folder = self.folder.join(format!("pass-{}", index + 1));
        std::fs::create_dir_all(&folder).map_err(io(&folder, "create"))?;
        Ok(folder)
    }

    pub(super) fn finished(&self) -> &[Finished] {
        &self.manifest.finished
    }

    /// The next pass is done and its file is in its place.
    pub(super) fn finish_pass(&mut self, report: PassReport) -> Result<(), CompressError> {
        let folder = self.pass_folder(self.manifest.finished.len())?;
        self.manifest.finished.push(Finished { report, gates: Vec::new() });
        self.save()?;
        std::fs::remove_dir_all(&folder).map_err(io(&folder, "remove"))
    }

    /// Gates after the last finished pass were passed.
    pub(super) fn pass_gates(
        &mut self,
        index: usize,
        gates: Gates,
        reports: Vec<GateReport>,
    ) -> Result<(), CompressError> {
        if let Some(finished) = self.manifest.finished.get_mut(index) {
            finished.gates.push((gates, reports));
        }
        self.save()
    }

    fn save(&self) -> Result<(), CompressError> {
        let path = self.folder.join("manifest.json");
        let bytes = serde_json::to_vec_pretty(&self.manifest)
            .map_err(|error| CompressError::WorkDamaged { path: path.clone(), what: error.to_string() })?;
        Ok(write_file(&path, &bytes)?)
    }

    /// Gives the last pass's file its name and removes the rest.
    pub(super) fn finish(self, output: &Path) -> Result<(), CompressError> {
        let last = self.file(self.manifest.finished.len().saturating_sub(1));
        replace(&last, output)?;
        // Windows removes no open files.
        drop(self.lock);
        std::fs::remove_dir_all(&self.folder).map_err(io(&self.folder, "remove"))
    }
}
