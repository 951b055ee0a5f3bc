//! What positions see of each other: causal order, padding, sliding windows, ALiBi.

use crate::{
    OnnxError,
    graph::Value,
    network::{ATTENTION_MASK, Network},
};
use edgelm_format::onnx::{Attribute, DataType};
use edgelm_model::{Alibi, Style};

/// What is added to scores that do not count: little enough beside any score, and a number that half precision turns into −∞.
const HIDDEN: f32 = -1e9;

impl Network<'_> {
    /// `[B, 1, S, T]`, 0 where a query sees a key.
    pub(crate) fn mask(&mut self, window: Option<usize>) -> Result<Value, OnnxError> {
        let (total, new) = (self.total()?, self.new_tokens()?);
        let (keys, queries) = self.key_and_query_numbers(&total, &new)?;
        self.shared(format!("mask {window:?}"), |network| {
            let graph = &mut network.graph;
            let mut seen = graph.apply("LessOrEqual", &[&keys, &queries]);
            if let Some(window) = window {
                let window = graph.integers(&[window as i64]);
                let first = graph.apply("Sub", &[&queries, &window]);
                let is_near = graph.apply("Greater", &[&keys, &first]);
                seen = graph.apply("And", &[&seen, &is_near]);
            }
            let is_token = graph.cast(ATTENTION_MASK, DataType::Bool);
            let is_token = graph.unsqueeze(&is_token, &[1, 2]);
            let seen = graph.apply("And", &[&seen, &is_token]);
            let (zero, hidden) = (graph.scalar(0.0), graph.scalar(HIDDEN));
            Ok(graph.apply("Where", &[&seen, &zero, &hidden]))
        })
    }

    /// Places in the cache: of keys `[T]`, of queries `[S, 1]`.
    fn key_and_query_numbers(&mut self, total: &str, new: &str) -> Result<(Value, Value), OnnxError> {
        let keys = self.shared("keys", |network| {
            let graph = &mut network.graph;
            let (zero, one, axis) = (graph.integer(0), graph.integer(1), graph.integers(&[0]));
            let end = graph.apply("Squeeze", &[total, &axis]);
            Ok(graph.apply("Range", &[&zero, &end, &one]))
        })?;
        let queries = self.shared("queries", |network| {
            let graph = &mut network.graph;
            let (one, axis) = (graph.integer(1), graph.integers(&[0]));
            let start = graph.apply("Sub", &[total, new]);
            let (start, end) = (graph.apply("Squeeze", &[&start, &axis]), graph.apply("Squeeze", &[total, &axis]));
            let queries = graph.apply("Range", &[&start, &end, &one]);
            Ok(graph.unsqueeze(&queries, &[1]))
        })?;
        Ok((keys, queries))
    }

    /// Slopes times the positions of keys `[B, H, 1, T]`. Where they act on distances, what the position of the query takes from
    /// all its scores alike is left out: the softmax does not see it.
    pub(crate) fn alibi(&mut self, layer: usize, scale: f32) -> Result<Option<Value>, OnnxError> {
        let Some(alibi) = self.config.style.alibi else { return Ok(None) };
        let heads = self.config.layers[layer].num_attention_heads;
        let positions = self.shared("key positions", |network| {
            let graph = &mut network.graph;
            let (axis, one) = (graph.integer(1), graph.integers(&[1]));
            let count = graph.apply("CumSum", &[ATTENTION_MASK, &axis]);
            let positions = graph.apply("Sub", &[&count, &one]);
            let positions = graph.cast(&positions, DataType::Float);
            Ok(graph.unsqueeze(&positions, &[1, 2]))
        })?;
        let bias = self.shared(format!("alibi {heads} {scale}"), |network| {
            let mut slopes = Style::alibi_slopes(heads);
            let is_rounded = alibi == Alibi::Falcon;
            if is_rounded {
                slopes.iter_mut().for_each(|slope| *slope = half::bf16::from_f32(*slope).to_f32());
            }
            let graph = &mut network.graph;
            let slopes = graph.floats("slopes", &[1, heads, 1, 1], &slopes);
            if !is_rounded {
                return Ok(graph.apply("Mul", &[&positions, &slopes]));
            }
            let rounded = |graph: &mut crate::graph::Graph, x: &str| {
                let x = graph.cast(x, DataType::BFloat16);
                graph.cast(&x, DataType::Float)
            };
            let positions = rounded(graph, &positions);
            let bias = graph.apply("Mul", &[&positions, &slopes]);
            let bias = rounded(graph, &bias);
            Ok(graph.scale(bias, scale))
        })?;
        Ok(Some(bias))
    }

    /// The same for every query `[B, H, S, T]`, as GroupQueryAttention takes it.
    pub(crate) fn alibi_of_queries(&mut self, layer: usize, scale: f32) -> Result<Option<Value>, OnnxError> {
        let Some(bias) = self.alibi(layer, scale)? else { return Ok(None) };
        let new = self.new_tokens()?;
        let all = self.shared(format!("all queries {bias}"), |network| {
            let graph = &mut network.graph;
            let one = graph.integers(&[1]);
            let shape = graph.op("Concat", &[&one, &one, &new, &one], vec![Attribute::int("axis", 0)]);
            Ok(graph.apply("Expand", &[&bias, &shape]))
        })?;
        Ok(Some(all))
    }
}
