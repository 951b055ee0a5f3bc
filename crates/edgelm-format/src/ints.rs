//! Quantized matrices as whole numbers with scales, the form that other runtimes take, without a change of any code.
//!
//! value = scale · (code − zero) + offset, with a scale (and, where there is one, a zero or an offset) for each run of `group`
//! values of a row. Codes are signed: −8 to 7 of 4 bits, −128 to 127 of 8.
//!
//! Block formats whose codes lie on a line have it (`Q4_0` … `Q8_0`, `Q2_K` … `Q6_K`, `TQ1_0`, `TQ2_0`); the line is read off two
//! codes of each block, so that no layout is described a second time. Those whose codes index a table have not.

use edgelm_tensor::{
    DType,
    block::{Coded, CodedVisitor, visit_coded},
};

/// What the rows of a matrix look like as whole numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntLayout {
    /// 4 or 8.
    pub bits: u32,
    /// Values with one scale; all of a row where there is one scale for it.
    pub group: usize,
    /// A whole number that stands for 0.
    pub has_zeros: bool,
    /// What is added to each value.
    pub has_offsets: bool,
    /// Code j of a row is that of column `order[j]`; `None`: of column j.
    pub order: Option<Vec<u32>>,
}

/// Rows of whole numbers, one after another.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ints {
    /// `[N, K]`.
    pub codes: Vec<i8>,
    /// `[N, K / group]`.
    pub scales: Vec<f32>,
    /// The same; empty where there are none.
    pub zeros: Vec<i8>,
    /// The same; empty where there are none.
    pub offsets: Vec<f32>,
}

impl IntLayout {
    /// That of a block format; `None` where its codes do not lie on a line.
    pub fn of_blocks(dtype: DType) -> Option<Self> {
        let (bits, group, has_offsets, _) = line(dtype)?;
        Some(Self { bits, group, has_zeros: false, has_offsets, order: None })
    }
}

/// (bits, values with one scale, whether a minimum is stored, the code that is added to signed ones: the middle one, so that a
/// runtime that rounds what meets the codes errs least).
fn line(dtype: DType) -> Option<(u32, usize, bool, i32)> {
    Some(match dtype {
        DType::Q4_0 => (4, 32, false, 8),
        DType::Q4_1 => (4, 32, true, 8),
        DType::Q5_0 => (8, 32, false, 16),
        DType::Q5_1 => (8, 32, true, 16),
        // The lowest code that is chosen is −127.
        DType::Q8_0 => (8, 32, false, 127),
        DType::Q2_K => (4, 16, true, 2),
        DType::Q3_K => (4, 16, false, 4),
        DType::Q4_K => (4, 32, true, 8),
        DType::Q5_K => (8, 32, true, 16),
        DType::Q6_K => (8, 16, false, 32),
        DType::TQ1_0 | DType::TQ2_0 => (4, 256, false, 1),
        _ => return None,
    })
}

impl Ints {
    /// Appends rows that are stored as blocks of `dtype`; nothing where its codes do not lie on a line.
    pub fn extend_from_blocks(&mut self, dtype: DType, bytes: &[u8]) {
        if let Some((_, group, has_offsets, shift)) = line(dtype) {
            visit_coded(dtype, Blocks { bytes, group, has_offsets, shift, out: self });
        }
    }
}

struct Blocks<'a> {
    bytes: &'a [u8],
    group: usize,
    has_offsets: bool,
    shift: i32,
    out: &'a mut Ints,
}

impl CodedVisitor for Blocks<'_> {
    type Output = ();

    fn visit<B: Coded>(self) {
        let (mut values, mut first, mut second) = (vec![0.0; B::LEN], vec![0.0; B::LEN], vec![0.0; B::LEN]);
        let (zeros, ones) = (vec![0; B::LEN], vec![1; B::LEN]);
        for bytes in self.bytes.chunks_exact(B::BYTES) {
            let block: B = bytemuck::pod_read_unaligned(bytes);
            block.decode(&mut values);
            block.with_codes(&zeros).decode(&mut first);
            block.with_codes(&ones).decode(&mut second);
            for start in (0..B::LEN).step_by(self.group) {
                let (low, step) = (first[start], second[start] - first[start]);
                let inverse = if step == 0.0 { 0.0 } else { 1.0 / step };
                let code = |value: &f32| ((value - low) * inverse).round() as i32 - self.shift;
                self.out.codes.extend(values[start..start + self.group].iter().map(|value| code(value) as i8));
                self.out.scales.push(step);
                if self.has_offsets {
                    self.out.offsets.push(low + step * self.shift as f32);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use edgelm_tensor::block::{decode_row, encode_row};

    #[test]
    fn numbers_mean_what_blocks_mean() {
        let row: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 47.0) / 29.0 * (1.0 + (i / 64) as f32)).collect();
        let mut seen = 0;
        for dtype in DType::all().filter(|dtype| dtype.is_quantized()) {
            let Some(layout) = IntLayout::of_blocks(dtype) else { continue };
            seen += 1;
            let mut bytes = vec![0; dtype.row_bytes(row.len()).unwrap()];
            encode_row(dtype, &row, None, &mut bytes).unwrap();
            let mut want = vec![0.0; row.len()];
            decode_row(dtype, &bytes, &mut want).unwrap();
            let mut ints = Ints::default();
            ints.extend_from_blocks(dtype, &bytes);
            assert_eq!((ints.codes.len(), ints.scales.len()), (row.len(), row.len() / layout.group), "{dtype}");
            assert_eq!(ints.offsets.len(), if layout.has_offsets { ints.scales.len() } else { 0 });
            for (at, (want, code)) in want.iter().zip(&ints.codes).enumerate() {
                let g = at / layout.group;
                let value = ints.scales[g] * f32::from(*code) + ints.offsets.get(g).copied().unwrap_or(0.0);
                assert!((value - want).abs() <= 2e-6 * 40.0, "{dtype} {at}: {value} for {want}");
                assert!(layout.bits == 8 || (-8..8).contains(code), "{dtype} {code}");
            }
        }
        assert_eq!(seen, 12);
    }
}
