//! Dependencies between the crates only point down this list, and `unsafe` stays where it belongs.

use anyhow::{Context, bail};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Top first (docs/architecture.md).
const LADDER: [&str; 13] = [
    "edgelm",
    "edgelm-fleet",
    "edgelm-serve",
    "edgelm-eval",
    "edgelm-compress",
    "edgelm-ort",
    "edgelm-engine",
    "edgelm-onnx",
    "edgelm-model",
    "edgelm-format",
    "edgelm-kernels",
    "edgelm-linalg",
    "edgelm-tensor",
];

/// The only places that may allow `unsafe`.
const UNSAFE_ALLOWED: [&str; 2] = ["crates/edgelm-kernels/", "crates/edgelm-format/src/source.rs"];

/// Fails on a crate missing from the list, an arrow that points up, or a file elsewhere that allows `unsafe`.
pub fn check() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace root")?;
    let crates = root.join("crates");
    for entry in fs::read_dir(&crates)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let rank = rank(&name).with_context(|| format!("`{name}` is not in the ladder"))?;
        for dependency in dependencies(&crates.join(&name).join("Cargo.toml"))? {
            if self::rank(&dependency).is_some_and(|below| below <= rank) {
                bail!("`{name}` depends on `{dependency}`, which does not stand below it");
            }
        }
    }
    for file in rust_files(root)? {
        let relative = file.strip_prefix(root)?.to_string_lossy().into_owned();
        let allowed = UNSAFE_ALLOWED.iter().any(|prefix| relative.starts_with(prefix));
        let attribute = concat!("allow(", "unsafe_code)");
        if !allowed && fs::read_to_string(&file)?.contains(attribute) {
            bail!("`{relative}` allows unsafe code");
        }
    }
    eprintln!("ladder: {} crates, all arrows point down", LADDER.len());
    Ok(())
}

fn rank(name: &str) -> Option<usize> {
    LADDER.iter().position(|step| *step == name)
}

/// Names under `[dependencies]` and `[target.….dependencies]`; development dependencies may point anywhere.
fn dependencies(manifest: &Path) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(manifest).with_context(|| format!("`{}`", manifest.display()))?;
    let mut names = Vec::new();
    let mut is_inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            is_inside = section.ends_with("dependencies]") && !section.contains("dev-dependencies");
        } else if is_inside && let Some((name, _)) = line.split_once('=') {
            names.push(name.trim().trim_end_matches(".workspace").to_owned());
        }
    }
    Ok(names)
}

fn rust_files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut folders = vec![root.join("crates"), root.join("xtask"), root.join("fuzz")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_workspace_keeps_to_the_ladder() {
        super::check().expect("the ladder holds");
    }
}
