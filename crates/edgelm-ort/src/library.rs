//! The shared library, found at run time.

use crate::OrtError;
use ort::environment::Environment;
use std::{
    env,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// The name that the system's loader looks for.
const NAME: &str = if cfg!(windows) {
    "onnxruntime.dll"
} else if cfg!(target_vendor = "apple") {
    "libonnxruntime.dylib"
} else {
    "libonnxruntime.so"
};

/// A process has one.
static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);

/// Loads the library that `ORT_DYLIB_PATH` names, or that the system finds; the first call of a process decides.
pub(crate) fn environment() -> Result<Environment, OrtError> {
    let mut environment = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = &*environment {
        return Ok(environment.clone());
    }
    let path = env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map_or_else(|| NAME.into(), PathBuf::from);
    let failed = |reason: String| OrtError::Library { path: path.display().to_string(), reason };
    if path.is_dir() {
        return Err(failed("is a folder; ORT_DYLIB_PATH names the file".to_owned()));
    }
    let builder = ort::init_from(&path).map_err(|error| failed(error.to_string()))?;
    Ok(environment.insert(builder.with_name("edgelm").with_telemetry(false).build()?).clone())
}
