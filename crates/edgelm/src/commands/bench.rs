//! `edgelm bench`: speed of prefill and decode, alone or beside llama-bench, or of each kernel.

mod case;
mod figures;
mod kernels;
mod versus;

use crate::{failure::Usage, machine, options::Global, output, progress, resolve};
use case::{Case, Kind};
use clap::Args;
use edgelm_engine::Engine;
use figures::{Bandwidth, Machine, Rates};
use serde_json::{Value, json};
use std::path::PathBuf;
use versus::LlamaBench;

#[derive(Args)]
#[command(after_long_help = JSON_KEYS)]
pub struct BenchArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`; or `kernels`
    model: String,
    /// Prompt lengths to time (repeatable or separated by commas; 0 = none)
    #[arg(short = 'p', value_name = "N", value_delimiter = ',', default_values_t = [512])]
    prompt: Vec<usize>,
    /// Numbers of tokens to generate and time (0 = none)
    #[arg(short = 'n', value_name = "N", value_delimiter = ',', default_values_t = [128])]
    generate: Vec<usize>,
    /// Tokens already in the context
    #[arg(short = 'd', value_name = "DEPTH", value_delimiter = ',', default_values_t = [0])]
    depth: Vec<usize>,
    /// Sequences decoded together
    #[arg(short = 'b', value_name = "BATCH", value_delimiter = ',', default_values_t = [1])]
    batch: Vec<usize>,
    /// Timed repeats of each test, after one that is not counted
    #[arg(short = 'r', value_name = "REPEATS", default_value_t = 5)]
    repeats: usize,
    /// Cache format [default: as precise as the weights: f32 for unquantized ones, f16 from 8 bits on, else q8]
    #[arg(long, value_name = "f32|f16|q8|q4", value_parser = super::run::parse_kv)]
    kv: Option<edgelm_kernels::KvDtype>,
    /// Path of llama.cpp's llama-bench: run the same file there too, in turns, and print the ratio
    #[arg(long, value_name = "PROGRAM")]
    vs: Option<PathBuf>,
}

const JSON_KEYS: &str = "\
With --json a list with one object per test: test, tokens_per_second (median), stddev, gb_per_second (decode: weight
bytes read), tops (prefill: operations of the layers' weights, in 10^12 per second), limit (read bandwidth in GB/s
around the runs of this test, or the arithmetic peak in TOPS), fraction_of_limit, kernel, threads, ttft_ms (16-token
prompt), peak_rss_bytes (after loading and that prompt). With --vs also vs_tokens_per_second, vs_stddev, ratio.";

/// Of the prompt whose time to the first token is told beside the table.
const SHORT_PROMPT: usize = 16;

pub fn run(args: BenchArgs, global: &Global) -> anyhow::Result<()> {
    if args.model == "kernels" {
        return kernels::run(global);
    }
    if args.repeats == 0 || args.batch.contains(&0) {
        return Err(Usage("-r and -b must be at least 1".into()).into());
    }
    let cases = Case::all(&args.depth, &args.prompt, &args.generate, &args.batch);
    let engine = Engine::load(resolve::checkpoint(&args.model, global)?, machine::cpu(global)?)?;
    let context = engine.config().context_length();
    if let Some(case) = cases.iter().find(|case| case.positions() > context) {
        let what = format!("{} needs {} positions, the model has {context}", case.name, case.positions());
        return Err(Usage(what).into());
    }
    let kv = args.kv.unwrap_or_else(|| engine.default_kv());
    let other = match &args.vs {
        Some(program) => {
            let model = engine.checkpoint().path().to_owned();
            Some(LlamaBench::new(program.clone(), model, engine.cpu().threads(), kv, &cases)?)
        }
        None => None,
    };

    let mut first_tokens = Vec::new();
    for _ in 0..args.repeats {
        first_tokens.push(case::first_token(&engine, kv, SHORT_PROMPT.min(context))?);
    }
    let ttft_ms = Rates::new(first_tokens).median() * 1e3;
    // Before the buffer that bandwidth is measured with.
    let peak_rss_bytes = machine::peak_rss_bytes();
    let limits = Machine::measure(&engine)?;

    let bar = progress::bar((cases.len() * (args.repeats + 1)) as u64, "bench", global.quiet);
    let mut rows = Vec::new();
    for case in &cases {
        let mut bandwidth = matches!(case.kind, Kind::Decode { .. }).then(Bandwidth::default);
        let (mut own, mut others) = (Vec::new(), Vec::new());
        case.rate(&engine, kv)?;
        for repeat in 0..args.repeats {
            bar.inc(1);
            if let Some(bandwidth) = &mut bandwidth
                && (repeat == 0 || repeat == args.repeats / 2)
            {
                bandwidth.sample(&limits, &engine);
            }
            own.push(case.rate(&engine, kv)?);
            if let Some(other) = &other {
                others.push(other.rate(case)?);
            }
        }
        if let Some(bandwidth) = &mut bandwidth {
            bandwidth.sample(&limits, &engine);
        }
        bar.inc(1);
        let mut row = figures::row(&engine, case, &Rates::new(own), &limits, bandwidth);
        row["ttft_ms"] = json!(ttft_ms);
        row["peak_rss_bytes"] = json!(peak_rss_bytes);
        if other.is_some() {
            let others = Rates::new(others);
            row["vs_tokens_per_second"] = json!(others.median());
            row["vs_stddev"] = json!(others.standard_deviation());
            row["ratio"] = json!(row["tokens_per_second"].as_f64().unwrap_or_default() / others.median());
        }
        rows.push(row);
    }
    bar.finish_and_clear();
    if global.json {
        return output::json(&rows);
    }
    print(&rows, other.is_some(), &limits, ttft_ms, peak_rss_bytes)
}

fn print(rows: &[Value], is_versus: bool, limits: &Machine, ttft_ms: f64, rss: Option<u64>) -> anyhow::Result<()> {
    let mut header = vec!["test", "tokens/s", "± sd"];
    if is_versus {
        header.extend(["llama-bench", "± sd", "ratio"]);
    }
    header.extend(["achieved", "limit", "of limit", "kernel", "threads"]);
    let mut table = output::table(&header);
    for row in rows {
        let number = |key: &str, digits: usize| row[key].as_f64().map_or("–".into(), |x| format!("{x:.digits$}"));
        let text = |key: &str| row[key].as_str().unwrap_or("–").to_owned();
        let (achieved, unit) = if row["tops"].is_null() { ("gb_per_second", "GB/s") } else { ("tops", "TOPS") };
        let with_unit = |key| format!("{} {unit}", number(key, 2));
        let mut cells = vec![text("test"), number("tokens_per_second", 1), number("stddev", 1)];
        if is_versus {
            cells.extend([number("vs_tokens_per_second", 1), number("vs_stddev", 1), number("ratio", 2)]);
        }
        cells.extend([
            with_unit(achieved),
            with_unit("limit"),
            row["fraction_of_limit"].as_f64().map_or("–".into(), |x| format!("{:.0} %", x * 100.0)),
            text("kernel"),
            row["threads"].to_string(),
        ]);
        table.add_row(cells);
    }
    output::line(table)?;
    let Machine { bandwidth, peak, .. } = limits;
    let (bandwidth, peak) = (bandwidth / 1e9, peak / 1e12);
    output::line(format!(
        "this machine at the start: {bandwidth:.1} GB/s read, {peak:.2} TOPS {}",
        limits.arithmetic()
    ))?;
    let memory = rss.map_or(String::new(), |bytes| format!("; peak memory {}", output::bytes(bytes)));
    output::line(format!("first token of a {SHORT_PROMPT}-token prompt after {ttft_ms:.1} ms{memory}"))
}
