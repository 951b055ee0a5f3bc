//! File names of split models: `name-00001-of-00003.gguf`, as `llama-gguf-split` writes them.

use crate::fault::{Fault, Name, malformed};
use std::path::{Path, PathBuf};

pub(super) const NUMBER_KEY: &str = "split.no";
pub(super) const COUNT_KEY: &str = "split.count";
pub(super) const TENSOR_COUNT_KEY: &str = "split.tensors.count";
/// Keys that differ between parts.
pub(super) const KEY_PREFIX: &str = "split.";

/// The paths of all parts in order, from the path of any of them.
pub(super) fn part_paths(path: &Path, count: u64) -> Result<impl Iterator<Item = PathBuf>, Fault> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let suffix = format!("-of-{count:05}.gguf");
    let stem = name.strip_suffix(&suffix).and_then(|rest| {
        let (stem, number) = rest.rsplit_once('-')?;
        let number: u64 = (number.len() >= 5).then_some(number)?.parse().ok()?;
        (1..=count).contains(&number).then_some(stem)
    });
    let Some(stem) = stem else {
        return malformed!(
            "part of {count} by its metadata, but the name {} does not end in `-00001{suffix}`",
            Name(name)
        );
    };
    let (folder, stem) = (path.with_file_name(""), stem.to_owned());
    Ok((1..=count).map(move |number| folder.join(format!("{stem}-{number:05}{suffix}"))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_of_parts() {
        let paths: Vec<_> = part_paths(Path::new("dir/m-q8-00002-of-00003.gguf"), 3).unwrap().collect();
        assert_eq!(paths[0], Path::new("dir/m-q8-00001-of-00003.gguf"));
        assert_eq!(paths[2], Path::new("dir/m-q8-00003-of-00003.gguf"));
        for bad in ["m.gguf", "m-00001-of-00002.gguf", "m-00004-of-00003.gguf", "m-1-of-00003.gguf", "-of-00003.gguf"] {
            assert!(part_paths(Path::new(bad), 3).is_err(), "{bad}");
        }
    }
}
