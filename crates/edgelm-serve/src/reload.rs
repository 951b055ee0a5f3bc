//! Files that are read again when they change: keys and certificates.
//!
//! Every two seconds, and on SIGHUP at once. What counts is what is in a file, not when it was written: clocks go back,
//! and copies keep times.

use crate::{ServeError, listener::DoorMetrics};
use sha2::{Digest, Sha256};
use std::{error::Error, fs, io::Read, path::PathBuf, time::Duration};

const INTERVAL: Duration = Duration::from_secs(2);
/// Nothing of what is watched is anywhere near as long; what is behind it does not count as a change.
const MAX_BYTES: u64 = 16 << 20;

/// Files that belong together, and what to do when one of them is another.
pub(crate) struct Watched {
    what: &'static str,
    files: Vec<PathBuf>,
    seen: Vec<Option<[u8; 32]>>,
    reload: Box<dyn FnMut() -> Result<(), ServeError> + Send>,
}

impl Watched {
    /// `reload` keeps what there was if it fails. The files are as they are taken to be now.
    pub(crate) fn new(
        what: &'static str,
        files: Vec<PathBuf>,
        reload: impl FnMut() -> Result<(), ServeError> + Send + 'static,
    ) -> Self {
        let seen = contents(&files);
        Self { what, files, seen, reload: Box::new(reload) }
    }

    /// Once for every state of the files, whether or not it works out.
    fn check(&mut self, is_asked: bool, metrics: &DoorMetrics) {
        let now = contents(&self.files);
        if now == self.seen && !is_asked {
            return;
        }
        self.seen = now;
        let reloaded = (self.reload)();
        metrics.reloaded(self.what, reloaded.is_ok());
        match reloaded {
            Ok(()) => tracing::warn!(what = self.what, "read again"),
            Err(error) => tracing::error!(
                what = self.what,
                error = &error as &dyn Error,
                "cannot be read again; what was there before stays in force"
            ),
        }
    }
}

fn contents(files: &[PathBuf]) -> Vec<Option<[u8; 32]>> {
    let digest = |path: &PathBuf| {
        let mut bytes = Vec::new();
        fs::File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        Some(Sha256::digest(&bytes).into())
    };
    files.iter().map(digest).collect()
}

/// Watches for ever; nothing if there is nothing to watch, so that SIGHUP then does what it always does.
pub(crate) async fn watch(mut all: Vec<Watched>, metrics: DoorMetrics) {
    if all.is_empty() {
        return std::future::pending().await;
    }
    let mut hangups = Hangups::new();
    loop {
        let is_asked = tokio::select! {
            () = tokio::time::sleep(INTERVAL) => false,
            () = hangups.next() => true,
        };
        let metrics = metrics.clone();
        let checked = tokio::task::spawn_blocking(move || {
            all.iter_mut().for_each(|watched| watched.check(is_asked, &metrics));
            all
        });
        match checked.await {
            Ok(back) => all = back,
            Err(error) => {
                tracing::error!(error = &error as &dyn Error, "files are no longer watched");
                return std::future::pending().await;
            }
        }
    }
}

/// SIGHUP, where there is such a thing.
struct Hangups {
    #[cfg(unix)]
    signals: Option<tokio::signal::unix::Signal>,
}

#[cfg(unix)]
impl Hangups {
    fn new() -> Self {
        Self { signals: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).ok() }
    }

    async fn next(&mut self) {
        let Some(signals) = &mut self.signals else { return std::future::pending().await };
        if signals.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

#[cfg(not(unix))]
impl Hangups {
    fn new() -> Self {
        Self {}
    }

    async fn next(&mut self) {
        std::future::pending().await
    }
}
