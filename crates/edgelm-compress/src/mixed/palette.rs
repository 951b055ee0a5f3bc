//! The formats that a mixture may be made of.

use crate::{CompressError, IntSettings, MatrixFormat, Strategy, fuse::Fuse, quantize::is_gguf};
use edgelm_format::{
    gguf::{Value, header_bytes},
    safetensors::{Element, Writer},
};
use edgelm_model::{Checkpoint, TensorId};
use edgelm_tensor::{DType, IntFormat};
use std::{collections::BTreeMap, path::Path};

/// What kind of output a mixture is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Palette {
    /// The block formats of GGUF.
    Blocks,
    /// Integers with a scale per group or row, in a folder.
    Ints,
}

/// Formats that can have a place in a mixture, by their bits over its mean. Of mica-40m's tensors at 3.1 to 6 bits none was
/// given one beyond 0.65 to 2.1; and encoding for trial in the low-bit formats is what takes the time.
const BITS_AROUND_MEAN: std::ops::RangeInclusive<f64> = 0.6..=2.8;

/// For rows that are not whole blocks of 256 values, and for those that are not whole blocks of anything.
const ALWAYS: [DType; 2] = [DType::IQ4_NL, DType::F16];

/// What is not quantized, in a folder.
const FLOATS: [DType; 2] = [DType::BF16, DType::F16];

/// What costs little to try and spans all sizes.
const ROUGH: [DType; 6] = [DType::Q2_K, DType::Q3_K, DType::IQ4_NL, DType::Q5_K, DType::Q6_K, DType::Q8_0];

/// Sizes of groups that share a scale.
const GROUP_SIZES: [usize; 3] = [32, 64, 128];

impl Palette {
    /// The one for an output of this name.
    pub fn of(output: &Path) -> Self {
        if is_gguf(output) { Self::Blocks } else { Self::Ints }
    }

    /// All of it.
    fn all(self) -> Vec<MatrixFormat> {
        match self {
            Self::Blocks => {
                let has_place = |dtype: &DType| dtype.is_quantized() && dtype.gguf_id().is_some();
                DType::all().filter(has_place).map(MatrixFormat::Block).collect()
            }
            Self::Ints => {
                let mut formats = Vec::new();
                // Zero points pay where there are few steps.
                let kinds = [(2, false), (3, false), (4, true), (8, true)];
                for format in kinds.into_iter().filter_map(|(bits, symmetric)| IntFormat::new(bits, symmetric)) {
                    let groups = GROUP_SIZES.map(Strategy::Group);
                    let strategies = groups.into_iter().chain((format.bits() == 8).then_some(Strategy::Channel));
                    formats.extend(strategies.map(|strategy| MatrixFormat::Int(IntSettings { format, strategy })));
                }
                formats
            }
        }
    }

    /// What could be chosen for a mixture of `mean` bits per weight.
    pub(super) fn around(self, mean: f64) -> Vec<MatrixFormat> {
        // Beyond the largest format there is nothing to mix.
        let mean = mean.min(DType::Q8_0.bits_per_weight());
        let is_near = |format: &MatrixFormat| BITS_AROUND_MEAN.contains(&(bits(*format) / mean));
        self.with_fallbacks(self.all().into_iter().filter(is_near).collect())
    }

    /// A few formats of all sizes.
    pub(super) fn rough(self) -> Vec<MatrixFormat> {
        let few = match self {
            Self::Blocks => ROUGH.map(MatrixFormat::Block).to_vec(),
            Self::Ints => self.all().into_iter().filter(is_plain).collect(),
        };
        self.with_fallbacks(few)
    }

    fn with_fallbacks(self, mut formats: Vec<MatrixFormat>) -> Vec<MatrixFormat> {
        let always = if self == Self::Blocks { ALWAYS } else { FLOATS };
        for format in always.map(MatrixFormat::Block) {
            if !formats.contains(&format) {
                formats.push(format);
            }
        }
        formats
    }

    /// Bytes of everything but matrices.
    pub(super) fn vector_bytes(self, checkpoint: &Checkpoint) -> Result<u64, CompressError> {
        let vectors = checkpoint.tensor_ids().iter().filter(|id| !id.is_matrix());
        let bytes = |&id: &TensorId| -> Result<u64, CompressError> {
            let (dtype, shape) = checkpoint.describe(id)?;
            let element = match (self, Element::of(dtype)) {
                (Self::Blocks, _) => Element::F32,
                (Self::Ints, element) => element.unwrap_or(Element::F16),
            };
            Ok((element.bytes() * shape.iter().product::<usize>()) as u64)
        };
        vectors.map(bytes).sum()
    }

    /// Bytes of the weight file that are no tensors: metadata, directory and padding; of a folder at most, its directory if all
    /// matrices had zero points.
    pub(super) fn header_bytes(self, checkpoint: &Checkpoint) -> Result<u64, CompressError> {
        match self {
            Self::Blocks => gguf_header_bytes(checkpoint),
            Self::Ints => folder_header_bytes(checkpoint),
        }
    }
}

fn gguf_header_bytes(checkpoint: &Checkpoint) -> Result<u64, CompressError> {
    let checkpoint = &checkpoint.gguf_form();
    let mut declared = Vec::new();
    for (name, shape, _) in checkpoint.gguf_extra_tensors() {
        declared.push((name, DType::F32, shape));
    }
    for tensor in Fuse::new(&checkpoint.config().arch.gguf_names, checkpoint.config()).declare(checkpoint.tensor_ids())
    {
        declared.push((tensor.name, DType::F32, tensor.shape));
    }
    let mut metadata = checkpoint.gguf_metadata()?;
    metadata.push(("general.file_type".into(), Value::U32(0)));
    let (header, padding) = header_bytes(&metadata, &declared)?;
    Ok(header + padding)
}

fn folder_header_bytes(checkpoint: &Checkpoint) -> Result<u64, CompressError> {
    let mut declared = Vec::new();
    for tensor in Fuse::new(&checkpoint.config().arch.hf_names, checkpoint.config()).declare(checkpoint.tensor_ids()) {
        let (name, shape) = (tensor.name, tensor.shape);
        let parts: &[&str] = match tensor.members[0].is_matrix() {
            true => &["_packed", "_scale", "_zero_point", "_shape"],
            false => &[""],
        };
        declared.extend(parts.iter().map(|part| (format!("{name}{part}"), Element::I64, shape.clone())));
    }
    Ok(Writer::header_bytes(&declared, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))?)
}

/// Bits per weight in long rows.
fn bits(format: MatrixFormat) -> f64 {
    const ROWS: usize = 1 << 10;
    format.bytes(ROWS, ROWS).map_or(f64::INFINITY, |bytes| bytes as f64 * 8.0 / (ROWS * ROWS) as f64)
}

fn is_plain(format: &MatrixFormat) -> bool {
    matches!(format, MatrixFormat::Int(IntSettings { strategy: Strategy::Group(32), .. }))
}
