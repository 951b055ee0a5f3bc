//! A model on its way into a graph: what its parts share.

use crate::{
    Kind, OnnxError, OnnxOptions, OnnxStyle,
    form::{Floats, Form},
    graph::{Dim, Graph, Value},
};
use edgelm_format::onnx::{Attribute, DataType};
use edgelm_model::{Checkpoint, LayerTensor, ModelConfig, TensorId};
use std::collections::{BTreeMap, HashMap};

/// Tokens `[B, S]`.
pub(crate) const INPUT_IDS: &str = "input_ids";
/// 1 where there is a token, 0 where there is padding, `[B, T]`, T all positions so far.
pub(crate) const ATTENTION_MASK: &str = "attention_mask";
/// Of the tokens `[B, S]`.
pub(crate) const POSITION_IDS: &str = "position_ids";

pub(crate) struct Network<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) config: &'a ModelConfig,
    pub(crate) style: OnnxStyle,
    pub(crate) floats: Floats,
    pub(crate) int8_inputs: bool,
    /// Positions that the graph can be run at.
    pub(crate) context: usize,
    pub(crate) graph: Graph,
    /// Matrices of which parameters are parts.
    pub(crate) matrices: Vec<(TensorId, Form)>,
    kinds: BTreeMap<(String, String, String, Option<String>), usize>,
    shared: HashMap<String, Value>,
}

impl<'a> Network<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, options: OnnxOptions, context: usize) -> Self {
        let OnnxOptions { style, floats, int8_inputs, .. } = options;
        let mut graph = Graph::default();
        graph.input(INPUT_IDS, DataType::Int64, &[Dim::Named("batch"), Dim::Named("sequence")]);
        graph.input(ATTENTION_MASK, DataType::Int64, &[Dim::Named("batch"), Dim::Named("total_sequence")]);
        let config = checkpoint.config();
        let (matrices, kinds, shared) = (Vec::new(), BTreeMap::new(), HashMap::new());
        Self { checkpoint, config, style, floats, int8_inputs, context, graph, matrices, kinds, shared }
    }

    pub(crate) fn is_fused(&self) -> bool {
        self.style == OnnxStyle::Genai
    }

    /// A value that several parts need, made by the first of them.
    pub(crate) fn shared(
        &mut self,
        key: impl Into<String>,
        make: impl FnOnce(&mut Self) -> Result<Value, OnnxError>,
    ) -> Result<Value, OnnxError> {
        let key = key.into();
        if let Some(value) = self.shared.get(&key) {
            return Ok(value.clone());
        }
        let value = make(self)?;
        self.shared.insert(key, value.clone());
        Ok(value)
    }

    /// Positions of the tokens: an input of every graph of standard operators, of others only where something asks for them.
    pub(crate) fn positions(&mut self) -> Result<Value, OnnxError> {
        self.shared(POSITION_IDS, |network| {
            let dims = [Dim::Named("batch"), Dim::Named("sequence")];
            Ok(network.graph.input(POSITION_IDS, DataType::Int64, &dims))
        })
    }

    /// T `[1]`: how many positions there are, with those of the cache.
    pub(crate) fn total(&mut self) -> Result<Value, OnnxError> {
        self.shared("total", |network| {
            let graph = &mut network.graph;
            Ok(graph.op("Shape", &[ATTENTION_MASK], vec![Attribute::int("start", 1), Attribute::int("end", 2)]))
        })
    }

    /// S `[1]`: how many tokens are new.
    pub(crate) fn new_tokens(&mut self) -> Result<Value, OnnxError> {
        self.shared("new", |network| {
            let graph = &mut network.graph;
            Ok(graph.op("Shape", &[INPUT_IDS], vec![Attribute::int("start", 1), Attribute::int("end", 2)]))
        })
    }

    /// Values of a tensor that is small.
    pub(crate) fn values(&self, id: TensorId) -> Result<Vec<f32>, OnnxError> {
        let view = self.checkpoint.tensor(id)?;
        let mut values = vec![0.0; view.elements()];
        edgelm_tensor::block::decode_row(view.dtype, &view.bytes, &mut values)?;
        Ok(values)
    }

    /// Declares the parts of a matrix in a form: their names.
    pub(crate) fn matrix(&mut self, id: TensorId, form: Form, reason: Option<String>) -> Result<Vec<Value>, OnnxError> {
        let (dtype, shape) = self.checkpoint.describe(id)?;
        let (n, k) = (shape[0], shape[1]);
        let role = match id {
            // Those of all experts together.
            TensorId::Layer(_, LayerTensor::Expert(_, part)) => format!("Expert {part:?}"),
            TensorId::Layer(_, tensor) => format!("{tensor:?}"),
            other => format!("{other:?}"),
        };
        let from = match self.checkpoint.is_coded(id)? && !dtype.is_quantized() {
            // The engine runs them as floats; the file has codes.
            true => "codes".to_owned(),
            false => dtype.to_string(),
        };
        *self.kinds.entry((role, from, form.name(k), reason)).or_insert(0) += 1;
        let matrix = self.matrices.len();
        let parts = form.parts(n, k).into_iter().enumerate();
        let names =
            parts.map(|(at, part)| self.graph.part(part.name, part.data_type, &part.dims, matrix, at)).collect();
        self.matrices.push((id, form));
        Ok(names)
    }

    /// How many matrices of which role are stored how.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let kind = |((role, from, to, reason), &count): (&(String, String, String, Option<String>), &usize)| Kind {
            role: role.clone(),
            from: from.clone(),
            to: to.clone(),
            reason: reason.clone(),
            count,
        };
        self.kinds.iter().map(kind).collect()
    }
}
