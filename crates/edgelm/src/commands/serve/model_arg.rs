//! MODEL of `serve`: `PATH` or `ID=PATH`, and further paths after commas.

use std::path::Path;

/// A model by its id and what it is loaded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelArg {
    /// `None` = the first path's own name.
    pub(super) id: Option<String>,
    /// At least one: the first that can be loaded is.
    pub(super) paths: Vec<String>,
}

impl ModelArg {
    /// A path that is there is taken as it is, whatever is in its name.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if Path::new(text).exists() {
            return Ok(Self { id: None, paths: vec![text.to_owned()] });
        }
        let (id, rest) = match text.split_once('=') {
            Some((id, rest)) => (Some(id.to_owned()), rest),
            None => (None, text),
        };
        let paths: Vec<String> = match Path::new(rest).exists() {
            true => vec![rest.to_owned()],
            false => rest.split(',').map(str::to_owned).collect(),
        };
        if id.as_ref().is_some_and(String::is_empty) || paths.iter().any(String::is_empty) {
            return Err("must be PATH, ID=PATH or ID=PATH,PATH…".to_owned());
        }
        Ok(Self { id, paths })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let parse = |text: &str| ModelArg::parse(text).map(|arg| (arg.id, arg.paths.join("|")));
        assert_eq!(parse("demo"), Ok((None, "demo".into())));
        assert_eq!(parse("a=x/y"), Ok((Some("a".into()), "x/y".into())));
        assert_eq!(parse("a=b.gguf,c.gguf"), Ok((Some("a".into()), "b.gguf|c.gguf".into())));
        assert!(parse("=x").is_err() && parse("a=").is_err() && parse("a=b,").is_err());
        let folder = tempfile::tempdir().expect("a folder");
        let odd = folder.path().join("a=b,c");
        std::fs::write(&odd, "").expect("written");
        let odd = odd.to_str().expect("text");
        assert_eq!(parse(odd), Ok((None, odd.to_owned())));
        assert_eq!(parse(&format!("id={odd}")), Ok((Some("id".into()), odd.to_owned())));
    }
}
