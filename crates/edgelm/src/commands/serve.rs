//! `edgelm serve`: HTTP server with the APIs of OpenAI, Ollama and Anthropic.

mod artifact;
pub mod config;
mod door;
mod model_arg;
mod model_table;
mod notify;
pub mod observe;

use crate::{
    commands::{run::parse_kv, speculation::SpeculationArgs},
    failure::Usage,
    options::Global,
    output,
};
use anyhow::{Context, anyhow, bail};
use artifact::{OnDisk, Settings, StoreSettings};
use clap::Args;
use door::DoorArgs;
use edgelm_compress::parse_size;
use edgelm_kernels::KvDtype;
use edgelm_serve::{
    Artifact, BLOCKING_THREADS, BreakerConfig, HealthBaseline, KeepAlive, Limits, ModelSpec, Overflow, Room,
    ServerConfig, THREADS_BYTES, serve_models, shutdown_signal,
};
use model_arg::ModelArg;
use model_table::Served;
use serde_json::json;
use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

#[derive(Args)]
pub struct ServeArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`; `ID=PATH` for another id, `ID=PATH,PATH…` for others to load where the first
    /// cannot be. The first model is loaded at once, the others when they are asked for
    #[arg(id = "model", value_name = "MODEL", value_parser = ModelArg::parse)]
    models: Vec<ModelArg>,
    /// `[[models]]` of a --config file, each as an inline table: path, name, lora, draft, lookup
    #[arg(long = "models", id = "models", hide = true, value_name = "TABLE", value_parser = Served::parse)]
    tables: Vec<Served>,
    /// Load all models at the start
    #[arg(long)]
    preload: bool,
    /// Memory for all models together (`8GB`, `1.5GiB`, bytes): those not used for longest are unloaded for others [default: what the
    /// machine, control groups and resource limits leave]
    #[arg(long, value_name = "S", value_parser = parse_size)]
    memory: Option<u64>,
    /// How long a model stays loaded that nobody uses (`5m`, seconds, -1 = until memory is needed)
    #[arg(long, value_name = "TIME", default_value = "-1", allow_hyphen_values = true, value_parser = parse_keep_alive)]
    keep_alive: KeepAlive,
    /// Model (one of those served) that answers where another cannot be loaded, hangs, or takes no requests
    #[arg(long, value_name = "ID")]
    fallback: Option<String>,
    /// Text that is answered where a model cannot be had and no other model answers
    #[arg(long, value_name = "TEXT")]
    fallback_text: Option<String>,
    /// Share of a model's requests in the last minute (at least ten) that may fail, or be slow, before it takes none for some time;
    /// 0 = any
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = parse_share)]
    breaker_rate: f64,
    /// Seconds to the first token above which a request is slow [default: none is]
    #[arg(long, value_name = "S", value_parser = parse_seconds)]
    breaker_latency: Option<Duration>,
    /// Seconds for which a model takes no requests before it is tried again
    #[arg(long, value_name = "S", default_value = "15", value_parser = parse_seconds)]
    breaker_wait: Duration,
    /// Times in ten minutes that an engine that hangs or panics is started again
    #[arg(long, value_name = "N", default_value_t = 3)]
    restarts: usize,
    /// Print what each model would take and what is left, and end
    #[arg(long)]
    plan: bool,
    /// Read settings from this TOML file: each flag under its own name, MODEL as `model`. Flags given here win
    #[arg(long, value_name = "F")]
    config: Option<PathBuf>,
    /// Print the settings in force as such a file, and end
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    door: DoorArgs,
    /// The first model's id in requests [default: its folder's or file's name]
    #[arg(long, value_name = "ID")]
    name: Option<String>,
    /// Adapter of the first model that requests choose with this id as their model: a PEFT folder or a .gguf file (repeatable)
    #[arg(long, value_name = "ID=DIR", value_parser = parse_adapter)]
    lora: Vec<(String, PathBuf)>,
    /// Context limit in tokens [default: the model's]
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    /// Cache format [default: as precise as the weights: f32 for unquantized ones, f16 from 8 bits on, else q8]
    #[arg(long, value_name = "f32|f16|q8|q4", value_parser = parse_kv)]
    kv: Option<KvDtype>,
    /// Memory for the caches of all requests of a model and of prompts kept for reuse (`500MB`, `1.5GiB`, bytes) [default: three
    /// quarters of what is free, shared between the models, twice what --parallel full contexts need at most]
    #[arg(long, value_name = "S", value_parser = parse_size)]
    kv_budget: Option<u64>,
    /// Folder for kept prompts and conversations that --kv-budget has no room for. They come back from there when they go on, also
    /// after a restart [default: they are forgotten]
    #[arg(long, value_name = "DIR")]
    kv_store: Option<PathBuf>,
    /// Size of each model's file in --kv-store; what was not used for longest makes room
    #[arg(long, value_name = "S", default_value = "1GB", value_parser = parse_size, requires = "kv_store")]
    kv_store_limit: u64,
    /// Seconds that nobody has touched a kept page when it is written to --kv-store, if nothing else is to be done; 0 = at once.
    /// What was used again is also written when it has to make room, and all of it when the server is told to end
    #[arg(long, value_name = "S", default_value = "30", value_parser = parse_delay, requires = "kv_store")]
    kv_store_delay: Duration,
    /// Generations of a model that run at once, sharing every pass over the weights
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    parallel: u16,
    /// Requests that may wait while others are answered
    #[arg(long, value_name = "N", default_value_t = 64)]
    queue: usize,
    /// Seconds a request may take from its arrival [default: any number]
    #[arg(long, value_name = "S", value_parser = parse_seconds)]
    request_timeout: Option<Duration>,
    /// Tokens a request may have generated [default: as many as fit]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// What is done with prompts too long for the context, where a request does not say: refuse, slide (leave out the oldest turns or
    /// tokens) or summarize (put the model's own summary in their place)
    #[arg(long, value_name = "WHAT", default_value = "refuse", value_parser = parse_overflow)]
    overflow: Overflow,
    /// Seconds after which a pass over the weights is taken to hang
    #[arg(long, value_name = "S", default_value = "60", value_parser = parse_seconds)]
    pass_limit: Duration,
    /// Share of the time in which models are computed, on all --threads; the rest is left to other programs
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = parse_part)]
    cpu_share: f64,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    pub observe: observe::ObserveArgs,
}

fn parse_adapter(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((id, path)) if !id.is_empty() && !path.is_empty() => Ok((id.to_owned(), path.into())),
        _ => Err("must be an id and a path: ID=DIR".to_owned()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err(format!("{seconds} is not a time that a request can take")),
    }
}

/// Seconds, or 0.
fn parse_delay(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("{seconds} is not a time to wait for"))
}

fn parse_overflow(text: &str) -> Result<Overflow, String> {
    Overflow::parse(text).ok_or_else(|| format!("`{text}` is not refuse, slide or summarize"))
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("`{text}` is not a number from 0 to 1")),
    }
}

fn parse_part(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.01..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("`{text}` is not a number from 0.01 to 1")),
    }
}

fn parse_keep_alive(text: &str) -> Result<KeepAlive, String> {
    KeepAlive::parse(text).ok_or_else(|| format!("`{text}` is neither seconds nor a duration such as 5m"))
}

impl ServeArgs {
    /// All models, in order: those of the command line, then those of tables.
    fn served(&self) -> anyhow::Result<Vec<Served>> {
        let has_flags = self.name.is_some() || !self.lora.is_empty() || self.speculation.is_set();
        if self.models.is_empty() && has_flags && !self.tables.is_empty() {
            let what =
                "--name, --lora, --draft and --lookup are of MODEL: a model of `[[models]]` has them in its table";
            return Err(Usage(what.to_owned()).into());
        }
        let mut served = Vec::new();
        for (index, model) in self.models.iter().enumerate() {
            let is_first = index == 0;
            let mut model = model.clone();
            if let Some(name) = self.name.clone().filter(|_| is_first) {
                model.id = Some(name);
            }
            let lora = if is_first { self.lora.clone() } else { Vec::new() };
            // A draft model has the tokens of one model.
            let speculation = is_first.then(|| self.speculation.clone());
            served.push(Served { model, lora, speculation });
        }
        served.extend(self.tables.iter().cloned());
        Ok(served)
    }

    /// The file that settings come from.
    pub fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }
}

pub fn run(args: ServeArgs, global: &Global) -> anyhow::Result<()> {
    if args.print_config {
        let arguments: Vec<OsString> = env::args_os().collect();
        return output::stream(&config::effective(&arguments, args.config())?);
    }
    let served = args.served()?;
    if served.is_empty() {
        return Err(Usage("no MODEL: neither on the command line nor in a --config file".to_owned()).into());
    }
    edgelm_kernels::keep_heap_small();
    let parallel = usize::from(args.parallel);
    let config = ServerConfig {
        parallel,
        queue: args.queue,
        request_time: args.request_timeout,
        request_tokens: args.max_tokens,
        pass_limit: args.pass_limit,
        memory_bytes: args.memory,
        keep_alive: args.keep_alive,
        preload: args.preload,
        fallback: args.fallback.clone(),
        fallback_text: args.fallback_text,
        restarts: args.restarts,
        save_delay: args.kv_store_delay,
        cpu_share: args.cpu_share,
        overflow: args.overflow,
        breaker: (args.breaker_rate > 0.0).then(|| BreakerConfig {
            rate: args.breaker_rate,
            latency: args.breaker_latency,
            open_for: args.breaker_wait,
            ..BreakerConfig::default()
        }),
        ..Default::default()
    };
    let config = args.observe.apply(args.door.apply(config)?, global)?;
    let grpc_port = config.grpc_port;
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    // Files are opened before the port is: a wrong MODEL fails at once, and only packing happens behind `/health`.
    let settings = Settings {
        global: global.clone(),
        context: args.ctx,
        kv: args.kv,
        kv_budget: args.kv_budget,
        store: args.kv_store.map(|folder| StoreSettings { folder, limit_bytes: args.kv_store_limit }),
        parallel,
        models: served.len(),
        speculation: None,
    };
    let mut specs = Vec::new();
    for Served { model, lora, speculation } in served {
        specs.push(spec(model, lora, &Settings { speculation, ..settings.clone() }, global)?);
    }
    check_ids(&specs, args.fallback.as_deref())?;
    if let Some(path) = &args.observe.write_health_baseline {
        let mut baseline = if path.exists() { HealthBaseline::read(path)? } else { HealthBaseline::default() };
        specs.iter().try_for_each(|spec| baseline.record(spec))?;
        baseline.write(path)?;
        global.note(format!("`{}` has what {} models say", path.display(), specs.len()));
        return Ok(());
    }
    if args.plan {
        return print_plans(&specs, args.memory, global);
    }
    // A thread that cannot be had is a panic in there.
    if let Some(full) = Limits::now().limits.iter().find(|limit| limit.counts_mappings && limit.left_bytes == 0) {
        bail!("{} leaves no room for the server's threads, which take {THREADS_BYTES} bytes", full.name);
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).max_blocking_threads(BLOCKING_THREADS).enable_all().build()?;
    let global = global.clone();
    let on_ready = move |address: std::net::SocketAddr| {
        notify::service_manager("READY=1");
        if let Some(port) = grpc_port {
            global.note(format!("listening on {scheme}://{}:{port} for gRPC alone", address.ip()));
        }
        global.note(format!("listening on {scheme}://{address} (API under /v1, gRPC on the same port, Ctrl-C stops)"));
    };
    let shutdown = async {
        shutdown_signal().await;
        notify::service_manager("STOPPING=1");
    };
    runtime.block_on(serve_models(config, specs, shutdown, on_ready)).context("serve")
}

/// A model, described by the first of its artifacts that can be read.
fn spec(
    model: ModelArg,
    lora: Vec<(String, PathBuf)>,
    settings: &Settings,
    global: &Global,
) -> anyhow::Result<ModelSpec> {
    let mut failures = Vec::new();
    let mut about = None;
    let mut id = model.id;
    for path in &model.paths {
        let name = id.clone().unwrap_or_default();
        match OnDisk::new(name, path.clone(), lora.clone(), settings.clone()).about() {
            Ok(found) => {
                about = Some(found);
                break;
            }
            Err(error) => failures.push(error),
        }
    }
    let Some(about) = about else {
        let mut failures = failures.into_iter();
        let first = failures.next().map_or_else(|| anyhow!("no path"), |error| anyhow!(error));
        return Err(first);
    };
    for failure in failures {
        global.note(format!("not usable now, the next path is: {failure:#}"));
    }
    let id = id.get_or_insert_with(|| about.name.clone()).clone();
    let artifacts = model
        .paths
        .into_iter()
        .map(|path| -> Arc<dyn Artifact> { Arc::new(OnDisk::new(id.clone(), path, lora.clone(), settings.clone())) });
    let artifacts = artifacts.collect();
    let adapters = lora.into_iter().map(|(id, _)| id).collect();
    Ok(ModelSpec { id, adapters, artifacts, about: about.about })
}

fn check_ids(specs: &[ModelSpec], fallback: Option<&str>) -> anyhow::Result<()> {
    let mut ids = Vec::new();
    for id in specs.iter().flat_map(|spec| [&spec.id].into_iter().chain(&spec.adapters)) {
        if ids.contains(&id) {
            bail!("`{id}` names two models; give one another id: ID=PATH");
        }
        ids.push(id);
    }
    match fallback.filter(|id| !specs.iter().any(|spec| spec.id == *id)) {
        Some(id) => bail!("--fallback `{id}` is not one of the models"),
        None => Ok(()),
    }
}

/// `--plan`: what would be loaded how, each model alone.
fn print_plans(specs: &[ModelSpec], memory: Option<u64>, global: &Global) -> anyhow::Result<()> {
    let room = Room { budget_bytes: memory, committed_bytes: 0 };
    let limits = Limits::now();
    let mut rows = Vec::new();
    let mut fits = true;
    for spec in specs {
        for artifact in &spec.artifacts {
            let mut row = json!({"model": spec.id, "artifact": artifact.name()});
            match artifact.plan(&room) {
                Ok(plan) => {
                    row["total_bytes"] = plan.total_bytes.into();
                    row["kv_bytes"] = plan.kv_bytes.into();
                    row["parallel"] = plan.parallel.into();
                    row["notes"] = plan.notes.into();
                }
                Err(error) => {
                    fits = false;
                    row["error"] = error.to_string().into();
                }
            }
            rows.push(row);
        }
    }
    let left: Vec<_> =
        limits.limits.iter().map(|limit| json!({"name": limit.name, "left_bytes": limit.left_bytes})).collect();
    if global.json {
        output::json(&json!({"fits": fits, "models": rows, "limits": left}))?;
    } else {
        for row in &rows {
            let name = row["artifact"].as_str().unwrap_or_default();
            let number = |key: &str| row[key].as_u64().unwrap_or(0);
            match row["error"].as_str() {
                Some(error) => output::line(format!("{name}: {error}"))?,
                None => output::line(format!(
                    "{name}: {} in all, {} of it for caches, {} generations at once",
                    output::bytes(number("total_bytes")),
                    output::bytes(number("kv_bytes")),
                    number("parallel")
                ))?,
            }
            for note in row["notes"].as_array().into_iter().flatten() {
                output::line(format!("  {}", note.as_str().unwrap_or_default()))?;
            }
        }
        for limit in &limits.limits {
            output::line(format!("{}: {} left", limit.name, output::bytes(limit.left_bytes)))?;
        }
    }
    match fits {
        true => Ok(()),
        false => bail!("not every model fits"),
    }
}
