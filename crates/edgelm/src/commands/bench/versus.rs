//! llama-bench as the other side of a comparison: one run of one test per call.

use super::case::{Case, Kind};
use crate::failure::Usage;
use anyhow::{Context, bail};
use edgelm_kernels::KvDtype;
use serde_json::Value;
use std::{path::PathBuf, process::Command};

/// How to call it.
pub(super) struct LlamaBench {
    program: PathBuf,
    model: PathBuf,
    threads: usize,
    kv: KvDtype,
}

impl LlamaBench {
    /// Refuses what it cannot do.
    pub fn new(program: PathBuf, model: PathBuf, threads: usize, kv: KvDtype, cases: &[Case]) -> anyhow::Result<Self> {
        if !model.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            let what = format!("--vs compares one .gguf file in both programs; `{}` is none", model.display());
            return Err(Usage(what).into());
        }
        if cases.iter().any(|case| matches!(case.kind, Kind::Decode { batch, .. } if batch > 1)) {
            return Err(Usage("--vs: llama-bench decodes one sequence, so -b must be 1".into()).into());
        }
        Ok(Self { program, model, threads, kv })
    }

    fn arguments(&self, case: &Case) -> Vec<String> {
        let (prompt, generate) = match case.kind {
            Kind::Prefill(n) => (n, 0),
            Kind::Decode { steps, .. } => (0, steps),
        };
        let cache = match self.kv {
            KvDtype::F32 => "f32",
            KvDtype::F16 => "f16",
            KvDtype::Q8 => "q8_0",
            KvDtype::Q4 => "q4_0",
        };
        // llama.cpp quantizes values only under flash attention; elsewhere it picks what it holds to be faster.
        let attention = if matches!(self.kv, KvDtype::Q8 | KvDtype::Q4) { "on" } else { "auto" };
        let mut arguments = vec!["-m".to_owned(), self.model.to_string_lossy().into_owned()];
        for (flag, value) in [
            ("-t", self.threads.to_string().as_str()),
            ("-p", &prompt.to_string()),
            ("-n", &generate.to_string()),
            ("-d", &case.depth.to_string()),
            ("-r", "1"),
            ("-ctk", cache),
            ("-ctv", cache),
            ("-fa", attention),
            ("-o", "json"),
        ] {
            arguments.extend([flag.to_owned(), value.to_owned()]);
        }
        arguments
    }

    /// Tokens per second of one run, after the warm-up that it does by itself.
    pub fn rate(&self, case: &Case) -> anyhow::Result<f64> {
        let program = self.program.display();
        let mut command = Command::new(&self.program);
        command.args(self.arguments(case));
        let output = command.output().with_context(|| {
            format!("cannot start `{program}` (scripts/build-llama-bench.sh of the source tree builds one)")
        })?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let last = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it printed no message");
            bail!("`{program}` ended with {} in {}: {}", output.status, case.name, last.trim());
        }
        parse(&output.stdout).with_context(|| format!("`{program}` in {}", case.name))
    }
}

fn parse(stdout: &[u8]) -> anyhow::Result<f64> {
    let report: Value = serde_json::from_slice(stdout).context("its output is not JSON")?;
    let rate = report[0]["avg_ts"].as_f64().filter(|rate| rate.is_finite() && *rate > 0.0);
    rate.context("its output has no speed (`avg_ts`)")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn flags_say_the_same_test() {
        let cases = Case::all(&[0, 64], &[512], &[128], &[1]);
        let bench = LlamaBench::new("x".into(), "m.gguf".into(), 2, KvDtype::Q8, &cases).unwrap();
        let flags = |case| bench.arguments(case).join(" ");
        assert_eq!(flags(&cases[0]), "-m m.gguf -t 2 -p 512 -n 0 -d 0 -r 1 -ctk q8_0 -ctv q8_0 -fa on -o json");
        assert_eq!(flags(&cases[3]), "-m m.gguf -t 2 -p 0 -n 128 -d 64 -r 1 -ctk q8_0 -ctv q8_0 -fa on -o json");
    }

    #[test]
    fn output_without_a_speed_is_an_error() {
        assert_eq!(parse(br#"[{"avg_ts": 12.5}]"#).unwrap(), 12.5);
        for bad in [&b""[..], b"[", b"[]", b"{}", br#"[{"avg_ts": 0}]"#, br#"[{"avg_ts": "12"}]"#] {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
