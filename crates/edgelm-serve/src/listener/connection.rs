//! One connection: TLS if there is any, then HTTP in the version that the client speaks.

use super::{DoorLimits, DoorMetrics, Tls, patience::Patient, rest::Rest, unread};
use axum::{Router, body::Body, extract::ConnectInfo, http::Request, response::Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::{
    convert::Infallible,
    error::Error,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

/// Pings over HTTP/2 find peers that are gone without a word.
const PING: Duration = Duration::from_secs(30);
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 128;

/// The certificate that a client has proved to own, in the extensions of its requests.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    /// SHA-256 of its bytes, as `cert-` and 16 hexadecimal digits.
    pub(crate) name: Arc<str>,
    /// The beginning of the same.
    pub(crate) id: u64,
}

impl Certificate {
    fn of(bytes: &CertificateDer<'_>) -> Self {
        let id = Sha256::digest(bytes).iter().take(8).fold(0, |id, &byte| id << 8 | u64::from(byte));
        Self { name: format!("cert-{id:016x}").into(), id }
    }
}

/// What all connections of a port share.
pub(super) struct Connections {
    shared: Arc<Shared>,
    graceful: GracefulShutdown,
}

struct Shared {
    router: Router,
    tls: Option<Arc<Tls>>,
    limits: DoorLimits,
    metrics: DoorMetrics,
}

impl Connections {
    pub(super) fn new(router: Router, tls: Option<Arc<Tls>>, limits: DoorLimits, metrics: DoorMetrics) -> Self {
        let shared = Arc::new(Shared { router, tls, limits, metrics });
        Self { shared, graceful: GracefulShutdown::new() }
    }

    /// Serves a connection on a task of its own. `place` is given back when it ends.
    pub(super) fn begin(&self, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        let (shared, watcher) = (Arc::clone(&self.shared), self.graceful.watcher());
        tokio::spawn(async move {
            shared.metrics.connections.inc();
            shared.serve(stream, peer, watcher).await;
            shared.metrics.connections.dec();
            drop(place);
        });
    }

    /// Lets every connection finish what it is at.
    pub(super) async fn finish(self) {
        self.graceful.shutdown().await;
    }
}

impl Shared {
    async fn serve(&self, stream: TcpStream, peer: SocketAddr, watcher: Watcher) {
        // Tokens are small and must not wait for each other. An error only costs time.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            return self.http(stream, peer, None, watcher).await;
        };
        let handshake = TlsAcceptor::from(tls.current()).accept(stream);
        match timeout(self.limits.headers, handshake).await {
            Ok(Ok(stream)) => {
                let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let certificate = certificate.map(Certificate::of);
                self.http(stream, peer, certificate, watcher).await;
            }
            Ok(Err(error)) => {
                self.metrics.dropped("handshake");
                tracing::info!(%peer, error = &error as &dyn Error, "no TLS connection");
            }
            Err(_) => self.too_slow(peer),
        }
    }

    fn too_slow(&self, peer: SocketAddr) {
        self.metrics.dropped("slow");
        tracing::info!(%peer, "a client sent no request in time");
    }

    async fn http(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: SocketAddr,
        certificate: Option<Certificate>,
        watcher: Watcher,
    ) {
        let limits = self.limits;
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1().timer(TokioTimer::new()).header_read_timeout(limits.headers);
        http.http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(limits.unread)
            .max_concurrent_streams(STREAMS);
        let has_asked = AtomicBool::new(false);
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(|request: Request<Incoming>| {
            has_asked.store(true, Ordering::Relaxed);
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            if let Some(certificate) = &certificate {
                request.extensions_mut().insert(certificate.clone());
            }
            let (request, rest) = Rest::of(request);
            let answer = hyper::service::Service::call(&router, request);
            let metrics = self.metrics.clone();
            async move {
                let mut response: Response = match answer.await {
                    Ok(response) => response,
                    Err(never) => match never {},
                };
                if let Some(rest) = rest {
                    rest.settle(&mut response).await;
                }
                Ok::<_, Infallible>(unread::watch(response, limits.unread, &metrics))
            }
        });
        let stream = TokioIo::new(Patient::new(stream, limits.unread));
        let connection = watcher.watch(http.serve_connection(stream, service));
        // The builder reads first bytes to tell the version, without a limit of its own.
        let overdue = async {
            sleep(limits.headers).await;
            if has_asked.load(Ordering::Relaxed) {
                std::future::pending().await
            }
        };
        tokio::select! {
            ended = connection => {
                if let Err(error) = ended {
                    self.ended_badly(peer, &*error);
                }
            }
            () = overdue => self.too_slow(peer),
        }
    }

    fn ended_badly(&self, peer: SocketAddr, error: &(dyn Error + 'static)) {
        let is_timeout = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_timeout);
        let mut causes = std::iter::successors(Some(error), |&error| error.source());
        if causes.any(|cause| cause.to_string() == super::patience::UNREAD) {
            self.metrics.dropped("unread");
            tracing::info!(%peer, "a client left its answer unread");
        } else if is_timeout {
            self.too_slow(peer);
        } else {
            // Most of these are clients that went away.
            tracing::debug!(%peer, error, "a connection ended early");
        }
    }
}
