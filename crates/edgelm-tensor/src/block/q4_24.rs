//! Q4_24: 2:4 sparse weights of 4 bits, and one scale.

use super::sparse::{SparseLevels, compress, encode, expand};
use super::symmetric::Integers;
use super::{Block, Coded};
use crate::DType;
use half::f16;

const LEVELS: Integers<-8, 7> = Integers;

/// 32 weights in 14 bytes: Q4_0 without half of its values.
///
/// ```text
/// byte 0..2    scale, f16
///      2..10   q − byte i: kept value i in the low half, kept value i + 8 in the high half
///      10..14  masks − nibble j, the low one of a byte first: bit b is set where value 4j + b is kept
/// value[i] = scale · (q[2j + number of bits below b] − 8), 0 where not kept; i = 4j + b
/// ```
///
/// Our own: there is no such type in GGUF.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockQ4Sparse {
    /// Value of one step.
    pub scale: f16,
    /// Codes of the kept values, two per byte.
    pub nibbles: [u8; 8],
    /// Which they are.
    pub masks: [u8; 4],
}

const _: () = assert!(size_of::<BlockQ4Sparse>() == 14);

impl BlockQ4Sparse {
    /// From 32 quants from −8 to 7 of which at most two of every four are not 0.
    pub fn from_quants(scale: f16, quants: &[i8; 32]) -> Self {
        let masks = super::sparse::best_masks(|i| f32::from(u8::from(quants[i] != 0)));
        let kept = compress(quants, &masks).map(|q| (q + 8) as u8 & 15);
        Self { scale, nibbles: std::array::from_fn(|i| kept[i] | kept[i + 8] << 4), masks }
    }

    /// The 32 quants.
    pub fn quants(&self) -> [i8; 32] {
        let code = |i: usize| if i < 8 { self.nibbles[i] & 15 } else { self.nibbles[i - 8] >> 4 };
        let kept: [i8; 16] = std::array::from_fn(|i| code(i) as i8 - 8);
        expand(&kept, &self.masks)
    }
}

impl Block for BlockQ4Sparse {
    const DTYPE: DType = DType::Q4_24;
    const LEN: usize = 32;
    /// What is not kept is lost.
    const ERROR: f32 = 1.0;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let (scale, codes, masks) = encode(LEVELS, values, importance);
        Self { scale, nibbles: [0; 8], masks }.with_codes(&codes)
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let scale = self.scale.to_f32();
        for (out, q) in out.iter_mut().zip(self.quants()) {
            *out = f32::from(q) * scale;
        }
    }
}

impl Coded for BlockQ4Sparse {
    type Grid = SparseLevels<Integers<-8, 7>>;

    fn grid(&self) -> Self::Grid {
        SparseLevels::new(LEVELS, self.scale, &self.masks)
    }

    fn with_codes(self, codes: &[u16]) -> Self {
        assert_eq!(codes.len(), Self::LEN);
        let kept = compress(codes, &self.masks);
        Self { nibbles: std::array::from_fn(|i| (kept[i] & 15 | (kept[i + 8] & 15) << 4) as u8), ..self }
    }
}
