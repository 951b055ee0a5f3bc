//! A folder whose matrices are stored as codes with scales: seen as one of block formats.
//!
//! Nothing is converted before it is asked for, and nothing that was converted is kept.

use crate::ModelError;
use edgelm_format::{
    CodedMatrix, FormatError, IntLayout, Ints, Reordered, Source, TensorView,
    auto_round::AutoRoundConfig,
    awq::{self, AwqConfig},
    bitnet::{self, BitNetConfig, TernaryTensor},
    bitsandbytes::{self, Int8Tensor, LookupTensor},
    compressed_tensors::{self, Group, IntQuantization, IntTensor, SparseTensor},
    fp8::{self, Fp8Config, Fp8Tensor},
    gptq::{self, GptqConfig},
    mxfp4::{self, Mxfp4Tensor},
    safetensors::SafeTensors,
};
use edgelm_tensor::DType;
use serde_json::Value;
use std::{borrow::Cow, collections::BTreeMap, fmt, ops::Range, path::Path};

/// `quantization_config`.
pub(super) enum Quantization {
    Ints(IntQuantization),
    BitsAndBytes(bitsandbytes::Config),
    Gptq(GptqConfig),
    Awq(AwqConfig),
    BitNet(BitNetConfig),
    Fp8(Fp8Config),
    Mxfp4,
}

impl Quantization {
    /// Errors name the key; `path` is that of config.json.
    pub(super) fn from_json(value: &Value, path: &Path) -> Result<Self, FormatError> {
        match value.get("quant_method").and_then(Value::as_str) {
            Some("bitsandbytes") => bitsandbytes::Config::from_json(value, path).map(Self::BitsAndBytes),
            Some("gptq") => GptqConfig::from_json(value, path).map(Self::Gptq),
            Some("auto-round" | "intel/auto-round") => {
                AutoRoundConfig::from_json(value, path).map(|config| match config {
                    AutoRoundConfig::Gptq(config) => Self::Gptq(config),
                    AutoRoundConfig::Awq(config) => Self::Awq(config),
                })
            }
            Some("awq") => AwqConfig::from_json(value, path).map(Self::Awq),
            Some("bitnet") => BitNetConfig::from_json(value, path).map(Self::BitNet),
            Some("fp8") => Fp8Config::from_json(value, path).map(Self::Fp8),
            Some("compressed-tensors") if compressed_tensors::is_of_floats(value) => {
                compressed_tensors::float_config(value, path).map(Self::Fp8)
            }
            Some("mxfp4") => mxfp4::check_config(value, path).map(|()| Self::Mxfp4),
            _ => IntQuantization::from_json(value, path).map(Self::Ints),
        }
    }

    /// What the presence of tensor `name` says: which tensor may be made of parts, and how to open it.
    fn stored(
        &self,
        file: &SafeTensors,
        name: &str,
        class_of: impl Fn(&str) -> &'static str,
    ) -> Option<(String, Stored)> {
        if let Self::Mxfp4 = self {
            let tensor = name.strip_suffix(mxfp4::PARTS[0])?.to_owned();
            return Some((tensor.clone(), Stored::Mxfp4 { tensor }));
        }
        let module = WEIGHTS.iter().find_map(|part| name.strip_suffix(part))?.to_owned();
        let weight = format!("{module}.weight");
        let stored = match self {
            Self::Mxfp4 => return None,
            Self::BitsAndBytes(bitsandbytes::Config::FourBit(_)) => Stored::FourBit { weight: weight.clone() },
            Self::BitsAndBytes(bitsandbytes::Config::EightBit) => Stored::Int8 { module },
            Self::Gptq(config) => Stored::Gptq { module, config: *config },
            Self::Awq(config) => Stored::Awq { module, config: *config },
            Self::BitNet(config) => Stored::BitNet { weight: weight.clone(), config: *config },
            Self::Fp8(config) => Stored::Fp8 { weight: weight.clone(), config: *config },
            Self::Ints(ints) if is_sparse_floats(file, ints, &module) => Stored::Sparse { module },
            Self::Ints(ints) => {
                let group = ints.group_of(&module, class_of(&weight))?.clone();
                Stored::Ints { module, group }
            }
        };
        Some((weight, stored))
    }
}

impl fmt::Display for Quantization {
    /// Method, bits, and what shares a scale, in a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = |size: Option<usize>| size.map_or("one group".to_owned(), |size| format!("groups of {size}"));
        match self {
            Self::BitsAndBytes(bitsandbytes::Config::FourBit(config)) => {
                write!(f, "bitsandbytes {}, 4 bits", config.format.name())
            }
            Self::BitsAndBytes(bitsandbytes::Config::EightBit) => write!(f, "bitsandbytes, 8 bits, a scale per row"),
            Self::Gptq(GptqConfig { bits, group_size, desc_act, varies, .. }) => {
                let order = if *desc_act { ", act order" } else { "" };
                let others = if *varies { ", some modules otherwise" } else { "" };
                write!(f, "gptq, {bits} bits, {}{order}{others}", groups(*group_size))
            }
            Self::Awq(AwqConfig { group_size }) => write!(f, "awq, 4 bits, {}", groups(*group_size)),
            Self::BitNet(_) => write!(f, "bitnet, 1.58 bits, a scale per matrix"),
            Self::Fp8(Fp8Config { block: Some([rows, columns]) }) => {
                write!(f, "fp8 (e4m3), 8 bits, blocks of {rows}x{columns}")
            }
            Self::Fp8(Fp8Config { block: None }) => write!(f, "fp8 (e4m3), 8 bits"),
            Self::Mxfp4 => write!(f, "mxfp4, 4 bits, groups of 32"),
            Self::Ints(IntQuantization { groups, sparse, .. }) => {
                let mut kinds: Vec<String> =
                    groups.iter().map(|group| format!("{} bits", group.format.bits())).collect();
                kinds.dedup();
                if !sparse.is_empty() {
                    kinds.push("2:4".to_owned());
                }
                write!(f, "compressed-tensors, {}", kinds.join(", "))
            }
        }
    }
}

/// The weight files and what their parts make.
pub(super) struct PackedFolder {
    file: SafeTensors,
    /// How they are stored, in a line.
    summary: String,
    /// By the name that the weight would have.
    matrices: BTreeMap<String, Packed>,
}

struct Packed {
    stored: Stored,
    /// `[…, N, K]`.
    shape: Vec<usize>,
    dtype: DType,
    /// With columns in another order.
    reordered: Option<DType>,
    input_scale: Option<f32>,
}

impl Packed {
    fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }
}

/// How to open it again.
enum Stored {
    Ints { module: String, group: Group },
    FourBit { weight: String },
    Int8 { module: String },
    Sparse { module: String },
    Gptq { module: String, config: GptqConfig },
    Awq { module: String, config: AwqConfig },
    BitNet { weight: String, config: BitNetConfig },
    Fp8 { weight: String, config: Fp8Config },
    Mxfp4 { tensor: String },
}

/// A matrix whose parts were checked.
type Opened<'a> = Box<dyn CodedMatrix + 'a>;

impl Stored {
    fn open<'a>(&'a self, file: &'a SafeTensors) -> Result<Option<Opened<'a>>, FormatError> {
        fn boxed<'a>(found: Option<impl CodedMatrix + 'a>) -> Option<Opened<'a>> {
            found.map(|found| Box::new(found) as Opened<'a>)
        }
        match self {
            Self::Ints { module, group } => IntTensor::open(file, module, group).map(boxed),
            Self::FourBit { weight } => LookupTensor::open(file, weight).map(boxed),
            Self::Int8 { module } => Int8Tensor::open(file, module).map(boxed),
            Self::Sparse { module } => SparseTensor::open(file, module).map(boxed),
            Self::Gptq { module, config } => config.open(file, module).map(boxed),
            Self::Awq { module, config } => config.open(file, module).map(boxed),
            Self::BitNet { weight, config } => TernaryTensor::open(file, weight, *config).map(boxed),
            Self::Fp8 { weight, config } => Fp8Tensor::open(file, weight, config).map(boxed),
            Self::Mxfp4 { tensor } => Mxfp4Tensor::open(file, tensor).map(boxed),
        }
    }
}

/// Suffixes of the tensor that shows that a module has a matrix.
const WEIGHTS: [&str; 4] = [".qweight", ".weight_packed", ".compressed", ".weight"];

/// True if two of every four weights of a module are stored, without quantization.
fn is_sparse_floats(file: &SafeTensors, quantization: &IntQuantization, module: &str) -> bool {
    let values = file.info(&format!("{module}.compressed"));
    !quantization.sparse.is_empty() && values.is_some_and(|values| values.dtype.is_some())
}

impl PackedFolder {
    /// `class_of` a module, by the name of its weight: `Linear` or `Embedding`.
    pub(super) fn open(
        file: SafeTensors,
        quantization: &Quantization,
        class_of: impl Fn(&str) -> &'static str,
    ) -> Result<Self, ModelError> {
        let mut matrices = BTreeMap::new();
        for name in file.names() {
            let Some((tensor, stored)) = quantization.stored(&file, name, &class_of) else { continue };
            let Some(found) = stored.open(&file)? else { continue };
            let (shape, dtype, reordered) = (found.full_shape(), found.dtype(), found.reordered_dtype());
            let input_scale = found.input_scale();
            drop(found);
            matrices.insert(tensor, Packed { stored, shape, dtype, reordered, input_scale });
        }
        Ok(Self { file, summary: quantization.to_string(), matrices })
    }

    pub(super) fn summary(&self) -> &str {
        &self.summary
    }

    pub(super) fn file(&self) -> &SafeTensors {
        &self.file
    }

    /// Names of tensors, with one name for the parts of each matrix.
    pub(super) fn names(&self) -> Vec<&str> {
        let of_module = [
            &compressed_tensors::PARTS[..],
            &bitsandbytes::MODULE_PARTS,
            &gptq::PARTS,
            &awq::PARTS,
            &bitnet::PARTS,
            &fp8::PARTS,
        ];
        let of_module = of_module.concat().into_iter().map(|part| (part, ".weight"));
        let parts: Vec<(&str, &str)> = of_module.chain(bitsandbytes::PARTS.map(|part| (part, ""))).collect();
        let is_part = |name: &str| {
            let of_experts = mxfp4::PARTS.iter().filter_map(|part| name.strip_suffix(part));
            of_experts.into_iter().any(|tensor| self.matrices.contains_key(tensor))
                || parts.iter().any(|(part, rest)| {
                    let owner = name.strip_suffix(part).and_then(|name| name.strip_suffix('.'));
                    owner.is_some_and(|owner| self.matrices.contains_key(&format!("{owner}{rest}")))
                })
        };
        let is_other =
            |name: &&str| !self.matrices.contains_key(*name) && !is_part(name) && !self.is_bias_of_zeros(name);
        let others = self.file.names().filter(is_other);
        self.matrices.keys().map(String::as_str).chain(others).collect()
    }

    /// True for a bias of a packed matrix that changes nothing: AutoGPTQ writes one where the model has none.
    fn is_bias_of_zeros(&self, name: &str) -> bool {
        let owner = name.strip_suffix(".bias").map(|module| format!("{module}.weight"));
        let is_zero = || {
            let bytes = self.file.info(name).and_then(|info| info.bytes);
            bytes.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0))
        };
        owner.is_some_and(|owner| self.matrices.contains_key(&owner)) && is_zero()
    }

    /// Format and shape, without reading the values.
    pub(super) fn describe(&self, name: &str) -> Result<Option<(DType, &[usize])>, FormatError> {
        match self.matrices.get(name) {
            Some(matrix) => Ok(Some((matrix.dtype, &matrix.shape))),
            None => Ok(self.file.get(name)?.map(|view| (view.dtype, view.shape))),
        }
    }

    pub(super) fn get(&self, name: &str) -> Result<Option<TensorView<'_>>, FormatError> {
        let Some(matrix) = self.matrices.get(name) else { return self.file.get(name) };
        let view = |found: Opened<'_>| TensorView {
            dtype: matrix.dtype,
            shape: &matrix.shape,
            bytes: Cow::Owned(found.blocks(0..matrix.rows())),
        };
        Ok(matrix.stored.open(&self.file)?.map(view))
    }

    /// Some rows of a matrix that is packed.
    pub(super) fn rows(&self, name: &str, rows: Range<usize>) -> Result<Option<Vec<u8>>, FormatError> {
        let Some(matrix) = self.matrices.get(name).filter(|matrix| rows.end <= matrix.rows()) else { return Ok(None) };
        Ok(matrix.stored.open(&self.file)?.map(|found| found.blocks(rows)))
    }

    /// The format in which the engine runs a matrix that is packed.
    pub(super) fn run_dtype(&self, name: &str) -> Option<DType> {
        self.matrices.get(name).map(|matrix| matrix.reordered.unwrap_or(matrix.dtype))
    }

    /// True for a matrix that is made of parts.
    pub(super) fn is_packed(&self, name: &str) -> bool {
        self.matrices.contains_key(name)
    }

    /// Rows of a matrix that is packed as the values that the file means; false if this is none.
    pub(super) fn values(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<bool, FormatError> {
        let Some(matrix) = self.matrices.get(name).filter(|matrix| rows.end <= matrix.rows()) else {
            return Ok(false);
        };
        let Some(found) = matrix.stored.open(&self.file)? else { return Ok(false) };
        found.values(rows, out);
        Ok(true)
    }

    /// A matrix with its columns in an order that lets a smaller format hold it, where there is one.
    pub(super) fn reordered(&self, name: &str) -> Result<Option<Reordered>, FormatError> {
        let Some(matrix) = self.matrices.get(name).filter(|matrix| matrix.reordered.is_some()) else { return Ok(None) };
        Ok(matrix.stored.open(&self.file)?.and_then(|found| found.reordered()))
    }

    /// How a matrix that is packed looks as whole numbers, where its codes are such.
    pub(super) fn int_layout(&self, name: &str) -> Result<Option<IntLayout>, FormatError> {
        let Some(matrix) = self.matrices.get(name) else { return Ok(None) };
        Ok(matrix.stored.open(&self.file)?.and_then(|found| found.int_layout()))
    }

    /// Appends rows of a matrix that is packed as whole numbers; false if this is none.
    pub(super) fn ints(
        &self,
        name: &str,
        rows: impl Iterator<Item = usize>,
        out: &mut Ints,
    ) -> Result<bool, FormatError> {
        let Some(matrix) = self.matrices.get(name) else { return Ok(false) };
        let Some(found) = matrix.stored.open(&self.file)? else { return Ok(false) };
        let count = matrix.rows();
        for run in runs(rows).filter(|run| run.end <= count) {
            found.ints(run, out);
        }
        Ok(true)
    }

    /// The scale of a matrix's int8 inputs, where the file fixes it.
    pub(super) fn input_scale(&self, name: &str) -> Option<f32> {
        self.matrices.get(name)?.input_scale
    }

    /// Lets the kernel drop the pages of a matrix that is packed; false if this is none.
    pub(super) fn release(&self, name: &str) -> bool {
        let Some(matrix) = self.matrices.get(name) else { return false };
        if let Ok(Some(found)) = matrix.stored.open(&self.file) {
            found.release();
        }
        true
    }

    pub(super) fn source_of(&self, name: &str) -> Option<&Source> {
        self.file.source_of(name)
    }
}

/// Rows as runs of neighbours, which are unpacked together.
fn runs(rows: impl Iterator<Item = usize>) -> impl Iterator<Item = Range<usize>> {
    let mut rows = rows.peekable();
    std::iter::from_fn(move || {
        let start = rows.next()?;
        let mut end = start + 1;
        while rows.next_if_eq(&end).is_some() {
            end += 1;
        }
        Some(start..end)
    })
}
