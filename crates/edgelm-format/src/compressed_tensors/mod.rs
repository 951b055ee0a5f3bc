//! Integer weights in safetensors as the `compressed-tensors` library stores them: `quantization_config` in config.json, and
//! per linear layer several tensors in place of `weight`.
//!
//! | packing | `weight` becomes | |
//! |---|---|---|
//! | `pack-quantized` | `weight_packed` I32 `[N, ⌈K · bits / 32⌉]`, `weight_shape` I64 `[2]` | quants plus 2^(bits − 1), one after another from the lowest bit of the first word up; of old files ⌊32 / bits⌋ whole ones to a word |
//! | `int-quantized` | `weight` I8 `[N, K]` | |
//! | both | `weight_scale`, float `[N, K / group]`, `[N, 1]` or `[1]` | |
//! | asymmetric | `weight_zero_point`, I8 like the scales, or I32 with rows packed as quants are | |
//! | `int-quantized`, sparse | `compressed` I8 `[N, K / 2]`, `bitmask` U8 `[N, K / 8]`, `shape` I64 `[2, 1]` in place of `weight` | see `two_of_four.rs` |
//! | `edgelm-pack-quantized-24` | `weight_packed` of two of every four quants, and `bitmask` | our own: the library has it for GPUs alone |
//! | `sparse-24-bitmask` without quantization | `compressed`, `bitmask`, `shape` in place of a `weight` of floats | |
//! | static activations | `input_scale`, float `[1]` | x is int8 with this one scale |
//!
//! Source: `compressed-tensors` 0.20 (`quantization/quant_args.py`, `compressors/`). Where this reader is narrower, it says so
//! by name: activation order, block and attention quantization, asymmetric weights of more than 4 bits, floats of four bits.
//! Floats of eight bits (`float-quantized`) are read by [`fp8`](crate::fp8).

mod config;
mod read;
mod sparse;
mod two_of_four;
mod write;

pub use config::{Activations, Group, IntQuantization, Packing, Strategy, float_config, is_of_floats};
pub use read::IntTensor;
pub use sparse::{SparseTensor, declare_sparse, pack_sparse};
pub use two_of_four::two_of_four;
pub use write::{PackedMatrix, declare_matrix, pack_matrix};

/// Suffixes of the tensors that stand for a weight; `weight` itself among them where it holds integers.
pub const PARTS: [&str; 10] = [
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "input_scale",
    "input_zero_point",
    "compressed",
    "bitmask",
    "shape",
];
