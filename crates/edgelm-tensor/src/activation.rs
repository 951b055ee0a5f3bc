//! The nonlinearities of feed-forward networks.

/// f of `f(W x)`. Descriptions of models name it, kernels compute it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x) (Elfwing et al. 2017, arXiv:1702.03118).
    Silu,
    /// x · Φ(x), exact (Hendrycks and Gimpel 2016, arXiv:1606.08415).
    Gelu,
    /// x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
    GeluTanh,
    /// x · sigmoid(1.702 x).
    QuickGelu,
    /// max(x, 0).
    Relu,
    /// max(x, 0)² (So et al. 2021, arXiv:2109.08668).
    Relu2,
}

impl Activation {
    /// By the name that config.json has for it.
    pub fn from_hf(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh" => Self::GeluTanh,
            "quick_gelu" => Self::QuickGelu,
            "relu" => Self::Relu,
            "relu2" => Self::Relu2,
            _ => return None,
        })
    }
}
