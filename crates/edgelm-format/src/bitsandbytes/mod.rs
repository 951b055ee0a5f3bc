//! Weights of 4 and 8 bits in safetensors as the bitsandbytes library stores them: `quantization_config` in config.json, and
//! per linear layer some tensors beside `weight`. Of 4 bits (`load_in_4bit`):
//!
//! | tensor | |
//! |---|---|
//! | `weight` U8 `[N · K / 2, 1]` | codes of the whole matrix, row after row, the high half of a byte first |
//! | `weight.absmax` F32 `[N · K / blocksize]` | a scale for every `blocksize` of them; U8 where nested |
//! | `weight.quant_map` F32 `[16]` | what codes mean: the table of nf4 or fp4 |
//! | `weight.quant_state.bitsandbytes__nf4` (or `fp4`) U8 | JSON: `quant_type`, `blocksize`, `shape`, `dtype` of the weights before |
//! | `weight.nested_absmax`, `weight.nested_quant_map` F32 | nested ("double quantization"): absmax = map\[code\] · nested absmax + offset |
//!
//! They run as NF4 or FP4, with scales rounded to f16, and a table of int8 values in the kernels.
//!
//! Of 8 bits (`load_in_8bit`):
//!
//! | tensor | |
//! |---|---|
//! | `weight` I8 `[N, K]` | |
//! | `SCB` F32 `[N]` | the largest magnitude of each row: value = SCB · weight / 127 |
//! | `weight_format` U8 `[]` | 0: in rows |
//!
//! They run as Q8_0, with scales rounded to f16 (as F16 where rows are not whole blocks of 32). Inputs whose outliers that
//! library multiplies in f16 are here all treated alike.
//!
//! Source: bitsandbytes 0.50, `functional.QuantState` and `nn.Linear8bitLt`. Where this reader is narrower, it says so by name:
//! other tables, other storage types, blocks or rows of 4 bits that are not multiples of 32.

mod config;
mod int8;
mod read;
mod write;

pub use config::{Config, FourBitConfig};
pub use int8::Int8Tensor;
pub use read::LookupTensor;
pub use write::{LookupMatrix, declare_lookup, pack_lookup};

use edgelm_tensor::LookupFormat;

/// Suffixes of the tensors beside the weight of a module, of 8 bits.
pub const MODULE_PARTS: [&str; 2] = ["SCB", "weight_format"];

/// Suffixes of the tensors beside a weight, of 4 bits.
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
