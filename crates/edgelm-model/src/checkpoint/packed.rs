//! A folder whose matrices are stored as codes with scales: seen as one of block formats.
//!
//! Nothing is converted before it is asked for, and nothing that was converted is kept.

use crate::ModelError;
use edgelm_format::{
    CodedMatrix, FormatError, Reordered, Source, TensorView,
    awq::{self, AwqConfig},
    bitsandbytes::{self, Int8Tensor, LookupTensor},
    compressed_tensors::{self, Group, IntQuantization, IntTensor, SparseTensor},
    fp8::{self, Fp8Config, Fp8Tensor},
    gptq::{self, GptqConfig},
    safetensors::SafeTensors,
};
use edgelm_tensor::DType;
use serde_json::Value;
use std::{borrow::Cow, collections::BTreeMap, ops::Range, path::Path};

/// `quantization_config`.
pub(super) enum Quantization {
    Ints(IntQuantization),
    BitsAndBytes(bitsandbytes::Config),
    Gptq(GptqConfig),
    Awq(AwqConfig),
    Fp8(Fp8Config),
}

impl Quantization {
    /// Errors name the key; `path` is that of config.json.
    pub(super) fn from_json(value: &Value, path: &Path) -> Result<Self, FormatError> {
        match value.get("quant_method").and_then(Value::as_str) {
            Some("bitsandbytes") => bitsandbytes::Config::from_json(value, path).map(Self::BitsAndBytes),
            Some("gptq") => GptqConfig::from_json(value, path).map(Self::Gptq),
            Some("awq") => AwqConfig::from_json(value, path).map(Self::Awq),
            Some("fp8") => Fp8Config::from_json(value, path).map(Self::Fp8),
            _ => IntQuantization::from_json(value, path).map(Self::Ints),
        }
    }
}

/// The weight files and what their parts make.
pub(super) struct PackedFolder {
    file: SafeTensors,
    /// By the name that the weight would have.
    matrices: BTreeMap<String, Packed>,
}

struct Packed {
    stored: Stored,
    shape: [usize; 2],
    dtype: DType,
    input_scale: Option<f32>,
}

/// How to open it again.
enum Stored {
    Ints { module: String, group: Group },
    FourBit { weight: String },
    Int8 { module: String },
    Sparse { module: String },
    Gptq { module: String, config: GptqConfig },
    Awq { module: String, config: AwqConfig },
    Fp8 { weight: String, config: Fp8Config },
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
            Self::Fp8 { weight, config } => Fp8Tensor::open(file, weight, config).map(boxed),
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
            let Some(module) = WEIGHTS.iter().find_map(|part| name.strip_suffix(part)) else { continue };
            let weight = format!("{module}.weight");
            let module = module.to_owned();
            let stored = match quantization {
                Quantization::BitsAndBytes(bitsandbytes::Config::FourBit(_)) => {
                    Stored::FourBit { weight: weight.clone() }
                }
                Quantization::BitsAndBytes(bitsandbytes::Config::EightBit) => Stored::Int8 { module },
                Quantization::Gptq(config) => Stored::Gptq { module, config: *config },
                Quantization::Awq(config) => Stored::Awq { module, config: *config },
                Quantization::Fp8(config) => Stored::Fp8 { weight: weight.clone(), config: *config },
                Quantization::Ints(quantization) => match quantization.group_of(&module, class_of(&weight)) {
                    _ if is_sparse_floats(&file, quantization, &module) => Stored::Sparse { module },
                    Some(group) => Stored::Ints { module, group: group.clone() },
                    None => continue,
                },
            };
            let found = stored.open(&file)?.map(|found| (found.shape(), found.dtype(), found.input_scale()));
            if let Some((shape, dtype, input_scale)) = found {
                matrices.insert(weight, Packed { stored, shape, dtype, input_scale });
            }
        }
        Ok(Self { file, matrices })
    }

    pub(super) fn file(&self) -> &SafeTensors {
        &self.file
    }

    /// Names of tensors, with one name for the parts of each matrix.
    pub(super) fn names(&self) -> Vec<&str> {
        let of_module =
            [&compressed_tensors::PARTS[..], &bitsandbytes::MODULE_PARTS, &gptq::PARTS, &awq::PARTS, &fp8::PARTS];
        let of_module = of_module.concat().into_iter().map(|part| (part, ".weight"));
        let parts: Vec<(&str, &str)> = of_module.chain(bitsandbytes::PARTS.map(|part| (part, ""))).collect();
        let is_part = |name: &str| {
            parts.iter().any(|(part, rest)| {
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
            bytes: Cow::Owned(found.blocks(0..matrix.shape[0])),
        };
        Ok(matrix.stored.open(&self.file)?.map(view))
    }

    /// One row of a matrix that is packed.
    pub(super) fn row(&self, name: &str, row: usize) -> Result<Option<Vec<u8>>, FormatError> {
        let Some(matrix) = self.matrices.get(name).filter(|matrix| row < matrix.shape[0]) else { return Ok(None) };
        Ok(matrix.stored.open(&self.file)?.map(|found| found.blocks(row..row + 1)))
    }

    /// True for a matrix that is made of parts.
    pub(super) fn is_packed(&self, name: &str) -> bool {
        self.matrices.contains_key(name)
    }

    /// Rows of a matrix that is packed as the values that the file means; false if this is none.
    pub(super) fn values(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<bool, FormatError> {
        let Some(matrix) = self.matrices.get(name).filter(|matrix| rows.end <= matrix.shape[0]) else {
            return Ok(false);
        };
        let Some(found) = matrix.stored.open(&self.file)? else { return Ok(false) };
        found.values(rows, out);
        Ok(true)
    }

    /// A matrix with its columns in an order that lets a smaller format hold it, where there is one.
    pub(super) fn reordered(&self, name: &str) -> Result<Option<Reordered>, FormatError> {
        let Some(matrix) = self.matrices.get(name) else { return Ok(None) };
        Ok(matrix.stored.open(&self.file)?.and_then(|found| found.reordered()))
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
