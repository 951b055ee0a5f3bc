//! A model on its way to a folder.

use crate::{
    Floats, OnnxError, OnnxReport, OnnxStyle, folder::Folder, genai_config, network::Network, parameters,
    support::unsupported, tokenizer,
};
use edgelm_format::onnx::{Entry, Graph, Model, OperatorSet, encode_model};
use edgelm_model::Checkpoint;
use std::{ops::ControlFlow, path::Path};

/// Of standard operators: the first with 4-bit integers and blocks in `DequantizeLinear`.
const OPSET: i64 = 21;

/// The file format's version that came with it.
const IR_VERSION: i64 = 10;

/// How a model is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnnxOptions {
    /// Operators.
    pub style: OnnxStyle,
    /// What weights are written as that are not stored as integers.
    pub floats: Floats,
    /// `MatMulNBits` may round its inputs to int8: faster, and as far from the model's values as any engine with integer kernels.
    /// Of style `genai` alone: what meets `DequantizeLinear`, the runtime decides.
    pub int8_inputs: bool,
    /// Positions that it can be run at: as many rows have the tables of rotary embeddings. `None` = the model's own.
    pub context: Option<usize>,
}

/// Most positions: tables of a rotary embedding of 128 components then have 256 MiB each.
const MAX_CONTEXT: usize = 1 << 20;

/// Told how many matrices of how many are written; may stop the work.
pub type OnStep<'a> = dyn FnMut(usize, usize) -> ControlFlow<()> + 'a;

/// Writes a model to a folder: `model.onnx`, its weights beside it, what a style's users read with it, and the tokenizer.
///
/// Inputs: `input_ids` `[B, S]`, `attention_mask` `[B, P + S]` (of padding on the left, or none; `genai`: on the right),
/// `position_ids` `[B, S]` (`genai`: only where the model needs them), `past_key_values.N.key` and `.value` `[B, G, P, E]`.
/// Outputs: `logits` `[B, S, V]`, `present.N.key` and `.value` `[B, G, P + S, E]`. Arithmetic is f32.
///
/// Errors, before anything is written, where the style has no operators for the model.
pub fn export(
    checkpoint: &Checkpoint,
    options: OnnxOptions,
    output: &Path,
    on_step: &mut OnStep<'_>,
) -> Result<OnnxReport, OnnxError> {
    let (config, style) = (checkpoint.config(), options.style);
    if let Some(what) = unsupported(config, style) {
        return Err(OnnxError::Unsupported { architecture: config.arch.name, style, what });
    }
    let trained = config.context_length();
    let context = options.context.unwrap_or(trained);
    if context == 0 || context > trained.min(MAX_CONTEXT) {
        return Err(OnnxError::Context { context, most: trained.min(MAX_CONTEXT) });
    }
    let mut network = Network::new(checkpoint, options, context);
    if style == OnnxStyle::Qdq {
        network.positions()?;
    }
    let (mut hidden, table) = network.front()?;
    for index in 0..config.layers.len() {
        hidden = network.layer(hidden, index)?;
    }
    network.head(hidden, &table)?;

    let mut folder = Folder::create(checkpoint, output)?;
    let texts = tokenizer::files(checkpoint)?;
    for (name, content) in &texts.files {
        folder.write(name, content)?;
    }
    if style == OnnxStyle::Genai {
        let with_positions = network.graph.inputs.iter().any(|input| input.name == crate::network::POSITION_IDS);
        folder.write("genai_config.json", &genai_config::text(checkpoint, context, with_positions))?;
    }
    let model = model(&network);
    folder.write("model.onnx", &encode_model(&model, &folder.target("model.onnx"))?)?;
    let count = network.matrices.len();
    let mut on_matrix = |done: usize| match on_step(done, count) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(OnnxError::Cancelled),
    };
    let bytes = parameters::write(&network, &folder.path().join(parameters::DATA_FILE), &mut on_matrix)?;
    folder.add(parameters::DATA_FILE, bytes);
    let (files, output_bytes) = folder.finish()?;
    let (kinds, notes, input_bytes) = (network.kinds(), texts.notes, checkpoint.file_bytes());
    Ok(OnnxReport { files, kinds, notes, input_bytes, output_bytes })
}

fn model(network: &Network<'_>) -> Model {
    let set = |domain: &str, version| OperatorSet { domain: domain.to_owned(), version };
    let mut opset_import = vec![set("", OPSET)];
    if network.is_fused() {
        opset_import.push(set(crate::graph::MICROSOFT, 1));
    }
    let entry = |key: &str, value: String| Entry { key: key.to_owned(), value };
    let config = network.config;
    let eos: Vec<String> = config.eos_token_ids.iter().map(u32::to_string).collect();
    Model {
        ir_version: IR_VERSION,
        producer_name: "edgelm".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(Graph {
            node: network.graph.nodes.clone(),
            name: "decoder".to_owned(),
            initializer: parameters::initializers(&network.graph),
            input: network.graph.inputs.clone(),
            output: network.graph.outputs.clone(),
        }),
        opset_import,
        metadata_props: vec![
            entry("edgelm.architecture", config.arch.name.to_owned()),
            entry("edgelm.style", network.style.to_string()),
            entry("edgelm.context_length", network.context.to_string()),
            entry("edgelm.eos_token_ids", eos.join(",")),
            entry("edgelm.depends_on_length", config.rope.depends_on_length().to_string()),
            entry("edgelm.bos_token_id", config.bos_token_id.map_or(String::new(), |id| id.to_string())),
        ],
    }
}
