//! What to pull, as a user writes it: `hf.co/org/name[@revision][:file-or-quant]`.

use super::HubError;
use std::{fmt, str::FromStr};

/// A repository on the hub, a revision of it, and perhaps one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    repo: String,
    revision: String,
    selector: Option<String>,
}

const PREFIXES: [&str; 5] = ["hf.co/", "huggingface.co/", "https://hf.co/", "https://huggingface.co/", "hf://"];

impl Reference {
    /// Whether `text` means the hub at all.
    pub fn is_one(text: &str) -> bool {
        PREFIXES.iter().any(|prefix| text.starts_with(prefix))
    }

    /// `org/name`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// A branch, tag or commit; `main` where none was given.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// A file's name or a quantization's.
    pub fn selector(&self) -> Option<&str> {
        self.selector.as_deref()
    }
}

impl FromStr for Reference {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let error = |what| HubError::Reference { text: text.to_owned(), what };
        let rest = PREFIXES
            .iter()
            .find_map(|prefix| text.strip_prefix(prefix))
            .ok_or_else(|| error("it does not begin with `hf.co/`"))?;
        let (rest, selector) = split(rest, ':');
        let (repo, revision) = split(rest, '@');
        let parts: Vec<&str> = repo.split('/').collect();
        if parts.len() != 2 || !parts.iter().all(|part| is_repo_word(part)) {
            return Err(error("it names no repository `org/name`"));
        }
        let revision = revision.unwrap_or("main");
        if !is_safe_path(revision) || !is_portable(revision) {
            return Err(error("the revision is not a branch, tag or commit"));
        }
        if selector.is_some_and(|selector| !is_safe_path(selector) || !is_portable(selector)) {
            return Err(error("what follows `:` is neither a file nor a quantization"));
        }
        Ok(Self { repo: repo.to_owned(), revision: revision.to_owned(), selector: selector.map(str::to_owned) })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf.co/{}", self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        match &self.selector {
            Some(selector) => write!(f, ":{selector}"),
            None => Ok(()),
        }
    }
}

fn split(text: &str, at: char) -> (&str, Option<&str>) {
    text.split_once(at).map_or((text, None), |(before, after)| (before, Some(after)))
}

/// The hub's rule for names, which also makes them safe as folder names (`--` separates their parts there).
fn is_repo_word(word: &str) -> bool {
    (1..=96).contains(&word.len())
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !word.starts_with(['-', '.'])
        && !word.ends_with(['-', '.'])
        && !word.contains("--")
        && !word.contains("..")
}

/// Whether a name may be joined to a folder: relative, and going down only.
pub(super) fn is_safe_path(name: &str) -> bool {
    name.split('/').all(|part| {
        !part.is_empty() && part != "." && part != ".." && !part.chars().any(|c| c.is_control() || c == '\\')
    })
}

/// Whether a safe name is also the same file on every system.
pub(super) fn is_portable(name: &str) -> bool {
    name.len() <= 1024
        && name.split('/').all(|part| {
            part.len() <= 255 && !part.ends_with(['.', ' ']) && !part.chars().any(|c| ":*?\"<>|".contains(c))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let parse = |text: &str| {
            let reference: Reference = text.parse().expect("a reference");
            (reference.repo, reference.revision, reference.selector)
        };
        let want = |repo: &str, revision: &str, selector: Option<&str>| {
            (repo.to_owned(), revision.to_owned(), selector.map(str::to_owned))
        };
        assert_eq!(parse("hf.co/org/name"), want("org/name", "main", None));
        assert_eq!(parse("hf.co/o.r_g/na-me@refs/pr/1"), want("o.r_g/na-me", "refs/pr/1", None));
        assert_eq!(parse("huggingface.co/a/b:Q4_K_M"), want("a/b", "main", Some("Q4_K_M")));
        assert_eq!(parse("https://hf.co/a/b@v1:x/y.gguf"), want("a/b", "v1", Some("x/y.gguf")));
        let text = "hf.co/a/b@v1:x/y.gguf";
        assert_eq!(text.parse::<Reference>().expect("a reference").to_string(), text);
    }

    #[test]
    fn refusals() {
        for text in [
            "org/name",
            "hf.co/name",
            "hf.co/a/b/c",
            "hf.co//b",
            "hf.co/../b",
            "hf.co/a/..",
            "hf.co/a--b/c",
            "hf.co/a/b c",
            "hf.co/a/b@",
            "hf.co/a/b@../x",
            "hf.co/a/b:",
            "hf.co/a/b:/etc/passwd",
            "hf.co/a/b:x/../y",
            "hf.co/a/b:c:\\x",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
