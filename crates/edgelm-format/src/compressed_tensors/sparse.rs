//! A matrix of floats of which every four values two are stored.

use super::{
    read::stored_shape,
    two_of_four::{Bitmask, two_of_four},
};
use crate::{
    CodedMatrix, FormatError, Source, TensorInfo,
    fault::{Fault, Name, malformed},
    safetensors::{Element, SafeTensors},
};
use edgelm_tensor::{DType, block::decode_row};
use std::ops::Range;

/// Borrowed from the file.
pub struct SparseTensor<'a> {
    shape: [usize; 2],
    dtype: DType,
    values: &'a [u8],
    bitmask: Bitmask<'a>,
    source: &'a Source,
}

impl<'a> SparseTensor<'a> {
    /// The matrix that stands for `{module}.weight`. `None` if the file has no stored values of floats for it.
    ///
    /// Errors: parts that are missing, of another type or shape; masks that do not have two of every four bits.
    pub fn open(file: &'a SafeTensors, module: &str) -> Result<Option<Self>, FormatError> {
        let name = format!("{module}.compressed");
        let Some((info, source)) = file.info(&name).zip(file.source_of(&name)) else { return Ok(None) };
        let Some((dtype, values)) = info.dtype.zip(info.bytes) else { return Ok(None) };
        let place = |fault: Fault| fault.within(format_args!("tensor {}", Name(&name))).at(source.path());
        let (shape, bitmask) = parts(file, module, &info).map_err(place)?;
        Ok(Some(Self { shape, dtype, values, bitmask, source }))
    }

    fn expanded<const S: usize>(&self, rows: Range<usize>) -> Vec<u8> {
        let columns = self.shape[1];
        let values = self.values.as_chunks::<S>().0;
        let mut out = Vec::with_capacity(rows.len() * columns * S);
        // Little-endian zeros are zero bytes in every type.
        let mut of_row = vec![0u32; columns];
        for row in rows {
            let values = &values[row * columns / 2..][..columns / 2];
            let word = |bytes: [u8; S]| {
                let mut word = [0; 4];
                word[..S].copy_from_slice(&bytes);
                u32::from_le_bytes(word)
            };
            self.bitmask.spread(row, 0, &mut of_row, |i| word(values[i]));
            out.extend(of_row.iter().flat_map(|word| word.to_le_bytes().into_iter().take(S)));
        }
        out
    }
}

impl CodedMatrix for SparseTensor<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    /// As stored, with the zeros.
    fn blocks(&self, rows: Range<usize>) -> Vec<u8> {
        match self.dtype.block_bytes() {
            4 => self.expanded::<4>(rows),
            _ => self.expanded::<2>(rows),
        }
    }

    fn values(&self, rows: Range<usize>, out: &mut [f32]) {
        // As many bytes as the values need.
        if decode_row(self.dtype, &self.blocks(rows), out).is_err() {
            out.fill(f32::NAN);
        }
    }

    fn release(&self) {
        self.source.release(self.values);
    }
}

/// The shape and masks beside stored values.
pub(super) fn parts<'a>(
    file: &'a SafeTensors,
    module: &str,
    values: &TensorInfo<'_>,
) -> Result<([usize; 2], Bitmask<'a>), Fault> {
    let part = |suffix: &str| match file.info(&format!("{module}.{suffix}")) {
        Some(info) => Ok(info),
        None => malformed!("`{suffix}` is missing"),
    };
    let shape = stored_shape(&part("shape")?, "shape")?;
    let [n, k] = shape;
    if *values.shape != [n, k / 2] || !k.is_multiple_of(8) {
        let (kind, stored) = (values.type_name, values.shape);
        return malformed!("is {kind} {stored:?}, which are not two of every four of {shape:?}");
    }
    Ok((shape, bitmask(&part("bitmask")?, shape)?))
}

/// The masks of a matrix `[N, K]`.
pub(super) fn bitmask<'a>(info: &TensorInfo<'a>, shape: [usize; 2]) -> Result<Bitmask<'a>, Fault> {
    match info.bytes {
        Some(bytes) if info.type_name == "U8" => Bitmask::new(bytes, shape),
        _ => malformed!("`bitmask` is {}, must be U8", info.type_name),
    }
}

/// Names, types and shapes of the tensors that stand for `{module}.weight` `[N, K]` of floats.
pub fn declare_sparse(module: &str, element: Element, [n, k]: [usize; 2]) -> [(String, Element, Vec<usize>); 3] {
    [
        (format!("{module}.compressed"), element, vec![n, k / 2]),
        (format!("{module}.bitmask"), Element::U8, vec![n, k / 8]),
        (format!("{module}.shape"), Element::I64, vec![2, 1]),
    ]
}

/// The bytes of those tensors, from rows of values of `size` bytes. Panics if `rows` is not `[N, K]`, or if more than two of any
/// four values are not zero.
pub fn pack_sparse(size: usize, [n, k]: [usize; 2], rows: &[u8]) -> [Vec<u8>; 3] {
    assert_eq!(rows.len(), n * k * size);
    let values: Vec<&[u8]> = rows.chunks_exact(size).collect();
    // Zeros of either sign.
    let is_zero = |value: &&[u8]| {
        value.split_last().is_some_and(|(last, rest)| last & 0x7f == 0 && rest.iter().all(|byte| *byte == 0))
    };
    let found = two_of_four(&values, is_zero);
    assert!(found.is_some(), "more than two of four values are not zero");
    let (masks, stored) = found.unwrap_or_default();
    [stored.concat(), masks, [n, k].into_iter().flat_map(|size| (size as i64).to_le_bytes()).collect()]
}
