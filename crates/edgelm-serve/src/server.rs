//! The server's life: bind, load, answer, drain, end.

use crate::{
    ApiKeys, Origin, ServeError,
    api::{self, App},
    backend::Backend,
    breaker::BreakerConfig,
    metrics::Metrics,
    models::{KeepAlive, ModelSpec, Models},
    overflow::Overflow,
};
use std::{
    future::{Future, IntoFuture},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch, time::timeout};

/// How a server is set up.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Name or address to listen on. Default: this machine only.
    pub host: String,
    /// 0 = any free one.
    pub port: u16,
    /// None = open to everyone who reaches the port.
    pub api_keys: ApiKeys,
    /// Origins whose web pages may use the API.
    pub cors_origins: Vec<Origin>,
    /// Generations that run at once, sharing every pass over the weights.
    pub parallel: usize,
    /// Requests of each model that may wait behind the running ones.
    pub queue: usize,
    /// Memory for all models together. `None` = what the machine and the limits of the process leave.
    pub memory_bytes: Option<u64>,
    /// How long a model stays loaded that nobody uses, unless a request says otherwise.
    pub keep_alive: KeepAlive,
    /// Load all models at the start, not only the first.
    pub preload: bool,
    /// Id of the model that answers for one that cannot be had.
    pub fallback: Option<String>,
    /// Time that a request may take from its arrival; it may ask for less. `None` = any.
    pub request_time: Option<Duration>,
    /// Tokens that a request may have generated per choice. `None` = as many as fit.
    pub request_tokens: Option<usize>,
    /// What is done with prompts that are too long for the context, where a request does not say.
    pub overflow: Overflow,
    /// A pass of the engine that takes longer is taken to hang: its requests fail, and `/health` says so.
    pub pass_limit: Duration,
    /// Times in ten minutes that an engine that hangs or panics is started again, on new threads.
    pub restarts: usize,
    /// When a model takes no requests for a while. `None` = never.
    pub breaker: Option<BreakerConfig>,
    /// Text that is answered where a model cannot be had and no other model answers.
    pub fallback_text: Option<String>,
    /// Largest request body.
    pub body_limit_bytes: usize,
    /// Time a request body may take to arrive.
    pub body_timeout: Duration,
    /// Time that running and waiting requests get after a shutdown was asked for.
    pub drain: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8080,
            api_keys: ApiKeys::default(),
            cors_origins: Vec::new(),
            parallel: 8,
            queue: 32,
            memory_bytes: None,
            keep_alive: KeepAlive::Forever,
            preload: false,
            fallback: None,
            request_time: None,
            request_tokens: None,
            overflow: Overflow::Refuse,
            pass_limit: Duration::from_secs(60),
            restarts: 3,
            breaker: Some(BreakerConfig::default()),
            fallback_text: None,
            body_limit_bytes: 8 << 20,
            body_timeout: Duration::from_secs(60),
            drain: Duration::from_secs(20),
        }
    }
}

impl ServerConfig {
    fn address(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

/// Serves a loaded model until `shutdown` completes and what was running then is done or `config.drain` is over.
/// `on_ready` learns the bound address.
///
/// # Errors
/// The address cannot be bound, or the engine thread cannot be started.
pub async fn serve(
    config: ServerConfig,
    backend: Arc<dyn Backend>,
    shutdown: impl Future<Output = ()>,
    on_ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let spec = ModelSpec::ready(backend, config.parallel);
    serve_models(config, vec![spec], shutdown, on_ready).await
}

/// As [`serve`], for models that are loaded here: binds first and loads the first model (all with `config.preload`) on a thread
/// of its own; until that is done, `/health` answers 503 and so does every request. `on_ready` is called then. The others are
/// loaded when they are asked for.
///
/// # Errors
/// Those of [`serve`], and what loading at the start fails with.
pub async fn serve_models(
    config: ServerConfig,
    models: Vec<ModelSpec>,
    shutdown: impl Future<Output = ()>,
    on_ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let bind_error = |source| ServeError::Bind { address: config.address(), source };
    let listener = TcpListener::bind((config.host.as_str(), config.port)).await.map_err(bind_error)?;
    let address = listener.local_addr().map_err(bind_error)?;
    let metrics = Arc::new(Metrics::new());
    let models = Arc::new(Models::new(models, &config, Arc::clone(&metrics)));
    let app = Arc::new(App::new(&config, Arc::clone(&models), metrics));
    let (stop, mut stopped) = watch::channel(false);
    let stopped = async move {
        // An error means that the sender is gone, which is just as good a reason to stop.
        let _ = stopped.wait_for(|&stop| stop).await;
    };
    // Peers' addresses tell clients without keys from each other.
    let router = api::router(&app, &config).into_make_service_with_connect_info::<SocketAddr>();
    let server = axum::serve(listener, router).with_graceful_shutdown(stopped);
    let mut server = pin!(server.into_future());
    let mut shutdown = pin!(shutdown);
    let listen_error = |source| ServeError::Listen { address, source };

    tokio::select! {
        ended = &mut server => return ended.map_err(listen_error),
        () = &mut shutdown => return Ok(()),
        started = models.start(config.preload) => started.map_err(ServeError::Load)?,
    }
    on_ready(address);

    tokio::select! {
        ended = &mut server => return ended.map_err(listen_error),
        () = &mut shutdown => {}
    }
    tracing::info!(%address, "shutting down");
    stop.send_replace(true);
    if let Ok(ended) = timeout(config.drain, &mut server).await {
        return ended.map_err(listen_error);
    }
    tracing::warn!(drain_s = config.drain.as_secs(), "requests are still running after the drain time; stopping them");
    models.stop();
    // Enough for the last error to reach its client; a connection that takes longer is cut.
    timeout(LAST_WORDS, &mut server).await.unwrap_or(Ok(())).map_err(listen_error)
}

const LAST_WORDS: Duration = Duration::from_secs(1);
