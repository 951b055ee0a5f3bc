//! How failures look: one line `error: …`, then `hint: …` where the next step is known.

use edgelm_compress::CompressError;
use edgelm_engine::EngineError;
use edgelm_fleet::hub::HubError;
use edgelm_kernels::KernelError;
use edgelm_model::ModelError;
use edgelm_onnx::OnnxError;
use edgelm_ort::OrtError;
use edgelm_serve::ServeError;
use std::process::ExitCode;

/// A combination of arguments that has no meaning (exit status 2).
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A quality gate that was not passed (exit status 3).
#[derive(Debug)]
pub struct GateFailed(pub String);

impl std::fmt::Display for GateFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "gate failed, nothing was written: {}", self.0)
    }
}

impl std::error::Error for GateFailed {}

/// Prints an error with its causes in one line, and a hint; returns the exit status.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // A transparent wrapper repeats its source's text.
        if !line.ends_with(&text) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&text);
        }
    }
    eprintln!("error: {}", line.replace('\n', " "));
    if let Some(hint) = error.chain().find_map(hint) {
        eprintln!("hint: {hint}");
    }
    if matches!(error.downcast_ref(), Some(CompressError::Cancelled | CompressError::Interrupted { .. })) {
        ExitCode::from(crate::interrupt::STATUS)
    } else if error.is::<GateFailed>() {
        ExitCode::from(3)
    } else if error.is::<Usage>() || error.chain().any(is_bad_option) {
        ExitCode::from(2)
    } else {
        ExitCode::FAILURE
    }
}

/// `edgelm … | head` is not a failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

fn is_bad_option(cause: &(dyn std::error::Error + 'static)) -> bool {
    matches!(cause.downcast_ref(), Some(KernelError::UnknownIsa(_) | KernelError::Threads(_)))
        || matches!(cause.downcast_ref(), Some(EngineError::Option { .. }))
        || matches!(
            cause.downcast_ref(),
            Some(CompressError::Setting { .. } | CompressError::BadPattern(_) | CompressError::NeedsCalibration { .. })
        )
        || matches!(cause.downcast_ref(), Some(CompressError::RecipeNeeds { .. }))
}

fn hint(cause: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    match cause.downcast_ref::<EngineError>() {
        Some(EngineError::ContextLength { .. }) => {
            return Some("shorten the prompt, ask for fewer tokens, or work through it with --window and --stride");
        }
        Some(EngineError::NoChatTemplate) => return Some("use --raw to send the prompt as it is"),
        _ => {}
    }
    match cause.downcast_ref::<ModelError>() {
        Some(ModelError::UnexpectedTensor { .. } | ModelError::MissingTensor { .. }) => {
            return Some("the weights and the config do not belong together, or the download is incomplete");
        }
        Some(ModelError::UnknownArchitecture { .. }) => return Some("see docs/architecture.md for how to add one"),
        _ => {}
    }
    match cause.downcast_ref::<CompressError>() {
        Some(CompressError::Interrupted { .. }) => return Some("run the same command with --resume to go on"),
        Some(CompressError::WorkExists { .. }) => {
            return Some("go on with --resume, or throw that work away with --restart");
        }
        Some(CompressError::NoWork { .. }) => return Some("leave --resume out to begin"),
        Some(CompressError::WorkDiffers { .. } | CompressError::WorkDamaged { .. }) => {
            return Some("start over with --restart");
        }
        _ => {}
    }
    if cause.is::<GateFailed>() {
        return Some("change the recipe and use --restart; or, if only its gates change, --resume");
    }
    if let Some(error) = cause.downcast_ref::<HubError>() {
        return error.hint();
    }
    if let Some(ServeError::Exposed { .. }) = cause.downcast_ref() {
        return Some(
            "ask for keys with --api-key-file or for certificates with --client-ca, or allow it with --insecure-bind",
        );
    }
    if let Some(OnnxError::Context { .. }) = cause.downcast_ref() {
        return Some("--onnx-ctx says how many positions the graph is to have");
    }
    match cause.downcast_ref() {
        Some(OrtError::Library { .. }) => {
            return Some(
                "install ONNX Runtime 1.22 or newer (its release archive, or `pip install onnxruntime`) and set \
                 ORT_DYLIB_PATH to its shared library (libonnxruntime.so, onnxruntime.dll, libonnxruntime.dylib)",
            );
        }
        Some(OrtError::NoGraph { .. }) => {
            return Some("write one with `edgelm export MODEL --format onnx --onnx-style genai -o DIR`");
        }
        _ => {}
    }
    if let Some(KernelError::IsaAbsent { .. }) = cause.downcast_ref() {
        return Some("leave --isa out to use the best that this CPU has");
    }
    None
}
