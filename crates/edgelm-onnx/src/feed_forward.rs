//! The feed-forward half of a layer: from its normed input to what it adds.

use crate::{OnnxError, graph::Value, network::Network};
use edgelm_format::onnx::Attribute;
use edgelm_model::{LayerTensor, TensorId};
use edgelm_tensor::Activation;

/// The matrices of a feed-forward network.
pub(crate) struct Roles {
    pub(crate) gate: LayerTensor,
    pub(crate) up: LayerTensor,
    pub(crate) down: LayerTensor,
}

impl Network<'_> {
    /// What the second half of a layer adds; `None` where it has none.
    pub(crate) fn feed_forward(&mut self, x: &str, index: usize) -> Result<Option<Value>, OnnxError> {
        use LayerTensor as T;
        if let Some(experts) = self.config.layers[index].experts {
            return self.experts(x, index, &experts).map(Some);
        }
        if self.config.layers[index].intermediate_size == 0 {
            return Ok(None);
        }
        self.graph.enter(&format!("layers.{index}.mlp"));
        self.network_of(x, index, Roles { gate: T::Gate, up: T::Up, down: T::Down }).map(Some)
    }

    /// down(f(gate(x)) · up(x)), or down(f(up(x))) without a gate.
    pub(crate) fn network_of(&mut self, x: &str, index: usize, roles: Roles) -> Result<Value, OnnxError> {
        let style = self.config.style;
        let mut products = self.linear_group(x, index, &[roles.gate, roles.up])?;
        let mut up = products.pop().unwrap_or_default();
        let inner = match products.pop() {
            Some(gate) => {
                let mut gate = self.graph.scale(gate, style.multipliers.gate);
                if let Some(limit) = style.glu_limit {
                    (gate, up) = self.limited(&gate, &up, limit);
                }
                let gate = self.activated(&gate, style.activation);
                self.graph.apply("Mul", &[&gate, &up])
            }
            None if style.xielu => self.xielu(&up, index)?,
            None => self.activated(&up, style.activation),
        };
        let inner = self.sub_norm(inner, index, LayerTensor::FfnSubNorm)?;
        let update = self.linear_group(&inner, index, &[roles.down])?.swap_remove(0);
        Ok(self.graph.scale(update, style.multipliers.down))
    }

    /// gate ≤ limit, 1 + up with up between −limit and limit.
    fn limited(&mut self, gate: &str, up: &str, limit: f32) -> (Value, Value) {
        let graph = &mut self.graph;
        let (low, high, one) = (graph.scalar(-limit), graph.scalar(limit), graph.scalar(1.0));
        let gate = graph.apply("Min", &[gate, &high]);
        let up = graph.apply("Clip", &[up, &low, &high]);
        (gate, graph.apply("Add", &[&up, &one]))
    }

    /// p x² + β x for x > 0, n (e^min(x, ε) − 1 − x) + β x else; see [`edgelm_model::Style::xielu`].
    fn xielu(&mut self, x: &str, index: usize) -> Result<Value, OnnxError> {
        use LayerTensor as T;
        let number = |tensor| {
            let values = self.values(TensorId::Layer(index, tensor))?;
            Ok::<_, OnnxError>(values.first().copied().unwrap_or_default())
        };
        let softplus = |x: f32| if x > 20.0 { x } else { x.exp().ln_1p() };
        let (beta, eps) = (number(T::XieluSlope)?, number(T::XieluFloor)?);
        let (p, n) = (softplus(number(T::XieluPositive)?), beta + softplus(number(T::XieluNegative)?));
        let graph = &mut self.graph;
        let [zero, one, eps] = [0.0, 1.0, eps].map(|number| graph.scalar(number));
        let square = graph.apply("Mul", &[x, x]);
        let above = graph.scale(square, p);
        // ONNX has no e^x − 1: of small x it keeps the absolute precision, which the sum does not need finer.
        let floor = graph.apply("Min", &[x, &eps]);
        let below = graph.apply("Exp", &[&floor]);
        let below = graph.apply("Sub", &[&below, &one]);
        let below = graph.apply("Sub", &[&below, x]);
        let below = graph.scale(below, n);
        let is_above = graph.apply("Greater", &[x, &zero]);
        let bent = graph.apply("Where", &[&is_above, &above, &below]);
        let line = graph.scale(x.to_owned(), beta);
        Ok(graph.apply("Add", &[&bent, &line]))
    }

    fn activated(&mut self, x: &str, activation: Activation) -> Value {
        let graph = &mut self.graph;
        match activation {
            Activation::Silu => {
                let gate = graph.apply("Sigmoid", &[x]);
                graph.apply("Mul", &[x, &gate])
            }
            Activation::QuickGelu => {
                let scaled = graph.scale(x.to_owned(), 1.702);
                let gate = graph.apply("Sigmoid", &[&scaled]);
                graph.apply("Mul", &[x, &gate])
            }
            Activation::Gelu => graph.op("Gelu", &[x], vec![Attribute::string("approximate", "none")]),
            Activation::GeluTanh => graph.op("Gelu", &[x], vec![Attribute::string("approximate", "tanh")]),
            Activation::Relu => graph.apply("Relu", &[x]),
            Activation::Relu2 => {
                let x = graph.apply("Relu", &[x]);
                graph.apply("Mul", &[&x, &x])
            }
        }
    }
}
