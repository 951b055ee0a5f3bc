//! One matrix of `load_in_8bit`: its parts checked, its rows as blocks and as values.

use crate::{
    CodedMatrix, FormatError, IntLayout, Ints, Source, TensorInfo,
    fault::{Fault, Name, malformed},
    safetensors::SafeTensors,
};
use edgelm_tensor::{DType, write_ints};
use half::f16;
use std::ops::Range;

/// Values of a block.
const BLOCK: usize = 32;

/// What a step of `SCB` is divided by: it is the largest magnitude of the row.
const STEPS: f32 = 127.0;

/// A matrix of int8 with the largest magnitude of each row, borrowed from the file.
pub struct Int8Tensor<'a> {
    shape: [usize; 2],
    codes: &'a [u8],
    /// `[N]`, F32.
    peaks: &'a [u8],
    source: &'a Source,
}

impl<'a> Int8Tensor<'a> {
    /// The matrix that stands for `{module}.weight`. `None` if it is not stored as I8.
    ///
    /// Errors: `SCB` that is missing, of another type or shape; a `weight_format` other than 0 (rows).
    pub fn open(file: &'a SafeTensors, module: &str) -> Result<Option<Self>, FormatError> {
        let name = format!("{module}.weight");
        let Some((info, source)) = file.info(&name).zip(file.source_of(&name)) else { return Ok(None) };
        if info.type_name != "I8" {
            return Ok(None);
        }
        Self::checked(file, module, &info, source)
            .map(Some)
            .map_err(|fault| fault.within(format_args!("tensor {}", Name(&name))).at(source.path()))
    }

    fn checked(file: &'a SafeTensors, module: &str, info: &TensorInfo<'a>, source: &'a Source) -> Result<Self, Fault> {
        let (&[n, k], Some(codes)) = (info.shape, info.bytes) else {
            return malformed!("has shape {:?}, must be a matrix", info.shape);
        };
        let Some(peaks) = file.info(&format!("{module}.SCB")) else { return malformed!("`SCB` is missing") };
        let ("F32", &[rows], Some(bytes)) = (peaks.type_name, peaks.shape, peaks.bytes) else {
            return malformed!("`SCB` is {} {:?}, must be F32 [{n}]", peaks.type_name, peaks.shape);
        };
        if rows != n {
            return malformed!("`SCB` has {rows} scales for {n} rows");
        }
        if let Some(format) = file.info(&format!("{module}.weight_format"))
            && format.bytes.is_none_or(|bytes| bytes.iter().any(|byte| *byte != 0))
        {
            let what = "`weight_format` is not 0: only weights in rows are supported";
            return Err(Fault::Unsupported(what.to_owned()));
        }
        Ok(Self { shape: [n, k], codes, peaks: bytes, source })
    }

    /// The value of a step.
    fn scale(&self, row: usize) -> f32 {
        self.peaks[4 * row..].first_chunk().map_or(f32::NAN, |bytes| f32::from_le_bytes(*bytes)) / STEPS
    }

    fn row(&self, row: usize) -> &[u8] {
        &self.codes[row * self.shape[1]..][..self.shape[1]]
    }
}

impl CodedMatrix for Int8Tensor<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn dtype(&self) -> DType {
        if self.shape[1].is_multiple_of(BLOCK) { DType::Q8_0 } else { DType::F16 }
    }

    fn blocks(&self, rows: Range<usize>) -> Vec<u8> {
        let mut out = Vec::new();
        let dtype = self.dtype();
        for row in rows {
            let scale = self.scale(row).clamp(f16::MIN.to_f32(), f16::MAX.to_f32());
            match dtype {
                DType::Q8_0 => {
                    for codes in self.row(row).as_chunks::<BLOCK>().0 {
                        write_ints(dtype, f16::from_f32(scale), &codes.map(|code| code as i8), &mut out);
                    }
                }
                _ => {
                    let value = |code: &u8| f16::from_f32(scale * f32::from(*code as i8)).to_le_bytes();
                    out.extend(self.row(row).iter().flat_map(value));
                }
            }
        }
        out
    }

    fn values(&self, rows: Range<usize>, out: &mut [f32]) {
        let k = self.shape[1];
        assert_eq!(out.len(), rows.len() * k, "values are not those of the rows");
        for (row, out) in rows.zip(out.chunks_exact_mut(k.max(1))) {
            let scale = self.scale(row);
            out.iter_mut().zip(self.row(row)).for_each(|(out, code)| *out = scale * f32::from(*code as i8));
        }
    }

    fn int_layout(&self) -> Option<IntLayout> {
        Some(IntLayout { bits: 8, group: self.shape[1], has_zeros: false, has_offsets: false, order: None })
    }

    fn ints(&self, rows: Range<usize>, out: &mut Ints) {
        for row in rows {
            out.scales.push(self.scale(row));
            out.codes.extend(self.row(row).iter().map(|code| *code as i8));
        }
    }

    fn release(&self) {
        self.source.release(self.codes);
    }
}
