//! Integers with a scale and a zero per group of inputs, stored input by input: what GPTQ and AWQ share.
//!
//! | tensor | |
//! |---|---|
//! | `qweight` I32 | quants, of `bits` bits, input after input, each with those of all outputs |
//! | `qzeros` I32 | a zero for every group and output, packed along the outputs |
//! | `scales` F16 (BF16, F32) `[G, N]` | |
//! | `g_idx` I32 `[K]` | the group of each input; without it, and in most files, k / group size |
//!
//! W\[n, k\] = scales\[g, n\] · (quant\[k, n\] − zero\[g, n\]), g the group of k.
//!
//! # How they run
//!
//! quant − zero is a whole number that block formats with one scale hold, so nothing is rounded:
//!
//! | bits | zeros | run as |
//! |---|---|---|
//! | 2, 3 | any | Q4_0 |
//! | 4 | all 8 | Q4_0 |
//! | 4 | others | Q5_0 |
//! | 8 | all 128 | Q8_0 |
//! | 8 | others | F16: no format has nine bits |
//!
//! Blocks have 32 values. Groups or rows that are not whole blocks run as F16, rounded to its 11 bits. So do those whose
//! inputs are not in the order of their groups ("act order", `desc_act`), unless the reader wants them reordered.
//!
//! One thing a reader would get wrong: files of version 1 store zero − 1, and what is added here is not masked again, so that a
//! zero of 16 (of 4 bits) is what it is in the kernels that such files were made for.

mod read;

pub use read::ColumnInts;
pub(crate) use read::{Packing, Parts};
