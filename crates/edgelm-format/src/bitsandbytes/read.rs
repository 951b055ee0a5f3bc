//! One matrix: its parts checked, and its rows as blocks.

use super::state_name;
use crate::{
    CodedMatrix, FormatError, Source, TensorInfo,
    fault::{Fault, Name, malformed},
    safetensors::SafeTensors,
};
use edgelm_tensor::{DType, LookupFormat};
use half::f16;
use serde::Deserialize;
use std::ops::Range;

/// Values of a block.
const BLOCK: usize = 32;

/// How far stored tables may be from the ones that are known: they are computed in several ways.
const TABLE_TOLERANCE: f32 = 1e-6;

/// A matrix of codes, borrowed from the file.
pub struct LookupTensor<'a> {
    format: LookupFormat,
    shape: [usize; 2],
    codes: &'a [u8],
    absmax: Absmax<'a>,
    /// Values that share a scale.
    run: usize,
    sources: Vec<(&'a Source, &'a [u8])>,
}

/// Scales as F32, or as codes.
enum Absmax<'a> {
    Plain(&'a [u8]),
    Nested { codes: &'a [u8], map: &'a [u8], scales: &'a [u8], run: usize, offset: f32 },
}

/// What `quant_state` holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    quant_type: String,
    blocksize: usize,
    #[serde(rename = "dtype")]
    _dtype: Option<String>,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    #[serde(rename = "nested_dtype")]
    _nested_dtype: Option<String>,
    nested_offset: Option<f32>,
}

impl<'a> LookupTensor<'a> {
    /// The matrix of a weight's name. `None` if it is not stored as codes.
    ///
    /// Errors: parts that are missing, of another type or shape; other tables; rows or scales that are not of whole blocks of 32.
    pub fn open(file: &'a SafeTensors, weight: &str) -> Result<Option<Self>, FormatError> {
        let Some((info, source)) = file.info(weight).zip(file.source_of(weight)) else { return Ok(None) };
        for format in LookupFormat::ALL {
            if let Some(state) = file.info(&state_name(weight, format)) {
                let place = |fault: Fault| fault.within(format_args!("tensor {}", Name(weight))).at(source.path());
                return Self::parts(file, weight, format, &info, &state).map(Some).map_err(place);
            }
        }
        Ok(None)
    }

    fn parts(
        file: &'a SafeTensors,
        weight: &str,
        format: LookupFormat,
        info: &TensorInfo<'a>,
        state: &TensorInfo<'a>,
    ) -> Result<Self, Fault> {
        let state = match state.bytes {
            Some(bytes) if state.type_name == "U8" => serde_json::from_slice::<State>(bytes),
            _ => return malformed!("`quant_state` is {}, must be U8", state.type_name),
        };
        let state = state.map_err(|error| Fault::Malformed(format!("`quant_state`: {error}")))?;
        if state.quant_type != format.name() {
            return malformed!("`quant_type` is {}, must be `{}`", Name(&state.quant_type), format.name());
        }
        let [n, k] = state.shape[..] else {
            return malformed!("`shape` {:?} is not that of a matrix", state.shape);
        };
        let run = state.blocksize;
        if !k.is_multiple_of(BLOCK) || !run.is_multiple_of(BLOCK) || run == 0 {
            let what = format!("rows of {k} and scales of {run} values are not all of whole blocks of {BLOCK}");
            return Err(Fault::Unsupported(what));
        }
        let Some(count) = n.checked_mul(k) else { return malformed!("`shape` {:?} overflows", state.shape) };
        let part = |suffix: &str, kind: &str, count: usize| -> Result<&'a [u8], Fault> {
            let Some(info) = file.info(&format!("{weight}.{suffix}")) else {
                return malformed!("`{suffix}` is missing");
            };
            let size = if kind == "U8" { 1 } else { 4 };
            match info.bytes {
                Some(bytes) if info.type_name == kind && bytes.len() / size == count => Ok(bytes),
                _ => malformed!("`{suffix}` is {} {:?}, must be {kind} [{count}]", info.type_name, info.shape),
            }
        };
        let codes = match info.bytes {
            Some(bytes) if info.type_name == "U8" && bytes.len() == count / 2 => bytes,
            _ => {
                let (kind, stored) = (info.type_name, info.shape);
                return malformed!("is {kind} {stored:?}, which does not hold {:?} codes of 4 bits", state.shape);
            }
        };
        let table = part("quant_map", "F32", 16)?;
        let is_known =
            |(at, value): (usize, &f32)| (number(table, at) - value).abs() <= TABLE_TOLERANCE * value.abs().max(1e-3);
        if !format.table().values.iter().enumerate().all(is_known) {
            return Err(Fault::Unsupported(format!("`quant_map` is not the table of {}", format.name())));
        }
        let scales = count.div_ceil(run);
        let absmax = match (state.nested_blocksize, state.nested_offset) {
            (None, None) => Absmax::Plain(part("absmax", "F32", scales)?),
            (Some(run), Some(offset)) if run > 0 => Absmax::Nested {
                codes: part("absmax", "U8", scales)?,
                map: part("nested_quant_map", "F32", 256)?,
                scales: part("nested_absmax", "F32", scales.div_ceil(run))?,
                run,
                offset,
            },
            _ => return malformed!("`quant_state` has one of `nested_blocksize` and `nested_offset`, or 0"),
        };
        let mut sources = Vec::new();
        for name in [weight.to_owned(), format!("{weight}.absmax")] {
            if let (Some(source), Some(TensorInfo { bytes: Some(bytes), .. })) =
                (file.source_of(&name), file.info(&name))
            {
                sources.push((source, bytes));
            }
        }
        Ok(Self { format, shape: [n, k], codes, absmax, run, sources })
    }

    /// The codes of a block, from value `start` of the matrix on.
    fn codes(&self, start: usize) -> [u8; BLOCK] {
        let bytes = &self.codes[start / 2..][..BLOCK / 2];
        std::array::from_fn(|i| if i % 2 == 0 { bytes[i / 2] >> 4 } else { bytes[i / 2] & 15 })
    }

    fn scale(&self, index: usize) -> f32 {
        match self.absmax {
            Absmax::Plain(bytes) => number(bytes, index),
            Absmax::Nested { codes, map, scales, run, offset } => {
                number(map, usize::from(codes[index])) * number(scales, index / run) + offset
            }
        }
    }
}

impl CodedMatrix for LookupTensor<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn dtype(&self) -> DType {
        self.format.block_dtype()
    }

    /// Scales are rounded to f16.
    fn blocks(&self, rows: Range<usize>) -> Vec<u8> {
        let columns = self.shape[1];
        let mut out = Vec::with_capacity(rows.len() * columns / BLOCK * self.dtype().block_bytes());
        for start in (rows.start * columns..rows.end * columns).step_by(BLOCK) {
            let codes = self.codes(start);
            let scale = self.scale(start / self.run).clamp(f16::MIN.to_f32(), f16::MAX.to_f32());
            self.format.write_block(f16::from_f32(scale), &codes, &mut out);
        }
        out
    }

    fn values(&self, rows: Range<usize>, out: &mut [f32]) {
        let columns = self.shape[1];
        assert_eq!(out.len(), rows.len() * columns, "values are not those of the rows");
        let table = &self.format.table().values;
        let starts = (rows.start * columns..rows.end * columns).step_by(BLOCK);
        for (start, out) in starts.zip(out.as_chunks_mut::<BLOCK>().0) {
            let scale = self.scale(start / self.run);
            out.iter_mut().zip(self.codes(start)).for_each(|(out, code)| *out = table[usize::from(code)] * scale);
        }
    }

    fn release(&self) {
        self.sources.iter().for_each(|(source, bytes)| source.release(bytes));
    }
}

/// A number of some F32.
fn number(bytes: &[u8], index: usize) -> f32 {
    bytes[4 * index..].first_chunk().map_or(f32::NAN, |bytes| f32::from_le_bytes(*bytes))
}
