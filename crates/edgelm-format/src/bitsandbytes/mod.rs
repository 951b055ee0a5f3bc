//! 4-bit weights in safetensors as the bitsandbytes library stores them: `quantization_config` in config.json, and per linear
//! layer some tensors beside `weight`.
//!
//! | tensor | |
//! |---|---|
//! | `weight` U8 `[N · K / 2, 1]` | codes of the whole matrix, row after row, the high half of a byte first |
//! | `weight.absmax` F32 `[N · K / blocksize]` | a scale for every `blocksize` of them; U8 where nested |
//! | `weight.quant_map` F32 `[16]` | what codes mean: the table of nf4 or fp4 |
//! | `weight.quant_state.bitsandbytes__nf4` (or `fp4`) U8 | JSON: `quant_type`, `blocksize`, `shape`, `dtype` of the weights before |
//! | `weight.nested_absmax`, `weight.nested_quant_map` F32 | nested ("double quantization"): absmax = map\[code\] · nested absmax + offset |
//!
//! Source: bitsandbytes 0.50, `functional.QuantState`. Where this reader is narrower, it says so by name: 8 bits, other tables,
//! other storage types, blocks or rows that are not multiples of 32.

mod config;
mod read;
mod write;

pub use config::FourBitConfig;
pub use read::LookupTensor;
pub use write::{LookupMatrix, declare_lookup, pack_lookup};

use edgelm_tensor::LookupFormat;

/// Suffixes of the tensors beside a weight.
pub const PARTS: [&str; 6] = [
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "quant_state.bitsandbytes__nf4",
    "quant_state.bitsandbytes__fp4",
];

/// The name of the tensor that says what the others mean.
fn state_name(weight: &str, format: LookupFormat) -> String {
    format!("{weight}.quant_state.bitsandbytes__{}", format.name())
}
