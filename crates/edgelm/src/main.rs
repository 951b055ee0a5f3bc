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
    output::start_logging(&cli.global);
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}
