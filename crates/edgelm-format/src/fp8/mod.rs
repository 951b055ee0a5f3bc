//! Weights of eight-bit floats (e4m3) with scales: `quantization_config` with `quant_method` `fp8` (or that of compressed-tensors
//! with `float-quantized`), and beside each `weight` its scale.
//!
//! | tensor | |
//! |---|---|
//! | `weight` F8_E4M3 `[N, K]` | |
//! | `weight_scale_inv` (or `weight_scale`), F32, F16 or BF16 | `[⌈N / n⌉, ⌈K / k⌉]` where `weight_block_size` is `[n, k]`; without it `[]`, `[1]`, `[N]` or `[N, 1]` |
//! | `activation_scale`, `input_scale` | of inputs that others round to eight bits; not read, as inputs are not rounded so here |
//!
//! W\[n, k\] = weight\[n, k\] · scale of its block, its row or all.
//!
//! They run as F16, which rounds the product to 11 bits: twice the bytes of the file. Values beyond 65504 are clamped.
//!
//! Source: transformers 5.23 (`integrations/finegrained_fp8.py`), DeepSeek-V3; vLLM's `fp8` for scales of whole matrices. Where
//! this reader is narrower, it says so by name: e5m2.

mod config;
mod e4m3;
mod read;

pub use config::Fp8Config;
pub use read::Fp8Tensor;

/// Suffixes of the tensors beside a weight.
pub const PARTS: [&str; 4] = ["weight_scale_inv", "weight_scale", "activation_scale", "input_scale"];
