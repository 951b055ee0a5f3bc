//! `cargo xtask benchmarks`: speed of the main formats beside llama.cpp and the limits of the machine, as a table and a
//! roofline plot in `docs/`.

use crate::program::{self, Program, number};
use crate::random_model::{self, Shape};
use crate::roofline;
use anyhow::{Context, bail};
use serde_json::Value;
use std::{fmt::Write, fs, path::Path, process::Command};

const FORMATS: [&str; 3] = ["Q4_0", "Q4_K_M", "Q8_0"];

/// What is measured and where it goes.
struct Plan<'a> {
    shape: &'a str,
    vs: Option<&'a str>,
    prompt: &'a str,
    generate: &'a str,
    depth: &'a str,
    repeats: &'a str,
    out: &'a str,
}

/// One row of the table.
pub struct Row {
    pub format: &'static str,
    /// As `bench` prints it.
    pub figures: Value,
    /// Cache format.
    pub kv: &'static str,
    pub file_bytes: u64,
}

impl Row {
    pub fn number(&self, key: &str) -> Option<f64> {
        self.figures[key].as_f64()
    }

    pub fn test(&self) -> &str {
        self.figures["test"].as_str().unwrap_or("–")
    }
}

const USAGE: &str =
    "usage: cargo xtask benchmarks [--shape NAME] [--vs LLAMA_BENCH] [-p N] [-n N] [-d DEPTH] [-r REPEATS] [-o FOLDER]";

pub fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let mut plan =
        Plan { shape: "tinyllama", vs: None, prompt: "512", generate: "64", depth: "4096", repeats: "5", out: "" };
    let docs = program::root().join("docs").to_string_lossy().into_owned();
    plan.out = &docs;
    for pair in arguments.chunks(2) {
        match *pair {
            ["--shape", value] => plan.shape = value,
            ["--vs", value] => plan.vs = Some(value),
            ["-p", value] => plan.prompt = value,
            ["-n", value] => plan.generate = value,
            ["-d", value] => plan.depth = value,
            ["-r", value] => plan.repeats = value,
            ["-o", value] => plan.out = value,
            _ => bail!(USAGE),
        }
    }
    let shape = Shape::from_name(plan.shape)?;
    let program = Program::build()?;
    let model = program.scratch("model.gguf");
    let mut rows = Vec::new();
    for format in FORMATS {
        let file_bytes = random_model::write(shape, format, Path::new(&model))?;
        plan.measure(&program, &model, format, file_bytes, &mut rows)?;
    }
    let out = Path::new(plan.out);
    fs::write(out.join("benchmarks.md"), plan.page(&rows, arguments)?)?;
    roofline::plot(&rows, shape, plan.prompt.parse()?, &out.join("benchmarks.svg"))
}

impl Plan<'_> {
    fn measure(
        &self,
        program: &Program,
        model: &str,
        format: &'static str,
        file_bytes: u64,
        rows: &mut Vec<Row>,
    ) -> anyhow::Result<()> {
        let mut bench = |flags: &[&str], kv, vs: Option<&str>| {
            let mut arguments = vec!["bench", model, "-r", self.repeats];
            arguments.extend(flags);
            if let Some(vs) = vs {
                arguments.extend(["--vs", vs]);
            }
            let got = program.json(&arguments)?;
            for figures in got.as_array().context("`bench` prints a list")? {
                let row = Row { format, figures: figures.clone(), kv, file_bytes };
                let speed = row.number("tokens_per_second").unwrap_or_default();
                eprintln!("{format} {}: {speed:.1} tokens/s, {} threads", row.test(), figures["threads"]);
                rows.push(row);
            }
            anyhow::Ok(())
        };
        let n = self.generate;
        for threads in ["1", "2"] {
            bench(&["-p", self.prompt, "-n", n, "--threads", threads], "f16", self.vs)?;
        }
        bench(&["-p", "0", "-n", n, "-d", self.depth, "--kv", "q8", "--threads", "2"], "q8", self.vs)?;
        // llama-bench decodes one sequence at a time.
        bench(&["-p", "0", "-n", n, "-b", "4,8", "--threads", "2"], "f16", None)
    }

    fn page(&self, rows: &[Row], arguments: &[&str]) -> anyhow::Result<String> {
        // Paths are of the machine that measured, not of the reader's.
        let shown =
            arguments.iter().map(|argument| Path::new(argument).file_name().map_or("", |n| n.to_str().unwrap_or("")));
        let command = ["cargo xtask benchmarks"].into_iter().chain(shown).collect::<Vec<_>>().join(" ");
        let mut page = format!(
            "# Speed\n\nWritten by `{command}`, at commit {}, on {} with `{}` kernels. Model: random weights in the shape of {}. \
             Medians of {} runs{}.\n\n\
             Decode (tg) reads every weight once per step: its limit is the read bandwidth, measured around each test because it \
             changes from minute to minute. Prefill (pp) multiplies every weight once per token: its limit is the arithmetic \
             peak of the instructions in use. `@ d` is the number of tokens already in the context, `b` the number of \
             sequences decoded together. A share above 100 % of the bandwidth means that the weights fit into a cache.\n\n\
             ![Roofline](benchmarks.svg)\n\n\
             | format | test | threads | cache | tokens/s | ± sd | achieved | limit | of limit | llama.cpp tokens/s | ratio |\n\
             |---|---|---|---|---|---|---|---|---|---|---|\n",
            commit(),
            cpu_name(),
            isa(rows),
            self.shape,
            self.repeats,
            if self.vs.is_some() { ", in turns with llama-bench on the same file" } else { "" },
        );
        for row in rows {
            let show = |key: &str, digits: usize| row.number(key).map_or("–".into(), |x| format!("{x:.digits$}"));
            let (achieved, unit) = match row.number("tops") {
                Some(tops) => (tops, "TOPS"),
                None => (number(&row.figures, "gb_per_second")?, "GB/s"),
            };
            writeln!(
                page,
                "| {} | {} | {} | {} | {} | {} | {achieved:.2} {unit} | {} {unit} | {:.0} % | {} | {} |",
                row.format,
                row.test(),
                row.figures["threads"],
                row.kv,
                show("tokens_per_second", 1),
                show("stddev", 1),
                show("limit", 2),
                number(&row.figures, "fraction_of_limit")? * 100.0,
                show("vs_tokens_per_second", 1),
                show("ratio", 2),
            )?;
        }
        page += "\n| format | file | peak memory | memory / file | first token of a 16-token prompt |\n|---|---|---|---|---|\n";
        for format in FORMATS {
            let of_format = |row: &&Row| row.format == format && row.figures["threads"] == 2;
            let Some(row) = rows.iter().find(of_format) else { continue };
            let (file, memory) = (row.file_bytes as f64, number(&row.figures, "peak_rss_bytes")?);
            let (mib, ratio, ms) = (f64::from(1 << 20), memory / file, number(&row.figures, "ttft_ms")?);
            writeln!(page, "| {format} | {:.0} MiB | {:.0} MiB | {ratio:.2} | {ms:.1} ms |", file / mib, memory / mib)?;
        }
        Ok(page)
    }
}

/// Last part of the kernels' names.
fn isa(rows: &[Row]) -> &str {
    let kernel = rows.first().and_then(|row| row.figures["kernel"].as_str());
    kernel.and_then(|names| names.rsplit('-').next()).unwrap_or("unknown")
}

fn commit() -> String {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(program::root()).output();
    output.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// As Linux calls it.
fn cpu_name() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": an unnamed CPU");
    line.trim_start_matches([' ', '\t', ':']).to_owned()
}
