//! What the door counts.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Labels of the counter of reloads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    what: &'static str,
    result: &'static str,
}

/// Labels of the counter of connections that were let go.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    reason: &'static str,
}

/// Shared by everything at the door.
#[derive(Debug, Clone, Default)]
pub(crate) struct DoorMetrics {
    pub(super) connections: Gauge,
    dropped: Family<DropLabels, Counter>,
    reloads: Family<ReloadLabels, Counter>,
}

impl DoorMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("connections", "Open connections", self.connections.clone());
        registry.register("dropped_connections", "Connections and streams that the server ended", self.dropped.clone());
        registry.register("reloads", "Files of keys and certificates read again", self.reloads.clone());
    }

    /// A connection was ended: no TLS (`handshake`), no request in time (`slow`), an answer left lying (`unread`).
    pub(super) fn dropped(&self, reason: &'static str) {
        self.dropped.get_or_create(&DropLabels { reason }).inc();
    }

    /// Files were read again.
    pub(crate) fn reloaded(&self, what: &'static str, is_ok: bool) {
        let result = if is_ok { "ok" } else { "failed" };
        self.reloads.get_or_create(&ReloadLabels { what, result }).inc();
    }
}
