//! `edgelm serve`: HTTP server with the APIs of OpenAI, Ollama and Anthropic.

mod budget;
pub mod config;
mod door;
mod notify;

use crate::{
    adapters,
    commands::{run::parse_kv, speculation::SpeculationArgs},
    failure::Usage,
    machine,
    options::Global,
    output, resolve,
};
use anyhow::Context;
use clap::Args;
use door::DoorArgs;
use edgelm_compress::parse_size;
use edgelm_engine::{Arithmetic, BatchOptions, LoadedAdapter, Model};
use edgelm_kernels::KvDtype;
use edgelm_serve::{Backend, ModelBackend, ServerConfig, serve_loading, shutdown_signal};
use std::{
    env,
    error::Error,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

#[derive(Args)]
pub struct ServeArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    #[arg(required_unless_present = "config")]
    model: Option<String>,
    /// Read settings from this TOML file: each flag under its own name, MODEL as `model`. Flags given here win
    #[arg(long, value_name = "F")]
    config: Option<PathBuf>,
    /// Print the settings in force as such a file, and end
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    door: DoorArgs,
    /// The model's id in requests [default: its folder's or file's name]
    #[arg(long, value_name = "ID")]
    name: Option<String>,
    /// Adapter that requests choose with this id as their model: a PEFT folder or a .gguf file (repeatable)
    #[arg(long, value_name = "ID=DIR", value_parser = parse_adapter)]
    lora: Vec<(String, PathBuf)>,
    /// Context limit in tokens [default: the model's]
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    /// Cache format [default: as precise as the weights: f32 for unquantized ones, f16 from 8 bits on, else q8]
    #[arg(long, value_name = "f32|f16|q8", value_parser = parse_kv)]
    kv: Option<KvDtype>,
    /// Memory for the caches of all requests and of prompts kept for reuse (`500MB`, `1.5GiB`, bytes) [default: three quarters
    /// of what is free, twice what --parallel full contexts need at most]
    #[arg(long, value_name = "S", value_parser = parse_size)]
    kv_budget: Option<u64>,
    /// Generations that run at once, sharing every pass over the weights
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
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
    /// Seconds after which a pass over the weights is taken to hang
    #[arg(long, value_name = "S", default_value = "60", value_parser = parse_seconds)]
    pass_limit: Duration,
    #[command(flatten)]
    speculation: SpeculationArgs,
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

impl ServeArgs {
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
    let Some(model) = args.model else {
        return Err(Usage("`model` is neither in the configuration nor on the command line".to_owned()).into());
    };
    let parallel = usize::from(args.parallel);
    let config = ServerConfig {
        parallel,
        queue: args.queue,
        request_time: args.request_timeout,
        request_tokens: args.max_tokens,
        pass_limit: args.pass_limit,
        ..Default::default()
    };
    let config = args.door.apply(config)?;
    let grpc_port = config.grpc_port;
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    // Files are opened before the port is: a wrong MODEL fails at once, and only packing happens behind `/health`.
    let checkpoint = resolve::checkpoint(&model, global)?;
    let mut opened = Vec::new();
    for (id, path) in args.lora {
        opened.push((id, adapters::open(&[path], &checkpoint)?));
    }
    let cpu = machine::cpu(global)?;
    let speculation = args.speculation.load(Arithmetic::Auto, &cpu, global)?;
    let (name, context, kv) = (args.name, args.ctx, args.kv);
    let told = global.clone();
    let asked = args.kv_budget.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let load = move || -> Result<Arc<dyn Backend>, Box<dyn Error + Send + Sync>> {
        let model = Arc::new(Model::load_with(checkpoint, cpu, Arithmetic::Auto)?);
        let mut adapters = Vec::new();
        for (id, adapter) in opened {
            adapters.push((id, Arc::new(LoadedAdapter::load(model.engine(), &adapter)?)));
        }
        let kv_budget = asked.unwrap_or_else(|| budget::default(model.engine(), kv, context, parallel));
        let options = BatchOptions { context, kv, kv_budget: Some(kv_budget), speculation };
        let backend = ModelBackend::new(model, name, adapters, options)?;
        let tokens = backend.kv_limit().map_or(0, |limit| limit.tokens);
        told.note(format!("{} for caches: {tokens} tokens", output::bytes(kv_budget as u64)));
        Ok(Arc::new(backend))
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
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
    runtime.block_on(serve_loading(config, load, shutdown, on_ready)).context("serve")
}
