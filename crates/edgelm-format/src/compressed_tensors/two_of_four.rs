//! Where the two values of every four that are not zero stand: `sparse-24-bitmask`.
//!
//! | tensor | |
//! |---|---|
//! | `bitmask` U8 `[N, K / 8]` | bit i of byte j, from the lowest up: value 8j + i of the row is stored; two bits in every half of a byte |
//! | `compressed` `[N, K / 2]` | these values in order |
//! | `shape` I64 `[2, 1]` | N and K |
//!
//! Source: `compressed-tensors` 0.10 (`compressors/sparse_compressors/sparse_24_bitmask.py`).

use crate::fault::{Fault, malformed};

/// Masks of a matrix of which every four values have two bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bitmask<'a> {
    bytes: &'a [u8],
    columns: usize,
}

impl<'a> Bitmask<'a> {
    /// Of a matrix `[N, K]`, K a multiple of 8. Errors: another number of bytes, or of bits in four values.
    pub(super) fn new(bytes: &'a [u8], [n, k]: [usize; 2]) -> Result<Self, Fault> {
        if !k.is_multiple_of(8) || n.checked_mul(k / 8) != Some(bytes.len()) {
            return malformed!("`bitmask` has {} bytes for a matrix of [{n}, {k}]", bytes.len());
        }
        let has_two = |byte: &u8| (byte & 15).count_ones() == 2 && (byte >> 4).count_ones() == 2;
        if let Some(at) = bytes.iter().position(|byte| !has_two(byte)) {
            let (row, column) = (8 * at / k, 8 * at % k);
            return malformed!("`bitmask` has not two of every four bits in row {row}, from column {column} on");
        }
        Ok(Self { bytes, columns: k })
    }

    /// For values `start ..` of a row, as many as `out` has, a multiple of 8: `stored(i)` in the places of the bits, where i
    /// counts the values stored for the row, and the default elsewhere.
    pub(super) fn spread<T: Copy + Default>(
        &self,
        row: usize,
        start: usize,
        out: &mut [T],
        stored: impl Fn(usize) -> T,
    ) {
        let bytes = &self.bytes[(row * self.columns + start) / 8..][..out.len() / 8];
        let mut next = start / 2;
        for (byte, out) in bytes.iter().zip(out.as_chunks_mut::<8>().0) {
            for (bit, out) in out.iter_mut().enumerate() {
                let is_stored = byte >> bit & 1 == 1;
                *out = if is_stored { stored(next) } else { T::default() };
                next += usize::from(is_stored);
            }
        }
    }
}

/// The bitmask of a row whose values, a multiple of 8 of them, are at most two of every four not zero, and the two values of every
/// four that it stores: those that are not zero and, to make two, the first of the others. `None` if there are more.
pub fn two_of_four<T: Copy>(row: &[T], is_zero: impl Fn(&T) -> bool) -> Option<(Vec<u8>, Vec<T>)> {
    let (mut masks, mut stored) = (Vec::with_capacity(row.len() / 8), Vec::with_capacity(row.len() / 2));
    for eight in row.as_chunks::<8>().0 {
        let mut mask = 0u8;
        for (half, four) in eight.as_chunks::<4>().0.iter().enumerate() {
            let mut of_four = (0..4).filter(|&i| !is_zero(&four[i])).fold(0u8, |mask, i| mask | 1 << i);
            if of_four.count_ones() > 2 {
                return None;
            }
            while of_four.count_ones() < 2 {
                // The lowest bit that is not set.
                of_four |= of_four + 1;
            }
            stored.extend((0..4).filter(|i| of_four >> i & 1 == 1).map(|i| four[i]));
            mask |= of_four << (4 * half);
        }
        masks.push(mask);
    }
    Some((masks, stored))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rows_come_back() {
        let row: Vec<i8> = vec![0, 3, 0, -1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0];
        let (masks, stored) = two_of_four(&row, |value| *value == 0).unwrap();
        assert_eq!(masks, [0b0011_1010, 0b0101_0011]);
        assert_eq!(stored, [3, -1, 5, 0, 0, 0, 0, 7]);
        let bitmask = Bitmask::new(&masks, [1, 16]).unwrap();
        let mut back = [1i8; 16];
        bitmask.spread(0, 0, &mut back, |i| stored[i]);
        assert_eq!(back[..], row);
        bitmask.spread(0, 8, &mut back[..8], |i| stored[i]);
        assert_eq!(back[..8], row[8..]);
        assert!(two_of_four(&[0, 1, 2, 3, 0, 0, 0, 0], |value| *value == 0).is_none());
    }

    #[test]
    fn wrong_masks_are_errors() {
        assert!(Bitmask::new(&[0b0011_1010], [1, 8]).is_ok());
        for (bytes, shape) in [
            (&[0b0011_1110u8][..], [1, 8]),
            (&[0b0001_1010], [1, 8]),
            (&[0b0011_1010], [2, 8]),
            (&[0b0011_1010], [1, 12]),
            (&[0b0011_1010, 0], [1, 16]),
            (&[], [usize::MAX, 16]),
        ] {
            assert!(Bitmask::new(bytes, shape).is_err(), "{bytes:?} {shape:?}");
        }
    }
}
