//! Which engine runs a model: this program's own, or ONNX Runtime.

use crate::{failure::Usage, machine, options::Global};
use clap::{Args, ValueEnum};
use edgelm_ort::{OrtModel, OrtOptions, Provider};
use std::path::Path;

#[derive(Args, Clone, Copy)]
pub struct EngineArgs {
    /// Engine: this program's, or ONNX Runtime (MODEL is then a folder of `export --format onnx`; ORT_DYLIB_PATH names the library)
    #[arg(long, value_enum, default_value_t = EngineName::Edgelm)]
    engine: EngineName,
    /// Execution provider of ONNX Runtime [default: cpu]
    #[arg(long, value_name = "cpu|cuda|tensorrt|coreml|qnn|openvino|xnnpack")]
    provider: Option<Provider>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EngineName {
    Edgelm,
    Ort,
}

impl EngineArgs {
    /// True for ONNX Runtime. Errors where a provider is named and it is not.
    pub fn is_ort(&self) -> anyhow::Result<bool> {
        match (self.engine, self.provider) {
            (EngineName::Edgelm, Some(_)) => Err(Usage("--provider needs --engine ort".into()).into()),
            (engine, _) => Ok(engine == EngineName::Ort),
        }
    }

    /// Opens an exported folder.
    pub fn open(&self, model: &str, exact: bool, global: &Global) -> anyhow::Result<OrtModel> {
        let threads = machine::cpu(global)?.threads();
        let options = OrtOptions { provider: self.provider.unwrap_or_default(), threads, exact };
        Ok(OrtModel::open(Path::new(model), options)?)
    }
}

/// Refuses flags that ONNX Runtime has nothing for.
pub fn refuse(flags: &[(&str, bool)]) -> anyhow::Result<()> {
    match flags.iter().find(|(_, is_given)| *is_given) {
        Some((flag, _)) => Err(Usage(format!("{flag} is not available with --engine ort")).into()),
        None => Ok(()),
    }
}
