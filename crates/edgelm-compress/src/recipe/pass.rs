//! The list of passes, and what each of them can say and do.

use super::{Gates, PassReport, PrunePass, QuantizePass};
use crate::{CalibrationSet, CompressError, OnTensor};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use serde::{Deserialize, Serialize};
use std::{path::Path, sync::Arc};

/// `[[pass]]`: which one, and its settings. A new kind of pass is a variant here, an arm in three functions, and a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Pass {
    /// Weights in smaller formats.
    Quantize(QuantizePass),
    /// Layers, heads, channels or single weights taken out.
    Prune(PrunePass),
}

impl Pass {
    /// As in the file.
    pub fn kind(&self) -> &'static str {
        match self {
            Pass::Quantize(_) => "quantize",
            Pass::Prune(_) => "prune",
        }
    }

    /// What it says of itself.
    pub fn settings(&self) -> &dyn Settings {
        match self {
            Pass::Quantize(pass) => pass,
            Pass::Prune(pass) => pass,
        }
    }

    pub(super) fn settings_mut(&mut self) -> &mut dyn Settings {
        match self {
            Pass::Quantize(pass) => pass,
            Pass::Prune(pass) => pass,
        }
    }
}

/// What the runner needs of every pass.
pub trait Settings {
    /// What needs no model to be wrong. Names the key.
    fn check(&self) -> Result<(), String>;

    /// Whether it can write what the recipe is to write: a folder, or else a GGUF file.
    fn check_output(&self, _is_folder: bool) -> Result<(), String> {
        Ok(())
    }

    /// Gates after it.
    fn gates(&self) -> Option<&Gates>;

    /// The same, to be changed.
    fn gates_mut(&mut self) -> Option<&mut Gates>;

    /// The setting that needs calibration data, if one does.
    fn calibration_for(&self) -> Option<&'static str>;

    /// True if it looks at calibration data that is there.
    fn uses_calibration(&self) -> bool {
        self.calibration_for().is_some()
    }

    /// True if it measures quality on calibration data that is in no statistics.
    fn holds_out(&self) -> bool {
        false
    }

    /// For people: `quantize to Q4_K_M (gptq)`.
    fn title(&self) -> String;

    /// From the job's checkpoint to its output file.
    fn run(&self, job: &Job<'_>, on_step: &mut OnTensor<'_>) -> Result<PassReport, CompressError>;
}

/// What a pass has to work on.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// What the passes before it made.
    pub checkpoint: &'a Checkpoint,
    /// GGUF file or folder to write.
    pub output: &'a Path,
    /// For what it wants to find again when it is run a second time after an interruption.
    pub folder: &'a Path,
    /// The machine.
    pub cpu: &'a Arc<Cpu>,
    /// Calibration data; empty if no pass needs it.
    pub calibration: &'a CalibrationSet,
}
