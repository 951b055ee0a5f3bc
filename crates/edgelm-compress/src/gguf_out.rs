//! Quantization to a GGUF file: tensor by tensor from the mapped input to the output file.

use crate::{
    CompressError, Importance, Walk,
    equalize::{Equalize, equalize_layer},
    go_on,
    layer_pass::{Codes, quantize_layer, quantize_matrix},
    scheme::{Choice, Keep, Scheme},
    store::LayerStore,
    tensor_pass::{Distortion, encode_rows},
};
use edgelm_format::gguf::{Value, Writer, header_bytes};
use edgelm_kernels::Cpu;
use edgelm_model::{Checkpoint, Edited, TensorId, Tensors};
use edgelm_tensor::DType;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    path::Path,
    time::Instant,
};

/// f32 values in work at a time: 16 MiB of them, with their encoded form. Large enough that threads stay busy, small
/// beside any model worth compressing.
const VALUES_AT_A_TIME: usize = 4 << 20;

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
    /// Matrix by matrix; it must name every one.
    Mixed(&'a HashMap<TensorId, DType>),
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
    name: String,
    choice: Choice,
}

/// How far the work has come: (tensors done, tensors in all, name of the one in work). `Break` cancels.
pub type OnTensor<'a> = dyn FnMut(usize, usize, &str) -> ControlFlow<()> + 'a;

/// Writes `output` (a temporary sibling until it is complete, removed on any error). `on_tensor` is called before each
/// tensor and every few million weights of a large one. The token embedding comes last: where it is the output head as
/// well, what it has to express is known only after all layers.
///
/// Peak memory beyond mapped pages: `VALUES_AT_A_TIME` decoded and encoded values, per-thread rows, and the importance.
pub fn quantize_to_gguf(
    checkpoint: &Checkpoint,
    output: &Path,
    options: &QuantizeOptions<'_>,
    on_tensor: &mut OnTensor<'_>,
) -> Result<QuantizeReport, CompressError> {
    let begin = Instant::now();
    refuse_overwriting_input(checkpoint, output)?;
    let plans = plan(checkpoint, options)?;
    let extras = checkpoint.gguf_extra_tensors();
    let mut metadata = checkpoint.gguf_metadata()?;
    if let Formats::Scheme(scheme) = options.formats {
        metadata.push(("general.file_type".into(), Value::U32(scheme.file_type())));
    }
    let mut declared = Vec::with_capacity(plans.len() + extras.len());
    for (name, shape, _) in &extras {
        declared.push((name.clone(), DType::F32, shape.clone()));
    }
    for plan in &plans {
        declared.push((plan.name.clone(), plan.choice.dtype, checkpoint.tensor(plan.id)?.shape.to_vec()));
    }
    let mut writer = Writer::create(output, &metadata, &declared)?;
    for (_, _, values) in &extras {
        writer.write(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
    }

    let mut tensors = Vec::with_capacity(plans.len());
    let mut notes = checkpoint.gguf_notes();
    let mut edited = Edited::new(checkpoint);
    let mut walk = match options.method {
        Method::Layerwise(Layerwise { cpu, windows, .. }) => Some(Walk::begin(checkpoint, cpu, windows)?),
        Method::Rtn | Method::Imatrix(_) => None,
    };
    let mut errors = HashMap::new();
    let formats: HashMap<TensorId, DType> = plans.iter().map(|plan| (plan.id, plan.choice.dtype)).collect();
    let store = options.store;
    for (index, plan) in plans.iter().enumerate() {
        let mut go_on = || go_on(on_tensor(index, plans.len(), &plan.name));
        if let (Some(walk), Method::Layerwise(Layerwise { equalize, codes, .. })) = (&mut walk, &options.method) {
            match plan.id {
                TensorId::Layer(layer, _) if layer == walk.layer() => {
                    let choose = |id| formats[&id];
                    let stored = match store {
                        Some(store) => store.load(layer, &mut edited, &choose)?,
                        None => None,
                    };
                    if let Some(stored) = stored {
                        go_on()?;
                        walk.advance(&edited)?;
                        errors.extend(stored);
                    } else {
                        if let Some(equalize) = *equalize {
                            equalize_layer(walk, &mut edited, &choose, equalize, codes, &mut go_on)?;
                        }
                        let found = quantize_layer(walk, &mut edited, &choose, codes, &mut go_on)?;
                        if let Some(store) = store {
                            store.save(layer, &edited, &found)?;
                        }
                        errors.extend(found);
                    }
                }
                id if id == checkpoint.config().head() => {
                    let moments = walk.head_moments(&edited)?;
                    if let Some(error) = quantize_matrix(&mut edited, id, plan.choice.dtype, &moments, codes)? {
                        errors.insert(id, error);
                    }
                }
                _ => {}
            }
        }
        let importance = match options.method {
            Method::Imatrix(importance) => importance.of(plan.id),
            Method::Rtn | Method::Layerwise(_) => None,
        };
        let mut report = write_tensor(&edited, plan, importance, &mut writer, &mut go_on)?;
        report.from = checkpoint.tensor(plan.id)?.dtype.name().to_owned();
        if let Some(error) = errors.get(&plan.id) {
            report.relative_rms_error = error.weights;
            report.relative_output_error = Some(error.output);
        }
        if let Some(wanted) = &report.instead_of {
            let row_len = checkpoint.tensor(plan.id)?.row_len();
            notes.push(format!(
                "`{}`: rows of {row_len} are not whole {wanted} blocks, stored as {}",
                report.name, report.format
            ));
        }
        tensors.push(report);
        edited.take(plan.id);
        checkpoint.release(plan.id);
    }
    let output_bytes = writer.finish()?;
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

/// Bytes that the matrices of a file may have for the file to have `file_bytes`: what is left of it after metadata, norms
/// and biases, and the padding between tensors.
pub fn matrix_budget(checkpoint: &Checkpoint, file_bytes: u64) -> Result<u64, CompressError> {
    let mut declared = Vec::new();
    for (name, shape, _) in checkpoint.gguf_extra_tensors() {
        declared.push((name, DType::F32, shape));
    }
    for &id in checkpoint.tensor_ids() {
        let shape = checkpoint.tensor(id)?.shape.to_vec();
        declared.push((checkpoint.config().arch.gguf_tensor_name(id), DType::F32, shape));
    }
    let mut metadata = checkpoint.gguf_metadata()?;
    metadata.push(("general.file_type".into(), Value::U32(0)));
    let (header, padding) = header_bytes(&metadata, &declared)?;
    Ok(file_bytes.saturating_sub(header + padding + vector_bytes(checkpoint)?))
}

/// Bytes that the matrices may have for all weights together to take `bits_per_weight`.
pub fn matrix_budget_of_bits(checkpoint: &Checkpoint, bits_per_weight: f64) -> Result<u64, CompressError> {
    let bytes = (bits_per_weight * checkpoint.parameters() as f64 / 8.0).floor() as u64;
    Ok(bytes.saturating_sub(vector_bytes(checkpoint)?))
}

/// Bytes of norms and biases, which are stored in F32.
pub(crate) fn vector_bytes(checkpoint: &Checkpoint) -> Result<u64, CompressError> {
    let vectors = checkpoint.tensor_ids().iter().filter(|id| !id.is_matrix());
    vectors.map(|&id| Ok(4 * checkpoint.tensor(id)?.elements() as u64)).sum()
}

/// True where the output's name asks for a GGUF file.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

pub(crate) fn refuse_overwriting_input(checkpoint: &Checkpoint, output: &Path) -> Result<(), CompressError> {
    let Ok(output) = output.canonicalize() else { return Ok(()) };
    if checkpoint.path().canonicalize().is_ok_and(|input| input == output) {
        return Err(CompressError::OutputIsInput { path: output });
    }
    Ok(())
}

fn plan(checkpoint: &Checkpoint, options: &QuantizeOptions<'_>) -> Result<Vec<Plan>, CompressError> {
    let config = checkpoint.config();
    let mut used = vec![false; options.keep.len()];
    let mut plans = Vec::new();
    let (embedding, others): (Vec<TensorId>, Vec<TensorId>) =
        checkpoint.tensor_ids().iter().partition(|&&id| id == TensorId::TokenEmbedding);
    for id in others.into_iter().chain(embedding) {
        let view = checkpoint.tensor(id)?;
        let name = config.arch.gguf_tensor_name(id);
        let is_head = id == checkpoint.config().head();
        let mut choice = if id.is_matrix() {
            match options.formats {
                Formats::Scheme(scheme) => scheme.choose(id, view.row_len(), is_head),
                Formats::Mixed(formats) => {
                    let missing = || CompressError::NoCandidate { name: name.clone(), row_len: view.row_len() };
                    Choice { dtype: *formats.get(&id).ok_or_else(missing)?, instead_of: None }
                }
            }
        } else {
            // Gains and biases are a millionth of the weights; llama.cpp expects them in f32.
            Choice { dtype: DType::F32, instead_of: None }
        };
        for (keep, used) in options.keep.iter().zip(&mut used) {
            if id.is_matrix() && keep.matches(&name) {
                choice = crate::scheme::fit(keep.dtype, view.row_len());
                *used = true;
            }
        }
        plans.push(Plan { id, name, choice });
    }
    match used.iter().position(|used| !used) {
        Some(unused) => Err(CompressError::UnusedKeep(options.keep[unused].pattern.clone())),
        None => Ok(plans),
    }
}

fn write_tensor(
    edited: &Edited<'_>,
    plan: &Plan,
    importance: Option<&[f32]>,
    writer: &mut Writer,
    go_on: &mut dyn FnMut() -> Result<(), CompressError>,
) -> Result<TensorReport, CompressError> {
    let (checkpoint, view) = (edited.base(), edited.tensor(plan.id)?);
    let named = |source| CompressError::Tensor { name: checkpoint.stored_name(plan.id), source };
    let (dtype, row_len) = (plan.choice.dtype, view.row_len());
    let row_bytes = view.dtype.row_bytes(row_len).map_err(named)?;
    // A bias is one row of values that are permuted like the rows of its weight: single values are its rows.
    let (rows, row_len, row_bytes) = if view.shape.len() == 1 {
        (row_len, 1, row_bytes / row_len.max(1))
    } else {
        (view.rows(), row_len, row_bytes)
    };
    let rows_at_a_time = (VALUES_AT_A_TIME / row_len.max(1)).max(1);
    let mut distortion = Distortion::default();
    let mut bytes = 0;
    let mut out = Vec::new();
    for start in (0..rows).step_by(rows_at_a_time) {
        go_on()?;
        let end = (start + rows_at_a_time).min(rows);
        let source = |row| &view.bytes[checkpoint.config().gguf_row_source(plan.id, row) * row_bytes..][..row_bytes];
        let sources: Vec<&[u8]> = (start..end).map(source).collect();
        out.clear();
        let part = encode_rows(view.dtype, dtype, &sources, row_len, importance, &mut out).map_err(named)?;
        distortion.error += part.error;
        distortion.energy += part.energy;
        bytes += out.len() as u64;
        writer.write(&out)?;
    }
    Ok(TensorReport {
        name: plan.name.clone(),
        from: view.dtype.name().to_owned(),
        format: dtype.name().to_owned(),
        instead_of: plan.choice.instead_of.map(|wanted| wanted.name().to_owned()),
        bytes,
        relative_rms_error: distortion.relative_rms(),
        relative_output_error: None,
    })
}
