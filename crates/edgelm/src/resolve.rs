//! From what the user wrote as MODEL to a checkpoint.

use crate::{options::Global, progress};
use anyhow::{Context, bail};
use edgelm_fleet::{digest, hub};
use edgelm_model::{Checkpoint, Embedded, Texts};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::Arc,
    time::UNIX_EPOCH,
};

/// The small model compiled into the binary.
const DEMO: Embedded = &[
    ("config.json", include_bytes!("../assets/mica-5m/config.json")),
    ("generation_config.json", include_bytes!("../assets/mica-5m/generation_config.json")),
    ("model.safetensors", include_bytes!("../assets/mica-5m/model.safetensors")),
    ("tokenizer.json", include_bytes!("../assets/mica-5m/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../assets/mica-5m/tokenizer_config.json")),
];

/// Opens MODEL: a folder, a `.gguf` file, `hf.co/…` or `demo`.
pub fn checkpoint(model: &str, global: &Global) -> anyhow::Result<Arc<Checkpoint>> {
    let checkpoint = if model == "demo" {
        Checkpoint::open_embedded("demo", DEMO)?
    } else {
        Checkpoint::open(&path(model, global)?)?
    };
    Ok(Arc::new(checkpoint))
}

/// Opens only the text side of MODEL: no weights and no config are needed.
pub fn texts(model: &str, global: &Global) -> anyhow::Result<Texts> {
    if model == "demo" {
        return Ok(Texts::open_embedded("demo", DEMO));
    }
    Ok(Texts::open(&path(model, global)?)?)
}

/// SHA-256 of what MODEL is made of, in hexadecimal: of a file its own, of several files that of the lines
/// `<digest>  <name>` in order of their names.
pub fn digest(model: &str, global: &Global) -> anyhow::Result<String> {
    if model == "demo" {
        let digests: Vec<_> = DEMO.iter().map(|(name, bytes)| (*name, digest::sha256(bytes))).collect();
        return Ok(digest::sha256_of_list(&digests));
    }
    let path = path(model, global)?;
    let files = files(&path)?;
    if let [file] = &files[..] {
        return file_digest(file);
    }
    let mut digests = Vec::new();
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        digests.push((name, file_digest(file)?));
    }
    Ok(digest::sha256_of_list(&digests))
}

/// When the newest of a model's files was changed, as Unix time; 0 where nobody knows.
pub fn modified(model: &str, global: &Global) -> u64 {
    let newest = |path: PathBuf| {
        let times = files(&path).ok()?.into_iter().filter_map(|file| file.metadata().ok()?.modified().ok());
        times.max()?.duration_since(UNIX_EPOCH).ok()
    };
    match model {
        "demo" => 0,
        _ => path(model, global).ok().and_then(newest).map_or(0, |since| since.as_secs()),
    }
}

/// Changes with the files of a model: with their names, lengths and times, and where the system tells, with which files they are and
/// when anything about them last changed. So a file in the place of another shows, also one that is older, or of the same second.
pub fn stamp(model: &str, global: &Global) -> u64 {
    let mut hasher = DefaultHasher::new();
    let files = match model {
        "demo" => Vec::new(),
        _ => path(model, global).ok().and_then(|path| files(&path).ok()).unwrap_or_default(),
    };
    for file in files {
        file.hash(&mut hasher);
        let Ok(metadata) = file.metadata() else { continue };
        (metadata.len(), metadata.modified().ok()).hash(&mut hasher);
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()).hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// The files of a model, in order of their names: those of a folder, all parts of a split file.
fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let folder = match path.is_dir() {
        true => path,
        false => path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_part = |other: &str| match name.split_once("-00001-of-") {
        Some((stem, end)) => other.starts_with(stem) && other.ends_with(end),
        None => other == name,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))? {
        let file = entry?.path();
        let other = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if file.is_file() && (path.is_dir() || is_part(&other)) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn file_digest(path: &Path) -> anyhow::Result<String> {
    digest::sha256_of_file(path).with_context(|| format!("cannot read `{}`", path.display()))
}

/// The file or folder that MODEL means, downloaded if need be.
fn path(model: &str, global: &Global) -> anyhow::Result<PathBuf> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(path.to_owned());
    }
    if hub::Reference::is_one(model) {
        return Ok(pull(model, global)?.path);
    }
    if model.starts_with("oci://") {
        bail!("`{model}`: OCI registries are not supported by this version");
    }
    bail!("`{model}`: no such file or folder (and not `demo` or `hf.co/org/name`)");
}

/// Downloads a model, or finds it in the cache.
pub fn pull(reference: &str, global: &Global) -> anyhow::Result<hub::Pulled> {
    let parsed: hub::Reference = reference.parse()?;
    let settings = hub::Settings::from_env()?;
    let bar = progress::byte_bar("pull", global.quiet);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut report = |event: hub::Progress<'_>| {
        bar.set_length(event.total_bytes);
        bar.set_position(event.done_bytes);
        bar.set_message(event.file.to_owned());
    };
    let pulled = runtime.block_on(hub::pull(&parsed, &settings, &mut report));
    bar.finish_and_clear();
    pulled.with_context(|| format!("cannot pull `{reference}`"))
}
