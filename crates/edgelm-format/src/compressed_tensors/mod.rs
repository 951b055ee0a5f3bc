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
//! by name: activation order, block and attention quantization, asymmetric weights of more than 4 bits, float types.

mod config;
mod read;
mod sparse;
mod two_of_four;
mod write;

pub use config::{Activations, Group, IntQuantization, Packing, Strategy};
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

/// How small numbers stand in a row of 32-bit words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bits {
    bits: u32,
    /// Numbers may begin in one word and end in the next.
    is_dense: bool,
}

impl Bits {
    fn dense(bits: u32) -> Self {
        Self { bits, is_dense: true }
    }

    /// The layout in which `count` numbers take `words`.
    fn of_words(bits: u32, count: usize, words: usize) -> Option<Self> {
        [true, false].map(|is_dense| Self { bits, is_dense }).into_iter().find(|layout| layout.words(count) == words)
    }

    fn words(self, count: usize) -> usize {
        match self.is_dense {
            true => (count as u128 * u128::from(self.bits)).div_ceil(32) as usize,
            false => count.div_ceil((32 / self.bits) as usize),
        }
    }

    /// Word and bit at which number `index` begins.
    fn place(self, index: usize) -> (usize, u32) {
        match self.is_dense {
            true => {
                let bit = index as u64 * u64::from(self.bits);
                ((bit / 32) as usize, (bit % 32) as u32)
            }
            false => {
                let per_word = (32 / self.bits) as usize;
                (index / per_word, (index % per_word) as u32 * self.bits)
            }
        }
    }

    /// The number, less 2^(bits − 1).
    fn read(self, word: impl Fn(usize) -> u32, index: usize) -> i8 {
        let (at, bit) = self.place(index);
        let low = word(at) >> bit;
        let taken = 32 - bit;
        let all = if self.bits > taken { low | word(at + 1) << taken } else { low };
        ((all & ((1 << self.bits) - 1)) as i32 - (1 << (self.bits - 1))) as i8
    }

    /// All of them, each plus 2^(bits − 1).
    fn write(self, numbers: &[i8]) -> Vec<u32> {
        let mut words = vec![0u32; self.words(numbers.len())];
        for (index, &number) in numbers.iter().enumerate() {
            let code = (i32::from(number) + (1 << (self.bits - 1))) as u32 & ((1 << self.bits) - 1);
            let (at, bit) = self.place(index);
            words[at] |= code << bit;
            if self.bits > 32 - bit {
                words[at + 1] |= code >> (32 - bit);
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_of_every_width_come_back() {
        for bits in 2..=8 {
            for is_dense in [true, false] {
                let layout = Bits { bits, is_dense };
                let range = 1i32 << bits;
                let numbers: Vec<i8> = (0..70).map(|i| (i * 13 % range - range / 2) as i8).collect();
                let words = layout.write(&numbers);
                assert_eq!(Bits::of_words(bits, 70, words.len()).unwrap().words(70), words.len());
                let back: Vec<i8> = (0..70).map(|index| layout.read(|at| words[at], index)).collect();
                assert_eq!(back, numbers);
            }
        }
        // 0, 1, … 7 of three bits, from the lowest bit up: 0b…_111_110_…_001_000.
        assert_eq!(Bits::dense(3).write(&[-4, -3, -2, -1, 0, 1, 2, 3]), [0x00fa_c688]);
    }
}
