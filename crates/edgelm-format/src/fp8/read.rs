//! One matrix: its parts checked, its rows as F16 and as values.

use super::{Fp8Config, e4m3::VALUES};
use crate::{
    CodedMatrix, FormatError, Source, TensorInfo,
    fault::{Fault, Name, malformed},
    safetensors::SafeTensors,
};
use edgelm_tensor::{DType, block::decode_row};
use half::f16;
use std::ops::Range;

/// A matrix of eight-bit floats, borrowed from the file.
pub struct Fp8Tensor<'a> {
    shape: [usize; 2],
    codes: &'a [u8],
    source: &'a Source,
    /// `[⌈N / n⌉, ⌈K / k⌉]`; few beside the codes.
    scales: Vec<f32>,
    /// n and k.
    block: [usize; 2],
}

impl<'a> Fp8Tensor<'a> {
    /// The matrix of a weight's name. `None` if it is not stored as F8_E4M3.
    ///
    /// Errors: scales that are missing, of another type or shape; F8_E5M2.
    pub fn open(file: &'a SafeTensors, weight: &str, config: &Fp8Config) -> Result<Option<Self>, FormatError> {
        let Some((info, source)) = file.info(weight).zip(file.source_of(weight)) else { return Ok(None) };
        let place = |fault: Fault| fault.within(format_args!("tensor {}", Name(weight))).at(source.path());
        match info.type_name {
            "F8_E4M3" => Self::checked(file, weight, config, &info, source).map(Some).map_err(place),
            "F8_E5M2" => Err(place(Fault::Unsupported("weights stored as F8_E5M2 are not supported".to_owned()))),
            _ => Ok(None),
        }
    }

    fn checked(
        file: &'a SafeTensors,
        weight: &str,
        config: &Fp8Config,
        info: &TensorInfo<'a>,
        source: &'a Source,
    ) -> Result<Self, Fault> {
        let (&[n, k], Some(codes)) = (info.shape, info.bytes) else {
            return malformed!("has shape {:?}, must be a matrix", info.shape);
        };
        let name = ["_scale_inv", "_scale"].map(|suffix| format!("{weight}{suffix}"));
        let Some(scale) = name.iter().find_map(|name| file.info(name)) else {
            return malformed!("`weight_scale_inv` is missing");
        };
        let block = match (config.block, scale.shape) {
            (Some([rows, columns]), &[r, c]) if r == n.div_ceil(rows) && c == k.div_ceil(columns) => [rows, columns],
            (None, [] | [1] | [1, 1]) => [n.max(1), k.max(1)],
            (None, [rows] | [rows, 1]) if *rows == n => [1, k.max(1)],
            (block, shape) => {
                return malformed!("its scales have shape {shape:?}, for [{n}, {k}] in blocks of {block:?}");
            }
        };
        let (Some(dtype), Some(bytes)) = (scale.dtype, scale.bytes) else {
            return malformed!("its scales are stored as {}", scale.type_name);
        };
        let mut scales = vec![0.0; scale.shape.iter().product()];
        if decode_row(dtype, bytes, &mut scales).is_err() {
            return malformed!("its scales have {} bytes", bytes.len());
        }
        Ok(Self { shape: [n, k], codes, source, scales, block })
    }

    /// Calls `put` with the values of each row in turn, one after the other.
    fn each(&self, rows: Range<usize>, mut put: impl FnMut(f32)) {
        let [rows_of_scale, columns_of_scale] = self.block;
        let k = self.shape[1];
        let scales_of_row = k.div_ceil(columns_of_scale);
        for row in rows {
            let scales = &self.scales[row / rows_of_scale * scales_of_row..][..scales_of_row];
            let codes = &self.codes[row * k..][..k];
            for (codes, scale) in codes.chunks(columns_of_scale).zip(scales) {
                codes.iter().for_each(|code| put(VALUES[usize::from(*code)] * scale));
            }
        }
    }
}

impl CodedMatrix for Fp8Tensor<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn dtype(&self) -> DType {
        DType::F16
    }

    fn blocks(&self, rows: Range<usize>) -> Vec<u8> {
        let mut out = Vec::with_capacity(rows.len() * self.shape[1] * 2);
        let (low, high) = (f16::MIN.to_f32(), f16::MAX.to_f32());
        self.each(rows, |value| out.extend(f16::from_f32(value.clamp(low, high)).to_le_bytes()));
        out
    }

    fn values(&self, rows: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), rows.len() * self.shape[1], "values are not those of the rows");
        let mut out = out.iter_mut();
        self.each(rows, |value| {
            if let Some(out) = out.next() {
                *out = value;
            }
        });
    }

    fn release(&self) {
        self.source.release(self.codes);
    }
}
