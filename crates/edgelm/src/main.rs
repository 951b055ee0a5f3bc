//! The `edgelm` command: parse, resolve, call one library, print.

mod adapters;
mod calibration;
mod commands;
mod failure;
mod interrupt;
mod machine;
mod options;
mod output;
mod page;
mod progress;
mod resolve;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = options::Cli::parse();
    // A server says how its lines look.
    if !matches!(cli.command, options::Command::Serve(_)) {
        output::start_logging(&cli.global, output::LogFormat::Text, None);
    }
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}
