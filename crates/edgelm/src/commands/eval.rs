//! `edgelm eval`: quality, alone or against a parent model.

use crate::{
    commands::{
        engine::{EngineArgs, refuse},
        run::{parse_arithmetic, parse_kv},
    },
    failure::Usage,
    machine,
    options::Global,
    output, progress, resolve,
};
use anyhow::Context;
use clap::{ArgGroup, Args};
use edgelm_engine::{Arithmetic, Model};
use edgelm_eval::{
    EvalReport, Foreign, GenerationLimits, ModelFacts, OnProgress, PairScores, Progress, ReportPage, TaskScores,
    WindowOptions, divergence, pairs, perplexity, perplexity_of, read_text, render_html, tasks,
};
use edgelm_kernels::KvDtype;
use edgelm_model::Texts;
use indicatif::ProgressBar;
use std::path::PathBuf;

#[derive(Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true))]
pub struct EvalArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    model: String,
    /// Text file for perplexity (and divergence, with --against)
    #[arg(long, value_name = "F", group = "what")]
    text: Option<PathBuf>,
    /// Task file (JSON Lines with `task`, `messages`, `answer`) for accuracy
    #[arg(long, value_name = "F", group = "what")]
    tasks: Option<PathBuf>,
    /// Pairs file (JSON Lines with `reference` and `prediction` or a prompt) for ROUGE-L and BLEU
    #[arg(long, value_name = "F", group = "what")]
    pairs: Option<PathBuf>,
    /// The unquantized model to compare with
    #[arg(long, value_name = "PARENT", requires = "text")]
    against: Option<String>,
    /// Only the first N windows of --text
    #[arg(long, value_name = "N")]
    windows: Option<usize>,
    /// Tokens per window
    #[arg(long, value_name = "N", default_value_t = 1024)]
    ctx: usize,
    /// Only the first N lines of each task, and of --pairs
    #[arg(long, value_name = "N")]
    lines: Option<usize>,
    /// Longest answer, in tokens
    #[arg(long, value_name = "N", default_value_t = GenerationLimits::default().max_new_tokens)]
    max_tokens: usize,
    /// Cache format [default: as precise as the weights: f32 for unquantized ones, f16 from 8 bits on, else q8]
    #[arg(long, value_name = "f32|f16|q8|q4", value_parser = parse_kv)]
    kv: Option<KvDtype>,
    /// Arithmetic of quantized weights: in f32 as the file means them, or with integer kernels
    #[arg(long, value_name = "exact|fast|auto", value_parser = parse_arithmetic, default_value = "auto")]
    arithmetic: Arithmetic,
    #[command(flatten)]
    engine: EngineArgs,
    /// Write a self-contained HTML report
    #[arg(long, value_name = "F.html")]
    report: Option<PathBuf>,
}

pub fn run(args: EvalArgs, global: &Global) -> anyhow::Result<()> {
    if args.ctx == 0 || args.windows == Some(0) || args.lines == Some(0) || args.max_tokens == 0 {
        return Err(Usage("--ctx, --windows, --lines and --max-tokens must be at least 1".into()).into());
    }
    if args.engine.is_ort()? {
        return through_ort(&args, global);
    }
    let cpu = machine::cpu(global)?;
    let model = Model::load_with(resolve::checkpoint(&args.model, global)?, cpu.clone(), args.arithmetic)?;
    let parent = match &args.against {
        Some(parent) => Some(Model::load(resolve::checkpoint(parent, global)?, cpu)?),
        None => None,
    };
    let mut report = EvalReport::default();
    if let Some(path) = &args.text {
        let text = read_text(path)?;
        let options = WindowOptions { context: args.ctx, windows: args.windows, kv: args.kv };
        add_text(&mut report, &model, parent.as_ref(), &text, &options, global)?;
    }
    let limits = GenerationLimits { max_new_tokens: args.max_tokens, lines: args.lines, kv: args.kv };
    let mut task_scores: Option<TaskScores> = None;
    if let Some(path) = &args.tasks {
        let bar = progress::bar(0, "tasks", global.quiet);
        let scores = tasks(&model, path, &limits, &mut show(&bar));
        bar.finish_and_clear();
        let scores = scores?;
        report.add_tasks(&scores);
        task_scores = Some(scores);
    }
    let mut pair_scores: Option<PairScores> = None;
    if let Some(path) = &args.pairs {
        let bar = progress::bar(0, "pairs", global.quiet);
        let scores = pairs(Some(&model), path, &limits, &mut show(&bar));
        bar.finish_and_clear();
        let scores = scores?;
        report.add_pairs(&scores);
        pair_scores = Some(scores);
    }
    if let Some(path) = &args.report {
        let facts = ModelFacts::of(&model);
        let parent = parent.as_ref().map(ModelFacts::of);
        let page = ReportPage {
            model: &facts,
            parent: parent.as_ref(),
            report: &report,
            tasks: task_scores.as_ref(),
            pairs: pair_scores.as_ref(),
        };
        std::fs::write(path, render_html(&page)).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    if global.json { output::json(&report) } else { print(&report) }
}

/// Perplexity of an exported folder in ONNX Runtime.
fn through_ort(args: &EvalArgs, global: &Global) -> anyhow::Result<()> {
    refuse(&[
        ("--tasks", args.tasks.is_some()),
        ("--pairs", args.pairs.is_some()),
        ("--against", args.against.is_some()),
        ("--kv", args.kv.is_some()),
        ("--report", args.report.is_some()),
    ])?;
    let Some(path) = &args.text else { return Err(Usage("--engine ort needs --text".into()).into()) };
    let text = read_text(path)?;
    let mut model = args.engine.open(&args.model, args.arithmetic == Arithmetic::Exact, global)?;
    // Its own: the model is borrowed while it runs.
    let texts = Texts::open(args.model.as_ref())?;
    let cpu = machine::cpu(global)?;
    let (bos_token_id, vocab_size, at_once) = (model.bos_token_id(), model.vocab_size(), model.depends_on_length());
    let foreign = Foreign {
        name: &args.model,
        decoding: &mut model.sequence(),
        tokenizer: texts.tokenizer()?,
        bos_token_id,
        vocab_size,
        cpu: &cpu,
        at_once,
    };
    let options = WindowOptions { context: args.ctx, windows: args.windows, kv: None };
    let bar = progress::bar(0, "perplexity", global.quiet);
    let perplexity = perplexity_of(foreign, &text, &options, &mut show(&bar));
    bar.finish_and_clear();
    let mut report = EvalReport::default();
    report.add_perplexity(&perplexity?);
    if global.json { output::json(&report) } else { print(&report) }
}

/// Adds perplexity, and divergence where there is a parent.
pub fn add_text(
    report: &mut EvalReport,
    model: &Model,
    parent: Option<&Model>,
    text: &str,
    options: &WindowOptions,
    global: &Global,
) -> anyhow::Result<()> {
    let bar = progress::bar(0, "perplexity", global.quiet);
    let outcome = match parent {
        Some(parent) => divergence(parent, model, text, options, &mut show(&bar)).map(|d| report.add_divergence(&d)),
        None => perplexity(model, text, options, &mut show(&bar)).map(|p| report.add_perplexity(&p)),
    };
    bar.finish_and_clear();
    Ok(outcome?)
}

/// Moves a progress bar.
pub fn show(bar: &ProgressBar) -> Box<OnProgress<'_>> {
    Box::new(move |event| match event {
        Progress::Window { done, total, perplexity, kl_divergence } => {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(match kl_divergence {
                Some(kl) => format!("perplexity {perplexity:.3}, KL {kl:.4}"),
                None => format!("perplexity {perplexity:.3}"),
            });
        }
        Progress::Task { task, done, correct } => {
            bar.set_position(done as u64);
            bar.set_message(format!("{task}: {correct} of {done} right"));
        }
        Progress::Pair { done } => bar.set_position(done as u64),
        _ => {}
    })
}

fn print(report: &EvalReport) -> anyhow::Result<()> {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            rows.push((name.to_owned(), value));
        }
    };
    add("perplexity", report.perplexity.map(|x| format!("{x:.4}")));
    add("tokens scored", report.tokens_scored.map(|x| x.to_string()));
    add("parent's perplexity", report.parent_perplexity.map(|x| format!("{x:.4}")));
    add("KL divergence", report.kl_divergence.map(|x| format!("{x:.6}")));
    add("top-1 agreement", report.top1_agreement.map(|x| format!("{x:.4}")));
    for (task, accuracy) in report.tasks.iter().flatten() {
        add(&format!("task {task}"), Some(format!("{accuracy:.3}")));
    }
    add("ROUGE-L", report.rouge_l.map(|x| format!("{x:.4}")));
    add("BLEU-4", report.bleu4.map(|x| format!("{x:.2}")));
    let width = rows.iter().map(|row| row.0.len()).max().unwrap_or(0);
    for (name, value) in rows {
        output::line(format!("{name:width$}  {value}"))?;
    }
    Ok(())
}
