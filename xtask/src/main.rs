//! Developer commands: `cargo xtask check`, `ladder`, `quality`, `benchmarks`, `random-model`.

mod benchmarks;
mod ladder;
mod program;
mod quality;
mod random_model;
mod roofline;

use anyhow::{Context, bail};
use std::process::Command;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["check"] => check(),
        ["ladder"] => ladder::check(),
        ["quality", rest @ ..] => quality::run(rest),
        ["benchmarks", rest @ ..] => benchmarks::run(rest),
        ["random-model", rest @ ..] => random_model::run(rest),
        _ => bail!(
            "usage: cargo xtask COMMAND\n  check   format, crate ladder, clippy (what CI runs before the tests)\n  ladder  dependencies between crates only point down\n  quality MODEL TEXT TASKS CALIBRATION WINDOWS   docs/quality.md and its plot\n  benchmarks [--shape NAME] [--vs LLAMA_BENCH] [-p N] [-n N] [-d DEPTH] [-r REPEATS] [-o FOLDER]   docs/benchmarks.md and its plot\n  random-model --shape NAME -o FILE.gguf --format NAME   a model of random weights to measure speed with"
        ),
    }
}

/// Cheapest first.
fn check() -> anyhow::Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    ladder::check()?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    eprintln!("cargo {}", arguments.join(" "));
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let status = Command::new(cargo).args(arguments).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("`cargo {}` failed", arguments.join(" "));
    }
    Ok(())
}
