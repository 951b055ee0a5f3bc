//! The cache on disk, laid out as the hub's own tools lay it out:
//!
//! ```text
//! models--org--name/blobs/<digest>                content, named by what it hashes to
//! models--org--name/snapshots/<commit>/<file>     links to blobs (copies where links are not to be had)
//! models--org--name/refs/<branch or tag>          a commit
//! .locks/models--org--name/<digest>.lock          held while a blob is fetched
//! ```
//!
//! A blob appears under its name only when it is complete, checked and on disk.

use super::{
    HubError, Reference,
    client::Client,
    digest,
    download::Download,
    listing::{RemoteFile, is_hex},
    select::Selection,
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// One repository's part of the cache.
pub(super) struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

/// How often a pull looks whether another one has let go of a file.
const LOCK_POLL: Duration = Duration::from_millis(100);

impl RepoCache {
    /// `repo` is `org/name`, checked by [`Reference`].
    pub(super) fn new(cache: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub(super) fn snapshot_path(&self, commit: &str, name: &str) -> PathBuf {
        self.snapshot(commit).join(name)
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        self.folder.join("blobs").join(digest)
    }

    /// Makes sure that a file is in the snapshot.
    pub(super) async fn obtain(
        &self,
        client: &Client,
        reference: &Reference,
        commit: &str,
        file: &RemoteFile,
        report: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), HubError> {
        let blob = self.blob_path(file.digest.as_str());
        if !is_complete(&blob, file.size) {
            let _lock = self.lock(file.digest.as_str()).await?;
            // Another pull may have brought it while this one waited.
            if !is_complete(&blob, file.size) {
                self.fetch(client, reference, commit, file, &blob, report).await?;
            }
        }
        self.link(commit, &file.name, file.digest.as_str())
    }

    async fn fetch(
        &self,
        client: &Client,
        reference: &Reference,
        commit: &str,
        file: &RemoteFile,
        blob: &Path,
        report: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), HubError> {
        create_parent(blob)?;
        let part = blob.with_extension("incomplete");
        let url = client.file_url(reference, commit, &file.name);
        let download = Download { reference, url: &url, name: &file.name, size: file.size, part: &part };
        let mut was_begun = download.have()? > 0;
        loop {
            download.run(client, report).await?;
            let got = digest::of_file(&part, &file.digest).await?;
            if got == file.digest.as_str() {
                break;
            }
            download.discard()?;
            // An earlier pull's beginning may be the culprit; a whole file that is wrong is wrong for good.
            if !was_begun {
                let want = file.digest.as_str().to_owned();
                return Err(HubError::Digest { file: file.name.clone(), got, want });
            }
            was_begun = false;
        }
        rename(&part, blob)?;
        // Its `.etag` neighbour goes too.
        download.discard()
    }

    /// Waits until no other pull works on this blob. Released when the file is closed, also by a crash.
    async fn lock(&self, digest: &str) -> Result<File, HubError> {
        let path = self.locks.join(format!("{digest}.lock"));
        create_parent(&path)?;
        let options = fs::OpenOptions::new().create(true).append(true).to_owned();
        let file = options.open(&path).map_err(HubError::io(&path))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::info!(lock = %path.display(), "waiting for another pull of the same file");
                    }
                    tokio::time::sleep(LOCK_POLL).await;
                }
                // Some network file systems have no locks; two pulls at once then cost time, not correctness, because
                // a blob is only accepted by its digest.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(HubError::io(&path)(error)),
            }
        }
    }

    /// Puts a blob into the snapshot under a file's name.
    fn link(&self, commit: &str, name: &str, digest: &str) -> Result<(), HubError> {
        let path = self.snapshot_path(commit, name);
        let blob = self.blob_path(digest);
        // From the file's folder up to the repository's, and down again.
        let up = "../".repeat(2 + name.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{digest}"));
        if fs::read_link(&path).is_ok_and(|current| current == target) {
            return Ok(());
        }
        create_parent(&path)?;
        let temporary = sibling(&path, &format!(".{}.tmp", std::process::id()));
        remove_if_there(&temporary)?;
        symlink(&target, &temporary)
            .or_else(|_| fs::hard_link(&blob, &temporary))
            .or_else(|_| fs::copy(&blob, &temporary).map(drop))
            .map_err(HubError::io(&temporary))?;
        rename(&temporary, &path)
    }

    /// Remembers what a branch or tag points to.
    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        if fs::read_to_string(&path).is_ok_and(|current| current.trim() == commit) {
            return Ok(());
        }
        create_parent(&path)?;
        let temporary = sibling(&path, &format!(".{}.tmp", std::process::id()));
        fs::write(&temporary, commit).map_err(HubError::io(&temporary))?;
        sync(&temporary)?;
        rename(&temporary, &path)
    }

    /// The commit that the reference's revision pointed to when it was last pulled.
    pub(super) fn commit_of(&self, reference: &Reference) -> Result<String, HubError> {
        let revision = reference.revision();
        let commit = match fs::read_to_string(self.folder.join("refs").join(revision)) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => revision.to_owned(),
        };
        if is_hex(&commit, 40) && self.snapshot(&commit).is_dir() {
            return Ok(commit);
        }
        Err(self.not_cached(format!("`{reference}`")))
    }

    /// Names in a snapshot, sorted.
    pub(super) fn snapshot_files(&self, reference: &Reference, commit: &str) -> Result<Vec<String>, HubError> {
        let root = self.snapshot(commit);
        let mut names = Vec::new();
        let mut folders = vec![(root, String::new())];
        while let Some((folder, prefix)) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(HubError::io(&folder))? {
                let entry = entry.map_err(HubError::io(&folder))?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                let name = format!("{prefix}{name}");
                // The entry's own type: a link to a folder is not followed.
                if entry.file_type().map_err(HubError::io(entry.path()))?.is_dir() {
                    folders.push((entry.path(), format!("{name}/")));
                } else if entry.path().is_file() {
                    names.push(name);
                }
            }
        }
        names.sort_unstable();
        if names.is_empty() { Err(self.not_cached(format!("`{reference}`"))) } else { Ok(names) }
    }

    /// Offline, nothing says which files a snapshot ought to have but the weights' own index.
    pub(super) fn check_shards(&self, commit: &str, selection: &Selection) -> Result<(), HubError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        for name in selection.files.iter().filter(|name| name.ends_with(".safetensors.index.json")) {
            let path = self.snapshot_path(commit, name);
            let json = fs::read(&path).map_err(HubError::io(&path))?;
            let index: Index = serde_json::from_slice(&json)
                .map_err(|error| HubError::Io { path: path.clone(), source: io::Error::other(error) })?;
            if let Some(missing) = index.weight_map.values().find(|shard| !selection.files.contains(*shard)) {
                return Err(self.not_cached(format!("`{missing}`")));
            }
        }
        Ok(())
    }

    /// A snapshot file's SHA-256 where it can be had without reading the file: large files are links to blobs of that
    /// name. (Small ones are named by git's digest; copies have no name.)
    pub(super) fn known_sha256(&self, commit: &str, name: &str) -> Option<String> {
        let target = fs::read_link(self.snapshot_path(commit, name)).ok()?;
        let blob = target.file_name()?.to_str()?;
        is_hex(blob, 64).then(|| blob.to_owned())
    }

    pub(super) fn size_of(&self, commit: &str, name: &str) -> Result<u64, HubError> {
        let path = self.snapshot_path(commit, name);
        Ok(fs::metadata(&path).map_err(HubError::io(&path))?.len())
    }

    fn not_cached(&self, what: String) -> HubError {
        HubError::NotCached { what, cache: self.folder.clone() }
    }
}

fn is_complete(blob: &Path, size: u64) -> bool {
    fs::metadata(blob).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

fn create_parent(path: &Path) -> Result<(), HubError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(HubError::io(parent))
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove_if_there(path: &Path) -> Result<(), HubError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(HubError::io(path)(error)),
        _ => Ok(()),
    }
}

fn sync(path: &Path) -> Result<(), HubError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(HubError::io(path))
}

/// Renames, and makes the new name last.
fn rename(from: &Path, to: &Path) -> Result<(), HubError> {
    fs::rename(from, to).map_err(HubError::io(to))?;
    #[cfg(unix)]
    if let Some(folder) = to.parent() {
        sync(folder)?;
    }
    Ok(())
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    // Windows lets only privileged accounts make them.
    Err(io::ErrorKind::Unsupported.into())
}
