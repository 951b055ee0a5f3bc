//! `edgelm serve`: HTTP server with the APIs of OpenAI, Ollama and Anthropic.

use crate::{commands::run::parse_kv, machine, options::Global, resolve};
use anyhow::Context;
use clap::Args;
use edgelm_engine::{Arithmetic, GenerateOptions, Model};
use edgelm_kernels::KvDtype;
use edgelm_serve::{ApiKeys, Backend, ModelBackend, ServerConfig, serve_loading, shutdown_signal};
use std::{path::PathBuf, sync::Arc};

#[derive(Args)]
pub struct ServeArgs {
    /// Folder, .gguf file, hf.co/org/name or `demo`
    model: String,
    /// Address to listen on
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on (0 = any free one)
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Accept only requests with one of these keys (one per line)
    #[arg(long, value_name = "F")]
    api_key_file: Option<PathBuf>,
    /// The model's id in requests [default: its folder's or file's name]
    #[arg(long, value_name = "ID")]
    name: Option<String>,
    /// Context limit in tokens [default: the model's]
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    /// Cache format [default: as precise as the weights: f32 for unquantized ones, f16 from 8 bits on, else q8]
    #[arg(long, value_name = "f32|f16|q8", value_parser = parse_kv)]
    kv: Option<KvDtype>,
    /// Requests that may wait while one is answered
    #[arg(long, value_name = "N", default_value_t = 64)]
    queue: usize,
}

pub fn run(args: ServeArgs, global: &Global) -> anyhow::Result<()> {
    let api_keys = match &args.api_key_file {
        Some(path) => ApiKeys::from_file(path)?,
        None => ApiKeys::default(),
    };
    let config = ServerConfig { host: args.host, port: args.port, api_keys, queue: args.queue, ..Default::default() };
    let base = GenerateOptions { context: args.ctx, kv: args.kv, ..GenerateOptions::default() };
    // Files are opened before the port is: a wrong MODEL fails at once, and only packing happens behind `/health`.
    let checkpoint = resolve::checkpoint(&args.model, global)?;
    let cpu = machine::cpu(global)?;
    let name = args.name;
    let load = move || {
        let model = Arc::new(Model::load_with(checkpoint, cpu, Arithmetic::Auto)?);
        let backend: Arc<dyn Backend> = Arc::new(ModelBackend::new(model, name, base)?);
        Ok(backend)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let global = global.clone();
    let on_ready = move |address: std::net::SocketAddr| {
        global.note(format!("listening on http://{address} (API under /v1, Ctrl-C stops)"));
    };
    runtime.block_on(serve_loading(config, load, shutdown_signal(), on_ready)).context("serve")
}
