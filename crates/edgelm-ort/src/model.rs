//! A graph that is ready to run, and what a folder says of it.

use crate::{OrtError, OrtSequence, Provider, library};
use edgelm_model::{GenerationConfig, Texts};
use ort::{
    session::Session,
    value::{TensorElementType, ValueType},
};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A `genai_config.json` has a few kilobytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// How a graph is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct OrtOptions {
    /// Where.
    pub provider: Provider,
    /// 0 = as the runtime thinks best.
    pub threads: usize,
    /// `DequantizeLinear` as it stands, products in f32, with memory for weights in f32; otherwise the runtime may join the two and
    /// round inputs to int8.
    pub exact: bool,
}

/// An input for past keys or values, and the output that they go on in.
pub(crate) struct Cache {
    pub(crate) input: String,
    pub(crate) output: String,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
}

/// A decoder in ONNX Runtime. Its session runs one sequence at a time.
pub struct OrtModel {
    pub(crate) session: Session,
    pub(crate) caches: Vec<Cache>,
    pub(crate) with_positions: bool,
    pub(crate) vocab_size: usize,
    pub(crate) context_length: usize,
    pub(crate) eos_token_ids: Vec<u32>,
    bos_token_id: Option<u32>,
    depends_on_length: bool,
    texts: Texts,
    generation: GenerationConfig,
}

impl OrtModel {
    /// Opens a folder with a `model.onnx`. Loads the library if this is the first.
    pub fn open(folder: &Path, options: OrtOptions) -> Result<Self, OrtError> {
        let path = folder.join("model.onnx");
        if !path.is_file() {
            return Err(OrtError::NoGraph { path: folder.into() });
        }
        let environment = library::environment()?;
        let mut builder = Session::builder(&environment)?;
        if options.provider != Provider::Cpu {
            builder = builder.with_execution_providers([options.provider.dispatch()?]).map_err(ort::Error::from)?;
        }
        if options.threads > 0 {
            builder = builder.with_intra_threads(options.threads).map_err(ort::Error::from)?;
        }
        if options.exact {
            builder = builder.with_quant_qdq(false).map_err(ort::Error::from)?;
        }
        let session = builder.commit_from_file(&path)?;
        let bad = |what: String| OrtError::Graph { path: folder.into(), what };
        let (caches, with_positions) = inputs(&session).map_err(bad)?;
        let vocab_size = vocab_size(&session).map_err(bad)?;
        let said = Said::read(folder, &session)?;
        let texts = Texts::open(folder)?;
        let (generation, ends) = texts.generation()?.unwrap_or_default();
        let Said { context_length, bos_token_id, depends_on_length, mut eos_token_ids } = said;
        eos_token_ids.extend(ends);
        eos_token_ids.sort_unstable();
        eos_token_ids.dedup();
        Ok(Self {
            session,
            caches,
            with_positions,
            vocab_size,
            context_length,
            eos_token_ids,
            bos_token_id,
            depends_on_length,
            texts,
            generation,
        })
    }

    /// Tokenizer and chat template.
    pub fn texts(&self) -> &Texts {
        &self.texts
    }

    /// Sampling defaults.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// V.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Positions that a sequence can have.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// The token that begins a text, where the folder says one beside its tokenizer.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.bos_token_id
    }

    /// What is computed for a position may depend on how many follow it in the same call; of a folder that another program wrote
    /// nobody knows.
    pub fn depends_on_length(&self) -> bool {
        self.depends_on_length
    }

    /// An empty sequence.
    pub fn sequence(&mut self) -> OrtSequence<'_> {
        OrtSequence::new(self)
    }
}

fn tensor(kind: &ValueType) -> Option<(TensorElementType, Vec<i64>)> {
    match kind {
        ValueType::Tensor { ty, shape, .. } => Some((*ty, shape.to_vec())),
        _ => None,
    }
}

/// The caches, and whether positions are an input.
fn inputs(session: &Session) -> Result<(Vec<Cache>, bool), String> {
    let (mut caches, mut with_positions, mut with_ids, mut with_mask) = (Vec::new(), false, false, false);
    for input in session.inputs() {
        let name = input.name();
        let Some((kind, shape)) = tensor(input.dtype()) else {
            return Err(format!("input `{name}` is no tensor"));
        };
        let wants = |wanted: TensorElementType| match kind == wanted {
            true => Ok(()),
            false => Err(format!("input `{name}` is {kind}, must be {wanted}")),
        };
        match name {
            "input_ids" => with_ids = true,
            "attention_mask" => with_mask = true,
            "position_ids" => with_positions = true,
            _ => {
                let rest = name.strip_prefix("past_key_values.").or_else(|| name.strip_prefix("past."));
                let Some(rest) = rest else { return Err(format!("input `{name}` is not known")) };
                wants(TensorElementType::Float32)?;
                let sizes = match shape[..] {
                    [_, heads, _, head_dim] => usize::try_from(heads).ok().zip(usize::try_from(head_dim).ok()),
                    _ => None,
                };
                let Some((heads, head_dim)) = sizes else {
                    return Err(format!("input `{name}` has shape {shape:?}, must be [batch, heads, past, size]"));
                };
                let output = format!("present.{rest}");
                if !session.outputs().iter().any(|found| found.name() == output) {
                    return Err(format!("there is no output `{output}` for input `{name}`"));
                }
                caches.push(Cache { input: name.to_owned(), output, heads, head_dim });
                continue;
            }
        }
        wants(TensorElementType::Int64)?;
    }
    if !with_ids || !with_mask {
        return Err("the graph lacks the input `input_ids` or `attention_mask`".to_owned());
    }
    Ok((caches, with_positions))
}

fn vocab_size(session: &Session) -> Result<usize, String> {
    let logits = session.outputs().iter().find(|output| output.name() == "logits");
    let Some((kind, shape)) = logits.and_then(|logits| tensor(logits.dtype())) else {
        return Err("there is no output `logits`".to_owned());
    };
    match (kind, &shape[..]) {
        (TensorElementType::Float32, &[_, _, vocab]) if vocab > 0 => Ok(vocab as usize),
        _ => Err(format!("output `logits` is {kind} {shape:?}, must be f32 [batch, sequence, vocabulary]")),
    }
}

/// What a folder says beside its tensors: in the graph itself, where this program wrote it, or in `genai_config.json`.
struct Said {
    context_length: usize,
    eos_token_ids: Vec<u32>,
    bos_token_id: Option<u32>,
    depends_on_length: bool,
}

impl Said {
    fn read(folder: &Path, session: &Session) -> Result<Self, OrtError> {
        let metadata = session.metadata()?;
        if let Some(length) = metadata.custom("edgelm.context_length").and_then(|text| text.parse().ok()) {
            let ends = metadata.custom("edgelm.eos_token_ids").unwrap_or_default();
            let eos_token_ids = ends.split(',').filter_map(|id| id.parse().ok()).collect();
            let bos_token_id = metadata.custom("edgelm.bos_token_id").and_then(|id| id.parse().ok());
            let depends_on_length = metadata.custom("edgelm.depends_on_length").as_deref() != Some("false");
            return Ok(Self { context_length: length, eos_token_ids, bos_token_id, depends_on_length });
        }
        let path = folder.join("genai_config.json");
        let bad = |what: &str| OrtError::Graph { path: path.clone(), what: what.to_owned() };
        let config = read_config(&path)?;
        let model = &config["model"];
        let length = model["context_length"].as_u64().and_then(|length| usize::try_from(length).ok());
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let eos_token_ids = match &model["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(id).collect(),
            one => id(one).into_iter().collect(),
        };
        let context_length = length.ok_or_else(|| bad("`model.context_length` is missing"))?;
        let bos_token_id = id(&model["bos_token_id"]);
        Ok(Self { context_length, eos_token_ids, bos_token_id, depends_on_length: true })
    }
}

fn read_config(path: &PathBuf) -> Result<Value, OrtError> {
    let bad = |what: String| OrtError::Graph { path: path.clone(), what };
    let size = std::fs::metadata(path).map_err(|error| bad(format!("says the context length: {error}")))?.len();
    if size > MAX_CONFIG_BYTES {
        return Err(bad(format!("has {size} bytes, more than the {MAX_CONFIG_BYTES} that it may have")));
    }
    let bytes = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))
}
