//! `edgelm inspect`: what a model is and what it needs.

use crate::{options::Global, output, resolve};
use clap::Args;
use edgelm_engine::{kv_shapes, state_bytes};
use edgelm_kernels::{KvCache, KvDtype};
use edgelm_model::Checkpoint;
use edgelm_tensor::DType;
use serde_json::{Value, json};

#[derive(Args)]
pub struct InspectArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    model: String,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

/// Facts about a checkpoint, as printed by `inspect` and `demo`.
pub struct Facts {
    pub architecture: &'static str,
    pub parameters: u64,
    pub file_bytes: u64,
    pub weights_bytes: u64,
    pub bits_per_weight: f64,
    pub kv_bytes_per_token: usize,
    /// Beside keys and values, however long a sequence is.
    pub state_bytes: usize,
    pub formats: Vec<(&'static str, usize)>,
}

pub fn facts(checkpoint: &Checkpoint) -> anyhow::Result<Facts> {
    let mut weights_bytes = 0;
    let mut formats: Vec<(&'static str, usize)> = Vec::new();
    for &id in checkpoint.tensor_ids() {
        let (dtype, shape) = (checkpoint.run_dtype(id)?, checkpoint.describe(id)?.1);
        weights_bytes += bytes(dtype, shape)?;
        match formats.iter_mut().find(|(name, _)| *name == dtype.name()) {
            Some((_, count)) => *count += 1,
            None => formats.push((dtype.name(), 1)),
        }
    }
    Ok(Facts {
        architecture: checkpoint.config().arch.name,
        parameters: checkpoint.parameters(),
        file_bytes: checkpoint.file_bytes(),
        weights_bytes,
        bits_per_weight: weights_bytes as f64 * 8.0 / checkpoint.parameters() as f64,
        kv_bytes_per_token: KvCache::bytes_per_token(&kv_shapes(checkpoint.config()), KvDtype::F16),
        state_bytes: state_bytes(checkpoint.config()),
        formats,
    })
}

pub fn run(args: InspectArgs, global: &Global) -> anyhow::Result<()> {
    let checkpoint = resolve::checkpoint(&args.model, global)?;
    let facts = facts(&checkpoint)?;
    let config = checkpoint.config();
    if global.json {
        return output::json(&json!({
            "architecture": facts.architecture,
            "parameters": facts.parameters,
            "file_bytes": facts.file_bytes,
            "quantization": checkpoint.quantization(),
            "bits_per_weight": facts.bits_per_weight,
            "hidden_size": config.hidden_size,
            "vocab_size": config.vocab_size,
            "num_hidden_layers": config.layers.len(),
            "max_position_embeddings": config.max_position_embeddings,
            "bos_token_id": config.bos_token_id,
            "eos_token_ids": config.eos_token_ids,
            "tensors": tensors(&checkpoint)?,
            "memory": {
                "weights_bytes": facts.weights_bytes,
                "kv_bytes_per_token": facts.kv_bytes_per_token,
                "state_bytes": facts.state_bytes,
            },
        }));
    }
    print_facts(&checkpoint, &facts)?;
    if args.tensors {
        let mut table = output::table(&["tensor", "format", "shape", "bytes"]);
        for &id in checkpoint.tensor_ids() {
            let (dtype, shape) = (checkpoint.run_dtype(id)?, checkpoint.describe(id)?.1);
            let bytes = output::bytes(bytes(dtype, shape)?);
            table.add_row([checkpoint.stored_name(id), dtype.to_string(), format!("{shape:?}"), bytes]);
        }
        output::line(table)?;
    }
    Ok(())
}

fn tensors(checkpoint: &Checkpoint) -> anyhow::Result<Vec<Value>> {
    let row = |&id| {
        let (dtype, shape) = (checkpoint.run_dtype(id)?, checkpoint.describe(id)?.1);
        Ok(json!({
            "name": checkpoint.stored_name(id), "format": dtype.name(), "shape": shape,
            "bytes": bytes(dtype, shape)?,
        }))
    };
    checkpoint.tensor_ids().iter().map(row).collect()
}

/// Bytes of a tensor as it is run.
fn bytes(dtype: DType, shape: &[usize]) -> anyhow::Result<u64> {
    let Some((&row_len, outer)) = shape.split_last() else { return Ok(dtype.row_bytes(1)? as u64) };
    Ok(outer.iter().product::<usize>() as u64 * dtype.row_bytes(row_len)? as u64)
}

/// The table of `inspect`.
pub fn print_facts(checkpoint: &Checkpoint, facts: &Facts) -> anyhow::Result<()> {
    let config = checkpoint.config();
    let span = |values: Vec<usize>| {
        let (low, high) = (values.iter().min().unwrap_or(&0), values.iter().max().unwrap_or(&0));
        if low == high { low.to_string() } else { format!("{low} to {high}") }
    };
    let per_layer = |f: fn(&edgelm_model::LayerConfig) -> usize| span(config.layers.iter().map(f).collect());
    let formats: Vec<String> = facts.formats.iter().map(|(name, count)| format!("{name} ×{count}")).collect();
    let mut rows = vec![
        ("model", checkpoint.name().to_owned()),
        ("architecture", facts.architecture.to_owned()),
        ("parameters", output::count(facts.parameters)),
        ("layers", config.layers.len().to_string()),
        ("hidden / ffn", format!("{} / {}", config.hidden_size, per_layer(|l| l.intermediate_size))),
        (
            "heads / kv heads / size",
            format!(
                "{} / {} / {}",
                per_layer(|l| l.num_attention_heads),
                per_layer(|l| l.num_key_value_heads),
                per_layer(|l| l.head_dim)
            ),
        ),
        ("vocabulary", config.vocab_size.to_string()),
        ("context", config.max_position_embeddings.to_string()),
        ("formats", formats.join(", ")),
        ("file", output::bytes(facts.file_bytes)),
        ("weights", format!("{} ({:.2} bits per weight)", output::bytes(facts.weights_bytes), facts.bits_per_weight)),
        ("kv cache (f16)", format!("{} per token", output::bytes(facts.kv_bytes_per_token as u64))),
    ];
    if let Some(quantization) = checkpoint.quantization() {
        rows.insert(2, ("quantized as", quantization.to_owned()));
    }
    if facts.state_bytes > 0 {
        rows.push(("state", format!("{} per sequence", output::bytes(facts.state_bytes as u64))));
    }
    let width = rows.iter().map(|row| row.0.len()).max().unwrap_or(0);
    for (name, value) in rows {
        output::line(format!("{name:width$}  {value}"))?;
    }
    Ok(())
}
