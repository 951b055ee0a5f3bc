//! Keys of a server's API.

use crate::{options::Global, output};
use anyhow::Context;
use clap::Args;
use edgelm_serve::{ApiKeys, NewKey, Scope};
use serde_json::json;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

#[derive(Args)]
pub(super) struct ApiArgs {
    /// What it opens: `use` (generate, embed, list models) or `admin` (metrics and the dashboard too)
    #[arg(long, value_name = "use|admin", default_value = "use", requires = "api")]
    scope: Scope,
    /// Whose it is, in logs and lists
    #[arg(long, value_name = "NAME", default_value = "client", requires = "api")]
    name: String,
    /// Add the key's line to this file; stdout then has the key alone
    #[arg(long, value_name = "F", requires = "api")]
    append: Option<PathBuf>,
}

/// Prints a new key, which is not kept anywhere, and the line that stands for it in a key file.
pub(super) fn new(args: ApiArgs, global: &Global) -> anyhow::Result<()> {
    let ApiArgs { scope, name, append } = args;
    let new = NewKey::random(&name, scope)?;
    if let Some(path) = &append {
        add(path, &name, &new.line)?;
    }
    if global.json {
        let (key, line) = (&new.key, &new.line);
        return output::json(&json!({"name": name, "scope": scope.name(), "key": key, "line": line, "file": append}));
    }
    if let Some(path) = append {
        global.note(format!("{} has the line of this key; the key itself is kept nowhere", path.display()));
        return output::line(&new.key);
    }
    global.note("the key, which is kept nowhere, and its line for --api-key-file");
    output::line(&new.key)?;
    output::line(&new.line)
}

/// Appends a line to a key file, which is made if it is not there. A name is given once.
fn add(path: &Path, name: &str, line: &str) -> anyhow::Result<()> {
    let before = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", path.display())),
    };
    if before.lines().any(|line| line.trim().split_once(':').is_some_and(|(other, _)| other == name)) {
        anyhow::bail!("`{}` has a key with the name `{name}`; choose another with --name", path.display());
    }
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let missing_end = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
    let write = || -> io::Result<()> {
        let mut file = options.open(path)?;
        file.write_all(format!("{missing_end}{line}\n").as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write to `{}`", path.display()))
}

/// Names and scopes.
pub(super) fn show(path: &Path, global: &Global) -> anyhow::Result<()> {
    let keys = ApiKeys::from_file(path)?.list();
    if global.json {
        let keys: Vec<_> = keys.iter().map(|(name, scope)| json!({"name": name, "scope": scope.name()})).collect();
        return output::json(&keys);
    }
    let mut table = output::table(&["name", "scope"]);
    for (name, scope) in keys {
        table.add_row([name, scope.to_string()]);
    }
    output::line(table)
}
