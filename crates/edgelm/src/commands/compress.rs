//! `edgelm compress`: a recipe of passes with quality gates.

use crate::{failure::GateFailed, interrupt::Work, machine, options::Global, output, page, progress, resolve};
use anyhow::Context;
use clap::Args;
use edgelm_compress::{
    CalibrationSource,
    recipe::{Gates, Hooks, Measured, Recipe, RecipeReport, RunOptions, Start, run_recipe},
};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

mod measure;

#[derive(Args)]
pub struct CompressArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    model: String,
    /// TOML file, or a ready recipe: maximum-compression, balanced, fast-prototype, safety-critical
    #[arg(long, value_name = "F")]
    recipe: String,
    /// What to write: a .gguf file, or for int formats a folder. Until everything is done, the work lies in `.OUT.work` beside
    /// it
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Go on where an earlier run was interrupted
    #[arg(long)]
    resume: bool,
    /// Throw away what an earlier run left
    #[arg(long, conflicts_with = "resume")]
    restart: bool,
    /// Calibration data in place of the recipe's; `self`: the model writes it (repeatable)
    #[arg(long, value_name = "F|self")]
    calibration: Vec<CalibrationSource>,
    /// Text that gates measure perplexity and divergence on, in place of the recipe's
    #[arg(long, value_name = "F")]
    text: Option<PathBuf>,
    /// Task file that gates measure accuracy on, in place of the recipe's
    #[arg(long, value_name = "F")]
    tasks: Option<PathBuf>,
    /// Write a self-contained HTML report
    #[arg(long, value_name = "F.html")]
    report: Option<PathBuf>,
}

pub fn run(args: CompressArgs, global: &Global) -> anyhow::Result<()> {
    if args.output.extension().is_some() {
        super::quantize::check_output(&args.output)?;
    }
    let recipe = recipe(&args)?;
    let checkpoint = resolve::checkpoint(&args.model, global)?;
    let cpu = machine::cpu(global)?;
    let start = match (args.resume, args.restart) {
        (true, _) => Start::Resume,
        (_, true) => Start::Restart,
        _ => Start::Fresh,
    };
    let pool = edgelm_compress::thread_pool(cpu.threads()).context("cannot start threads")?;
    let mut watch = Watch {
        parent: Arc::clone(&checkpoint),
        cpu: Arc::clone(&cpu),
        global,
        bar: progress::bar(0, "compress", global.quiet),
        work: Some(Work::begin()),
    };
    let options = RunOptions { output: &args.output, start };
    let report = pool.install(|| run_recipe(&recipe, &checkpoint, &cpu, &options, &mut watch));
    watch.bar.finish_and_clear();
    let report = report?;
    if let Some(path) = &args.report {
        let page = page::Page {
            model: checkpoint.name(),
            output: &args.output,
            recipe: Some(&recipe.name),
            input_bytes: report.input_bytes,
            passes: &report.passes,
            gates: &report.gates,
        };
        page::write(path, &page)?;
    }
    if global.json {
        output::json(&document(&recipe, &report))?
    } else {
        print(&report, &args.output)?
    }
    match report.failed_gate() {
        Some(gate) => Err(GateFailed(gate.to_string()).into()),
        None => Ok(()),
    }
}

/// The recipe, with the data that the command line names.
fn recipe(args: &CompressArgs) -> anyhow::Result<Recipe> {
    let mut recipe = Recipe::open(&args.recipe)?;
    let no_use = |flag: &str, what: &str| {
        let what = format!("{flag}: recipe `{}` has no {what}", recipe.name);
        anyhow::Error::from(crate::failure::Usage(what))
    };
    if !args.calibration.is_empty() && !recipe.uses_calibration() {
        return Err(no_use("--calibration", "pass that looks at calibration data"));
    }
    if args.text.is_some() && !recipe.has_gates_on_text() {
        return Err(no_use("--text", "gate on perplexity or divergence"));
    }
    if args.tasks.is_some() && !recipe.has_gates_on_tasks() {
        return Err(no_use("--tasks", "gate on accuracy"));
    }
    recipe.set_data(&args.calibration, args.text.as_deref(), args.tasks.as_deref());
    recipe.check_data()?;
    Ok(recipe)
}

/// Progress bar, Ctrl-C, and gates.
struct Watch<'a> {
    parent: Arc<Checkpoint>,
    cpu: Arc<Cpu>,
    global: &'a Global,
    bar: ProgressBar,
    /// While a pass runs, Ctrl-C ends it in good order.
    work: Option<Work>,
}

impl Hooks for Watch<'_> {
    fn on_step(&mut self, pass: &str, done: usize, total: usize, what: &str) -> ControlFlow<()> {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        self.bar.set_message(format!("{pass}: {what}"));
        let is_interrupted = self.work.as_ref().is_some_and(Work::is_interrupted);
        if is_interrupted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn measure(
        &mut self,
        gates: &Gates,
        candidate: &Path,
    ) -> Result<Measured, Box<dyn std::error::Error + Send + Sync>> {
        // Measuring leaves nothing half done: Ctrl-C may end the program on the spot.
        self.work = None;
        let measured = measure::measure(gates, candidate, &self.parent, &self.cpu, self.global);
        self.work = Some(Work::begin());
        Ok(measured?)
    }
}

/// The keys of CONTRACT.md, and details.
fn document(recipe: &Recipe, report: &RecipeReport) -> Value {
    json!({
        "recipe": recipe.name,
        "seed": recipe.seed,
        "passes": report.passes,
        "gates": report.gates,
        "input_bytes": report.input_bytes,
        "output_bytes": report.output_bytes,
        "seconds": report.seconds,
        "peak_rss_bytes": machine::peak_rss_bytes(),
    })
}

fn print(report: &RecipeReport, path: &Path) -> anyhow::Result<()> {
    for (index, pass) in report.passes.iter().enumerate() {
        super::quantize::print_pass(&format!("{}. ", index + 1), pass)?;
    }
    for gate in &report.gates {
        output::line(format!("gate {gate}: {}", if gate.passed { "passed" } else { "failed" }))?;
    }
    if let (Some(bytes), Some(last)) = (report.output_bytes, report.passes.last()) {
        output::line(format!(
            "{}: {} → {}, {:.2} bits per weight, {:.1} s",
            path.display(),
            output::bytes(report.input_bytes),
            output::bytes(bytes),
            last.bits_per_weight,
            report.seconds,
        ))?;
    }
    Ok(())
}
