//! Q8_24: 2:4 sparse weights of 8 bits, and one scale.

use super::sparse::{SparseLevels, compress, encode, expand};
use super::symmetric::Integers;
use super::{Block, Coded};
use crate::DType;
use half::f16;

const LEVELS: Integers<-127, 127> = Integers;

/// 32 weights in 22 bytes: Q8_0 without half of its values.
///
/// ```text
/// byte 0..2    scale, f16
///      2..18   q, the kept values, signed
///      18..22  masks − nibble j, the low one of a byte first: bit b is set where value 4j + b is kept
/// value[i] = scale · q[2j + number of bits below b], 0 where not kept; i = 4j + b
/// ```
///
/// Our own: there is no such type in GGUF.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockQ8Sparse {
    /// Value of one step.
    pub scale: f16,
    /// Kept values.
    pub codes: [i8; 16],
    /// Which they are.
    pub masks: [u8; 4],
}

const _: () = assert!(size_of::<BlockQ8Sparse>() == 22);

impl BlockQ8Sparse {
    /// From 32 quants of which at most two of every four are not 0.
    pub fn from_quants(scale: f16, quants: &[i8; 32]) -> Self {
        let masks = super::sparse::best_masks(|i| f32::from(u8::from(quants[i] != 0)));
        Self { scale, codes: compress(quants, &masks), masks }
    }

    /// The 32 quants.
    pub fn quants(&self) -> [i8; 32] {
        expand(&self.codes, &self.masks)
    }
}

impl Block for BlockQ8Sparse {
    const DTYPE: DType = DType::Q8_24;
    const LEN: usize = 32;
    /// What is not kept is lost.
    const ERROR: f32 = 1.0;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let (scale, codes, masks) = encode(LEVELS, values, importance);
        Self { scale, codes: [0; 16], masks }.with_codes(&codes)
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let scale = self.scale.to_f32();
        for (out, q) in out.iter_mut().zip(self.quants()) {
            *out = f32::from(q) * scale;
        }
    }
}

impl Coded for BlockQ8Sparse {
    type Grid = SparseLevels<Integers<-127, 127>>;

    fn grid(&self) -> Self::Grid {
        SparseLevels::new(LEVELS, self.scale, &self.masks)
    }

    fn with_codes(self, codes: &[u16]) -> Self {
        assert_eq!(codes.len(), Self::LEN);
        let kept = compress(codes, &self.masks);
        Self { codes: kept.map(|code| (code as i16 - 127) as i8), ..self }
    }
}
