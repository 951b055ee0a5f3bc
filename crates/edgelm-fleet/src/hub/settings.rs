//! Where the hub and the cache are, and how patient a pull is; from the environment by the names that the hub's own
//! tools use.

use super::HubError;
use std::{env, fmt, path::PathBuf, time::Duration};

/// How to pull.
#[derive(Clone)]
pub struct Settings {
    /// Address of the hub or a mirror.
    pub endpoint: String,
    /// Sent to the endpoint only, never to where it redirects, never logged.
    pub token: Option<String>,
    /// Folder that holds `models--org--name` folders.
    pub cache: PathBuf,
    /// Answer from the cache alone.
    pub offline: bool,
    /// Use the proxies that the environment names.
    pub proxies: bool,
    /// For a connection to be made.
    pub connect_timeout: Duration,
    /// For the next bytes to arrive.
    pub read_timeout: Duration,
    /// Attempts in a row that bring nothing before a pull gives up.
    pub attempts: u32,
    /// Wait after a first failure; doubled after each further one, up to `longest_wait`, give or take a half.
    pub first_wait: Duration,
    /// A server that asks for a longer wait than this is an error.
    pub longest_wait: Duration,
}

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

impl Settings {
    /// Reads `EDGELM_CACHE`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HOME` (the first that is set decides where
    /// the cache is), `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` and `EDGELM_OFFLINE`. Proxies are read from
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` when a pull starts.
    ///
    /// # Errors
    /// No folder for a cache, or a token that no header can carry.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_lookup(|name| env::var(name).ok())
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let get = |name: &str| lookup(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let under = |name: &str, rest: &str| get(name).map(|folder| PathBuf::from(folder).join(rest));
        let cache = under("EDGELM_CACHE", "hub")
            .or_else(|| get("HF_HUB_CACHE").map(PathBuf::from))
            .or_else(|| under("HF_HOME", "hub"))
            .or_else(|| under("XDG_CACHE_HOME", "huggingface/hub"))
            .or_else(|| under("HOME", ".cache/huggingface/hub"))
            .or_else(|| under("USERPROFILE", ".cache/huggingface/hub"))
            .ok_or_else(|| HubError::Setting {
                variable: "EDGELM_CACHE",
                what: "not set, and there is no home folder to put a cache in".to_owned(),
            })?;
        let token = get("HF_TOKEN");
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(HubError::Setting { variable: "HF_TOKEN", what: "is not one word of ASCII".to_owned() });
        }
        Ok(Self {
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
            token,
            cache,
            offline: ["EDGELM_OFFLINE", "HF_HUB_OFFLINE"].into_iter().filter_map(get).any(|value| is_true(&value)),
            proxies: true,
            connect_timeout: Duration::from_secs(15),
            read_timeout: Duration::from_secs(30),
            attempts: 6,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(60),
        })
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// The values that the hub's own tools take for yes.
fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Result<Settings, HubError> {
        Settings::from_lookup(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_cache() {
        let cache = |pairs| settings(pairs).expect("settings").cache;
        assert_eq!(cache(&[("HOME", "/h")]), PathBuf::from("/h/.cache/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), PathBuf::from("/x/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/f")]), PathBuf::from("/f/hub"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/f")]), PathBuf::from("/c"));
        assert_eq!(cache(&[("EDGELM_CACHE", "/e"), ("HF_HOME", "/f")]), PathBuf::from("/e/hub"));
        assert!(settings(&[]).is_err());
    }

    #[test]
    fn offline() {
        let offline = |pairs| settings(pairs).expect("settings").offline;
        assert!(!offline(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0"), ("EDGELM_OFFLINE", "")]));
        assert!(offline(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "1")]));
        assert!(offline(&[("HOME", "/h"), ("EDGELM_OFFLINE", "true")]));
    }

    #[test]
    fn tokens_stay_hidden() {
        let shown = format!("{:?}", settings(&[("HOME", "/h"), ("HF_TOKEN", "hf_secret")]).expect("settings"));
        assert!(!shown.contains("hf_secret"));
        let error = settings(&[("HOME", "/h"), ("HF_TOKEN", "hf secret")]).expect_err("two words").to_string();
        assert!(!error.contains("secret"));
    }
}
