//! `[[models]]` of a configuration file: a model with what the flags can only say of the first one.

use super::{model_arg::ModelArg, parse_adapter};
use crate::commands::speculation::SpeculationArgs;
use serde::Deserialize;
use std::path::PathBuf;

/// A model, its adapters, and how its tokens are guessed.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) model: ModelArg,
    pub(super) lora: Vec<(String, PathBuf)>,
    pub(super) speculation: Option<SpeculationArgs>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    path: Paths,
    name: Option<String>,
    #[serde(default)]
    lora: Vec<String>,
    draft: Option<String>,
    #[serde(default)]
    lookup: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Paths {
    One(String),
    /// The first that can be loaded is.
    Several(Vec<String>),
}

#[derive(Deserialize)]
struct Whole {
    table: Table,
}

impl Served {
    /// An inline table of TOML: `{ path = "a.gguf", name = "a", lora = ["x=adapters/x"] }`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let whole: Whole = toml::from_str(&format!("table = {text}")).map_err(|error| error.message().to_owned())?;
        let Table { path, name, lora, draft, lookup } = whole.table;
        let paths = match path {
            Paths::One(path) => vec![path],
            Paths::Several(paths) => paths,
        };
        if paths.is_empty() || paths.iter().any(String::is_empty) || name.as_ref().is_some_and(String::is_empty) {
            return Err("`path` and `name` must not be empty".to_owned());
        }
        if lookup && draft.is_some() {
            return Err("`draft` and `lookup` exclude each other".to_owned());
        }
        let lora = lora.iter().map(|text| parse_adapter(text).map_err(|what| format!("`lora` {what}")));
        Ok(Self {
            model: ModelArg { id: name, paths },
            lora: lora.collect::<Result<_, _>>()?,
            speculation: Some(SpeculationArgs::new(draft, lookup)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let served =
            Served::parse("{ path = \"a=b.gguf\", name = \"m\", lora = [\"x=d\"], draft = \"s\" }").expect("a table");
        assert_eq!(served.model, ModelArg { id: Some("m".into()), paths: vec!["a=b.gguf".into()] });
        assert_eq!(served.lora, [("x".to_owned(), PathBuf::from("d"))]);
        assert_eq!(served.speculation.as_ref().and_then(SpeculationArgs::draft), Some("s"));
        let served = Served::parse("{ path = [\"a\", \"b\"] }").expect("a table");
        assert_eq!((served.model.id, served.model.paths.len()), (None, 2));
        for (text, named) in [
            ("{ name = \"m\" }", "path"),
            ("{ path = [] }", "path"),
            ("{ path = \"a\", ctx = 5 }", "ctx"),
            ("{ path = \"a\", lora = [\"x\"] }", "lora"),
            ("{ path = \"a\", draft = \"b\", lookup = true }", "exclude"),
            ("a.gguf", ""),
        ] {
            assert!(Served::parse(text).is_err_and(|what| what.contains(named)), "{text}");
        }
    }
}
