//! `edgelm prune`: layers, heads, channels or single weights taken out.

use crate::{
    calibration::CalibrationArgs, failure::Usage, interrupt::Work, machine, options::Global, output, progress, resolve,
};
use anyhow::Context;
use clap::{Args, ValueEnum};
use edgelm_compress::{
    CalibrationSource, is_gguf,
    prune::{
        self, Allocation, HiddenBasis, Pattern, PruneCalibration, PruneMethod, PruneOptions, PruneReport,
        Score as ScoreBy, Sparsity,
    },
};
use serde_json::{Value, json};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

#[derive(Args)]
pub struct PruneArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    model: String,
    /// What to write: a .gguf file, or a folder (config.json, model.safetensors, tokenizer)
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Layers to leave out
    #[arg(long, value_name = "N", default_value_t = 0)]
    layers: usize,
    /// How layers and heads are chosen: by the perplexity of the calibration text without them, or by what is missed right
    /// there (layers: block influence; heads: by the method)
    #[arg(long, value_enum, default_value = "perplexity")]
    score: Score,
    /// Fraction of each layer's KV heads to take out, with the query heads that read them
    #[arg(long, value_name = "F")]
    heads: Option<f64>,
    /// Fraction of each layer's FFN channels to take out. Widths that are multiples of 32 stay so
    #[arg(long, value_name = "F")]
    ffn: Option<f64>,
    /// Fraction of the hidden size to take out, in all layers alike; needs --calibration and goes by itself
    #[arg(long, value_name = "F", conflicts_with_all = ["layers", "heads", "ffn", "sparsity", "pattern"])]
    hidden: Option<f64>,
    /// What is kept of the hidden size: some channels; or the principal components of the residual stream, which unties an
    /// output head that is the embedding [default: what does better on calibration windows kept out of the fit; channels
    /// where the head is tied]
    #[arg(long, value_enum, requires = "hidden")]
    basis: Option<Basis>,
    /// uniform: --heads and --ffn take the same fraction of every layer; global: as much in all, from the layers that miss it
    /// least (llama.cpp does not load layers of different widths) [default: global with --calibration, else uniform]
    #[arg(long, value_enum)]
    allocation: Option<Share>,
    /// Fraction of zeros in the linear layers (embedding and output head stay)
    #[arg(long, value_name = "F")]
    sparsity: Option<f64>,
    /// Where zeros may stand: unstructured, N:M (`2:4`: N of every M weights of a row stay), block:RxC
    #[arg(long, value_name = "P")]
    pattern: Option<Pattern>,
    /// magnitude: the smallest go; wanda: the smallest times their inputs; sparsegpt: what the rest can best make up for, and
    /// attention output and FFN down are moved towards the hidden states of the model as it was, after --layers too; alps: the
    /// same, with the zeros of a matrix chosen together (slower)
    #[arg(long, value_enum, default_value = "sparsegpt")]
    method: Method,
    /// Text, or JSON Lines with `text` or `messages`; or `self`: the model writes it. Needed by --layers and by every method
    /// but `magnitude` (repeatable)
    #[arg(long, value_name = "F|self")]
    calibration: Vec<CalibrationSource>,
    #[command(flatten)]
    which: CalibrationArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Method {
    Magnitude,
    Wanda,
    Sparsegpt,
    Alps,
}

#[derive(Clone, Copy, ValueEnum)]
enum Basis {
    Channels,
    Principal,
}

#[derive(Clone, Copy, ValueEnum)]
enum Share {
    Uniform,
    Global,
}

#[derive(Clone, Copy, ValueEnum)]
enum Score {
    Perplexity,
    Local,
}

pub fn run(args: PruneArgs, global: &Global) -> anyhow::Result<()> {
    let sparsity = match (args.sparsity, args.pattern) {
        (None, None) => None,
        (fraction, pattern) => Some(Sparsity::new(fraction, pattern.unwrap_or(Pattern::Unstructured))?),
    };
    if args.layers == 0 && args.heads.is_none() && args.ffn.is_none() && sparsity.is_none() && args.hidden.is_none() {
        let what = "nothing to prune: give --layers, --heads, --ffn, --hidden, --sparsity or --pattern";
        return Err(Usage(what.into()).into());
    }
    let method = match args.method {
        Method::Magnitude => PruneMethod::Magnitude,
        Method::Wanda => PruneMethod::Wanda,
        Method::Sparsegpt => PruneMethod::SparseGpt,
        Method::Alps => PruneMethod::Alps,
    };
    if args.calibration.is_empty() && (method != PruneMethod::Magnitude || args.layers > 0 || args.hidden.is_some()) {
        let what = "--calibration is needed by --layers, --hidden and every method but magnitude";
        return Err(Usage(what.into()).into());
    }
    let checkpoint = resolve::checkpoint(&args.model, global)?;
    let cpu = machine::cpu(global)?;
    let pool = edgelm_compress::thread_pool(cpu.threads()).context("cannot start threads")?;
    let calibration = pool.install(|| args.which.load(&args.calibration, 0, &checkpoint, &cpu, global))?;
    let options = PruneOptions {
        layers: args.layers,
        score: match args.score {
            Score::Perplexity => ScoreBy::Perplexity,
            Score::Local => ScoreBy::Local,
        },
        heads: args.heads,
        ffn: args.ffn,
        allocation: match args.allocation {
            Some(Share::Global) => Allocation::Global,
            Some(Share::Uniform) => Allocation::Uniform,
            None => Allocation::usual(!args.calibration.is_empty()),
        },
        hidden: args.hidden,
        hidden_basis: args.basis.map(|basis| match basis {
            Basis::Channels => HiddenBasis::Channels,
            Basis::Principal => HiddenBasis::Principal,
        }),
        sparsity,
        method,
        calibration: (!args.calibration.is_empty())
            .then_some(PruneCalibration { cpu: &cpu, windows: &calibration.windows }),
        ..PruneOptions::default()
    };
    let bar = progress::bar(0, "prune", global.quiet);
    let work = Work::begin();
    let report = pool.install(|| {
        prune::prune(&checkpoint, &args.output, &options, &mut |done, total, what| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(what.to_owned());
            if work.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    });
    bar.finish_and_clear();
    let mut report = report?;
    report.notes.splice(0..0, calibration.notes);
    if global.json {
        return output::json(&document(&report));
    }
    print(&report, &args.output)
}

/// The keys of CONTRACT.md, and details.
fn document(report: &PruneReport) -> Value {
    json!({
        "parameters_before": report.parameters_before,
        "parameters_after": report.parameters_after,
        "nonzero_parameters": report.nonzero_parameters,
        "sparsity": report.sparsity,
        "input_bytes": report.input_bytes,
        "output_bytes": report.output_bytes,
        "layers_removed": report.layers_removed,
        "layers": report.layers,
        "hidden": report.hidden,
        "notes": report.notes,
        "seconds": report.seconds,
        "peak_rss_bytes": machine::peak_rss_bytes(),
    })
}

fn print(report: &PruneReport, path: &Path) -> anyhow::Result<()> {
    for removed in &report.layers_removed {
        output::line(format!("layer {} left out (score {:.4})", removed.layer, removed.score))?;
    }
    if let Some(hidden) = &report.hidden {
        for (basis, perplexity) in &hidden.tried {
            output::line(format!(
                "tried {basis:?}: perplexity {perplexity:.4} on calibration windows kept out of the fit"
            ))?;
        }
        let (before, now) = (hidden.hidden_size_before, hidden.hidden_size);
        output::line(format!("hidden size {before} → {now} ({:?})", hidden.basis))?;
    }
    let mut table = output::table(&["layer", "heads", "ffn", "largest relative output error"]);
    for layer in &report.layers {
        let errors = layer.matrices.iter().filter_map(|matrix| Some((matrix.relative_output_error?, &matrix.name)));
        let largest = errors.max_by(|a, b| a.0.total_cmp(&b.0));
        let largest = largest.map_or_else(|| "-".to_owned(), |(error, name)| format!("{error:.4} ({name})"));
        let (heads, ffn) = (layer.num_attention_heads.to_string(), layer.intermediate_size.to_string());
        table.add_row([&layer.layer.to_string(), &heads, &ffn, &largest]);
    }
    output::line(table)?;
    for note in &report.notes {
        output::line(format!("note: {note}"))?;
    }
    let kind = if is_gguf(path) { "" } else { " (folder)" };
    output::line(format!(
        "{}{kind}: {} → {} weights, {:.1} % zeros in linear layers, {} → {}, {:.1} s",
        path.display(),
        report.parameters_before,
        report.parameters_after,
        report.sparsity * 100.0,
        output::bytes(report.input_bytes),
        output::bytes(report.output_bytes),
        report.seconds,
    ))
}
