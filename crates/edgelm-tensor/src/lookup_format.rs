//! Codes of 4 bits with one scale for a run of values of any length: nf4 and fp4, as they stand outside of GGUF.
//!
//! Kernels know blocks of 32, so such a matrix is run as blocks whose neighbours have equal scales.

use crate::{
    DType,
    block::{Block, BlockFp4, BlockNf4, FP4, LookupTable, NF4},
};
use half::f16;

/// Values of a block.
const LEN: usize = 32;

/// A format of this kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LookupFormat {
    /// Quantiles of a normal distribution.
    Nf4,
    /// A sign, two bits of exponent and one of mantissa.
    Fp4,
}

impl LookupFormat {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nf4, Self::Fp4];

    /// As files and `--format` spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// The format of a name, ignoring case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(name))
    }

    /// What its codes mean.
    pub fn table(self) -> &'static LookupTable {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// The block format in which it is run.
    pub fn block_dtype(self) -> DType {
        match self {
            Self::Nf4 => DType::NF4,
            Self::Fp4 => DType::FP4,
        }
    }

    /// Appends a block. Codes must be below 16.
    pub fn write_block(self, scale: f16, codes: &[u8; LEN], out: &mut Vec<u8>) {
        let nibbles = std::array::from_fn(|i| codes[i] | codes[i + 16] << 4);
        match self {
            Self::Nf4 => out.extend_from_slice(bytemuck::bytes_of(&BlockNf4 { scale, nibbles })),
            Self::Fp4 => out.extend_from_slice(bytemuck::bytes_of(&BlockFp4 { scale, nibbles })),
        }
    }

    /// What `write_block` wrote. Panics if `bytes` is not one block.
    pub fn read_block(self, bytes: &[u8]) -> (f16, [u8; LEN]) {
        let (scale, nibbles) = match self {
            Self::Nf4 => {
                let block: BlockNf4 = bytemuck::pod_read_unaligned(bytes);
                (block.scale, block.nibbles)
            }
            Self::Fp4 => {
                let block: BlockFp4 = bytemuck::pod_read_unaligned(bytes);
                (block.scale, block.nibbles)
            }
        };
        (scale, std::array::from_fn(|i| if i < 16 { nibbles[i] & 15 } else { nibbles[i - 16] >> 4 }))
    }
}

const _: () = assert!(BlockNf4::LEN == LEN && BlockFp4::LEN == LEN);
