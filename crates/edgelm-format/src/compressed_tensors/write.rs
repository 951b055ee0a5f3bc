//! One matrix on its way into a file.

use super::{Activations, Group, Packing, Strategy, two_of_four};
use crate::{bits::Bits, safetensors::Element};
use edgelm_tensor::IntBlock;

/// Values of a block.
const BLOCK: usize = 32;

/// The parts of a matrix in the order of [`declare_matrix`].
pub struct PackedMatrix {
    /// Bytes of each part.
    pub parts: Vec<Vec<u8>>,
}

/// Columns of the scales of rows of `columns`.
fn scale_columns(strategy: Strategy, columns: usize) -> usize {
    match strategy {
        Strategy::Tensor | Strategy::Channel => 1,
        Strategy::Group(size) => columns / size.max(1),
    }
}

/// Names, types and shapes of the tensors that stand for `{module}.weight` `[N, K]`.
pub fn declare_matrix(module: &str, group: &Group, [n, k]: [usize; 2]) -> Vec<(String, Element, Vec<usize>)> {
    let name = |suffix: &str| format!("{module}.{suffix}");
    let layout = Bits::dense(group.format.bits());
    let columns = scale_columns(group.strategy, k);
    let is_sparse = group.format.is_sparse();
    let stored = if is_sparse { k / 2 } else { k };
    let mut parts = match group.packing {
        Packing::Words => vec![(name("weight_packed"), Element::I32, vec![n, layout.words(stored)])],
        Packing::Bytes if is_sparse => vec![(name("compressed"), Element::I8, vec![n, stored])],
        Packing::Bytes => vec![(name("weight"), Element::I8, vec![n, k])],
    };
    if is_sparse {
        parts.push((name("bitmask"), Element::U8, vec![n, k / 8]));
    }
    let scales = if group.strategy == Strategy::Tensor { vec![1] } else { vec![n, columns] };
    parts.push((name("weight_scale"), Element::F16, scales.clone()));
    if !group.format.is_symmetric() {
        parts.push(match group.packing {
            Packing::Words if group.strategy != Strategy::Tensor => {
                (name("weight_zero_point"), Element::I32, vec![layout.words(n), columns])
            }
            _ => (name("weight_zero_point"), Element::I8, scales),
        });
    }
    match group.packing {
        Packing::Words => parts.push((name("weight_shape"), Element::I64, vec![2])),
        Packing::Bytes if is_sparse => parts.push((name("shape"), Element::I64, vec![2, 1])),
        Packing::Bytes => {}
    }
    if group.activations == Activations::Static {
        parts.push((name("input_scale"), Element::F32, vec![1]));
    }
    parts
}

/// The bytes of those tensors, from blocks of the group's format whose scales (and zeros) are equal throughout each of its
/// runs. Panics if `blocks` is not `[N, K]`; `input_scale` is written where the group wants one.
pub fn pack_matrix(group: &Group, [n, k]: [usize; 2], blocks: &[u8], input_scale: f32) -> PackedMatrix {
    let format = group.format;
    let layout = Bits::dense(format.bits());
    let columns = scale_columns(group.strategy, k);
    let blocks_per_scale = (k / columns.max(1) / BLOCK).max(1);
    let row_bytes = k / BLOCK * format.block_bytes();
    assert_eq!(blocks.len(), n * row_bytes);
    let (mut quants, mut masks, mut scales) = (Vec::new(), Vec::new(), Vec::new());
    let mut zeros = vec![0i8; n * columns];
    for row in 0..n {
        let mut codes = Vec::with_capacity(k);
        for (index, bytes) in blocks[row * row_bytes..][..row_bytes].chunks_exact(format.block_bytes()).enumerate() {
            let IntBlock { scale, zero, codes: of_block } = format.read_block(bytes);
            codes.extend(of_block);
            if index % blocks_per_scale == 0 && (group.strategy != Strategy::Tensor || row + index == 0) {
                scales.extend(scale.to_le_bytes());
                zeros[row * columns + index / blocks_per_scale] = zero;
            }
        }
        if format.is_sparse()
            && let Some((of_row, stored)) = two_of_four(&codes, |code| *code == 0)
        {
            // Blocks hold no more.
            masks.extend(of_row);
            codes = stored;
        }
        match group.packing {
            Packing::Bytes => quants.extend(codes.iter().map(|code| *code as u8)),
            Packing::Words => quants.extend(layout.write(&codes).into_iter().flat_map(u32::to_le_bytes)),
        }
    }
    let mut parts = vec![quants];
    if format.is_sparse() {
        parts.push(masks);
    }
    parts.push(scales);
    if !format.is_symmetric() {
        parts.push(match (group.packing, group.strategy) {
            (_, Strategy::Tensor) => vec![zeros.first().map_or(0, |zero| *zero as u8)],
            (Packing::Bytes, _) => zeros.iter().map(|zero| *zero as u8).collect(),
            (Packing::Words, _) => {
                let column = |at: usize| layout.write(&(0..n).map(|row| zeros[row * columns + at]).collect::<Vec<_>>());
                let by_column: Vec<Vec<u32>> = (0..columns).map(column).collect();
                let words = (0..layout.words(n)).flat_map(|word| by_column.iter().map(move |column| column[word]));
                words.flat_map(u32::to_le_bytes).collect()
            }
        });
    }
    if group.packing == Packing::Words || format.is_sparse() {
        parts.push([n, k].into_iter().flat_map(|size| (size as i64).to_le_bytes()).collect());
    }
    if group.activations == Activations::Static {
        parts.push(input_scale.to_le_bytes().to_vec());
    }
    PackedMatrix { parts }
}
