//! Who asks, and since when.

use crate::{
    access::{Identity, Meter},
    error::ApiError,
};
use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::{Extensions, request::Parts},
};
use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

/// Between whom the engine is shared fairly: the owner of a key, or, on a server without keys, a peer's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    /// The beginning of its hash.
    Key(u64),
    /// The beginning of the hash of its certificate.
    Certificate(u64),
    Address(IpAddr),
    /// A connection without an address.
    Unknown,
}

/// A request's sender and its time of arrival.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) client: Client,
    pub(crate) received: Instant,
    /// What it is charged for tokens, where they are limited.
    pub(crate) meter: Option<Meter>,
}

impl Caller {
    /// As the door found out.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        let known = extensions.get::<Identity>().map(|identity| identity.client);
        let address = || extensions.get::<ConnectInfo<SocketAddr>>();
        let client = known.or_else(|| address().map(|info| Client::Address(info.0.ip()))).unwrap_or(Client::Unknown);
        Self { client, received: Instant::now(), meter: extensions.get::<Meter>().cloned() }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(Self::of(&parts.extensions))
    }
}
