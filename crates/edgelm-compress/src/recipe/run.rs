//! A model through a recipe: pass by pass from file to file, gates in between.

use super::{
    Gates, Job, Measured, Recipe, RecipeReport,
    work::{Identity, Start, Work},
};
use crate::{CalibrationSet, CompressError, go_on, quantize::refuse_overwriting_input};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use std::{ops::ControlFlow, path::Path, sync::Arc, time::Instant};

/// What the caller does on the way.
pub trait Hooks: Send {
    /// How far the work has come: pass, steps done and in all, and what is in work. `Break` interrupts it.
    fn on_step(&mut self, pass: &str, done: usize, total: usize, what: &str) -> ControlFlow<()>;

    /// Measures what `gates` limit, on the model in `candidate`.
    fn measure(
        &mut self,
        gates: &Gates,
        candidate: &Path,
    ) -> Result<Measured, Box<dyn std::error::Error + Send + Sync>>;
}

/// Where and how.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions<'a> {
    /// GGUF file to write, or folder if it has another name. The work folder lies beside it.
    pub output: &'a Path,
    /// What happens to an earlier run's work.
    pub start: Start,
}

/// Follows a recipe. The output appears when all passes are done and all gates passed; the report of a gate that failed is not
/// an error here. Whatever ends the run earlier leaves the work folder, from which it can be resumed: at the pass in work,
/// within a pass where that keeps what it has done. The same recipe, model, calibration data and kernels give the same bytes,
/// resumed or not.
///
/// Memory is that of one pass; on disk, the files of all passes are kept until the end.
pub fn run_recipe(
    recipe: &Recipe,
    checkpoint: &Arc<Checkpoint>,
    cpu: &Arc<Cpu>,
    options: &RunOptions<'_>,
    hooks: &mut dyn Hooks,
) -> Result<RecipeReport, CompressError> {
    let begin = Instant::now();
    recipe.check_data()?;
    recipe.check_output(options.output)?;
    Work::look(options.output, options.start)?;
    refuse_overwriting_input(checkpoint, options.output)?;
    let calibration = if recipe.uses_calibration() {
        let sources = &recipe.calibration.sources;
        let mut on_step =
            |done, total| go_on(hooks.on_step("calibration", done, total, "the model writes its own text"));
        CalibrationSet::load(sources, checkpoint, cpu, &recipe.calibration_options(), &mut on_step)?
    } else {
        CalibrationSet::default()
    };
    let identity = Identity::of(recipe, checkpoint, &calibration, cpu)?;
    let mut work = Work::begin(options.output, options.start, identity)?;
    let mut report = RecipeReport {
        passes: Vec::new(),
        gates: Vec::new(),
        input_bytes: checkpoint.file_bytes(),
        output_bytes: None,
        seconds: 0.0,
    };
    for (index, pass) in recipe.passes.iter().enumerate() {
        let title = format!("pass {} ({})", index + 1, pass.kind());
        let file = work.file(index);
        if let Some(finished) = work.finished().get(index) {
            let mut finished = finished.report.clone();
            finished.resumed = true;
            report.passes.push(finished);
        } else {
            let made = match index {
                0 => None,
                _ => Some(Checkpoint::open(&work.file(index - 1))?),
            };
            let folder = work.pass_folder(index)?;
            let job = Job {
                checkpoint: made.as_ref().unwrap_or(checkpoint),
                output: &file,
                folder: &folder,
                cpu,
                calibration: &calibration,
            };
            let mut on_step = |done: usize, total: usize, what: &str| hooks.on_step(&title, done, total, what);
            let mut found = pass.settings().run(&job, &mut on_step).map_err(|error| interrupted(error, &work))?;
            found.kind = pass.kind().to_owned();
            if pass.settings().uses_calibration() {
                found.notes.splice(0..0, calibration.notes.iter().cloned());
            }
            report.passes.push(found.clone());
            work.finish_pass(found)?;
        }
        for gates in recipe.gates_after(index) {
            let before = work.finished().get(index).and_then(|finished| {
                finished.gates.iter().find(|(earlier, _)| *earlier == gates).map(|(_, reports)| reports.clone())
            });
            let judged = match before {
                Some(judged) => judged,
                None => {
                    let measured = hooks
                        .measure(&gates, &file)
                        .map_err(|source| CompressError::Measure { after: title.clone(), source })?;
                    gates.judge(&title, &measured)
                }
            };
            let passed = judged.iter().all(|gate| gate.passed);
            report.gates.extend(judged.clone());
            if !passed {
                report.seconds = begin.elapsed().as_secs_f64();
                return Ok(report);
            }
            work.pass_gates(index, gates, judged)?;
        }
    }
    work.finish(options.output)?;
    report.output_bytes = report.passes.last().map(|pass| pass.output_bytes);
    report.seconds = begin.elapsed().as_secs_f64();
    Ok(report)
}

/// Says where the work is that an interruption left.
fn interrupted(error: CompressError, work: &Work) -> CompressError {
    match error {
        CompressError::Cancelled => CompressError::Interrupted { work: work.path().to_owned() },
        other => other,
    }
}
