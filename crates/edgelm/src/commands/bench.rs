//! `edgelm bench`: speed of prefill and decode, or of each kernel.

use crate::{failure::Usage, machine, options::Global, output, progress, resolve};
use clap::Args;
use edgelm_engine::{Engine, Sequence, Step, Want, Workspace};
use edgelm_kernels::{KernelBench, bench_kernels, read_bandwidth};
use serde_json::json;
use std::time::Instant;

#[derive(Args)]
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
    /// Cache format [default: f32 for unquantized weights, else q8]
    #[arg(long, value_name = "f32|f16|q8", value_parser = super::run::parse_kv)]
    kv: Option<edgelm_kernels::KvDtype>,
}

/// What one row of the table times.
struct Test {
    name: String,
    depth: usize,
    /// Tokens per timed run, all sequences together.
    tokens: usize,
    kind: Kind,
}

enum Kind {
    Prefill(usize),
    Decode { steps: usize, batch: usize },
}

pub fn run(args: BenchArgs, global: &Global) -> anyhow::Result<()> {
    if args.model == "kernels" {
        return kernels(global);
    }
    if args.repeats == 0 || args.batch.contains(&0) {
        return Err(Usage("-r and -b must be at least 1".into()).into());
    }
    let engine = Engine::load(resolve::checkpoint(&args.model, global)?, machine::cpu(global)?)?;
    let context = engine.config().context_length();
    let tests = tests(&args);
    if let Some(test) = tests.iter().find(|test| test.depth + test.length() > context) {
        let what = format!("{} needs {} positions, the model has {context}", test.name, test.depth + test.length());
        return Err(Usage(what).into());
    }
    let bandwidth = read_bandwidth(engine.cpu().pool());
    let kv = args.kv.unwrap_or_else(|| engine.default_kv());
    let bar = progress::bar((tests.len() * (args.repeats + 1)) as u64, "bench", global.quiet);
    let mut rows = Vec::new();
    for test in &tests {
        let mut rates = Vec::new();
        for repeat in 0..=args.repeats {
            let rate = test.tokens as f64 / time(&engine, test, kv)?;
            if repeat > 0 {
                rates.push(rate);
            }
            bar.inc(1);
        }
        rows.push(row(&engine, test, &rates, bandwidth));
    }
    bar.finish_and_clear();
    if global.json {
        return output::json(&rows);
    }
    let mut table = output::table(&["test", "tokens/s", "± sd", "GB/s", "of limit", "kernel", "threads"]);
    for row in &rows {
        let number = |key: &str, digits: usize| row[key].as_f64().map_or("–".into(), |x| format!("{x:.digits$}"));
        let text = |key: &str| row[key].as_str().unwrap_or("–").to_owned();
        let share = row["fraction_of_limit"].as_f64().map_or("–".into(), |x| format!("{:.0} %", x * 100.0));
        table.add_row([
            text("test"),
            number("tokens_per_second", 1),
            number("stddev", 1),
            number("gb_per_second", 1),
            share,
            text("kernel"),
            row["threads"].to_string(),
        ]);
    }
    output::line(table)?;
    output::line(format!("read bandwidth of this machine: {:.1} GB/s", bandwidth / 1e9))
}

impl Test {
    /// Positions that one sequence needs beyond the depth.
    fn length(&self) -> usize {
        match self.kind {
            Kind::Prefill(n) => n,
            Kind::Decode { steps, .. } => steps,
        }
    }
}

fn tests(args: &BenchArgs) -> Vec<Test> {
    let mut tests = Vec::new();
    for &depth in &args.depth {
        let at = if depth > 0 { format!(" @ d{depth}") } else { String::new() };
        for &n in args.prompt.iter().filter(|&&n| n > 0) {
            tests.push(Test { name: format!("pp{n}{at}"), depth, tokens: n, kind: Kind::Prefill(n) });
        }
        for &steps in args.generate.iter().filter(|&&n| n > 0) {
            for &batch in &args.batch {
                let name = if batch > 1 { format!("tg{steps} b{batch}{at}") } else { format!("tg{steps}{at}") };
                tests.push(Test { name, depth, tokens: steps * batch, kind: Kind::Decode { steps, batch } });
            }
        }
    }
    tests
}

/// Token ids spread over the vocabulary, the same in every run.
fn ids(engine: &Engine, count: usize) -> Vec<u32> {
    let vocab = engine.config().vocab_size as u64;
    (0..count as u64).map(|i| (i.wrapping_mul(2_654_435_761) % vocab) as u32).collect()
}

/// Seconds of one run, the filling of the depth not counted.
fn time(engine: &Engine, test: &Test, kv: edgelm_kernels::KvDtype) -> anyhow::Result<f64> {
    let mut workspace = Workspace::default();
    let mut start = engine.sequence(kv);
    if test.depth > 0 {
        let tokens = ids(engine, test.depth);
        engine.forward(&mut [Step { sequence: &mut start, tokens: &tokens, want: Want::None }], &mut workspace)?;
    }
    match test.kind {
        Kind::Prefill(n) => {
            let tokens = ids(engine, n);
            let begin = Instant::now();
            engine.forward(&mut [Step { sequence: &mut start, tokens: &tokens, want: Want::Last }], &mut workspace)?;
            Ok(begin.elapsed().as_secs_f64())
        }
        Kind::Decode { steps, batch } => {
            let mut sequences: Vec<Sequence> = vec![start; batch];
            let tokens = ids(engine, batch);
            let begin = Instant::now();
            for _ in 0..steps {
                let mut batch: Vec<Step<'_>> = sequences
                    .iter_mut()
                    .zip(tokens.chunks(1))
                    .map(|(sequence, tokens)| Step { sequence, tokens, want: Want::Last })
                    .collect();
                engine.forward(&mut batch, &mut workspace)?;
            }
            Ok(begin.elapsed().as_secs_f64())
        }
    }
}

/// The keys of CONTRACT.md. Decode is bound by reading the weights once per step, so its limit is the read bandwidth;
/// prefill by arithmetic: `bench kernels` has that limit.
fn row(engine: &Engine, test: &Test, rates: &[f64], bandwidth: f64) -> serde_json::Value {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / (rates.len().max(2) - 1) as f64;
    let bytes_per_second = match test.kind {
        Kind::Decode { batch, .. } => Some(engine.bytes_per_token() as f64 * median / batch as f64),
        Kind::Prefill(_) => None,
    };
    json!({
        "test": test.name,
        "tokens_per_second": median,
        "stddev": variance.sqrt(),
        "gb_per_second": bytes_per_second.map(|rate| rate / 1e9),
        "fraction_of_limit": bytes_per_second.map(|rate| rate / bandwidth),
        "kernel": engine.kernels().join(", "),
        "threads": engine.cpu().threads(),
    })
}

/// Every kernel this CPU can run with the chosen family, against the machine's measured limits.
fn kernels(global: &Global) -> anyhow::Result<()> {
    let cpu = machine::cpu(global)?;
    let results = bench_kernels(&cpu)?;
    if global.json {
        let row = |kernel: &KernelBench| {
            json!({
                "kernel": kernel.name,
                "format": kernel.dtype.name(),
                "rows": kernel.m,
                "gb_per_second": kernel.gb_per_second,
                "gops": kernel.gops,
                "fraction_of_limit": kernel.fraction_of_limit,
                "threads": cpu.threads(),
            })
        };
        return output::json(&results.iter().map(row).collect::<Vec<_>>());
    }
    let mut table = output::table(&["kernel", "rows of x", "GB/s", "GOP/s", "of limit"]);
    for kernel in &results {
        table.add_row([
            kernel.name.to_owned(),
            kernel.m.to_string(),
            format!("{:.1}", kernel.gb_per_second),
            format!("{:.1}", kernel.gops),
            format!("{:.0} %", kernel.fraction_of_limit * 100.0),
        ]);
    }
    output::line(table)
}
