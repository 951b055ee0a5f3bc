//! In which form a matrix of the checkpoint stands in the graph, and its bytes.

use crate::{OnnxError, OnnxStyle};
use edgelm_format::{IntLayout, Ints, onnx::DataType};
use edgelm_model::{Checkpoint, TensorId};
use half::f16;

/// Of what is not stored as codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Floats {
    F32,
    F16,
}

impl Floats {
    pub(crate) fn data_type(self) -> DataType {
        match self {
            Self::F32 => DataType::Float,
            Self::F16 => DataType::Float16,
        }
    }

    fn bytes(self, values: impl Iterator<Item = f32>) -> Vec<u8> {
        match self {
            Self::F32 => values.flat_map(f32::to_le_bytes).collect(),
            Self::F16 => values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
        }
    }
}

/// How a matrix `[N, K]` is stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Form {
    /// As it is.
    Rows(Floats),
    /// `[K, N]`, what `MatMul` takes.
    Columns(Floats),
    /// Codes as they are; scales, zeros and offsets `[N, K / group]`.
    IntRows(IntLayout),
    /// Codes `[K, N]`; scales, zeros and offsets `[K / group, N]`.
    IntColumns(IntLayout),
    /// Unsigned codes in blocks, `[N, blocks, block · bits / 8]`, scales and zeros for each, as `MatMulNBits` takes them; offsets
    /// `[K / group, N]`.
    Blocks { layout: IntLayout, block: usize },
}

/// One of the tensors that a matrix becomes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) data_type: DataType,
    pub(crate) dims: Vec<usize>,
}

/// The sizes of blocks that `MatMulNBits` takes.
const BLOCKS: [usize; 5] = [256, 128, 64, 32, 16];

/// The largest block of `MatMulNBits` that cuts groups evenly. One group for a row may have a last block that is not full.
pub(crate) fn block_of(group: usize, columns: usize) -> Option<usize> {
    let even = BLOCKS.into_iter().find(|&block| group.is_multiple_of(block));
    even.or((group == columns).then_some(32))
}

impl Form {
    /// Codes with their scales, or floats and why they are not codes.
    pub(crate) fn of(
        checkpoint: &Checkpoint,
        id: TensorId,
        style: OnnxStyle,
        floats: Floats,
        is_table: bool,
    ) -> Result<(Self, Option<String>), OnnxError> {
        let plain = if is_table { Self::Rows(floats) } else { Self::Columns(floats) };
        if !checkpoint.is_coded(id)? {
            return Ok((plain, None));
        }
        let (_, shape) = checkpoint.describe(id)?;
        let Some(layout) = checkpoint.int_layout(id)? else {
            return Ok((plain, Some("its codes are not whole numbers with scales".to_owned())));
        };
        if is_table && layout.order.is_some() {
            return Ok((plain, Some("rows of a table cannot be in another order".to_owned())));
        }
        let group = layout.group;
        Ok(match style {
            OnnxStyle::Qdq if is_table => (Self::IntRows(layout), None),
            OnnxStyle::Qdq => (Self::IntColumns(layout), None),
            OnnxStyle::Genai => match block_of(group, shape[1]) {
                Some(block) if !is_table || shape[1].is_multiple_of(block) => (Self::Blocks { layout, block }, None),
                _ => (plain, Some(format!("groups of {group} are no blocks of 16 to 256"))),
            },
        })
    }

    pub(crate) fn layout(&self) -> Option<&IntLayout> {
        match self {
            Self::Rows(_) | Self::Columns(_) => None,
            Self::IntRows(layout) | Self::IntColumns(layout) | Self::Blocks { layout, .. } => Some(layout),
        }
    }

    /// In a few words.
    pub(crate) fn name(&self, columns: usize) -> String {
        match self {
            Self::Rows(Floats::F32) | Self::Columns(Floats::F32) => "f32".to_owned(),
            Self::Rows(Floats::F16) | Self::Columns(Floats::F16) => "f16".to_owned(),
            Self::IntRows(layout) | Self::IntColumns(layout) | Self::Blocks { layout, .. } => {
                let per = match layout.group == columns {
                    true => "rows".to_owned(),
                    false => format!("groups of {}", layout.group),
                };
                format!("int{}, {per}", layout.bits)
            }
        }
    }

    /// The tensors of a matrix `[n, k]`, in order: codes or floats, scales, zeros, offsets.
    pub(crate) fn parts(&self, n: usize, k: usize) -> Vec<Part> {
        let part = |name, data_type, dims: &[usize]| Part { name, data_type, dims: dims.to_vec() };
        match self {
            Self::Rows(floats) => vec![part("weight", floats.data_type(), &[n, k])],
            Self::Columns(floats) => vec![part("weight", floats.data_type(), &[k, n])],
            Self::IntRows(layout) | Self::IntColumns(layout) => {
                let is_rows = matches!(self, Self::IntRows(_));
                let data_type = if layout.bits == 4 { DataType::Int4 } else { DataType::Int8 };
                let groups = k / layout.group.max(1);
                let of_groups = match (groups, is_rows) {
                    (1, _) => vec![n],
                    (_, true) => vec![n, groups],
                    (_, false) => vec![groups, n],
                };
                let codes = if is_rows { [n, k] } else { [k, n] };
                let mut parts = vec![part("codes", data_type, &codes), part("scales", DataType::Float, &of_groups)];
                if layout.has_zeros {
                    parts.push(part("zeros", data_type, &of_groups));
                }
                if layout.has_offsets {
                    let dims = if is_rows { [n, groups] } else { [groups, n] };
                    parts.push(part("offsets", DataType::Float, &dims));
                }
                parts
            }
            Self::Blocks { layout, block } => {
                let blocks = k.div_ceil(*block);
                let bytes = |codes: usize| (codes * layout.bits as usize).div_ceil(8);
                let mut parts = vec![
                    part("codes", DataType::Uint8, &[n, blocks, bytes(*block)]),
                    part("scales", DataType::Float, &[n, blocks]),
                ];
                if layout.has_zeros {
                    parts.push(part("zeros", DataType::Uint8, &[n, bytes(blocks)]));
                }
                if layout.has_offsets {
                    parts.push(part("offsets", DataType::Float, &[k / layout.group.max(1), n]));
                }
                parts
            }
        }
    }

    /// Bytes of each part of a matrix `[n, k]`.
    pub(crate) fn bytes(&self, checkpoint: &Checkpoint, id: TensorId) -> Result<Vec<Vec<u8>>, OnnxError> {
        let (_, shape) = checkpoint.describe(id)?;
        let (n, k) = (shape[0], shape[1]);
        match self {
            Self::Rows(floats) | Self::Columns(floats) => {
                let mut values = vec![0.0; n * k];
                checkpoint.values(id, 0..n, &mut values)?;
                Ok(vec![match self {
                    Self::Rows(_) => floats.bytes(values.into_iter()),
                    _ => floats.bytes(Columns { n, k }.places().map(|at| values[at])),
                }])
            }
            Self::IntRows(layout) => {
                let ints = checkpoint.ints(id)?;
                let bits = layout.bits;
                Ok(of_layout(
                    layout,
                    [
                        signed(bits, ints.codes.iter().copied()),
                        Floats::F32.bytes(ints.scales.iter().copied()),
                        signed(bits, ints.zeros.iter().copied()),
                        Floats::F32.bytes(ints.offsets.iter().copied()),
                    ],
                ))
            }
            Self::IntColumns(layout) => {
                let ints = checkpoint.ints(id)?;
                let (bits, groups) = (layout.bits, k / layout.group.max(1));
                let (all, few) = (Columns { n, k }, Columns { n, k: groups });
                let of_groups = |values: &[f32]| match values.is_empty() {
                    true => Vec::new(),
                    false => Floats::F32.bytes(few.places().map(|at| values[at])),
                };
                let zeros: Vec<i8> = match ints.zeros.is_empty() {
                    true => Vec::new(),
                    false => few.places().map(|at| ints.zeros[at]).collect(),
                };
                Ok(of_layout(
                    layout,
                    [
                        signed(bits, all.places().map(|at| ints.codes[at])),
                        of_groups(&ints.scales),
                        signed(bits, zeros.into_iter()),
                        of_groups(&ints.offsets),
                    ],
                ))
            }
            Self::Blocks { layout, block } => Ok(blocks(&checkpoint.ints(id)?, layout, *block, n, k)),
        }
    }
}

/// The order in which the values of a matrix `[n, k]` stand in its transpose.
#[derive(Clone, Copy)]
struct Columns {
    n: usize,
    k: usize,
}

impl Columns {
    fn places(self) -> impl Iterator<Item = usize> {
        (0..self.k).flat_map(move |column| (0..self.n).map(move |row| row * self.k + column))
    }
}

/// Those parts that there are.
fn of_layout(layout: &IntLayout, [codes, scales, zeros, offsets]: [Vec<u8>; 4]) -> Vec<Vec<u8>> {
    let mut parts = vec![codes, scales];
    parts.extend(layout.has_zeros.then_some(zeros));
    parts.extend(layout.has_offsets.then_some(offsets));
    parts
}

/// Two's complement, two codes of 4 bits to a byte, the first in its low half.
fn signed(bits: u32, codes: impl Iterator<Item = i8>) -> Vec<u8> {
    packed(bits, codes.map(|code| code as u8))
}

fn packed(bits: u32, mut codes: impl Iterator<Item = u8>) -> Vec<u8> {
    if bits == 8 {
        return codes.collect();
    }
    let mut bytes = Vec::with_capacity(codes.size_hint().0 / 2);
    while let Some(low) = codes.next() {
        bytes.push(low & 15 | codes.next().unwrap_or(0) << 4);
    }
    bytes
}

/// What `MatMulNBits` takes: unsigned codes, of which the middle one is zero where no zeros are given.
fn blocks(ints: &Ints, layout: &IntLayout, block: usize, n: usize, k: usize) -> Vec<Vec<u8>> {
    let IntLayout { bits, group, has_zeros, .. } = *layout;
    let middle = 1u8 << (bits - 1);
    let unsigned = |code: i8| (code as u8).wrapping_add(middle);
    let (groups, count) = (k / group.max(1), k.div_ceil(block));
    let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..n {
        let of_row = &ints.codes[row * k..][..k];
        let full = of_row.iter().map(|&code| unsigned(code)).chain(std::iter::repeat(middle)).take(count * block);
        codes.extend(packed(bits, full));
        let group_of = |at: usize| row * groups + (at * block / group.max(1)).min(groups - 1);
        scales.extend((0..count).flat_map(|at| ints.scales[group_of(at)].to_le_bytes()));
        if has_zeros {
            zeros.extend(packed(bits, (0..count).map(|at| unsigned(ints.zeros[group_of(at)]))));
        }
    }
    let offsets = match ints.offsets.is_empty() {
        true => Vec::new(),
        false => Floats::F32.bytes(Columns { n, k: groups }.places().map(|at| ints.offsets[at])),
    };
    of_layout(layout, [codes, scales, zeros, offsets])
}
