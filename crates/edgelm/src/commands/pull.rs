//! `edgelm pull`: download a model.

use crate::{options::Global, output, resolve};
use clap::Args;

#[derive(Args)]
pub struct PullArgs {
    /// hf.co/org/name[:file-or-quant][@revision]
    reference: String,
}

pub fn run(args: PullArgs, global: &Global) -> anyhow::Result<()> {
    let pulled = resolve::pull(&args.reference, global)?;
    if global.json {
        return output::json(&serde_json::json!({
            "path": pulled.path, "digest": pulled.digest, "bytes": pulled.bytes,
        }));
    }
    output::line(pulled.path.display())
}
