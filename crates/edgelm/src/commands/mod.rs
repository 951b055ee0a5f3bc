//! One file per subcommand.

pub mod audit;
pub mod bench;
pub mod compress;
pub mod demo;
mod engine;
pub mod eval;
pub mod export;
pub mod inspect;
pub mod keys;
pub mod logits;
pub mod merge;
pub mod prune;
pub mod pull;
pub mod quantize;
pub mod run;
pub mod serve;
mod speculation;
pub mod template;
pub mod tokenize;

use crate::options::{Cli, Command};
use std::process::ExitCode;

/// Runs the command.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let global = &cli.global;
    match cli.command {
        Command::Audit(args) => return audit::run(args, global),
        Command::Demo(args) => demo::run(args, global)?,
        Command::Inspect(args) => inspect::run(args, global)?,
        Command::Pull(args) => pull::run(args, global)?,
        Command::Run(args) => run::run(args, global)?,
        Command::Logits(args) => logits::run(args, global)?,
        Command::Tokenize(args) => tokenize::tokenize(args, global)?,
        Command::Detokenize(args) => tokenize::detokenize(args, global)?,
        Command::Template(args) => template::run(args, global)?,
        Command::Quantize(args) => quantize::run(args, global)?,
        Command::Prune(args) => prune::run(args, global)?,
        Command::Merge(args) => merge::run(args, global)?,
        Command::Export(args) => export::run(args, global)?,
        Command::Compress(args) => compress::run(args, global)?,
        Command::Eval(args) => eval::run(args, global)?,
        Command::Bench(args) => bench::run(args, global)?,
        Command::Keys(args) => keys::run(args, global)?,
        Command::Serve(args) => serve::run(*args, global)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Token ids as written by people: separated by commas or white space.
pub fn parse_ids(text: &str) -> anyhow::Result<Vec<u32>> {
    let parts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
    parts
        .map(|part| part.parse().map_err(|_| crate::failure::Usage(format!("`{part}` is not a token id")).into()))
        .collect()
}
