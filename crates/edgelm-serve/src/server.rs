//! The server's life: bind, load, answer, drain, end.

use crate::{
    ApiKeys, Origin, RateLimits, ServeError,
    api::{self, App},
    backend::Backend,
    listener::{DoorLimits, Listener, Tls, TlsFiles},
    metrics::Metrics,
    reload::{self, Watched},
    service::{Limits, Service},
    worker::WorkerConfig,
};
use futures::{FutureExt, future::OptionFuture};
use std::{error::Error, future::Future, net::SocketAddr, pin::pin, sync::Arc, thread, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

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
    /// Requests that may wait behind the running ones.
    pub queue: usize,
    /// Time that a request may take from its arrival; it may ask for less. `None` = any.
    pub request_time: Option<Duration>,
    /// Tokens that a request may have generated per choice. `None` = as many as fit.
    pub request_tokens: Option<usize>,
    /// A pass of the engine that takes longer is taken to hang: its requests fail, and `/health` says so.
    pub pass_limit: Duration,
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
            grpc_port: None,
            tls: None,
            is_open: false,
            door: DoorLimits::default(),
            api_keys: ApiKeys::default(),
            rates: RateLimits::default(),
            cors_origins: Vec::new(),
            parallel: 8,
            queue: 32,
            request_time: None,
            request_tokens: None,
            pass_limit: Duration::from_secs(60),
            body_limit_bytes: 8 << 20,
            body_timeout: Duration::from_secs(60),
            drain: Duration::from_secs(20),
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
    serve_loading(config, move || Ok(backend), shutdown, on_ready).await
}

/// As [`serve`], but binds first and loads the model on a thread of its own: until that is done, `/health` answers 503
/// and so does every request for the model. `on_ready` is called when the model is there.
///
/// # Errors
/// Those of [`serve`], and what `load` fails with.
pub async fn serve_loading(
    config: ServerConfig,
    load: impl FnOnce() -> Result<Arc<dyn Backend>, Box<dyn Error + Send + Sync>> + Send + 'static,
    shutdown: impl Future<Output = ()>,
    on_ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let tls = config.tls.clone().map(|files| Tls::load(files).map(Arc::new)).transpose()?;
    let listener = Listener::bind(&config.host, config.port, config.is_guarded() || config.is_open).await?;
    let address = listener.address();
    let grpc_listener = match config.grpc_port {
        Some(port) => Some(Listener::bind(&config.host, port, config.is_guarded() || config.is_open).await?),
        None => None,
    };
    let metrics = Arc::new(Metrics::new());
    let app = Arc::new(App::new(&config, Arc::clone(&metrics)));
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

    // A plain thread: the runtime would wait for a blocking task, and a shutdown while loading must not.
    let (loaded, mut loading) = oneshot::channel();
    thread::Builder::new()
        .name("edgelm-load".to_owned())
        .spawn(move || {
            // An error means that the server ended before the model was there.
            let _ = loaded.send(load());
        })
        .map_err(ServeError::Thread)?;
    tokio::select! {
        () = &mut server => return Ok(()),
        () = &mut shutdown => return Ok(()),
        loaded = &mut loading => {
            let loaded = loaded.unwrap_or_else(|_| Err("loading panicked".into()));
            let backend = loaded.map_err(ServeError::Load)?;
            let limits = Limits { time: config.request_time, tokens: config.request_tokens };
            let worker = WorkerConfig { parallel: config.parallel.max(1), pass_limit: config.pass_limit };
            app.start(Service::new(backend, config.queue, limits, worker, metrics)?);
        }
    }
    on_ready(address);

    tokio::select! {
        () = &mut server => return Ok(()),
        () = &mut shutdown => {}
    }
    tracing::info!(%address, "shutting down");
    stop.send_replace(true);
    if timeout(config.drain, &mut server).await.is_ok() {
        return Ok(());
    }
    tracing::warn!(drain_s = config.drain.as_secs(), "requests are still running after the drain time; stopping them");
    app.stop();
    // Enough for the last error to reach its client; a connection that takes longer is cut.
    let _ = timeout(LAST_WORDS, &mut server).await;
    Ok(())
}

const LAST_WORDS: Duration = Duration::from_secs(1);
