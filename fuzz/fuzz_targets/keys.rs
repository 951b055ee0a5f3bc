//! API key files: keys, or an error that quotes none of them.
#![no_main]

use edgelm_serve::ApiKeys;
use libfuzzer_sys::fuzz_target;
use std::{fs, path::PathBuf, sync::LazyLock};

/// One file for the process: keys are read from files. Errors name it, so its name is too short to be taken for a key.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| std::env::temp_dir().join(format!("{}.k", std::process::id())));

fuzz_target!(|data: &[u8]| {
    fs::write(&*FILE, data).expect("written");
    match ApiKeys::from_file(&FILE) {
        Ok(keys) => assert!(!keys.list().is_empty() && keys.are_wanted()),
        Err(error) => {
            let said = error.to_string();
            // A word of 16 characters and more may be a key. What has colons is no key, and its parts are named.
            let words = std::str::from_utf8(data).unwrap_or("").split_whitespace();
            let (lines, keys): (Vec<&str>, Vec<&str>) = words.partition(|word| word.contains(':'));
            let is_key = |word: &&&str| word.len() >= 16 && !lines.iter().any(|line| line.contains(**word));
            assert!(keys.iter().filter(is_key).all(|key| !said.contains(key)), "{said}");
        }
    }
});
