//! The server's life: bind, load, answer, drain, end.

use crate::{
    ApiKeys, Origin, RateLimits, ServeError,
    api::{self, App},
    audit::{Audit, AuditConfig},
    backend::Backend,
    breaker::BreakerConfig,
    health::{self, HealthBaseline},
    listener::{DoorLimits, Listener, Tls, TlsFiles},
    metrics::Metrics,
    models::{KeepAlive, ModelSpec, Models},
    overflow::Overflow,
    reload::{self, Watched},
    telemetry::{OtlpConfig, Telemetry, Traces},
};
use futures::{FutureExt, future::OptionFuture};
use std::{future::Future, net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::{sync::watch, time::timeout};

/// How a server is set up.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Name or address to listen on. Default: this machine only.
    pub host: String,
    /// 0 = any free one.
    pub port: u16,
    /// A port for gRPC alone; `port` has it too.
    pub grpc_port: Option<u16>,
    /// Certificates. `None` = no TLS.
    pub tls: Option<TlsFiles>,
    /// Listen also where other machines can connect and nothing asks who they are.
    pub is_open: bool,
    /// How patient the server is with connections.
    pub door: DoorLimits,
    /// None = open to everyone who reaches the port.
    pub api_keys: ApiKeys,
    /// What each client may ask for.
    pub rates: RateLimits,
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
    /// Share of the time, above 0 and up to 1, in which models are computed.
    pub cpu_share: f64,
    /// What a model keeps is saved, where it has a store, when nobody has touched it for so long.
    pub save_delay: Duration,
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
    /// The audit log, if one is kept.
    pub audit: Option<AuditConfig>,
    /// Time between probes of what each loaded model says; `None` = no probes, also not at the load.
    pub health_interval: Option<Duration>,
    /// What models have to say at their first probe; `None` = the first load is taken to be good.
    pub health_baseline: Option<Arc<HealthBaseline>>,
    /// The collector that traces, and whatever else is asked for, are sent to.
    pub otlp: Option<OtlpConfig>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8080,
            grpc_port: None,
            tls: None,
            is_open: false,
            door: DoorLimits::default(),
            api_keys: ApiKeys::default(),
            rates: RateLimits::default(),
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
            cpu_share: 1.0,
            save_delay: Duration::from_secs(30),
            breaker: Some(BreakerConfig::default()),
            fallback_text: None,
            body_limit_bytes: 8 << 20,
            body_timeout: Duration::from_secs(60),
            drain: Duration::from_secs(20),
            audit: None,
            health_interval: None,
            health_baseline: None,
            otlp: None,
        }
    }
}

impl ServerConfig {
    /// Whether everyone who gets in is known by a key or a certificate.
    fn is_guarded(&self) -> bool {
        self.api_keys.are_wanted() || self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }

    /// The files that are read again when they change.
    fn watched(&self, tls: Option<&Arc<Tls>>) -> Vec<Watched> {
        let mut all = Vec::new();
        if let Some(tls) = tls {
            let shared = Arc::clone(tls);
            all.push(Watched::new("certificates", tls.files().paths(), move || shared.reload()));
        }
        if let Some(path) = self.api_keys.path() {
            let keys = self.api_keys.clone();
            all.push(Watched::new("keys", vec![path.to_owned()], move || keys.reload().map(drop)));
        }
        all
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
    let ids: Vec<&str> = models.iter().map(|model| model.id.as_str()).collect();
    let metrics = Arc::new(Metrics::new(&ids));
    // Closed when this ends: behind all requests.
    let audit = config.audit.clone().map(|config| Audit::start(config, metrics.audit.clone())).transpose()?;
    let records = audit.as_ref().map(Audit::state);
    let traces = config.otlp.as_ref().map(|otlp| Traces::start(otlp, Arc::clone(&metrics))).transpose()?;
    let telemetry = Arc::new(Telemetry::new(records, traces));
    let ended = live(config, models, shutdown, on_ready, metrics, Arc::clone(&telemetry)).await;
    // An error means that the runtime ends too.
    let _ = tokio::task::spawn_blocking(move || telemetry.stop()).await;
    ended
}

/// From binding to the end.
async fn live(
    config: ServerConfig,
    models: Vec<ModelSpec>,
    shutdown: impl Future<Output = ()>,
    on_ready: impl FnOnce(SocketAddr),
    metrics: Arc<Metrics>,
    telemetry: Arc<Telemetry>,
) -> Result<(), ServeError> {
    let tls = config.tls.clone().map(|files| Tls::load(files).map(Arc::new)).transpose()?;
    let listener = Listener::bind(&config.host, config.port, config.is_guarded() || config.is_open).await?;
    let address = listener.address();
    let grpc_listener = match config.grpc_port {
        Some(port) => Some(Listener::bind(&config.host, port, config.is_guarded() || config.is_open).await?),
        None => None,
    };
    let models = Arc::new(Models::new(models, &config, Arc::clone(&metrics), Arc::clone(&telemetry)));
    let app = Arc::new(App::new(&config, Arc::clone(&models), Arc::clone(&metrics), Arc::clone(&telemetry)));
    let (stop, mut stopped) = watch::channel(false);
    let stopped = async move {
        // An error means that the sender is gone, which is just as good a reason to stop.
        let _ = stopped.wait_for(|&stop| stop).await;
    }
    .shared();
    let reloading = reload::watch(config.watched(tls.as_ref()), metrics.door.clone());
    let (router, grpc) = api::routers(&app, &config);
    let grpc_server = grpc_listener
        .map(|listener| listener.run(grpc, tls.clone(), config.door, metrics.door.clone(), stopped.clone()));
    let server = listener.run(router, tls, config.door, metrics.door.clone(), stopped);
    // None of them ends before it is told to.
    let mut server = pin!(async {
        let servers = async { tokio::join!(server, OptionFuture::from(grpc_server)) };
        tokio::select! { _ = servers => {}, () = reloading => {} }
    });
    let mut shutdown = pin!(shutdown);

    tokio::select! {
        () = &mut server => return Ok(()),
        () = &mut shutdown => return Ok(()),
        started = models.start(config.preload) => started.map_err(ServeError::Load)?,
    }
    on_ready(address);
    let probing = async {
        match config.health_interval {
            Some(interval) => health::watch(Arc::clone(&models), interval, metrics.health.clone(), telemetry).await,
            None => std::future::pending().await,
        }
    };

    tokio::select! {
        () = &mut server => return Ok(()),
        () = &mut shutdown => {}
        // It goes on for as long as the server does.
        () = probing => {}
    }
    tracing::info!(%address, "shutting down");
    stop.send_replace(true);
    if timeout(config.drain, &mut server).await.is_err() {
        let drain_s = config.drain.as_secs();
        tracing::warn!(drain_s, "requests are still running after the drain time; stopping them");
        models.stop();
        // Enough for the last error to reach its client; a connection that takes longer is cut.
        let _ = timeout(LAST_WORDS, &mut server).await;
    }
    models.stop();
    models.settle().await;
    Ok(())
}

const LAST_WORDS: Duration = Duration::from_secs(1);
