//! MXFP4 weights as GPT-OSS stores its experts: in place of a tensor `NAME` `[…, N, K]` its codes and scales.
//!
//! | tensor | |
//! |---|---|
//! | `NAME_blocks` U8 `[…, N, K / 32, 16]` | codes of e2m1, of neighbouring values in one byte, the first one in the low half |
//! | `NAME_scales` U8 `[…, N, K / 32]` | 127 more than the exponent of the scale of 32 values |
//!
//! They run as MXFP4, exactly: only the codes of a block change places.
//!
//! Source: transformers 5.23 (`integrations/mxfp4.py`); OCP Microscaling Formats (MX) 1.0.

use crate::{
    CodedMatrix, FormatError, Source, TensorInfo,
    fault::{Fault, Name, malformed},
    safetensors::SafeTensors,
};
use edgelm_tensor::{
    DType,
    block::{Block, BlockMxfp4},
};
use serde::Deserialize;
use serde_json::Value;
use std::{ops::Range, path::Path};

/// What the names of the two tensors end in.
pub const PARTS: [&str; 2] = ["_blocks", "_scales"];

/// What cannot change the meaning of what is stored has an underscore: which tensors are quantized, they show themselves.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(rename = "quant_method")]
    _method: String,
    #[serde(rename = "modules_to_not_convert")]
    _skipped: Option<Value>,
    #[serde(rename = "dequantize")]
    _dequantize: Option<bool>,
}

/// Errors if the value of `quantization_config` has keys that are not known; `path` is that of config.json.
pub fn check_config(value: &Value, path: &Path) -> Result<(), FormatError> {
    match Stored::deserialize(value) {
        Ok(_) => Ok(()),
        Err(error) => Err(Fault::Malformed(error.to_string()).within("`quantization_config`").at(path)),
    }
}

/// Bytes of the codes of a block.
const BYTES: usize = 16;

/// Matrices `[…, N, K]` of one tensor, seen as one of `[… · N, K]`, borrowed from the file.
pub struct Mxfp4Tensor<'a> {
    outer: &'a [usize],
    shape: [usize; 2],
    codes: &'a [[u8; BYTES]],
    scales: &'a [u8],
    source: &'a Source,
}

impl<'a> Mxfp4Tensor<'a> {
    /// The tensor of a name. `None` if the file has no `NAME_blocks`.
    ///
    /// Errors: scales that are missing; other types, or shapes that do not belong together.
    pub fn open(file: &'a SafeTensors, name: &str) -> Result<Option<Self>, FormatError> {
        let blocks = format!("{name}{}", PARTS[0]);
        let Some((info, source)) = file.info(&blocks).zip(file.source_of(&blocks)) else { return Ok(None) };
        Self::checked(file, name, &info, source)
            .map(Some)
            .map_err(|fault| fault.within(format_args!("tensor {}", Name(&blocks))).at(source.path()))
    }

    fn checked(file: &'a SafeTensors, name: &str, blocks: &TensorInfo<'a>, source: &'a Source) -> Result<Self, Fault> {
        let ("U8", [outer @ .., groups, BYTES], Some(codes)) = (blocks.type_name, blocks.shape, blocks.bytes) else {
            return malformed!("is {} {:?}, must be U8 […, {BYTES}]", blocks.type_name, blocks.shape);
        };
        let Some(scales) = file.info(&format!("{name}{}", PARTS[1])) else {
            return malformed!("{} is missing", Name(&format!("{name}{}", PARTS[1])));
        };
        let want = &blocks.shape[..blocks.shape.len() - 1];
        let ("U8", Some(bytes)) = (scales.type_name, scales.bytes.filter(|_| scales.shape == want)) else {
            return malformed!("its scales are {} {:?}, must be U8 {want:?}", scales.type_name, scales.shape);
        };
        // Products of sizes of tensors that are in the file, at two values to a byte.
        let rows: Option<usize> = outer.iter().try_fold(1usize, |rows, size| rows.checked_mul(*size));
        let (Some(rows), Some(columns)) = (rows, groups.checked_mul(BlockMxfp4::LEN)) else {
            return malformed!("shape {:?} overflows", blocks.shape);
        };
        Ok(Self { outer, shape: [rows, columns], codes: codes.as_chunks().0, scales: bytes, source })
    }

    /// The blocks of some rows.
    fn each(&self, rows: Range<usize>) -> impl Iterator<Item = BlockMxfp4> {
        let per_row = self.shape[1] / BlockMxfp4::LEN;
        let blocks = rows.start * per_row..rows.end * per_row;
        self.codes[blocks.clone()].iter().zip(&self.scales[blocks]).map(|(codes, &exponent)| {
            let code = |i: usize| codes[i / 2] >> (4 * (i % 2)) & 15;
            // 2^(e − 127) · e2m1 = 2^(e − 128) · twice e2m1: the same e.
            BlockMxfp4 { exponent, nibbles: std::array::from_fn(|i| code(i) | code(i + BYTES) << 4) }
        })
    }
}

impl CodedMatrix for Mxfp4Tensor<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn full_shape(&self) -> Vec<usize> {
        self.outer.iter().copied().chain([self.shape[1]]).collect()
    }

    fn dtype(&self) -> DType {
        DType::MXFP4
    }

    fn blocks(&self, rows: Range<usize>) -> Vec<u8> {
        let bytes = |block: BlockMxfp4| std::iter::once(block.exponent).chain(block.nibbles);
        self.each(rows).flat_map(bytes).collect()
    }

    fn values(&self, rows: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), rows.len() * self.shape[1], "values are not those of the rows");
        for (block, out) in self.each(rows).zip(out.chunks_exact_mut(BlockMxfp4::LEN)) {
            block.decode(out);
        }
    }

    fn release(&self) {
        self.source.release(self.codes.as_flattened());
    }
}
