//! Quantization of a whole model: tensor by tensor from the mapped input to the output, a GGUF file or a Hugging Face folder.

mod folder;
mod folder_scheme;
mod gguf;
mod ints;
#[cfg(test)]
mod tests;

pub use folder_scheme::{FolderScheme, IntScheme};
pub use ints::{CalibratorName, Inputs, IntOptions, Per, largest_group};

use crate::{
    CompressError, Importance, MatrixFormat, Walk,
    equalize::{Equalize, equalize_layer},
    fuse::Fuse,
    go_on,
    layer_pass::{Codes, MatrixErrors, decode, quantize_layer, quantize_matrix},
    ranges::Calibrator,
    scheme::{Choice, Keep, Scheme, fit},
    store::LayerStore,
};
use edgelm_format::compressed_tensors::two_of_four;
use edgelm_kernels::Cpu;
use edgelm_model::{Checkpoint, Edited, TensorId};
use edgelm_tensor::DType;
use folder::FolderOut;
use folder_scheme::Storage;
use gguf::GgufOut;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    path::Path,
    time::Instant,
};

/// How to quantize.
#[derive(Clone)]
pub struct QuantizeOptions<'a> {
    /// Formats.
    pub formats: Formats<'a>,
    /// Formats of tensors named by pattern, over these; the last match wins.
    pub keep: &'a [Keep],
    /// How codes are chosen.
    pub method: Method<'a>,
    /// Where a layer-by-layer method keeps layers that are finished, and finds those of an earlier run.
    pub store: Option<&'a LayerStore>,
}

/// Where the formats come from.
#[derive(Clone, Copy)]
pub enum Formats<'a> {
    /// By name.
    Scheme(Scheme),
    /// Matrix by matrix; it must name every one. In a folder they are integers or floats, else block formats.
    Mixed(&'a HashMap<TensorId, MatrixFormat>),
    /// Those of safetensors, in a folder.
    Folder(FolderScheme),
}

impl Formats<'_> {
    /// What they are written to under this name.
    fn is_for_folder(&self, output: &Path) -> bool {
        match self {
            Formats::Scheme(_) => false,
            Formats::Mixed(_) => !is_gguf(output),
            Formats::Folder(_) => true,
        }
    }
}

/// How codes are chosen.
#[derive(Clone, Copy)]
pub enum Method<'a> {
    /// Each to the nearest.
    Rtn,
    /// Scales and codes of least error weighted by what calibration saw.
    Imatrix(&'a Importance),
    /// Layer by layer, on the outputs of the layers that are quantized already.
    Layerwise(Layerwise<'a>),
}

/// Settings of [`Method::Layerwise`].
#[derive(Clone, Copy)]
pub struct Layerwise<'a> {
    /// The machine that runs the calibration.
    pub cpu: &'a Cpu,
    /// Calibration data.
    pub windows: &'a [Vec<u32>],
    /// What is done to a layer before its codes are chosen.
    pub equalize: Option<Equalize>,
    /// How codes are chosen.
    pub codes: Codes,
    /// How the fixed scales of int8 inputs are chosen, where the format has them.
    pub static_inputs: Option<Calibrator>,
}

/// What became of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorReport {
    /// Name in the output file.
    pub name: String,
    /// Format before.
    pub from: String,
    /// Format now.
    pub format: String,
    /// What the scheme wanted, where its blocks did not fit the rows.
    pub instead_of: Option<String>,
    /// Bytes now.
    pub bytes: u64,
    /// Root of (squared error / squared values).
    pub relative_rms_error: f64,
    /// Root of (squared error of the outputs / squared outputs) on the calibration data; known to methods that look at
    /// outputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_output_error: Option<f64>,
}

/// The whole of it.
#[derive(Debug, Clone)]
pub struct QuantizeReport {
    /// Weight files before.
    pub input_bytes: u64,
    /// The file now.
    pub output_bytes: u64,
    /// All weights with their scales, embedding and norms too.
    pub bits_per_weight: f64,
    /// In file order.
    pub tensors: Vec<TensorReport>,
    /// What the user should know: formats that did not fit, what GGUF cannot say.
    pub notes: Vec<String>,
    /// Wall time.
    pub seconds: f64,
}

impl QuantizeReport {
    /// Number of tensors per format.
    pub fn formats(&self) -> BTreeMap<&str, usize> {
        count_formats(&self.tensors)
    }
}

/// Number of tensors per format.
pub fn count_formats(tensors: &[TensorReport]) -> BTreeMap<&str, usize> {
    tensors.iter().fold(BTreeMap::new(), |mut counts, tensor| {
        *counts.entry(tensor.format.as_str()).or_default() += 1;
        counts
    })
}

/// One tensor of the output.
struct Plan {
    id: TensorId,
    /// In the output.
    name: String,
    format: MatrixFormat,
    /// What was wanted, where its blocks do not fit the rows.
    instead_of: Option<String>,
}

/// A model on its way to disk.
trait Out {
    /// Writes the next tensor. `is_done`: its matrix in `edited` is in the planned format already. `importance` weighs the
    /// columns of one that is not.
    fn write(
        &mut self,
        edited: &Edited<'_>,
        plan: &Plan,
        is_done: bool,
        importance: Option<&[f32]>,
        go_on: &mut dyn FnMut() -> Result<(), CompressError>,
    ) -> Result<Written, CompressError>;

    /// Puts it under its name; returns its bytes.
    fn finish(self: Box<Self>) -> Result<u64, CompressError>;
}

/// What writing a tensor cost.
struct Written {
    bytes: u64,
    relative_rms_error: f64,
}

/// How far the work has come: (tensors done, tensors in all, name of the one in work). `Break` cancels.
pub type OnTensor<'a> = dyn FnMut(usize, usize, &str) -> ControlFlow<()> + 'a;

/// Writes `output` (a temporary sibling until it is complete, removed on any error): a GGUF file, or a folder where the
/// formats are those of safetensors. `on_tensor` is called before each tensor and every few million weights of a large one. The token
/// embedding comes last: where it is the output head as well, what it has to express is known only after all layers.
///
/// Peak memory beyond mapped pages: some million decoded and encoded values, per-thread rows, and the importance; with
/// layer-by-layer methods a layer, and what a [`Walk`] holds.
pub fn quantize(
    checkpoint: &Checkpoint,
    output: &Path,
    options: &QuantizeOptions<'_>,
    on_tensor: &mut OnTensor<'_>,
) -> Result<QuantizeReport, CompressError> {
    let begin = Instant::now();
    refuse_overwriting_input(checkpoint, output)?;
    let is_folder = options.formats.is_for_folder(output);
    let form = (!is_folder).then(|| checkpoint.gguf_form());
    let checkpoint = form.as_ref().unwrap_or(checkpoint);
    let plans = plan(checkpoint, options, is_folder)?;
    let storage = match options.formats {
        Formats::Folder(scheme) => scheme.storage(),
        _ => Storage::default(),
    };
    for plan in &plans {
        let row_len = checkpoint.describe(plan.id)?.1.last().copied().unwrap_or_default();
        if is_folder && storage.is_sparse(plan.id, plan.format, row_len) {
            check_two_of_four(checkpoint, plan)?;
        }
    }
    let mut notes = Vec::new();
    let mut out: Box<dyn Out> = if is_folder {
        let table = plans.iter().find(|plan| {
            let is_table = !matches!(plan.id, TensorId::Layer(..));
            is_table && !matches!(plan.format, MatrixFormat::Block(_))
        });
        if let Some(table) = table {
            let keep = "`--keep token_embd.weight=F16 --keep output.weight=F16` leaves them floats";
            notes.push(format!("embedding and output head are {}; not all programs read that: {keep}", table.format));
        }
        Box::new(FolderOut::create(checkpoint, output, &plans, storage)?)
    } else {
        notes.extend(checkpoint.gguf_notes());
        let file_type = match options.formats {
            Formats::Scheme(scheme) => Some(scheme.file_type()),
            _ => None,
        };
        Box::new(GgufOut::create(checkpoint, output, &plans, file_type)?)
    };
    let mut tensors = Vec::with_capacity(plans.len());
    let mut edited = Edited::new(checkpoint);
    let mut walk = match options.method {
        Method::Layerwise(Layerwise { cpu, windows, .. }) => Some(Walk::begin(checkpoint, cpu, windows)?),
        Method::Rtn | Method::Imatrix(_) => None,
    };
    let mut parent = match options.method {
        Method::Layerwise(Layerwise { cpu, windows, codes: Codes::Feedback(_), .. }) => {
            Some(Walk::begin(checkpoint, cpu, windows)?)
        }
        _ => None,
    };
    let mut errors = HashMap::new();
    let formats: HashMap<TensorId, MatrixFormat> = plans.iter().map(|plan| (plan.id, plan.format)).collect();
    for (index, plan) in plans.iter().enumerate() {
        let mut go_on = || go_on(on_tensor(index, plans.len(), &plan.name));
        if let (Some(walk), Method::Layerwise(layerwise)) = (&mut walk, &options.method) {
            match plan.id {
                TensorId::Layer(layer, _) if layer == walk.layer() => {
                    let choose = |id| formats[&id];
                    let walks = (walk, parent.as_mut());
                    errors.extend(next_layer(walks, &mut edited, &choose, layerwise, options.store, &mut go_on)?);
                }
                id if id == checkpoint.config().head() => {
                    let moments = walk.head_moments(&edited)?;
                    if let Some(error) =
                        quantize_matrix(&mut edited, id, plan.format, &moments, None, &layerwise.codes)?
                    {
                        errors.insert(id, error);
                    }
                }
                _ => {}
            }
        }
        let importance = match options.method {
            // It was measured on the model as it is: what a file stores transposed has other columns.
            Method::Imatrix(importance) => importance.of(plan.id).filter(|columns| {
                let shape = checkpoint.config().tensor_shape(plan.id);
                shape.is_some_and(|shape| shape.last() == Some(&columns.len()))
            }),
            Method::Rtn | Method::Layerwise(_) => None,
        };
        let error = errors.get(&plan.id);
        let written = out.write(&edited, plan, error.is_some(), importance, &mut go_on)?;
        let (from, shape) = checkpoint.describe(plan.id)?;
        let row_len = shape.last().copied().unwrap_or_default();
        if let Some(wanted) = &plan.instead_of {
            let (name, format) = (&plan.name, plan.format);
            notes.push(format!("`{name}`: rows of {row_len} are not whole {wanted} blocks, stored as {format}"));
        }
        tensors.push(TensorReport {
            name: plan.name.clone(),
            from: from.name().to_owned(),
            format: plan.format.to_string(),
            instead_of: plan.instead_of.clone(),
            bytes: written.bytes,
            relative_rms_error: error.map_or(written.relative_rms_error, |error| error.weights),
            relative_output_error: error.map(|error| error.output),
        });
        edited.take(plan.id);
        checkpoint.release(plan.id);
    }
    let output_bytes = out.finish()?;
    let weight_bytes: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
    Ok(QuantizeReport {
        input_bytes: checkpoint.file_bytes(),
        output_bytes,
        bits_per_weight: weight_bytes as f64 * 8.0 / checkpoint.parameters() as f64,
        tensors,
        notes,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

/// Errors if more than two of any four weights are not zero.
fn check_two_of_four(checkpoint: &Checkpoint, plan: &Plan) -> Result<(), CompressError> {
    let values = decode(checkpoint, plan.id)?;
    checkpoint.release(plan.id);
    match two_of_four(&values, |value| *value == 0.0) {
        Some(_) => Ok(()),
        None => Err(CompressError::NotTwoOfFour { name: checkpoint.stored_name(plan.id) }),
    }
}

/// Quantizes the next layer of a walk and its parent's, or takes it from the store.
fn next_layer(
    (walk, parent): (&mut Walk<'_>, Option<&mut Walk<'_>>),
    edited: &mut Edited<'_>,
    choose: &dyn Fn(TensorId) -> MatrixFormat,
    layerwise: &Layerwise<'_>,
    store: Option<&LayerStore>,
    go_on: &mut dyn FnMut() -> Result<(), CompressError>,
) -> Result<HashMap<TensorId, MatrixErrors>, CompressError> {
    let layer = walk.layer();
    let stored = match store {
        Some(store) => store.load(layer, edited, choose)?,
        None => None,
    };
    if let Some(stored) = stored {
        go_on()?;
        walk.advance(edited)?;
        if let Some(parent) = parent {
            parent.advance(edited.base())?;
        }
        return Ok(stored);
    }
    if let Some(equalize) = layerwise.equalize {
        equalize_layer(walk, edited, choose, equalize, &layerwise.codes, go_on)?;
    }
    let found = quantize_layer(walk, parent, edited, choose, &layerwise.codes, layerwise.static_inputs, go_on)?;
    if let Some(store) = store {
        store.save(layer, edited, &found)?;
    }
    Ok(found)
}

/// True where the output's name asks for a GGUF file.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Errors where the output is the model being read.
pub(crate) fn refuse_overwriting_input(checkpoint: &Checkpoint, output: &Path) -> Result<(), CompressError> {
    let Ok(output) = output.canonicalize() else { return Ok(()) };
    if checkpoint.path().canonicalize().is_ok_and(|input| input == output) {
        return Err(CompressError::OutputIsInput { path: output });
    }
    Ok(())
}

/// What a file stores as one tensor has one format: the smallest that any of its parts was to have, so that a budget for the
/// whole still holds.
fn one_format_each(plans: &mut [Plan], fuse: &Fuse) {
    let formats: HashMap<TensorId, MatrixFormat> = plans.iter().map(|plan| (plan.id, plan.format)).collect();
    for plan in plans.iter_mut().filter(|plan| plan.id.is_matrix()) {
        let members = fuse.members(plan.id).iter().filter_map(|id| formats.get(id));
        let size = |format: &&MatrixFormat| format.bytes(1, 4096).unwrap_or(u64::MAX);
        if let Some(&format) = members.min_by_key(size) {
            plan.format = format;
        }
    }
}

/// What becomes of each tensor, in the order in which they are written.
fn plan(checkpoint: &Checkpoint, options: &QuantizeOptions<'_>, is_folder: bool) -> Result<Vec<Plan>, CompressError> {
    let arch = checkpoint.config().arch;
    let mut used = vec![false; options.keep.len()];
    let mut plans = Vec::new();
    let (embedding, others): (Vec<TensorId>, Vec<TensorId>) =
        checkpoint.tensor_ids().iter().partition(|&&id| id == TensorId::TokenEmbedding);
    for id in others.into_iter().chain(embedding) {
        let (dtype, shape) = checkpoint.describe(id)?;
        let row_len = shape.last().copied().unwrap_or_default();
        let gguf_name = arch.gguf_tensor_name(id);
        let keep = options.keep.iter().enumerate().filter(|(_, keep)| id.is_matrix() && keep.matches(&gguf_name));
        let keep = keep.map(|(index, keep)| {
            used[index] = true;
            keep.dtype()
        });
        let keep = keep.last();
        let is_head = id == checkpoint.config().head();
        let block =
            |choice: Choice| (MatrixFormat::Block(choice.dtype), choice.instead_of.map(|dtype| dtype.to_string()));
        let (format, instead_of) = match options.formats {
            Formats::Folder(scheme) => scheme.choose(id, row_len, dtype, keep)?,
            _ if is_folder && !id.is_matrix() => (folder_scheme::float(dtype), None),
            // Gains and biases are a millionth of the weights; llama.cpp expects them in f32.
            _ if !id.is_matrix() => (MatrixFormat::Block(DType::F32), None),
            Formats::Scheme(scheme) => {
                block(keep.map_or_else(|| scheme.choose(id, row_len, is_head), |wanted| fit(wanted, row_len)))
            }
            Formats::Mixed(formats) => match keep.map(MatrixFormat::Block).or_else(|| formats.get(&id).copied()) {
                Some(wanted) if is_folder => (wanted, None),
                Some(MatrixFormat::Block(wanted)) => block(fit(wanted, row_len)),
                Some(format) => return Err(CompressError::GgufFormat { format }),
                None => return Err(CompressError::NoCandidate { name: gguf_name, row_len }),
            },
        };
        let name = if is_folder { arch.hf_tensor_name(id) } else { gguf_name };
        plans.push(Plan { id, name, format, instead_of });
    }
    let names = if is_folder { &arch.hf_names } else { &arch.gguf_names };
    one_format_each(&mut plans, &Fuse::new(names, checkpoint.config()));
    match used.iter().position(|used| !used) {
        Some(unused) => Err(CompressError::UnusedKeep(options.keep[unused].pattern.clone())),
        None => Ok(plans),
    }
}
