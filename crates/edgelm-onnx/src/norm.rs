//! Norms of hidden states and of heads.

use crate::{OnnxError, graph::Value, network::Network};
use edgelm_format::onnx::Attribute;
use edgelm_model::{LayerTensor, NormKind, QkNorm, TensorId};

/// A norm over the last axis: gain and bias as they are used.
pub(crate) struct Norm {
    kind: NormKind,
    gain: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Network<'_> {
    fn norm_of(&self, kind: NormKind, width: usize, gain: TensorId, bias: TensorId) -> Result<Norm, OnnxError> {
        let mut values = if kind.has_gain() { self.values(gain)? } else { vec![1.0; width] };
        if matches!(kind, NormKind::RmsPlusOne | NormKind::LayerPlusOne) {
            values.iter_mut().for_each(|gain| *gain += 1.0);
        }
        let bias = kind.has_bias().then(|| self.values(bias)).transpose()?;
        Ok(Norm { kind, gain: values, bias })
    }

    /// A norm of hidden states.
    pub(crate) fn norm(&mut self, x: &str, gain: TensorId, bias: TensorId) -> Result<Value, OnnxError> {
        let norm = self.norm_of(self.config.style.norm, self.config.hidden_size, gain, bias)?;
        Ok(self.normed(x, &norm))
    }

    /// The norm of what a layer hands to one of its last matrices, if there is one.
    pub(crate) fn sub_norm(&mut self, x: Value, layer: usize, gain: LayerTensor) -> Result<Value, OnnxError> {
        let gain = TensorId::Layer(layer, gain);
        let Some(shape) = self.config.tensor_shape(gain) else { return Ok(x) };
        let norm = self.norm_of(NormKind::Rms, shape[0], gain, gain)?;
        Ok(self.normed(&x, &norm))
    }

    /// The norm of queries or keys `[B, S, heads · E]`, if there is one.
    pub(crate) fn head_norm(
        &mut self,
        x: Value,
        layer: usize,
        heads: usize,
        (gain, bias): (LayerTensor, LayerTensor),
    ) -> Result<Value, OnnxError> {
        let (gain, bias) = (TensorId::Layer(layer, gain), TensorId::Layer(layer, bias));
        let head_dim = self.config.layers[layer].head_dim;
        let shape = [0, 0, heads as i64, head_dim as i64];
        Ok(match self.config.style.qk_norm {
            QkNorm::None => x,
            QkNorm::All(kind) => {
                let norm = self.norm_of(kind, heads * head_dim, gain, bias)?;
                self.normed(&x, &norm)
            }
            QkNorm::Head(kind) => {
                let norm = self.norm_of(kind, head_dim, gain, bias)?;
                let x = self.graph.reshape(&x, &shape);
                let x = self.normed(&x, &norm);
                self.graph.reshape(&x, &[0, 0, -1])
            }
            QkNorm::OwnHead(kind) => {
                let whole = self.norm_of(kind, heads * head_dim, gain, bias)?;
                let one = Norm { gain: vec![1.0; head_dim], ..whole };
                let x = self.graph.reshape(&x, &shape);
                let x = self.normed(&x, &one);
                let gains = self.graph.floats("gains", &[heads, head_dim], &whole.gain);
                let x = self.graph.apply("Mul", &[&x, &gains]);
                self.graph.reshape(&x, &[0, 0, -1])
            }
        })
    }

    fn normed(&mut self, x: &str, norm: &Norm) -> Value {
        let (eps, width) = (self.config.norm_eps, norm.gain.len());
        let is_rms = matches!(norm.kind, NormKind::Rms | NormKind::RmsPlusOne | NormKind::RmsPlain);
        let is_fused = self.is_fused();
        let graph = &mut self.graph;
        let gain = graph.floats("gain", &[width], &norm.gain);
        let attributes = vec![Attribute::int("axis", -1), Attribute::float("epsilon", eps)];
        let bias = norm.bias.as_ref().map(|bias| graph.floats("bias", &[width], bias));
        if is_fused && let Some((a, b)) = graph.take_sum(x) {
            let op_type = if is_rms { "SkipSimplifiedLayerNormalization" } else { "SkipLayerNormalization" };
            let inputs: Vec<&str> = [&a, &b, &gain].into_iter().chain(&bias).map(String::as_str).collect();
            return graph.skip(op_type, &inputs, x, vec![Attribute::float("epsilon", eps)]);
        }
        if !is_rms {
            let inputs: Vec<&str> = [x, &gain].into_iter().chain(bias.as_deref()).collect();
            return graph.op("LayerNormalization", &inputs, attributes);
        }
        if is_fused {
            return graph.op("SimplifiedLayerNormalization", &[x, &gain], attributes);
        }
        // RMSNormalization came with opset 23, which few tool chains read.
        let square = graph.apply("Mul", &[x, x]);
        let axis = graph.integers(&[-1]);
        let mean = graph.apply("ReduceMean", &[&square, &axis]);
        let eps = graph.scalar(eps);
        let mean = graph.apply("Add", &[&mean, &eps]);
        let root = graph.apply("Sqrt", &[&mean]);
        let x = graph.apply("Div", &[x, &root]);
        graph.apply("Mul", &[&x, &gain])
    }
}
