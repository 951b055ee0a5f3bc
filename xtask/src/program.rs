//! The release build of `edgelm`, as the commands that measure it call it.

use anyhow::{Context, bail};
use serde_json::Value;
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// A copy of the program in a folder of its own, which goes with the value. A copy, because these commands run for many
/// minutes: with `cargo run` per step, a source file saved meanwhile would end them, or change what is measured.
pub struct Program {
    folder: tempfile::TempDir,
}

impl Program {
    /// Builds it.
    pub fn build() -> anyhow::Result<Self> {
        crate::cargo(&["build", "--release", "--quiet", "--package", "edgelm"])?;
        let target = target();
        let folder = tempfile::Builder::new().prefix("edgelm-xtask-").tempdir()?;
        let name = format!("edgelm{}", env::consts::EXE_SUFFIX);
        let built = target.join("release").join(&name);
        std::fs::copy(&built, folder.path().join(&name))
            .with_context(|| format!("cannot copy `{}`", built.display()))?;
        Ok(Self { folder })
    }

    /// A file for results in between.
    pub fn scratch(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    /// Runs it with `--json --quiet` and reads what it prints.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let program = self.folder.path().join(format!("edgelm{}", env::consts::EXE_SUFFIX));
        let output = Command::new(program).args(arguments).args(["--json", "--quiet"]).output()?;
        if !output.status.success() {
            bail!("`edgelm {}`: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`edgelm {}` printed no JSON", arguments.join(" ")))
    }
}

/// The workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A required number of a JSON object.
pub fn number(value: &Value, key: &str) -> anyhow::Result<f64> {
    value[key].as_f64().with_context(|| format!("no number `{key}` in {value}"))
}
