//! How much a client may ask for in a minute.
//!
//! A token bucket each for requests and for tokens of the model: it fills evenly, holds a minute's worth, and so allows that
//! much at once. How long an answer gets is only known afterwards, so tokens may be overdrawn; what follows waits until
//! the debt is paid.

use crate::{caller::Client, error::ApiError};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What each client may have. `None` = any amount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Requests for work of the model, a minute.
    pub requests: Option<u32>,
    /// Tokens of prompts and answers, a minute.
    pub tokens: Option<u32>,
}

/// Clients are looked through for ones that can be forgotten when there are so many.
const MANY: usize = 10_000;

/// The buckets of all clients.
#[derive(Debug)]
pub(crate) struct Limiter {
    limits: RateLimits,
    clients: Mutex<Clients>,
}

#[derive(Debug, Default)]
struct Clients {
    buckets: HashMap<Client, Buckets>,
    look_through_at: usize,
}

#[derive(Debug, Clone, Copy)]
struct Buckets {
    requests: f64,
    tokens: f64,
    at: Instant,
}

/// A client's account. Clones are of the same one.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    limiter: Arc<Limiter>,
    client: Client,
}

impl Limiter {
    pub(crate) fn new(limits: RateLimits) -> Self {
        Self { limits, clients: Mutex::default() }
    }

    /// Takes a request from the client's account. `None` where nothing is limited.
    ///
    /// # Errors
    /// There is none left, or no token.
    pub(crate) fn admit(self: &Arc<Self>, client: Client) -> Result<Option<Meter>, ApiError> {
        if self.limits == RateLimits::default() {
            return Ok(None);
        }
        let client = household(client);
        let mut clients = self.clients();
        let buckets = clients.of(client, self.limits, Instant::now());
        for (what, level, limit) in
            [("requests", buckets.requests, self.limits.requests), ("tokens", buckets.tokens, self.limits.tokens)]
        {
            if let Some(limit) = limit.filter(|_| level < 1.0) {
                let retry_after_s = time_until(1.0, level, limit).as_secs().saturating_add(1);
                return Err(ApiError::RateLimited { what, limit, retry_after_s });
            }
        }
        buckets.requests -= 1.0;
        Ok(Some(Meter { limiter: Arc::clone(self), client }))
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Meter {
    /// Takes tokens of the model.
    pub(crate) fn spend(&self, tokens: usize) {
        let mut clients = self.limiter.clients();
        clients.of(self.client, self.limiter.limits, Instant::now()).tokens -= tokens as f64;
    }

    /// OpenAI's headers.
    pub(crate) fn show(&self, headers: &mut HeaderMap) {
        let limits = self.limiter.limits;
        let buckets = *self.limiter.clients().of(self.client, limits, Instant::now());
        for (limit, level, names) in
            [(limits.requests, buckets.requests, REQUEST_HEADERS), (limits.tokens, buckets.tokens, TOKEN_HEADERS)]
        {
            let Some(limit) = limit else { continue };
            let reset = duration_text(time_until(f64::from(limit), level, limit));
            let values = [limit.to_string(), (level.max(0.0) as u64).to_string(), reset];
            for (name, value) in names.into_iter().zip(values) {
                if let Ok(value) = HeaderValue::from_str(&value) {
                    headers.insert(HeaderName::from_static(name), value);
                }
            }
        }
    }
}

const REQUEST_HEADERS: [&str; 3] =
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
const TOKEN_HEADERS: [&str; 3] =
    ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];

impl Clients {
    /// A client's buckets as they are now.
    fn of(&mut self, client: Client, limits: RateLimits, now: Instant) -> &mut Buckets {
        let whole = |limit: Option<u32>| limit.map_or(f64::MAX, f64::from);
        let (requests, tokens) = (whole(limits.requests), whole(limits.tokens));
        if self.buckets.len() >= self.look_through_at.max(MANY) {
            // Whose buckets are full again is like one who was never here.
            self.buckets.retain(|_, buckets| {
                buckets.fill(limits, now);
                buckets.requests < requests || buckets.tokens < tokens
            });
            self.look_through_at = 2 * self.buckets.len();
        }
        let buckets = self.buckets.entry(client).or_insert(Buckets { requests, tokens, at: now });
        buckets.fill(limits, now);
        buckets
    }
}

impl Buckets {
    fn fill(&mut self, limits: RateLimits, now: Instant) {
        let minutes = now.saturating_duration_since(self.at).as_secs_f64() / 60.0;
        for (level, limit) in [(&mut self.requests, limits.requests), (&mut self.tokens, limits.tokens)] {
            if let Some(limit) = limit.map(f64::from) {
                *level = (*level + minutes * limit).min(limit);
            }
        }
        self.at = now;
    }
}

/// How long a bucket takes from `level` to `wanted`.
fn time_until(wanted: f64, level: f64, limit: u32) -> Duration {
    let seconds = (wanted - level).max(0.0) * 60.0 / f64::from(limit.max(1));
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// As OpenAI writes it: `350ms`, `7.5s`, `6m0s`.
fn duration_text(time: Duration) -> String {
    match (time.as_secs(), time.subsec_millis()) {
        (0, millis) => format!("{millis}ms"),
        (seconds @ 60.., _) => format!("{}m{}s", seconds / 60, seconds % 60),
        (seconds, 0) => format!("{seconds}s"),
        (seconds, millis) => format!("{seconds}.{}s", format!("{millis:03}").trim_end_matches('0')),
    }
}

/// One network of a subscriber has 2⁶⁴ addresses of IPv6: they are one client.
fn household(client: Client) -> Client {
    match client {
        Client::Address(address) => Client::Address(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
            address => address,
        }),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(requests: Option<u32>, tokens: Option<u32>) -> Arc<Limiter> {
        Arc::new(Limiter::new(RateLimits { requests, tokens }))
    }

    /// As if so much time had gone by.
    fn pass(limiter: &Limiter, time: Duration) {
        for buckets in limiter.clients().buckets.values_mut() {
            buckets.at = buckets.at.checked_sub(time).expect("after the machine's start");
        }
    }

    #[test]
    fn requests_come_back_evenly() {
        let limiter = limiter(Some(3), None);
        let admit = |client| limiter.admit(Client::Key(client));
        for _ in 0..3 {
            assert!(admit(1).is_ok());
        }
        let Err(ApiError::RateLimited { what: "requests", limit: 3, retry_after_s }) = admit(1) else {
            panic!("a fourth request")
        };
        assert!((20..=21).contains(&retry_after_s));
        assert!(admit(2).is_ok(), "others are not concerned");
        pass(&limiter, Duration::from_secs(21));
        assert!(admit(1).is_ok() && admit(1).is_err());
        pass(&limiter, Duration::from_secs(3600));
        assert_eq!((0..10).filter(|_| admit(1).is_ok()).count(), 3, "a minute's worth at most");
    }

    #[test]
    fn tokens_may_be_overdrawn_once() {
        let limiter = limiter(None, Some(60));
        let meter = limiter.admit(Client::Unknown).expect("full").expect("limited");
        meter.spend(90);
        let Err(ApiError::RateLimited { what: "tokens", retry_after_s, .. }) = limiter.admit(Client::Unknown) else {
            panic!("in debt")
        };
        assert!((31..=32).contains(&retry_after_s));
        let mut headers = HeaderMap::new();
        meter.show(&mut headers);
        let value = |name: &str| headers.get(name).map(|value| value.to_str().expect("text").to_owned());
        assert_eq!(value("x-ratelimit-limit-tokens").as_deref(), Some("60"));
        assert_eq!(value("x-ratelimit-remaining-tokens").as_deref(), Some("0"));
        assert!(value("x-ratelimit-reset-tokens").is_some_and(|text| text.starts_with("1m2") || text == "1m30s"));
        assert_eq!(value("x-ratelimit-limit-requests"), None);
        pass(&limiter, Duration::from_secs(32));
        assert!(limiter.admit(Client::Unknown).is_ok());
    }

    #[test]
    fn who_is_back_to_full_is_forgotten() {
        let limiter = limiter(Some(60), Some(60));
        for client in 0..MANY as u64 {
            assert!(limiter.admit(Client::Key(client)).is_ok());
        }
        pass(&limiter, Duration::from_secs(5));
        let _meter = limiter.admit(Client::Key(u64::MAX)).expect("admitted");
        assert_eq!(limiter.clients().buckets.len(), 1);
        assert!(limiter_without_limits().admit(Client::Unknown).expect("open").is_none());
    }

    fn limiter_without_limits() -> Arc<Limiter> {
        limiter(None, None)
    }

    #[test]
    fn one_network_is_one_client() {
        let of = |text: &str| household(Client::Address(text.parse().expect("an address")));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }

    #[test]
    fn times_as_openai_writes_them() {
        for (millis, text) in [(0, "0ms"), (350, "350ms"), (7_500, "7.5s"), (7_000, "7s"), (360_000, "6m0s")] {
            assert_eq!(duration_text(Duration::from_millis(millis)), text);
        }
    }
}
