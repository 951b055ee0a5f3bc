//! Downloads from the Hugging Face hub, into the cache that its own tools use.
//!
//! One pull is: ask the API what the revision holds (names, sizes, digests), choose files, fetch each into
//! `blobs/<digest>` unless it is there already, check its digest, and link it into `snapshots/<commit>/`. What a broken
//! connection, a Ctrl-C or a power cut leaves behind is a `.incomplete` file, which the next pull continues.

mod cache;
mod client;
mod digest;
mod download;
mod error;
mod listing;
mod reference;
mod select;
mod settings;

pub use error::HubError;
pub use reference::Reference;
pub use settings::Settings;

use cache::RepoCache;
use client::Client;
use listing::{Listing, RemoteFile};
use std::path::PathBuf;

/// What a pull brought, or found in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// A folder with a model in it, or a file (the first part, if it is split).
    pub path: PathBuf,
    /// `sha256:…` of the file; for several files, of what `sha256sum` prints for them in order of names.
    pub digest: String,
    /// All files together.
    pub bytes: u64,
    /// The revision's commit.
    pub commit: String,
}

/// How far a pull has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file being worked on.
    pub file: &'a str,
    /// Of that file, from earlier pulls included.
    pub file_done_bytes: u64,
    /// Of that file.
    pub file_bytes: u64,
    /// Of all files, from earlier pulls included.
    pub done_bytes: u64,
    /// Of all files.
    pub total_bytes: u64,
}

/// Pulls what `reference` names. `on_progress` is called often; it should be quick.
///
/// Dropping the future stops the pull; the next one goes on from there. Two pulls of the same file, also in two
/// processes, wait for each other.
///
/// # Errors
/// See [`HubError`]; offline, everything must be in the cache.
pub async fn pull(
    reference: &Reference,
    settings: &Settings,
    on_progress: &mut (dyn FnMut(Progress<'_>) + Send),
) -> Result<Pulled, HubError> {
    let cache = RepoCache::new(&settings.cache, reference.repo());
    if settings.offline {
        return from_cache(reference, &cache).await;
    }
    let client = Client::new(settings)?;
    let Listing { commit, files } = client.listing(reference).await?;
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    let selection = select::select(reference, &names)?;
    let chosen: Vec<&RemoteFile> = files.iter().filter(|file| selection.files.contains(&file.name)).collect();
    let total_bytes = chosen.iter().map(|file| file.size).sum();
    let mut before = 0;
    for file in &chosen {
        let mut report = |file_done_bytes| {
            on_progress(Progress {
                file: &file.name,
                file_done_bytes,
                file_bytes: file.size,
                done_bytes: before + file_done_bytes,
                total_bytes,
            });
        };
        report(0);
        cache.obtain(&client, reference, &commit, file, &mut report).await?;
        report(file.size);
        before += file.size;
    }
    // Last, so that the name never points to a snapshot without its files.
    cache.write_ref(reference.revision(), &commit)?;
    finish(&cache, commit, &selection).await
}

/// The same answer from the cache alone.
async fn from_cache(reference: &Reference, cache: &RepoCache) -> Result<Pulled, HubError> {
    let commit = cache.commit_of(reference)?;
    let names = cache.snapshot_files(reference, &commit)?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let selection = select::select(reference, &names)?;
    cache.check_shards(&commit, &selection)?;
    finish(cache, commit, &selection).await
}

/// Everything is in the snapshot: sums it up.
async fn finish(cache: &RepoCache, commit: String, selection: &select::Selection) -> Result<Pulled, HubError> {
    let mut bytes = 0;
    let mut digests = Vec::with_capacity(selection.files.len());
    for name in &selection.files {
        bytes += cache.size_of(&commit, name)?;
        let digest = match cache.known_sha256(&commit, name) {
            Some(digest) => digest,
            None => digest::sha256_of_file(&cache.snapshot_path(&commit, name)).await?,
        };
        digests.push((name.as_str(), digest));
    }
    let digest = match digests.as_slice() {
        [(_, digest)] => digest.clone(),
        several => crate::digest::sha256_of_list(several),
    };
    let path = match &selection.entry {
        Some(file) => cache.snapshot_path(&commit, file),
        None => cache.snapshot(&commit),
    };
    Ok(Pulled { path, digest: format!("sha256:{digest}"), bytes, commit })
}
