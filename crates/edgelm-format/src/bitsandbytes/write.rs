//! One matrix on its way into a file.

use super::state_name;
use crate::safetensors::Element;
use edgelm_tensor::LookupFormat;
use serde_json::json;

/// Values of a block.
const BLOCK: usize = 32;

/// What is stored.
#[derive(Debug, Clone, Copy)]
pub struct LookupMatrix {
    /// What codes mean.
    pub format: LookupFormat,
    /// Values that share a scale.
    pub run: usize,
    /// `[N, K]`.
    pub shape: [usize; 2],
}

impl LookupMatrix {
    fn state(&self) -> Vec<u8> {
        // The type that the weights are given when they are unpacked.
        let state = json!({
            "quant_type": self.format.name(), "blocksize": self.run, "dtype": "float16", "shape": self.shape,
        });
        state.to_string().into_bytes()
    }
}

/// Names, types and shapes of the tensors that stand for a weight.
pub fn declare_lookup(weight: &str, matrix: &LookupMatrix) -> Vec<(String, Element, Vec<usize>)> {
    let [n, k] = matrix.shape;
    vec![
        (weight.to_owned(), Element::U8, vec![n * k / 2, 1]),
        (format!("{weight}.absmax"), Element::F32, vec![(n * k).div_ceil(matrix.run.max(1))]),
        (format!("{weight}.quant_map"), Element::F32, vec![16]),
        (state_name(weight, matrix.format), Element::U8, vec![matrix.state().len()]),
    ]
}

/// The bytes of those tensors, from blocks whose scales are equal throughout each run. Panics if `blocks` is not `[N, K]`.
pub fn pack_lookup(matrix: &LookupMatrix, blocks: &[u8]) -> Vec<Vec<u8>> {
    let [n, k] = matrix.shape;
    let block_bytes = matrix.format.block_dtype().block_bytes();
    assert_eq!(blocks.len(), n * k / BLOCK * block_bytes);
    let (mut packed, mut scales) = (Vec::with_capacity(n * k / 2), Vec::new());
    for (index, block) in blocks.chunks_exact(block_bytes).enumerate() {
        let (scale, codes) = matrix.format.read_block(block);
        if (index * BLOCK).is_multiple_of(matrix.run) {
            scales.extend(scale.to_f32().to_le_bytes());
        }
        packed.extend(codes.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]));
    }
    let table = matrix.format.table().values.iter().flat_map(|value| value.to_le_bytes()).collect();
    vec![packed, scales, table, matrix.state()]
}
