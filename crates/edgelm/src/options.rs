//! The command line, as CONTRACT.md and `--help` have it. What a command does is in `commands/`.

use crate::commands::{
    audit::AuditArgs,
    bench::BenchArgs,
    compress::CompressArgs,
    demo::DemoArgs,
    eval::EvalArgs,
    export::ExportArgs,
    inspect::InspectArgs,
    keys::KeysArgs,
    logits::LogitsArgs,
    merge::MergeArgs,
    prune::PruneArgs,
    pull::PullArgs,
    quantize::QuantizeArgs,
    run::RunArgs,
    serve::ServeArgs,
    template::TemplateArgs,
    tokenize::{DetokenizeArgs, TokenizeArgs},
};
use clap::{Args, Parser, Subcommand};
use edgelm_kernels::Isa;

/// From a checkpoint to a served, quantized model, in one binary.
#[derive(Parser)]
#[command(name = "edgelm", version, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Args, Clone)]
pub struct Global {
    /// Threads to compute with [default: the cores this process may use]
    #[arg(long, global = true, env = "EDGELM_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// Force a kernel family: scalar, avx2, avxvnni, avx512, amx, neon, dotprod, i8mm
    #[arg(long, global = true, env = "EDGELM_ISA", value_name = "NAME")]
    pub isa: Option<Isa>,
    /// Print one JSON document to stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// More log messages (twice: even more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// No progress bars and notes
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

impl Global {
    /// A remark on stderr that is neither a result nor an error.
    pub fn note(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            eprintln!("note: {text}");
        }
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// The whole way on the built-in model: inspect, quantize, evaluate, generate
    Demo(DemoArgs),
    /// Architecture, tensors, formats, sizes and memory need of a model
    Inspect(InspectArgs),
    /// Download a model
    Pull(PullArgs),
    /// Generate from a prompt, or chat
    Run(RunArgs),
    /// Next-token logits of every position
    Logits(LogitsArgs),
    /// Token ids of a text
    Tokenize(TokenizeArgs),
    /// Text of token ids
    Detokenize(DetokenizeArgs),
    /// Render the chat template
    Template(TemplateArgs),
    /// Quantize a model to a GGUF file
    Quantize(QuantizeArgs),
    /// Leave out layers, heads, FFN channels or single weights
    Prune(PruneArgs),
    /// Fold an adapter into its base model
    Merge(MergeArgs),
    /// Write a model as a GGUF file or a folder of safetensors
    Export(ExportArgs),
    /// Follow a recipe of compression passes with quality gates
    Compress(CompressArgs),
    /// Perplexity, divergence from a parent model, task accuracy, ROUGE-L and BLEU
    Eval(EvalArgs),
    /// Speed of prefill and decode, or of each kernel (`bench kernels`)
    Bench(BenchArgs),
    /// HTTP server with the APIs of OpenAI, Ollama and Anthropic
    Serve(Box<ServeArgs>),
    /// Keys of a server's API, and keys that sign
    Keys(KeysArgs),
    /// Audit logs of servers
    Audit(AuditArgs),
}
