//! The attention half of a layer: from its normed input to what it adds.

use crate::{
    OnnxError,
    graph::{Dim, MICROSOFT, Value},
    network::{ATTENTION_MASK, Network},
    support::rotates_inside,
};
use edgelm_format::onnx::{Attribute, DataType};
use edgelm_model::{LayerConfig, LayerTensor, OutputGate, RopePairs, TensorId};

impl Network<'_> {
    /// attention(x).
    pub(crate) fn attention(&mut self, x: Value, index: usize) -> Result<Value, OnnxError> {
        use LayerTensor as T;
        self.graph.enter(&format!("layers.{index}.attn"));
        let (config, style) = (self.config.layers[index].clone(), self.config.style);
        let factors = style.multipliers;
        let x = self.graph.scale(x, factors.attention_input);
        let mut products = self.linear_group(&x, index, &[T::Q, T::K, T::V, T::QGate])?.into_iter();
        let (Some(q), Some(k), Some(v)) = (products.next(), products.next(), products.next()) else {
            let what = format!("layer {index} lacks queries, keys or values");
            return Err(OnnxError::Unsupported { architecture: self.config.arch.name, style: self.style, what });
        };
        let gate = products.next();
        let k = self.graph.scale(k, factors.key);
        let [mut q, mut k, v] = [q, k, v].map(|x| match style.clip_qkv {
            Some(limit) => {
                let (low, high) = (self.graph.scalar(-limit), self.graph.scalar(limit));
                self.graph.apply("Clip", &[&x, &low, &high])
            }
            None => x,
        });
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let is_inside =
            self.is_fused() && self.rope_of(index).is_some_and(|rope| rotates_inside(self.config, &config, rope));
        if style.rope_before_norm && !is_inside {
            (q, k) = (self.rotated(q, index, heads)?, self.rotated(k, index, kv_heads)?);
        }
        q = self.head_norm(q, index, heads, (T::QNorm, T::QNormBias))?;
        k = self.head_norm(k, index, kv_heads, (T::KNorm, T::KNormBias))?;
        if !style.rope_before_norm && !is_inside {
            (q, k) = (self.rotated(q, index, heads)?, self.rotated(k, index, kv_heads)?);
        }
        // The rotation keeps factors: they may come before it.
        q = self.grown(q)?;
        let scale = style.attention_scale.unwrap_or(1.0 / (config.head_dim as f32).sqrt());
        let scale = if style.scale_by_layer { scale / (index as f32 + 1.0) } else { scale };
        let mut heads = match self.is_fused() {
            true => self.fused_attention(index, &config, [&q, &k, &v], scale, is_inside)?,
            false => self.plain_attention(index, &config, [&q, &k, &v], scale)?,
        };
        if let (Some(kind), Some(gate)) = (style.output_gate, gate) {
            heads = self.gated(heads, &gate, kind, &config);
        }
        let heads = self.sub_norm(heads, index, T::AttnSubNorm)?;
        let update = self.linear_group(&heads, index, &[T::O])?.swap_remove(0);
        Ok(self.graph.scale(update, factors.attention_output))
    }

    fn gated(&mut self, heads: Value, gate: &str, kind: OutputGate, config: &LayerConfig) -> Value {
        let graph = &mut self.graph;
        let gate = graph.apply("Sigmoid", &[gate]);
        match kind {
            OutputGate::Component => graph.apply("Mul", &[&heads, &gate]),
            OutputGate::Head => {
                let gate = graph.unsqueeze(&gate, &[3]);
                let heads = graph.reshape(&heads, &[0, 0, config.num_attention_heads as i64, config.head_dim as i64]);
                let heads = graph.apply("Mul", &[&heads, &gate]);
                graph.reshape(&heads, &[0, 0, -1])
            }
        }
    }

    /// The cache of a layer: past keys and values `[B, G, P, E]`.
    fn past(&mut self, index: usize, config: &LayerConfig, head_dim: usize) -> [Value; 2] {
        ["key", "value"].map(|what| {
            let dims = [
                Dim::Named("batch"),
                Dim::Size(config.num_key_value_heads),
                Dim::Named("past_sequence"),
                Dim::Size(head_dim),
            ];
            self.graph.input(&format!("past_key_values.{index}.{what}"), DataType::Float, &dims)
        })
    }

    /// The same with the new ones.
    fn present(&mut self, index: usize, config: &LayerConfig, head_dim: usize, values: [&str; 2]) -> [Value; 2] {
        let mut names = ["key", "value"].into_iter();
        values.map(|value| {
            let dims = [
                Dim::Named("batch"),
                Dim::Size(config.num_key_value_heads),
                Dim::Named("total_sequence"),
                Dim::Size(head_dim),
            ];
            let name = format!("present.{index}.{}", names.next().unwrap_or_default());
            self.graph.output(value, &name, DataType::Float, &dims);
            name
        })
    }

    /// GroupQueryAttention: queries, keys and values `[B, S, heads · E]`.
    fn fused_attention(
        &mut self,
        index: usize,
        config: &LayerConfig,
        [q, k, v]: [&str; 3],
        scale: f32,
        is_rotated_inside: bool,
    ) -> Result<Value, OnnxError> {
        let (lengths, total) = self.fused_lengths()?;
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let (own, head_dim) = (config.head_dim, fused_head_dim(config));
        let [q, k, v] =
            [(q, heads), (k, kv_heads), (v, kv_heads)].map(|(x, heads)| self.padded(x, heads, own, head_dim));
        let bias = self.alibi_of_queries(index, scale)?.unwrap_or_default();
        let mut attributes = vec![
            Attribute::int("num_heads", config.num_attention_heads as i64),
            Attribute::int("kv_num_heads", config.num_key_value_heads as i64),
            Attribute::float("scale", scale),
        ];
        if let Some(window) = config.sliding_window {
            attributes.push(Attribute::int("local_window_size", window as i64));
        }
        if let Some(cap) = self.config.style.attention_softcap {
            attributes.push(Attribute::float("softcap", cap));
        }
        let (mut cos, mut sin) = (String::new(), String::new());
        if is_rotated_inside && let Some(tables) = self.rope_tables(index)? {
            (cos, sin) = tables;
            let is_interleaved = self.rope_of(index).is_some_and(|rope| rope.pairs == RopePairs::Interleaved);
            attributes.push(Attribute::int("do_rotary", 1));
            attributes.push(Attribute::int("rotary_interleaved", i64::from(is_interleaved)));
        }
        let sinks = self.sinks(index, &[config.num_attention_heads])?.unwrap_or_default();
        let past = self.past(index, config, head_dim);
        let mut inputs = vec![q.as_str(), &k, &v, &past[0], &past[1], &lengths, &total, &cos, &sin, "", &bias, &sinks];
        while inputs.last().is_some_and(|input| input.is_empty()) {
            inputs.pop();
        }
        let outputs = self.graph.node(MICROSOFT, "GroupQueryAttention", &inputs, 3, attributes);
        self.present(index, config, head_dim, [&outputs[1], &outputs[2]]);
        if head_dim == own {
            return Ok(outputs[0].clone());
        }
        let out = self.graph.reshape(&outputs[0], &[0, 0, heads as i64, head_dim as i64]);
        let out = self.graph.slice_last(&out, 0, own, 1);
        Ok(self.graph.reshape(&out, &[0, 0, (heads * own) as i64]))
    }

    /// Logits, one for each query head, that take part in the softmax and have no value.
    fn sinks(&mut self, index: usize, dims: &[usize]) -> Result<Option<Value>, OnnxError> {
        let id = TensorId::Layer(index, LayerTensor::Sinks);
        if !self.checkpoint.has(id) {
            return Ok(None);
        }
        let values = self.values(id)?;
        Ok(Some(self.graph.floats("sinks", dims, &values)))
    }

    /// Softmax of scores `[B, H, S, T]` with a sink `[1, H, 1, 1]` beside them, whose share is left out.
    fn softmax_with(&mut self, scores: &str, sinks: &str) -> Value {
        let graph = &mut self.graph;
        let shape = graph.op("Shape", &[scores], vec![Attribute::int("start", 0), Attribute::int("end", 3)]);
        let one = graph.integers(&[1]);
        let shape = graph.concat(&[&shape, &one], 0);
        let sinks = graph.apply("Expand", &[sinks, &shape]);
        let all = graph.concat(&[scores, &sinks], -1);
        let weights = graph.op("Softmax", &[&all], vec![Attribute::int("axis", -1)]);
        let [start, end, axis] = [0, -1, -1].map(|value| graph.integers(&[value]));
        graph.apply("Slice", &[&weights, &start, &end, &axis])
    }

    /// Heads with zeros behind their own components.
    fn padded(&mut self, x: &str, heads: usize, own: usize, head_dim: usize) -> Value {
        if head_dim == own {
            return x.to_owned();
        }
        let graph = &mut self.graph;
        let x = graph.reshape(x, &[0, 0, heads as i64, own as i64]);
        let pads = graph.integers(&[0, 0, 0, 0, 0, 0, 0, (head_dim - own) as i64]);
        let x = graph.apply("Pad", &[&x, &pads]);
        graph.reshape(&x, &[0, 0, (heads * head_dim) as i64])
    }

    /// Of each sequence the number of its last position, and the most positions that any has.
    fn fused_lengths(&mut self) -> Result<(Value, Value), OnnxError> {
        let lengths = self.shared("lengths", |network| {
            let graph = &mut network.graph;
            let (axis, one) = (graph.integers(&[1]), graph.integers(&[1]));
            let count = graph.op("ReduceSum", &[ATTENTION_MASK, &axis], vec![Attribute::int("keepdims", 0)]);
            let last = graph.apply("Sub", &[&count, &one]);
            Ok(graph.cast(&last, DataType::Int32))
        })?;
        let total = self.total()?;
        let total = self.shared("total as a number", |network| {
            let graph = &mut network.graph;
            let axis = graph.integers(&[0]);
            let total = graph.apply("Squeeze", &[&total, &axis]);
            Ok(graph.cast(&total, DataType::Int32))
        })?;
        Ok((lengths, total))
    }

    /// The same in standard operators. Query heads of one key head are rows of one product, so that keys are not repeated.
    fn plain_attention(
        &mut self,
        index: usize,
        config: &LayerConfig,
        [q, k, v]: [&str; 3],
        scale: f32,
    ) -> Result<Value, OnnxError> {
        let (heads, kv_heads, head_dim) =
            (config.num_attention_heads as i64, config.num_key_value_heads as i64, config.head_dim as i64);
        let mask = self.mask(config.sliding_window)?;
        let alibi = self.alibi(index, scale)?;
        let past = self.past(index, config, config.head_dim);
        let graph = &mut self.graph;
        let by_head = |graph: &mut crate::graph::Graph, x: &str, heads: i64| {
            let x = graph.reshape(x, &[0, 0, heads, head_dim]);
            graph.transpose(&x, &[0, 2, 1, 3])
        };
        let q = by_head(graph, q, heads);
        let q = graph.scale(q, scale);
        let q = if heads == kv_heads { q } else { graph.reshape(&q, &[0, kv_heads, -1, head_dim]) };
        let (k, v) = (by_head(graph, k, kv_heads), by_head(graph, v, kv_heads));
        let (k, v) = (graph.concat(&[&past[0], &k], 2), graph.concat(&[&past[1], &v], 2));
        let [k, v] = self.present(index, config, config.head_dim, [&k, &v]);
        let graph = &mut self.graph;
        let turned = graph.transpose(&k, &[0, 1, 3, 2]);
        let mut scores = graph.apply("MatMul", &[&q, &turned]);
        if heads != kv_heads {
            scores = graph.reshape(&scores, &[0, heads, -1, 0]);
        }
        if let Some(cap) = self.config.style.attention_softcap {
            scores = graph.softcap(&scores, cap);
        }
        if let Some(alibi) = alibi {
            scores = graph.apply("Add", &[&scores, &alibi]);
        }
        scores = graph.apply("Add", &[&scores, &mask]);
        let mut weights = match self.sinks(index, &[1, config.num_attention_heads, 1, 1])? {
            Some(sinks) => self.softmax_with(&scores, &sinks),
            None => self.graph.op("Softmax", &[&scores], vec![Attribute::int("axis", -1)]),
        };
        let graph = &mut self.graph;
        if heads != kv_heads {
            weights = graph.reshape(&weights, &[0, kv_heads, -1, 0]);
        }
        let mut out = graph.apply("MatMul", &[&weights, &v]);
        if heads != kv_heads {
            out = graph.reshape(&out, &[0, heads, -1, head_dim]);
        }
        let out = graph.transpose(&out, &[0, 2, 1, 3]);
        Ok(graph.reshape(&out, &[0, 0, heads * head_dim]))
    }
}

/// Components of a head as GroupQueryAttention has them: a multiple of 8, with zeros behind those of the model.
pub(crate) fn fused_head_dim(config: &LayerConfig) -> usize {
    config.head_dim.next_multiple_of(8)
}
