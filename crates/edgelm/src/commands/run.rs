//! `edgelm run`: one prompt, a long document, or an interactive chat.

mod chat;
mod ort;
mod session;
mod trace;
mod windows;

use crate::{
    adapters,
    commands::{engine::EngineArgs, parse_ids, speculation::SpeculationArgs},
    failure::Usage,
    interrupt, machine,
    options::Global,
    output, resolve,
};
use anyhow::Context;
use clap::Args;
use edgelm_engine::{
    Arithmetic, Constraint, EngineError, GenerateOptions, Generation, Grammar, Model, Piece, Sampling,
};
use edgelm_kernels::{Cpu, KvDtype};
use edgelm_model::{GenerationConfig, Message};
use serde_json::json;
use session::SessionFile;
use std::{
    io::{IsTerminal, Read},
    ops::ControlFlow,
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

#[derive(Args)]
pub struct RunArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    model: String,
    /// Prompt; `-` reads stdin; without one on a terminal: chat
    #[arg(allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Read the prompt (with PROMPT: the text that follows it) from a file
    #[arg(long, value_name = "F")]
    file: Option<PathBuf>,
    /// Token ids instead of text, separated by commas
    #[arg(long, value_name = "IDS", conflicts_with_all = ["prompt", "file", "system"])]
    tokens: Option<String>,
    /// System message
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// No chat template: the prompt as it is
    #[arg(long)]
    raw: bool,
    /// Work through --file in windows of N tokens
    #[arg(long, value_name = "N", requires = "file")]
    window: Option<usize>,
    /// Tokens from one window's start to the next [default: three quarters of the window]
    #[arg(long, value_name = "N", requires = "window")]
    stride: Option<usize>,
    /// Quantized weights: with integer kernels, in f32 as the file means them (slow), or exact for tiny models alone
    #[arg(long, value_name = "auto|fast|exact", value_parser = parse_arithmetic, default_value = "auto")]
    arithmetic: Arithmetic,
    /// Adapter beside the model: a PEFT folder or a .gguf file (repeatable: all together)
    #[arg(long, value_name = "DIR")]
    lora: Vec<PathBuf>,
    /// Write a Chrome trace: what every operator and thread did, beside the limits of the machine
    #[arg(long, value_name = "F")]
    trace: Option<PathBuf>,
    /// Go on with the conversation in this file, and keep it there: text and cache, of this model only
    #[arg(long, value_name = "F", conflicts_with_all = ["tokens", "window", "lora", "beams"])]
    session: Option<PathBuf>,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    generation: GenerationArgs,
}

/// What to generate and how.
#[derive(Args, Clone)]
pub struct GenerationArgs {
    /// Stop after this many tokens [default: as the model says, else until its end or the context is full]
    #[arg(long, short = 'n', value_name = "N")]
    max_tokens: Option<usize>,
    /// 0 = always the most probable token [default: as the model says, else 0]
    #[arg(long, value_name = "X")]
    temperature: Option<f32>,
    /// Only the K most probable tokens (0 = all)
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Only the most probable tokens that together reach this probability (1 = all)
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Only tokens at least this fraction as probable as the best (0 = all)
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Make tokens that were seen less probable (1 = off)
    #[arg(long, value_name = "X")]
    repeat_penalty: Option<f32>,
    /// How many of the last tokens count as seen (0 = all)
    #[arg(long, value_name = "N", default_value_t = 0)]
    repeat_last_n: usize,
    /// Lower the logit of every token already generated
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_hyphen_values = true)]
    presence_penalty: f32,
    /// Lower the logit of tokens by how often they were generated
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_hyphen_values = true)]
    frequency_penalty: f32,
    /// Same seed, same tokens [default: 0]
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Stop before this text appears (repeatable)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Beam search of this width (needs temperature 0)
    #[arg(long, value_name = "N", default_value_t = 1)]
    beams: usize,
    /// Go on after the end-of-sequence token
    #[arg(long)]
    ignore_eos: bool,
    /// The answer is JSON that validates against the schema in this file
    #[arg(long, value_name = "F", conflicts_with_all = ["grammar", "ignore_eos"])]
    json_schema: Option<PathBuf>,
    /// The answer follows the grammar in this file (Lark-like, from its rule `start`)
    #[arg(long, value_name = "F", conflicts_with = "ignore_eos")]
    grammar: Option<PathBuf>,
    /// Context limit in tokens [default: the model's]
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    /// Cache format [default: as precise as the weights: f32 for unquantized ones, f16 from 8 bits on, else q8]
    #[arg(long, value_name = "f32|f16|q8|q4", value_parser = parse_kv)]
    kv: Option<KvDtype>,
}

/// A cache format by its name on the command line.
pub fn parse_kv(text: &str) -> Result<KvDtype, String> {
    match text {
        "f32" => Ok(KvDtype::F32),
        "f16" => Ok(KvDtype::F16),
        "q8" => Ok(KvDtype::Q8),
        "q4" => Ok(KvDtype::Q4),
        _ => Err("expected f32, f16, q8 or q4".into()),
    }
}

/// An arithmetic by its name on the command line.
pub fn parse_arithmetic(text: &str) -> Result<Arithmetic, String> {
    match text {
        "auto" => Ok(Arithmetic::Auto),
        "fast" => Ok(Arithmetic::Fast),
        "exact" => Ok(Arithmetic::Exact),
        _ => Err("expected auto, fast or exact".into()),
    }
}

impl GenerationArgs {
    /// Flags over the model's own defaults (used only if it says that it samples) over greedy.
    fn options(&self, model: &GenerationConfig) -> GenerateOptions {
        let samples = model.do_sample.unwrap_or(false);
        let own = |value: Option<f32>, off: f32| if samples { value.unwrap_or(off) } else { off };
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(if samples { model.temperature.unwrap_or(1.0) } else { 0.0 }),
            top_k: self.top_k.unwrap_or(if samples { model.top_k.unwrap_or(0) } else { 0 }),
            top_p: self.top_p.unwrap_or(own(model.top_p, 1.0)),
            min_p: self.min_p.unwrap_or(own(model.min_p, 0.0)),
            repeat_penalty: self.repeat_penalty.or(model.repetition_penalty).unwrap_or(1.0),
            repeat_last_n: self.repeat_last_n,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: Vec::new(),
            seed: self.seed,
        };
        GenerateOptions {
            max_tokens: self.max_tokens,
            sampling,
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            context: self.ctx,
            kv: self.kv,
            beams: self.beams,
            keep_special: false,
            logprobs: None,
            adapter: None,
            constraint: None,
            speculation: None,
        }
    }

    /// What the answer must be, compiled for the model.
    fn constraint(&self, model: &Model) -> anyhow::Result<Option<Grammar>> {
        let (path, constraint) = match (&self.json_schema, &self.grammar) {
            (Some(path), _) => {
                let schema = serde_json::from_str(&read_file(path)?);
                (path, Constraint::JsonSchema(schema.with_context(|| format!("`{}`", path.display()))?))
            }
            (None, Some(path)) => (path, Constraint::Lark(read_file(path)?)),
            (None, None) => return Ok(None),
        };
        model.grammar(&constraint).map(Some).with_context(|| format!("`{}`", path.display()))
    }
}

pub fn run(args: RunArgs, global: &Global) -> anyhow::Result<()> {
    if args.window == Some(0) || args.stride == Some(0) {
        return Err(Usage("--window and --stride must be at least 1".into()).into());
    }
    if args.engine.is_ort()? {
        return ort::run(&args, global);
    }
    let Some(path) = &args.trace else { return answer(&args, machine::cpu(global)?, global) };
    let cpu = machine::cpu(global)?;
    // Ctrl-C ends the generation; the trace so far is written.
    let work = interrupt::Work::begin();
    let trace = trace::Trace::begin(path, &cpu)?;
    let answered = answer(&args, cpu, global);
    trace.finish(global)?;
    if work.is_interrupted() {
        std::process::exit(interrupt::STATUS.into());
    }
    answered
}

fn answer(args: &RunArgs, cpu: Arc<Cpu>, global: &Global) -> anyhow::Result<()> {
    let begin = Instant::now();
    let checkpoint = resolve::checkpoint(&args.model, global)?;
    let model = Model::load_with(checkpoint, cpu, args.arithmetic)?;
    let adapter = adapters::load(&args.lora, model.engine())?;
    let speculation = args.speculation.load(args.arithmetic, model.engine().cpu(), global)?;
    let load_ms = begin.elapsed().as_secs_f64() * 1e3;
    let constraint = args.generation.constraint(&model)?;
    let options =
        GenerateOptions { adapter, constraint, speculation, ..args.generation.options(model.generation_config()) };
    if let Some(ids) = &args.tokens {
        return once(&model, parse_ids(ids)?, &options, load_ms, global);
    }
    let wants_chat = args.prompt.is_none() && args.file.is_none() && std::io::stdin().is_terminal();
    if wants_chat {
        if global.json {
            return Err(Usage("--json needs a PROMPT".into()).into());
        }
        return chat::run(&model, args, &options, global);
    }
    let frame = Frame::new(&model, args.system.as_deref(), args.raw, global)?;
    if let (Some(path), Some(window)) = (&args.file, args.window) {
        let document = read_file(path)?;
        let stride = args.stride.unwrap_or((window * 3 / 4).max(1));
        let question = args.prompt.as_deref().unwrap_or("");
        return windows::run(&frame, question, &document, window, stride, &options, load_ms, global);
    }
    let mut text = match args.prompt.as_deref() {
        Some("-") => read_stdin()?,
        Some(prompt) => prompt.to_owned(),
        None if args.file.is_none() => read_stdin()?,
        None => String::new(),
    };
    if let Some(path) = &args.file {
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        text.push_str(&read_file(path)?);
    }
    if let Some(path) = &args.session {
        let (file, mut sequence, mut talk) = SessionFile::open(path, args, frame.raw, &model, &options, global)?;
        let prompt = talk.go_on(&model, &text)?;
        let options = with_model_limit(&model, prompt.len(), &options);
        let generation =
            streamed(!global.json, |on_piece| model.generate_in(&mut sequence, &prompt, &options, on_piece))?;
        finish(&generation, model.checkpoint().has_tokenizer(), load_ms, global)?;
        talk.answer(&generation.text);
        return file.save(&model, &sequence, &talk);
    }
    once(&model, frame.prompt(&text)?, &options, load_ms, global)
}

fn read_file(path: &std::path::Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))
}

fn read_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
    Ok(text)
}

/// How a user's text becomes a prompt.
struct Frame<'a> {
    model: &'a Model,
    system: Option<&'a str>,
    raw: bool,
}

impl<'a> Frame<'a> {
    fn new(model: &'a Model, system: Option<&'a str>, raw: bool, global: &Global) -> anyhow::Result<Self> {
        let has_template = model.chat_template()?.is_some();
        if !has_template && system.is_some() {
            return Err(edgelm_engine::EngineError::NoChatTemplate).context("--system");
        }
        if !has_template && !raw {
            global.note("this model has no chat template: the prompt is used as it is");
        }
        Ok(Self { model, system, raw: raw || !has_template })
    }

    fn prompt(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        if self.raw {
            return Ok(self.model.tokenizer()?.encode_prompt(text)?);
        }
        let mut messages: Vec<Message> = Vec::new();
        if let Some(system) = self.system {
            messages.push(json!({ "role": "system", "content": system }));
        }
        messages.push(json!({ "role": "user", "content": text }));
        Ok(self.model.chat_prompt(&messages)?)
    }
}

/// One prompt, one answer.
fn once(
    model: &Model,
    prompt: Vec<u32>,
    options: &GenerateOptions,
    load_ms: f64,
    global: &Global,
) -> anyhow::Result<()> {
    let options = with_model_limit(model, prompt.len(), options);
    let generation = stream(model, &prompt, &options, !global.json)?;
    finish(&generation, model.checkpoint().has_tokenizer(), load_ms, global)
}

/// What follows the text of an answer, or all of it as JSON.
fn finish(generation: &Generation, has_tokenizer: bool, load_ms: f64, global: &Global) -> anyhow::Result<()> {
    if global.json {
        return output::json(&summary(generation, load_ms));
    }
    if has_tokenizer {
        output::line("")?;
    } else {
        let ids: Vec<String> = generation.tokens.iter().map(u32::to_string).collect();
        output::line(ids.join(","))?;
    }
    if global.verbose > 0 {
        eprintln!(
            "{} prompt tokens at {:.1}/s, {} tokens at {:.1}/s, first after {:.0} ms, loaded in {load_ms:.0} ms ({})",
            generation.prompt_tokens,
            generation.prefill_tokens_per_second,
            generation.tokens.len(),
            generation.decode_tokens_per_second,
            generation.ttft_ms,
            generation.finish_reason.name(),
        );
        if generation.guesses.made > 0 {
            eprintln!("{} of {} guesses were right", generation.guesses.right, generation.guesses.made);
        }
    }
    Ok(())
}

/// The model's own `max_new_tokens`, as far as the context has room for it, where the user gave no limit.
fn with_model_limit(model: &Model, prompt: usize, options: &GenerateOptions) -> GenerateOptions {
    limited(model.engine().config().context_length(), model.generation_config(), prompt, options)
}

/// The same for a context and defaults of any engine.
fn limited(trained: usize, own: &GenerationConfig, prompt: usize, options: &GenerateOptions) -> GenerateOptions {
    let mut options = options.clone();
    if options.max_tokens.is_none() {
        let room = options.context.unwrap_or(trained).saturating_sub(prompt);
        options.max_tokens = own.max_new_tokens.filter(|&n| n < room);
    }
    options
}

/// Generates; `show` prints text as it comes.
fn stream(model: &Model, prompt: &[u32], options: &GenerateOptions, show: bool) -> anyhow::Result<Generation> {
    streamed(show, |on_piece| model.generate(prompt, options, on_piece))
}

/// What `generate` generates; `show` prints text as it comes.
fn streamed(
    show: bool,
    generate: impl FnOnce(&mut dyn FnMut(&Piece) -> ControlFlow<()>) -> Result<Generation, EngineError>,
) -> anyhow::Result<Generation> {
    let mut failure = None;
    let generation = generate(&mut |piece| {
        if show && let Err(error) = output::stream(&piece.text) {
            failure = Some(error);
            return ControlFlow::Break(());
        }
        if interrupt::is_requested() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    match failure {
        Some(error) => Err(error),
        None => Ok(generation),
    }
}

/// The keys of CONTRACT.md.
fn summary(generation: &Generation, load_ms: f64) -> serde_json::Value {
    json!({
        "text": generation.text,
        "tokens": generation.tokens,
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.tokens.len(),
        "finish_reason": generation.finish_reason.name(),
        "load_ms": load_ms,
        "ttft_ms": generation.ttft_ms,
        "prefill_tokens_per_second": generation.prefill_tokens_per_second,
        "decode_tokens_per_second": generation.decode_tokens_per_second,
        "guesses": { "made": generation.guesses.made, "right": generation.guesses.right },
        "peak_rss_bytes": machine::peak_rss_bytes(),
    })
}
