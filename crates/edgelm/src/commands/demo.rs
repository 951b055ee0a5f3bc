//! `edgelm demo`: the whole way on the model compiled into the binary, without a network.

use super::{eval, inspect, quantize};
use crate::{machine, options::Global, output, progress, resolve};
use anyhow::{Context, bail};
use clap::Args;
use edgelm_compress::{Formats, Method, QuantizeOptions, Scheme};
use edgelm_engine::{GenerateOptions, Model};
use edgelm_eval::{EvalReport, GenerationLimits, TaskScores, WindowOptions, tasks};
use edgelm_kernels::Cpu;
use edgelm_model::{Checkpoint, Message};
use serde_json::{Value, json};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// Text for perplexity: eight windows of it.
const TEXT: &str = include_str!("../../assets/demo/text.txt");
/// Ten chats of each task.
const TASKS: &str = include_str!("../../assets/demo/tasks.jsonl");
/// From nearly lossless to small.
const FORMATS: [&str; 3] = ["Q8_0", "Q4_K_M", "Q3_K"];
const WINDOWS: usize = 8;

#[derive(Args)]
pub struct DemoArgs {
    /// Keep the quantized files in this folder
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// One line of the summary.
struct Row {
    name: &'static str,
    file_bytes: u64,
    bits_per_weight: f64,
    report: EvalReport,
    accuracy: f64,
    decode_tokens_per_second: f64,
    text: String,
}

pub fn run(args: DemoArgs, global: &Global) -> anyhow::Result<()> {
    let work = Work::new(args.keep)?;
    let mut steps: Vec<Value> = Vec::new();
    let say = |text: String| if global.json { Ok(()) } else { output::line(text) };
    let cpu = machine::cpu(global)?;

    say("1. inspect: the model inside this binary".into())?;
    let begin = Instant::now();
    let checkpoint = resolve::checkpoint("demo", global)?;
    let facts = inspect::facts(&checkpoint)?;
    if !global.json {
        inspect::print_facts(&checkpoint, &facts)?;
    }
    let parameters = facts.parameters;
    steps.push(json!({ "step": "inspect", "parameters": parameters, "seconds": seconds(begin) }));

    say(format!("\n2. quantize: {}", FORMATS.join(", ")))?;
    let mut files = Vec::new();
    for format in FORMATS {
        let path = work.dir.join(format!("demo-{format}.gguf"));
        let formats = Formats::Scheme(Scheme::from_name(format)?);
        let options = QuantizeOptions { formats, keep: &[], method: Method::Rtn, store: None };
        let report = quantize::write(&checkpoint, &path, &options, global)?;
        say(format!(
            "   {format:7} {:>10}  {:.2} bits per weight  {:.2} s",
            output::bytes(report.output_bytes),
            report.bits_per_weight,
            report.seconds
        ))?;
        steps.push(json!({
            "step": "quantize", "format": format, "output_bytes": report.output_bytes,
            "bits_per_weight": report.bits_per_weight, "seconds": report.seconds,
        }));
        files.push((format, path));
    }

    say(format!(
        "\n3. evaluate and generate: {WINDOWS} windows of text and {} task chats each, on {} threads ({})",
        TASKS.lines().count(),
        cpu.threads(),
        cpu.isa()
    ))?;
    let parent = Model::load(Arc::clone(&checkpoint), Arc::clone(&cpu))?;
    let mut rows = vec![evaluate("bf16", &parent, None, &work.tasks, &mut steps, global)?];
    for (format, path) in &files {
        let model = load(path, &cpu)?;
        rows.push(evaluate(format, &model, Some(&parent), &work.tasks, &mut steps, global)?);
    }

    say("\n4. a telemetry report, written by the smallest file".into())?;
    let smallest = rows.iter().min_by_key(|row| row.file_bytes).context("no model was evaluated")?;
    say(indent(&question()?))?;
    say(format!("   → {}", smallest.text.trim()))?;
    steps.push(json!({ "step": "generate", "format": smallest.name, "text": smallest.text }));

    say("\n5. summary".into())?;
    if global.json {
        return output::json(&json!({ "steps": steps, "ok": true }));
    }
    output::line(summary(&rows))?;
    if work.is_kept {
        say(format!("files are in {}", work.dir.display()))?;
    }
    say("next: edgelm run demo \"What is a sensor?\"   edgelm serve demo   edgelm --help".into())
}

fn load(path: &Path, cpu: &Arc<Cpu>) -> anyhow::Result<Model> {
    Ok(Model::load(Arc::new(Checkpoint::open(path)?), Arc::clone(cpu))?)
}

fn seconds(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64()
}

/// The first telemetry chat of the task file.
fn telemetry_messages() -> anyhow::Result<Vec<Message>> {
    for line in TASKS.lines() {
        let line: Value = serde_json::from_str(line)?;
        if line["task"] == "telemetry" {
            return Ok(line["messages"].as_array().cloned().unwrap_or_default());
        }
    }
    bail!("the demo's tasks hold no telemetry chat")
}

fn question() -> anyhow::Result<String> {
    let messages = telemetry_messages()?;
    let last = messages.last().and_then(|message| message["content"].as_str());
    Ok(last.unwrap_or_default().to_owned())
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("   {line}")).collect::<Vec<_>>().join("\n")
}

fn evaluate(
    name: &'static str,
    model: &Model,
    parent: Option<&Model>,
    task_file: &Path,
    steps: &mut Vec<Value>,
    global: &Global,
) -> anyhow::Result<Row> {
    let begin = Instant::now();
    let mut report = EvalReport::default();
    let options = WindowOptions { windows: Some(WINDOWS), ..WindowOptions::default() };
    eval::add_text(&mut report, model, parent, TEXT, &options, global)?;
    let bar = progress::bar(TASKS.lines().count() as u64, "tasks", global.quiet);
    let scores: Result<TaskScores, _> = tasks(model, task_file, &GenerationLimits::default(), &mut eval::show(&bar));
    bar.finish_and_clear();
    let scores = scores?;
    report.add_tasks(&scores);
    let accuracy = scores.mean_accuracy();
    let prompt = model.chat_prompt(&telemetry_messages()?)?;
    let limits = GenerateOptions { max_tokens: Some(128), ..GenerateOptions::default() };
    let generation = model.generate(&prompt, &limits, &mut |_| ControlFlow::Continue(()))?;
    let facts = inspect::facts(model.checkpoint())?;
    if !global.json {
        output::line(format!(
            "   {name:7} perplexity {:.3}, {:.0} % of the tasks right, {:.1} s",
            report.perplexity.unwrap_or(f64::NAN),
            accuracy * 100.0,
            seconds(begin)
        ))?;
    }
    let mut step = json!({ "step": "evaluate", "format": name, "seconds": seconds(begin) });
    if let (Value::Object(step), Value::Object(keys)) = (&mut step, serde_json::to_value(&report)?) {
        step.extend(keys);
    }
    steps.push(step);
    Ok(Row {
        name,
        file_bytes: facts.file_bytes,
        bits_per_weight: facts.bits_per_weight,
        report,
        accuracy,
        decode_tokens_per_second: generation.decode_tokens_per_second,
        text: generation.text,
    })
}

fn summary(rows: &[Row]) -> comfy_table::Table {
    let mut table = output::table(&[
        "format",
        "file",
        "bits",
        "perplexity",
        "change",
        "KL to parent",
        "same top token",
        "tasks right",
        "tokens/s",
    ]);
    let parent = rows.first().and_then(|row| row.report.perplexity);
    for row in rows {
        let optional = |value: Option<String>| value.unwrap_or_else(|| "–".into());
        let change =
            row.report.perplexity.zip(parent).map(|(own, parent)| format!("{:+.2} %", (own / parent - 1.0) * 100.0));
        table.add_row([
            row.name.to_owned(),
            output::bytes(row.file_bytes),
            format!("{:.2}", row.bits_per_weight),
            optional(row.report.perplexity.map(|x| format!("{x:.3}"))),
            optional(change),
            optional(row.report.kl_divergence.map(|x| format!("{x:.4}"))),
            optional(row.report.top1_agreement.map(|x| format!("{:.1} %", x * 100.0))),
            format!("{:.0} %", row.accuracy * 100.0),
            format!("{:.0}", row.decode_tokens_per_second),
        ]);
    }
    table
}

/// Where the demo's files lie; removed at the end unless the user named the folder.
struct Work {
    dir: PathBuf,
    tasks: PathBuf,
    is_kept: bool,
}

impl Work {
    fn new(keep: Option<PathBuf>) -> anyhow::Result<Self> {
        let is_kept = keep.is_some();
        let dir = keep.unwrap_or_else(|| std::env::temp_dir().join(format!("edgelm-demo-{}", std::process::id())));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
        let tasks = dir.join("tasks.jsonl");
        std::fs::write(&tasks, TASKS).with_context(|| format!("cannot write `{}`", tasks.display()))?;
        Ok(Self { dir, tasks, is_kept })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.is_kept {
            // Best effort: the folder is in the system's temporary directory.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
