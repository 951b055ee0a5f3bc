//! Keys that sign, and their public halves.

use crate::{failure::Usage, options::Global, output};
use clap::Args;
use edgelm_serve::audit::{SigningKey, VerifyingKey};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(super) struct SigningArgs {
    /// File for the private key, readable by its owner alone; F.pub gets the public one
    #[arg(long, short, value_name = "F", requires = "signing")]
    out: Option<PathBuf>,
}

/// Makes a key pair and prints the public key.
pub(super) fn new(args: SigningArgs, global: &Global) -> anyhow::Result<()> {
    let path = args.out.ok_or_else(|| Usage("--signing needs --out F".to_owned()))?;
    let (key, public_path) = SigningKey::create(&path)?;
    let key = key.verifying_key().to_string();
    if global.json {
        return output::json(&json!({"public_key": key, "private_file": path, "public_file": public_path}));
    }
    global.note(format!("private key in {}, public key in {}", path.display(), public_path.display()));
    output::line(key)
}

/// The public key of a file.
pub(super) fn show(path: &Path, global: &Global) -> anyhow::Result<()> {
    let key = VerifyingKey::read(path)?.to_string();
    if global.json { output::json(&json!({"public_key": key})) } else { output::line(key) }
}
