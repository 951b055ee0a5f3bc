//! One matrix: its parts checked, and its rows as blocks.

use super::{
    Activations, Group, Packing,
    sparse::{bitmask, parts},
    two_of_four::Bitmask,
};
use crate::{
    CodedMatrix, FormatError, IntLayout, Ints, Source, TensorInfo,
    bits::Bits,
    fault::{Fault, Name, malformed},
    safetensors::SafeTensors,
};
use edgelm_tensor::{DType, IntBlock, IntFormat, block::decode_row};
use half::f16;
use std::ops::Range;

/// Values of a block.
const BLOCK: usize = 32;

/// A matrix of integers, borrowed from the file.
pub struct IntTensor<'a> {
    format: IntFormat,
    shape: [usize; 2],
    quants: Quants<'a>,
    /// Where the quants belong, if they are two of every four.
    bitmask: Option<Bitmask<'a>>,
    scales: Scales<'a>,
    zeros: Option<Zeros<'a>>,
    input_scale: Option<f32>,
    sources: Vec<(&'a Source, &'a [u8])>,
}

#[derive(Clone, Copy)]
enum Quants<'a> {
    Bytes(&'a [u8]),
    Words(&'a [u8], Bits),
}

/// `[rows, columns]`, or one of each.
#[derive(Clone, Copy)]
struct Scales<'a> {
    dtype: DType,
    bytes: &'a [u8],
    rows: usize,
    columns: usize,
}

#[derive(Clone, Copy)]
enum Zeros<'a> {
    Bytes(&'a [u8]),
    Words(&'a [u8], Bits),
}

impl<'a> IntTensor<'a> {
    /// The matrix that stands for `{module}.weight`. `None` if the file has none of its parts.
    ///
    /// Errors: parts that are missing, of another type or shape; rows or groups that are not whole blocks of 32.
    pub fn open(file: &'a SafeTensors, module: &str, group: &'a Group) -> Result<Option<Self>, FormatError> {
        // Modules that a sparse group names may be dense.
        let is_compressed = group.format.is_sparse() && file.info(&format!("{module}.compressed")).is_some();
        let name = match group.packing {
            Packing::Words => format!("{module}.weight_packed"),
            Packing::Bytes if is_compressed => format!("{module}.compressed"),
            Packing::Bytes => format!("{module}.weight"),
        };
        let Some((info, source)) = file.info(&name).zip(file.source_of(&name)) else { return Ok(None) };
        if group.packing == Packing::Bytes && info.type_name != "I8" {
            return Ok(None);
        }
        Self::parts(file, module, group, info)
            .map(Some)
            .map_err(|fault| fault.within(format_args!("tensor {}", Name(&name))).at(source.path()))
    }

    fn parts(file: &'a SafeTensors, module: &str, group: &'a Group, weight: TensorInfo<'a>) -> Result<Self, Fault> {
        let part = |suffix: &str| file.info(&format!("{module}.{suffix}"));
        let needed = |suffix: &str| match part(suffix) {
            Some(info) => Ok(info),
            None => malformed!("`{suffix}` is missing"),
        };
        if part("weight_g_idx").is_some() {
            return Err(Fault::Unsupported("activation order (`weight_g_idx`) is not supported".to_owned()));
        }
        let mut format = group.format;
        let bits = format.bits();
        let bytes = weight.bytes.unwrap_or_default();
        let (shape, quants, bitmask) = match group.packing {
            Packing::Bytes if format.is_sparse() && part("compressed").is_some() => {
                let (shape, bitmask) = parts(file, module, &weight)?;
                (shape, Quants::Bytes(bytes), Some(bitmask))
            }
            Packing::Bytes => {
                // What a sparse group leaves out of its masks.
                format = IntFormat::new(bits, format.is_symmetric()).unwrap_or(format);
                (two(&weight)?, Quants::Bytes(bytes), None)
            }
            Packing::Words => {
                let shape = stored_shape(&needed("weight_shape")?, "weight_shape")?;
                let stored = if format.is_sparse() { shape[1] / 2 } else { shape[1] };
                let [rows, words] = two(&weight)?;
                let layout = Bits::of_words(bits, stored, words).filter(|_| rows == shape[0]);
                let Some(layout) = layout.filter(|_| weight.type_name == "I32") else {
                    let (kind, stored) = (weight.type_name, weight.shape);
                    return malformed!("is {kind} {stored:?}, which does not hold {shape:?} numbers of {bits} bits");
                };
                let bitmask = match format.is_sparse() {
                    true => Some(bitmask(&needed("bitmask")?, shape)?),
                    false => None,
                };
                (shape, Quants::Words(bytes, layout), bitmask)
            }
        };
        if !shape[1].is_multiple_of(BLOCK) {
            let what = format!("rows of {} quants are not whole blocks of {BLOCK}", shape[1]);
            return Err(Fault::Unsupported(what));
        }
        let scales = scales(&needed("weight_scale")?, shape)?;
        let zeros = match (format.is_symmetric(), part("weight_zero_point")) {
            (false, Some(info)) => Some(zeros(&info, &scales, bits)?),
            (false, None) => return malformed!("`weight_zero_point` is missing"),
            // Zeros by definition.
            (true, _) => None,
        };
        let input_scale = match group.activations {
            Activations::Static => Some(number(&needed("input_scale")?)?),
            _ => None,
        };
        let mut sources = Vec::new();
        for suffix in ["weight_packed", "weight", "compressed", "bitmask", "weight_scale", "weight_zero_point"] {
            let name = format!("{module}.{suffix}");
            if let (Some(source), Some(TensorInfo { bytes: Some(bytes), .. })) =
                (file.source_of(&name), file.info(&name))
            {
                sources.push((source, bytes));
            }
        }
        Ok(Self { format, shape, quants, bitmask, scales, zeros, input_scale, sources })
    }

    /// Calls `body(scale, zero, quants)` for every block of some rows.
    fn each_block(&self, rows: Range<usize>, mut body: impl FnMut(f32, i8, [i8; BLOCK])) {
        let columns = self.shape[1];
        let mut row_scales = vec![0.0; self.scales.columns];
        let group = columns / self.scales.columns.max(1);
        for row in rows {
            self.scales.row(row, &mut row_scales);
            for start in (0..columns).step_by(BLOCK) {
                let at = start / group;
                let mut codes = [0; BLOCK];
                self.quants(row, start, &mut codes);
                body(row_scales[at], self.zero(row, at), codes);
            }
        }
    }

    fn quants(&self, row: usize, start: usize, codes: &mut [i8; BLOCK]) {
        let stored = if self.bitmask.is_some() { self.shape[1] / 2 } else { self.shape[1] };
        let read = |at: usize| match self.quants {
            Quants::Bytes(bytes) => bytes[row * stored + at] as i8,
            Quants::Words(bytes, layout) => {
                let first = row * layout.words(stored);
                layout.read(|word| read_word(bytes, first + word), at)
            }
        };
        match self.bitmask {
            Some(bitmask) => bitmask.spread(row, start, codes, read),
            None => codes.iter_mut().enumerate().for_each(|(i, code)| *code = read(start + i)),
        }
    }

    fn zero(&self, row: usize, column: usize) -> i8 {
        let Scales { rows, columns, .. } = self.scales;
        let row = if rows == 1 { 0 } else { row };
        match self.zeros {
            None => 0,
            Some(Zeros::Bytes(bytes)) => bytes[row * columns + column] as i8,
            Some(Zeros::Words(bytes, layout)) => layout.read(|at| read_word(bytes, at * columns + column), row),
        }
    }
}

impl CodedMatrix for IntTensor<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn dtype(&self) -> DType {
        self.format.block_dtype()
    }

    fn input_scale(&self) -> Option<f32> {
        self.input_scale
    }

    /// Scales, and the minima of asymmetric weights, are rounded to f16.
    fn blocks(&self, rows: Range<usize>) -> Vec<u8> {
        let columns = self.shape[1];
        let format = self.format;
        let mut out = Vec::with_capacity(rows.len() * columns / BLOCK * format.block_bytes());
        self.each_block(rows, |scale, zero, codes| {
            let scale = f16::from_f32(scale.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()));
            format.write_block(&IntBlock { scale, zero, codes }, &mut out);
        });
        out
    }

    fn values(&self, rows: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), rows.len() * self.shape[1], "values are not those of the rows");
        let mut rest = out.as_chunks_mut::<BLOCK>().0.iter_mut();
        self.each_block(rows, |scale, zero, codes| {
            let Some(out) = rest.next() else { return };
            for (out, code) in out.iter_mut().zip(codes) {
                *out = scale * (f32::from(code) - f32::from(zero));
            }
        });
    }

    fn int_layout(&self) -> Option<IntLayout> {
        Some(IntLayout {
            bits: if self.format.bits() <= 4 { 4 } else { 8 },
            group: self.shape[1] / self.scales.columns.max(1),
            has_zeros: self.zeros.is_some(),
            has_offsets: false,
            order: None,
        })
    }

    fn ints(&self, rows: Range<usize>, out: &mut Ints) {
        let mut row_scales = vec![0.0; self.scales.columns];
        for row in rows {
            self.scales.row(row, &mut row_scales);
            out.scales.extend_from_slice(&row_scales);
            if self.zeros.is_some() {
                out.zeros.extend((0..self.scales.columns).map(|column| self.zero(row, column)));
            }
            for start in (0..self.shape[1]).step_by(BLOCK) {
                let mut codes = [0; BLOCK];
                self.quants(row, start, &mut codes);
                out.codes.extend_from_slice(&codes);
            }
        }
    }

    fn release(&self) {
        self.sources.iter().for_each(|(source, bytes)| source.release(bytes));
    }
}

fn read_word(bytes: &[u8], index: usize) -> u32 {
    bytes[4 * index..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}

impl Scales<'_> {
    fn row(&self, row: usize, out: &mut [f32]) {
        let row = if self.rows == 1 { 0 } else { row };
        let bytes = out.len() * self.dtype.block_bytes();
        // Lengths were checked when the file was opened.
        if decode_row(self.dtype, &self.bytes[row * bytes..][..bytes], out).is_err() {
            out.fill(f32::NAN);
        }
    }
}

fn two(info: &TensorInfo<'_>) -> Result<[usize; 2], Fault> {
    match *info.shape {
        [rows, columns] => Ok([rows, columns]),
        _ => malformed!("has shape {:?}, must be a matrix", info.shape),
    }
}

/// Two sizes, `[2]` or `[2, 1]`.
pub(super) fn stored_shape(info: &TensorInfo<'_>, name: &str) -> Result<[usize; 2], Fault> {
    let (Some(bytes), [2] | [2, 1]) = (info.bytes, info.shape) else {
        return malformed!("`{name}` has shape {:?}, must be [2]", info.shape);
    };
    let value = |at: usize| -> Option<usize> {
        match info.type_name {
            "I64" => i64::from_le_bytes(*bytes.get(8 * at..)?.first_chunk()?).try_into().ok(),
            "I32" => i32::from_le_bytes(*bytes.get(4 * at..)?.first_chunk()?).try_into().ok(),
            _ => None,
        }
    };
    match (value(0), value(1)) {
        (Some(rows), Some(columns)) if rows.checked_mul(columns).is_some() => Ok([rows, columns]),
        _ => malformed!("`{name}` is not two sizes"),
    }
}

fn scales<'a>(info: &TensorInfo<'a>, [n, k]: [usize; 2]) -> Result<Scales<'a>, Fault> {
    let (rows, columns) = match *info.shape {
        [1] | [] => (1, 1),
        [rows, columns] => (rows, columns),
        [rows] => (rows, 1),
        _ => return malformed!("`weight_scale` has shape {:?}", info.shape),
    };
    let (Some(dtype), Some(bytes)) = (info.dtype, info.bytes) else {
        return malformed!("`weight_scale` is stored as {}", info.type_name);
    };
    let is_whole = columns > 0 && k.is_multiple_of(columns) && (rows == n || (rows == 1 && columns == 1));
    if !is_whole {
        return malformed!("`weight_scale` has shape {:?} for a matrix of [{n}, {k}]", info.shape);
    }
    if !(k / columns).is_multiple_of(BLOCK) {
        let what = format!("groups of {} values are not whole blocks of {BLOCK}", k / columns);
        return Err(Fault::Unsupported(what));
    }
    Ok(Scales { dtype, bytes, rows, columns })
}

fn zeros<'a>(info: &TensorInfo<'a>, scales: &Scales<'_>, bits: u32) -> Result<Zeros<'a>, Fault> {
    let bytes = info.bytes.unwrap_or_default();
    let count: usize = info.shape.iter().product();
    match info.type_name {
        "I8" if count == scales.rows * scales.columns => Ok(Zeros::Bytes(bytes)),
        "I32" if info.shape.last() == Some(&scales.columns) => {
            let words = count / scales.columns;
            match Bits::of_words(bits, scales.rows, words) {
                Some(layout) => Ok(Zeros::Words(bytes, layout)),
                None => malformed!("`weight_zero_point` is I32 {:?} for {} rows", info.shape, scales.rows),
            }
        }
        other => malformed!("`weight_zero_point` is {other} {:?}, which is not that of the scales", info.shape),
    }
}

fn number(info: &TensorInfo<'_>) -> Result<f32, Fault> {
    let mut value = [0.0];
    let decoded = match (info.dtype, info.bytes) {
        (Some(dtype), Some(bytes)) => decode_row(dtype, bytes, &mut value).is_ok(),
        _ => false,
    };
    if !decoded || !value[0].is_finite() || value[0] <= 0.0 {
        return malformed!("`input_scale` is not one number above 0");
    }
    Ok(value[0])
}
