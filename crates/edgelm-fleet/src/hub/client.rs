//! HTTP towards the hub: addresses, the token, redirects, and which failures are worth another attempt.

use super::{HubError, Reference, Settings, listing::Listing};
use reqwest::{
    Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
    redirect::Policy,
};
use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// Longest listing that is read: repositories of 100,000 files stay below.
const LISTING_LIMIT_BYTES: usize = 64 << 20;
const MAX_REDIRECTS: usize = 10;

/// A connection pool to one endpoint.
pub(super) struct Client {
    http: reqwest::Client,
    endpoint: Url,
    token: Option<HeaderValue>,
    settings: Settings,
}

/// How an attempt failed.
pub(super) enum Failure {
    /// Another attempt would fail alike.
    Final(HubError),
    /// It may pass; after this wait, where the server named one.
    Passing(HubError, Option<Duration>),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

impl Client {
    pub(super) fn new(settings: &Settings) -> Result<Self, HubError> {
        // The error means that a provider is installed already, which is all that is needed.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let bad_endpoint = |what: String| HubError::Setting { variable: "HF_ENDPOINT", what };
        let endpoint = Url::parse(&settings.endpoint).map_err(|error| bad_endpoint(error.to_string()))?;
        if !matches!(endpoint.scheme(), "http" | "https") {
            return Err(bad_endpoint("is not an http or https address".to_owned()));
        }
        let token = settings.token.as_ref().map(|token| {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| HubError::Setting {
                variable: "HF_TOKEN",
                what: "cannot be sent in a header".to_owned(),
            })?;
            value.set_sensitive(true);
            Ok(value)
        });
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("edgelm/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.connect_timeout)
            .read_timeout(settings.read_timeout)
            .redirect(redirects());
        if !settings.proxies {
            http = http.no_proxy();
        }
        let http = http.build().map_err(HubError::Client)?;
        Ok(Self { http, endpoint, token: token.transpose()?, settings: settings.clone() })
    }

    /// A new account of attempts.
    pub(super) fn patience(&self) -> Patience<'_> {
        Patience { settings: &self.settings, fruitless: 0, attempts: 0 }
    }

    /// What the reference's revision holds.
    pub(super) async fn listing(&self, reference: &Reference) -> Result<Listing, HubError> {
        let mut url = self.url(["api", "models"], reference.repo(), ["revision", reference.revision()]);
        url.set_query(Some("blobs=true"));
        let mut patience = self.patience();
        loop {
            match self.read_listing(reference, &url).await {
                Ok(listing) => return Ok(listing),
                Err(failure) => patience.after(failure).await?,
            }
        }
    }

    async fn read_listing(&self, reference: &Reference, url: &Url) -> Result<Listing, Failure> {
        let mut response = self.get(reference, url, HeaderMap::new()).await?;
        let mut json = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| network(url, error))? {
            if json.len() + chunk.len() > LISTING_LIMIT_BYTES {
                let what = format!("the answer is longer than {LISTING_LIMIT_BYTES} bytes");
                return Err(HubError::Listing { url: url.to_string(), what }.into());
            }
            json.extend_from_slice(&chunk);
        }
        Ok(Listing::parse(&json, url.as_str())?)
    }

    /// Where a file of a commit is.
    pub(super) fn file_url(&self, reference: &Reference, commit: &str, name: &str) -> Url {
        let rest = ["resolve", commit].into_iter().chain(name.split('/'));
        self.url([], reference.repo(), rest)
    }

    fn url<'a>(
        &self,
        before: impl IntoIterator<Item = &'a str>,
        repo: &'a str,
        after: impl IntoIterator<Item = &'a str>,
    ) -> Url {
        let mut url = self.endpoint.clone();
        // Only addresses like `mailto:` have no path to extend, and `new` lets none of those in.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(before).extend(repo.split('/')).extend(after);
        }
        url
    }

    /// One attempt. Answers with a success or 416.
    pub(super) async fn get(&self, reference: &Reference, url: &Url, headers: HeaderMap) -> Result<Response, Failure> {
        let mut request = self.http.get(url.clone()).headers(headers);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let response = request.send().await.map_err(|error| network(url, error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let address = url.to_string();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(HubError::Denied {
                repo: reference.repo().to_owned(),
                status: status.as_u16(),
                with_token: self.token.is_some(),
            }
            .into()),
            StatusCode::NOT_FOUND => Err(HubError::NotFound { url: address }.into()),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(Failure::Passing(
                HubError::Status { url: address, status: status.as_u16() },
                retry_after(&response),
            )),
            _ if status.is_server_error() => Err(Failure::Passing(
                HubError::Status { url: address, status: status.as_u16() },
                retry_after(&response),
            )),
            _ => Err(HubError::Status { url: address, status: status.as_u16() }.into()),
        }
    }
}

/// Follows redirects, but never from encrypted to plain. The token stays behind when the host changes: the HTTP
/// library drops `Authorization` then, and a test here holds it to that.
fn redirects() -> Policy {
    Policy::custom(|attempt| {
        let downgrade =
            attempt.url().scheme() != "https" && attempt.previous().last().is_some_and(|from| from.scheme() == "https");
        if downgrade {
            attempt.error("redirected from https to http")
        } else if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirects")
        } else {
            attempt.follow()
        }
    })
}

/// A connection that failed may work the next time; a request that could not be made will not.
pub(super) fn network(url: &Url, error: reqwest::Error) -> Failure {
    let is_final = error.is_redirect() || error.is_builder();
    let error = HubError::Network { url: url.to_string(), source: error.without_url() };
    if is_final { Failure::Final(error) } else { Failure::Passing(error, None) }
}

/// Only the form in seconds: the hub sends no other, and dates need two clocks to agree.
fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Counts attempts and waits between them: exponentially longer, with jitter so that many machines do not come back
/// at once.
pub(super) struct Patience<'a> {
    settings: &'a Settings,
    /// In a row.
    fruitless: u32,
    /// In all.
    attempts: u32,
}

/// A file that comes in more pieces than this is not coming: bounds the time that a server can hold a pull.
const MAX_ATTEMPTS: u32 = 200;

impl Patience<'_> {
    /// The last attempt brought something.
    pub(super) fn renew(&mut self) {
        self.fruitless = 0;
    }

    /// Waits before the next attempt, or says that there is none.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<(), HubError> {
        let (error, asked) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing(error, asked) => (error, asked),
        };
        self.fruitless += 1;
        self.attempts += 1;
        let too_long = asked.is_some_and(|asked| asked > self.settings.longest_wait);
        if self.fruitless >= self.settings.attempts || self.attempts >= MAX_ATTEMPTS || too_long {
            return Err(HubError::GaveUp { attempts: self.attempts, source: Box::new(error) });
        }
        let doubled = self.settings.first_wait.saturating_mul(1 << (self.fruitless - 1).min(16));
        let wait = doubled.min(self.settings.longest_wait).mul_f64(jitter()).max(asked.unwrap_or_default());
        tracing::warn!(error = &error as &dyn std::error::Error, wait_ms = wait.as_millis(), "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// Between 0.5 and 1.5; the hasher's keys come from the system's random source.
fn jitter() -> f64 {
    let bits = RandomState::new().hash_one(()) >> 32;
    0.5 + f64::from(u32::try_from(bits).unwrap_or_default()) / f64::from(u32::MAX)
}
