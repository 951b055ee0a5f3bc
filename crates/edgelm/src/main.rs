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
    let arguments: Vec<_> = std::env::args_os().collect();
    let cli = options::Cli::parse_from(&arguments);
    // Before anything else, as it may say how to log.
    let cli = match commands::serve::config::complete(cli, &arguments) {
        Ok(cli) => cli,
        Err(error) => return failure::report(&error),
    };
    output::start_logging(&cli.global);
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}
