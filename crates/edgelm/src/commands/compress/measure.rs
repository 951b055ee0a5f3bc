//! What gates limit, measured on a candidate.

use crate::{commands::eval::show, options::Global, progress};
use anyhow::Context;
use edgelm_compress::recipe::{Gates, Measured};
use edgelm_engine::Model;
use edgelm_eval::{GenerationLimits, WindowOptions, divergence, read_text, tasks};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use std::{path::Path, sync::Arc};

/// Loads the candidate and, for a text, `parent` beside it: both are in memory.
pub fn measure(
    gates: &Gates,
    candidate: &Path,
    parent: &Arc<Checkpoint>,
    cpu: &Arc<Cpu>,
    global: &Global,
) -> anyhow::Result<Measured> {
    let model = Model::load(Arc::new(Checkpoint::open(candidate)?), Arc::clone(cpu))?;
    let mut measured = Measured::default();
    if gates.needs_text() {
        let path = gates.text.as_deref().context("no text")?;
        let text = read_text(path)?;
        let parent = Model::load(Arc::clone(parent), Arc::clone(cpu))?;
        let default = WindowOptions::default();
        let context = default.context.min(model.engine().config().context_length());
        let options = WindowOptions { context, windows: gates.windows, ..default };
        let bar = progress::bar(0, "gates: text", global.quiet);
        let found = divergence(&parent, &model, &text, &options, &mut show(&bar));
        bar.finish_and_clear();
        let found = found.with_context(|| format!("`{}`", path.display()))?;
        measured.perplexity_increase = Some(found.model.perplexity / found.parent.perplexity - 1.0);
        measured.kl = Some(found.kl.mean);
    }
    if gates.needs_tasks() {
        let path = gates.tasks.as_deref().context("no tasks")?;
        let limits = GenerationLimits { lines: gates.samples, ..GenerationLimits::default() };
        let bar = progress::bar(0, "gates: tasks", global.quiet);
        let scores = tasks(&model, path, &limits, &mut show(&bar));
        bar.finish_and_clear();
        measured.task_accuracy = Some(scores?.mean_accuracy());
    }
    Ok(measured)
}
