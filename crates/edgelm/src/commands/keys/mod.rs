//! `edgelm keys`: one file for each kind of key.

mod api;
mod signing;

use crate::options::Global;
use clap::{Args, Subcommand};

#[derive(Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Subcommand)]
enum KeysCommand {
    /// Make a key
    New(NewArgs),
    /// List the keys of a file, without what is secret of them
    Show(ShowArgs),
}

#[derive(Args)]
#[command(group(clap::ArgGroup::new("kind").required(true)))]
struct NewArgs {
    /// A key of a server's API, for `serve --api-key-file`
    #[arg(long, group = "kind")]
    api: bool,
    /// An Ed25519 key to sign with, for `serve --audit-key`
    #[arg(long, group = "kind", requires = "out")]
    signing: bool,
    #[command(flatten)]
    of_api: api::ApiArgs,
    #[command(flatten)]
    of_signing: signing::SigningArgs,
}

#[derive(Args)]
#[command(group(clap::ArgGroup::new("kind").required(true)))]
struct ShowArgs {
    /// F is a key file of `serve --api-key-file`
    #[arg(long, group = "kind", value_name = "F")]
    api: Option<std::path::PathBuf>,
    /// F holds an Ed25519 key, private or public
    #[arg(long, group = "kind", value_name = "F")]
    signing: Option<std::path::PathBuf>,
}

pub fn run(args: KeysArgs, global: &Global) -> anyhow::Result<()> {
    match args.command {
        KeysCommand::New(args) if args.signing => signing::new(args.of_signing, global),
        KeysCommand::New(args) => api::new(args.of_api, global),
        KeysCommand::Show(ShowArgs { api: Some(path), .. }) => api::show(&path, global),
        KeysCommand::Show(ShowArgs { signing: Some(path), .. }) => signing::show(&path, global),
        // The group wants one.
        KeysCommand::Show(_) => Ok(()),
    }
}
