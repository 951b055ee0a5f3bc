//! The check in front of routes.

use super::{
    ApiKeys, RateLimits, Scope,
    rate::{Limiter, Meter},
    revocation::Revocation,
};
use crate::{
    caller::Client,
    error::ApiError,
    listener::Certificate,
    telemetry::{Journey, TRACE},
};
use axum::{
    extract::{ConnectInfo, Request, State},
    http::{Extensions, HeaderMap, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{net::SocketAddr, sync::Arc};

/// Whose request it is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) client: Client,
    /// The name of the key or the fingerprint of the certificate, where there is one.
    pub(crate) name: Option<Arc<str>>,
    pub(crate) scope: Scope,
    /// Of the key, where there is one.
    revocation: Option<Revocation>,
}

/// What stands in front of every API of a server.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    keys: ApiKeys,
    limiter: Arc<Limiter>,
}

impl Guard {
    pub(crate) fn new(keys: ApiKeys, limits: RateLimits) -> Self {
        Self { keys, limiter: Arc::new(Limiter::new(limits)) }
    }

    /// Lets a request in, and leaves word in it of whose it is. `is_work` are those that the model has to work for: only
    /// they count against limits.
    pub(crate) fn admit(
        &self,
        wanted: Scope,
        is_work: bool,
        headers: &HeaderMap,
        extensions: &mut Extensions,
    ) -> Result<Admitted, ApiError> {
        let identity = identify(&self.keys, wanted, headers, extensions)?;
        if let Some(journey) = extensions.get::<Arc<Journey>>() {
            if let Some(name) = &identity.name {
                journey.of_client(name.to_string());
            }
            if wants_trace(headers)? {
                if identity.scope < Scope::Admin {
                    return Err(ApiError::Scope { wanted: Scope::Admin.name() });
                }
                journey.record_timeline();
            }
        }
        let meter = if is_work { self.limiter.admit(identity.client)? } else { None };
        tracing::debug!(client = identity.name.as_deref(), scope = identity.scope.name(), "let in");
        let revocation = identity.revocation.clone();
        extensions.insert(identity);
        if let Some(meter) = &meter {
            extensions.insert(meter.clone());
        }
        Ok(Admitted { meter, revocation })
    }
}

/// A request that was let in.
pub(crate) struct Admitted {
    meter: Option<Meter>,
    revocation: Option<Revocation>,
}

impl Admitted {
    /// Answers it, for as long as its key is good: an answer that has not begun by the time the key is revoked is an error, one
    /// that has is cut.
    pub(crate) async fn serve(self, request: Request, next: Next) -> Result<Response, ApiError> {
        let answer = next.run(request);
        let mut response = match self.revocation.clone() {
            None => answer.await,
            Some(key) => tokio::select! {
                response = answer => response,
                () = key.revoked() => return Err(ApiError::InvalidApiKey),
            },
        };
        if let Some(meter) = self.meter {
            meter.show(response.headers_mut());
        }
        Ok(match self.revocation {
            Some(key) => response.map(|body| key.guard(body)),
            None => response,
        })
    }
}

/// Lets requests through that come with a key of this scope, where keys are configured.
pub(crate) async fn require(State((guard, scope)): State<(Guard, Scope)>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let is_work = parts.method == Method::POST;
    let served = match guard.admit(scope, is_work, &parts.headers, &mut parts.extensions) {
        Ok(admitted) => admitted.serve(Request::from_parts(parts, body), next).await,
        Err(error) => Err(error),
    };
    served.unwrap_or_else(IntoResponse::into_response)
}

/// Who sends this, if that is enough.
fn identify(keys: &ApiKeys, wanted: Scope, headers: &HeaderMap, extensions: &Extensions) -> Result<Identity, ApiError> {
    let identity = if keys.are_wanted() {
        let (key, revocation) = bearer(headers).and_then(|key| keys.find(key)).ok_or(ApiError::InvalidApiKey)?;
        Identity { client: Client::Key(key.id()), name: Some(key.name), scope: key.scope, revocation: Some(revocation) }
    } else {
        let address = extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
        let certificate = extensions.get::<Certificate>();
        let client = match certificate {
            Some(certificate) => Client::Certificate(certificate.id),
            None => address.map_or(Client::Unknown, Client::Address),
        };
        // Without keys the machine's own users are trusted with everything, and whoever else gets in with the model.
        let is_own = address.is_some_and(|address| address.to_canonical().is_loopback());
        Identity {
            client,
            name: certificate.map(|certificate| Arc::clone(&certificate.name)),
            scope: if is_own { Scope::Admin } else { Scope::Use },
            revocation: None,
        }
    };
    if identity.scope < wanted {
        return Err(ApiError::Scope { wanted: wanted.name() });
    }
    Ok(identity)
}

/// Whether the client asks for a trace. It shows how busy others keep the server, so it is not for everyone.
fn wants_trace(headers: &HeaderMap) -> Result<bool, ApiError> {
    match headers.get(TRACE).map(|value| value.as_bytes()) {
        None | Some(b"0") => Ok(false),
        Some(b"1") => Ok(true),
        Some(_) => Err(ApiError::invalid(TRACE, "must be 1 (or 0)")),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    // How Anthropic's clients send it.
    if let Some(key) = headers.get("x-api-key") {
        return Some(key.as_bytes());
    }
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(pairs: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn bearer_scheme_ignores_case() {
        assert_eq!(bearer(&headers(&[(header::AUTHORIZATION, "bearer  k")])), Some(&b"k"[..]));
        assert_eq!(bearer(&headers(&[(header::HeaderName::from_static("x-api-key"), "k")])), Some(&b"k"[..]));
        assert_eq!(bearer(&headers(&[(header::AUTHORIZATION, "Basic k")])), None);
        assert_eq!(bearer(&headers(&[(header::AUTHORIZATION, "Bear")])), None);
    }

    #[test]
    fn who_is_on_the_machine_sees_everything_and_others_only_with_a_key() {
        let from = |address: &str, keys: &ApiKeys, headers: &HeaderMap| {
            let mut extensions = Extensions::new();
            let address: SocketAddr = address.parse().expect("an address");
            extensions.insert(ConnectInfo(address));
            identify(keys, Scope::Admin, headers, &extensions).map(|identity| identity.scope)
        };
        let (none, nothing) = (ApiKeys::default(), HeaderMap::new());
        for own in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(from(own, &none, &nothing).is_ok());
        }
        assert!(matches!(from("192.0.2.1:1", &none, &nothing), Err(ApiError::Scope { wanted: "admin" })));
        let keys: ApiKeys = ["k"].into_iter().collect();
        assert!(matches!(from("127.0.0.1:1", &keys, &nothing), Err(ApiError::InvalidApiKey)));
        assert!(from("192.0.2.1:1", &keys, &headers(&[(header::AUTHORIZATION, "Bearer k")])).is_ok());
    }
}
