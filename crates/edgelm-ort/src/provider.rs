//! Execution providers by name.

use crate::OrtError;
use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use std::{fmt, str::FromStr};

/// Where a graph runs. Operators that a provider lacks run on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum Provider {
    #[default]
    Cpu,
    Cuda,
    TensorRt,
    CoreMl,
    Qnn,
    OpenVino,
    Xnnpack,
}

impl Provider {
    /// Every provider.
    pub const ALL: [Self; 7] =
        [Self::Cpu, Self::Cuda, Self::TensorRt, Self::CoreMl, Self::Qnn, Self::OpenVino, Self::Xnnpack];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
            Self::CoreMl => "coreml",
            Self::Qnn => "qnn",
            Self::OpenVino => "openvino",
            Self::Xnnpack => "xnnpack",
        }
    }

    fn is_available(self) -> ort::Result<bool> {
        match self {
            Self::Cpu => ep::CPU::is_available(),
            Self::Cuda => ep::CUDA::is_available(),
            Self::TensorRt => ep::TensorRT::is_available(),
            Self::CoreMl => ep::CoreML::is_available(),
            Self::Qnn => ep::QNN::is_available(),
            Self::OpenVino => ep::OpenVINO::is_available(),
            Self::Xnnpack => ep::XNNPACK::is_available(),
        }
    }

    /// For a session, which fails if the provider does not start. Errors where the library lacks it. Needs the library loaded.
    pub(crate) fn dispatch(self) -> Result<ExecutionProviderDispatch, OrtError> {
        if !self.is_available()? {
            let mut offered = Vec::new();
            for provider in Self::ALL {
                if provider.is_available()? {
                    offered.push(provider.name());
                }
            }
            return Err(OrtError::Provider { wanted: self, offered: offered.join(", ") });
        }
        let dispatch = match self {
            Self::Cpu => ep::CPU::default().build(),
            Self::Cuda => ep::CUDA::default().build(),
            Self::TensorRt => ep::TensorRT::default().build(),
            Self::CoreMl => ep::CoreML::default().build(),
            Self::Qnn => ep::QNN::default().build(),
            Self::OpenVino => ep::OpenVINO::default().build(),
            Self::Xnnpack => ep::XNNPACK::default().build(),
        };
        Ok(dispatch.error_on_failure())
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Provider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|provider| provider.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|provider| provider.name()).collect();
            format!("expected one of {}", names.join(", "))
        })
    }
}
