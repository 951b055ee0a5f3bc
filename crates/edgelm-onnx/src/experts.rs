//! A feed-forward half of which each token takes a few parts.
//!
//! Of every expert only the tokens that take it are computed: their rows are gathered, and what comes out is added where they
//! were. All operators are standard ones, and sizes depend on the tokens; an expert that nobody takes has products of no rows.
//!
//! The one thing a reader would get wrong: tokens of all sequences lie in one row of tokens here, `[1, B · S, D]`.

use crate::{OnnxError, feed_forward::Roles, graph::Value, network::Network};
use edgelm_format::onnx::Attribute;
use edgelm_model::{ExpertTensor, Experts, LayerTensor, RoutingScore, TensorId};

impl Network<'_> {
    /// Σ over the experts taken of weight · expert(x), and the shared one.
    pub(crate) fn experts(&mut self, x: &str, index: usize, experts: &Experts) -> Result<Value, OnnxError> {
        use LayerTensor as T;
        let width = self.config.hidden_size as i64;
        let tokens = self.graph.reshape(x, &[1, -1, width]);
        let weights = self.routed(&tokens, index, experts)?;
        // [T, D] and [T, E].
        let rows = self.graph.reshape(&tokens, &[-1, width]);
        let weights = self.graph.reshape(&weights, &[-1, experts.count as i64]);
        let mut sum = self.zeros_like(&rows);
        for expert in 0..experts.count {
            self.graph.enter(&format!("layers.{index}.experts.{expert}"));
            let number = self.graph.integer(expert as i64);
            let weight = self.graph.op("Gather", &[&weights, &number], vec![Attribute::int("axis", 1)]);
            let taken = self.graph.apply("NonZero", &[&weight]);
            let taken = self.graph.reshape(&taken, &[-1]);
            let of = |part| T::Expert(expert as u16, part);
            let roles = Roles { gate: of(ExpertTensor::Gate), up: of(ExpertTensor::Up), down: of(ExpertTensor::Down) };
            let inputs = self.graph.op("Gather", &[&rows, &taken], vec![Attribute::int("axis", 0)]);
            let inputs = self.graph.unsqueeze(&inputs, &[0]);
            let update = self.network_of(&inputs, index, roles)?;
            let update = self.graph.reshape(&update, &[-1, width]);
            let weight = self.graph.op("Gather", &[&weight, &taken], vec![Attribute::int("axis", 0)]);
            let weight = self.graph.unsqueeze(&weight, &[-1]);
            let update = self.graph.apply("Mul", &[&update, &weight]);
            let places = self.graph.unsqueeze(&taken, &[-1]);
            let add = vec![Attribute::string("reduction", "add")];
            sum = self.graph.op("ScatterND", &[&sum, &places, &update], add);
        }
        self.graph.enter(&format!("layers.{index}.experts"));
        // The shape of x, whatever the batch.
        let shape = self.graph.apply("Shape", &[x]);
        let sum = self.graph.apply("Reshape", &[&sum, &shape]);
        if experts.shared.is_none() {
            return Ok(sum);
        }
        self.graph.enter(&format!("layers.{index}.shared_expert"));
        let roles = Roles { gate: T::SharedGate, up: T::SharedUp, down: T::SharedDown };
        let mut shared = self.network_of(x, index, roles)?;
        if experts.shared_gate {
            let gate = self.linear_group(x, index, &[T::SharedRouter])?.swap_remove(0);
            let gate = self.graph.apply("Sigmoid", &[&gate]);
            shared = self.graph.apply("Mul", &[&shared, &gate]);
        }
        Ok(self.graph.apply("Add", &[&sum, &shared]))
    }

    /// What each expert's result is weighted with, 0 where it is not taken: `[1, T, E]` of `[1, T, D]`.
    fn routed(&mut self, x: &str, index: usize, experts: &Experts) -> Result<Value, OnnxError> {
        self.graph.enter(&format!("layers.{index}.router"));
        let last = || vec![Attribute::int("axis", -1)];
        let routing = &experts.routing;
        let logits = self.linear_group(x, index, &[LayerTensor::Router])?.swap_remove(0);
        let scores = match routing.score {
            RoutingScore::Softmax => self.graph.op("Softmax", &[&logits], last()),
            RoutingScore::Sigmoid => self.graph.apply("Sigmoid", &[&logits]),
        };
        let ranks = match routing.selection_bias {
            false => scores.clone(),
            true => {
                let bias = self.values(TensorId::Layer(index, LayerTensor::SelectionBias))?;
                let bias = self.graph.floats("selection_bias", &[bias.len()], &bias);
                self.graph.apply("Add", &[&scores, &bias])
            }
        };
        let count = self.graph.integers(&[experts.per_token as i64]);
        let taken = self.graph.node("", "TopK", &[&ranks, &count], 2, last()).swap_remove(1);
        let mut weights = self.graph.op("GatherElements", &[&scores, &taken], last());
        if routing.normalize {
            let axis = self.graph.integers(&[-1]);
            let sum = self.graph.op("ReduceSum", &[&weights, &axis], vec![Attribute::int("keepdims", 1)]);
            weights = self.graph.apply("Div", &[&weights, &sum]);
        }
        let weights = self.graph.scale(weights, routing.scale);
        let zeros = self.zeros_like(&scores);
        Ok(self.graph.op("ScatterElements", &[&zeros, &taken, &weights], last()))
    }

    /// Zeros in f32, of the shape of `x`.
    fn zeros_like(&mut self, x: &str) -> Value {
        let shape = self.graph.apply("Shape", &[x]);
        // Without a value it is one of f32.
        self.graph.apply("ConstantOfShape", &[&shape])
    }
}
