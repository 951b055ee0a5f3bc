//! The door: one port for HTTP/1.1, HTTP/2 and gRPC, in the clear or over TLS.
//!
//! A connection costs little until its first request is there, and has a short time for that; how many there are is
//! bounded; and who does not take what was asked for is let go. Work inside is bounded elsewhere.

mod connection;
mod exposure;
mod metrics;
mod patience;
mod rest;
mod tls;
mod unread;

pub use tls::TlsFiles;

pub(crate) use connection::Certificate;
pub(crate) use metrics::DoorMetrics;
pub(crate) use tls::Tls;

use crate::ServeError;
use axum::Router;
use connection::Connections;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore};

/// How patient the door is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoorLimits {
    /// Open connections; others wait outside.
    pub connections: usize,
    /// For the TLS handshake, and again for the headers of a request or for the next one to begin.
    pub headers: Duration,
    /// How long a client may leave an answer lying before it is taken to be gone.
    pub unread: Duration,
}

impl Default for DoorLimits {
    fn default() -> Self {
        Self { connections: 1024, headers: Duration::from_secs(20), unread: Duration::from_secs(30) }
    }
}

/// A bound port.
pub(crate) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `host`. Unless it is `guarded` by keys or certificates, only this machine may reach it.
    pub(crate) async fn bind(host: &str, port: u16, guarded: bool) -> Result<Self, ServeError> {
        let name = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let bind_error = |source| ServeError::Bind { address: name.clone(), source };
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await.map_err(bind_error)?.collect();
        if !guarded {
            exposure::check(&name, &addresses)?;
        }
        let socket = TcpListener::bind(&addresses[..]).await.map_err(bind_error)?;
        let address = socket.local_addr().map_err(bind_error)?;
        Ok(Self { socket, address })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` completes, and then until the last connection is done with what it was at.
    pub(crate) async fn run(
        self,
        router: Router,
        tls: Option<Arc<Tls>>,
        limits: DoorLimits,
        metrics: DoorMetrics,
        stop: impl Future<Output = ()>,
    ) {
        let places = Arc::new(Semaphore::new(limits.connections.clamp(1, Semaphore::MAX_PERMITS)));
        let connections = Connections::new(router, tls, limits, metrics);
        tokio::select! {
            () = stop => {}
            () = self.accept(places, &connections) => {}
        }
        drop(self);
        connections.finish().await;
    }

    /// Never ends.
    async fn accept(&self, places: Arc<Semaphore>, connections: &Connections) {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match self.socket.accept().await {
                Ok((stream, peer)) => connections.begin(stream, peer, place),
                // That client's affair.
                Err(error) if is_of_the_peer(&error) => {}
                // Most likely no file handles are left: some connection has to end first.
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot accept connections");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
