//! Rotary embeddings: tables of cosines and sines, and rotations.

use crate::{
    OnnxError,
    graph::{MICROSOFT, Value},
    network::Network,
};
use edgelm_format::onnx::{Attribute, DataType};
use edgelm_model::{LayerRope, RopeConfig, RopePairs, RopeScaling};

/// cos and sin `[P, R/2]`, and the rows of them that the tokens take `[B, S]`.
pub(crate) struct Tables {
    pub(crate) cos: Value,
    pub(crate) sin: Value,
    pub(crate) rows: Value,
}

impl Network<'_> {
    /// That of a layer; none if it does not rotate.
    pub(crate) fn rope_of(&self, layer: usize) -> Option<&RopeConfig> {
        match self.config.layers[layer].rope {
            LayerRope::None => None,
            LayerRope::Global => Some(&self.config.rope),
            LayerRope::Local => self.config.local_rope.as_ref(),
        }
    }

    /// Tables of a rotary embedding, for every position that the graph can be run at.
    pub(crate) fn rope_tables(&mut self, layer: usize) -> Result<Option<(Value, Value)>, OnnxError> {
        let Some(rope) = self.rope_of(layer).cloned() else { return Ok(None) };
        let key = format!("{:?}", self.config.layers[layer].rope);
        let cos = self.shared(format!("cos {key}"), |network| network.table(&rope, "cos"))?;
        let sin = self.shared(format!("sin {key}"), |network| network.table(&rope, "sin"))?;
        Ok(Some((cos, sin)))
    }

    /// The same with the rows that the tokens take.
    pub(crate) fn rope_rows(&mut self, layer: usize) -> Result<Option<Tables>, OnnxError> {
        let Some((cos, sin)) = self.rope_tables(layer)? else { return Ok(None) };
        let mut rows = self.positions()?;
        let long = match self.rope_of(layer).map(|rope| &rope.scaling) {
            Some(RopeScaling::LongRope { original_max_position_embeddings, .. }) => *original_max_position_embeddings,
            _ => return Ok(Some(Tables { cos, sin, rows })),
        };
        // The second half of the tables is for inputs beyond the original context.
        let context = self.context as i64;
        let total = self.total()?;
        rows = self.shared("long rope rows", |network| {
            let graph = &mut network.graph;
            let (original, context) = (graph.integers(&[long as i64]), graph.integers(&[context]));
            let is_long = graph.apply("Greater", &[&total, &original]);
            let is_long = graph.cast(&is_long, DataType::Int64);
            let offset = graph.apply("Mul", &[&is_long, &context]);
            Ok(graph.apply("Add", &[&rows, &offset]))
        })?;
        Ok(Some(Tables { cos, sin, rows }))
    }

    /// One table. Angles as the engine has them: the f32 product of an f32 frequency and the position.
    fn table(&mut self, rope: &RopeConfig, function: &str) -> Result<Value, OnnxError> {
        if let RopeScaling::Dynamic { factor, original_max_position_embeddings } = rope.scaling {
            return self.growing_table(rope, factor, original_max_position_embeddings, function);
        }
        let context = self.context;
        let lengths = match &rope.scaling {
            RopeScaling::LongRope { .. } => vec![0, usize::MAX],
            _ => vec![0],
        };
        let dims = [context * lengths.len(), rope.rotary_dim / 2];
        let (rope, is_cos) = (rope.clone(), function == "cos");
        Ok(self.graph.made(function, &dims, move || {
            let mut bytes = Vec::with_capacity(4 * dims[0] * dims[1]);
            for &length in &lengths {
                let (frequencies, factor) = rope.frequencies(length);
                for position in 0..context {
                    bytes.extend(frequencies.iter().flat_map(|&frequency| {
                        let angle = f64::from(position as f32 * frequency as f32);
                        let value = if is_cos { angle.cos() } else { angle.sin() };
                        (value as f32 * factor as f32).to_le_bytes()
                    }));
                }
            }
            bytes
        }))
    }

    /// A table whose frequencies follow the number of positions T: θ' = θ · (s · max(T, P) / P − (s − 1))^(R / (R − 2)), P the
    /// original context.
    fn growing_table(
        &mut self,
        rope: &RopeConfig,
        factor: f64,
        original: usize,
        function: &str,
    ) -> Result<Value, OnnxError> {
        let total = self.total()?;
        let dim = rope.rotary_dim as f64;
        let (theta, half, is_reversed) = (rope.theta, rope.rotary_dim / 2, rope.reversed);
        let angles = self.shared(format!("angles {theta} {dim}"), |network| {
            let graph = &mut network.graph;
            let whole = graph.integers(&[original as i64]);
            let length = graph.apply("Max", &[&total, &whole]);
            let length = graph.cast(&length, DataType::Float);
            let (slope, less) = (graph.scalar((factor / original as f64) as f32), graph.scalar((factor - 1.0) as f32));
            let stretch = graph.apply("Mul", &[&length, &slope]);
            let stretch = graph.apply("Sub", &[&stretch, &less]);
            // θ'^(−2i/R) = θ^(−2i/R) · stretch^(−2i/(R − 2)).
            let turn = if is_reversed { -1.0 } else { 1.0 };
            let plain: Vec<f32> = (0..half).map(|i| (turn * theta.powf(-2.0 * i as f64 / dim)) as f32).collect();
            let powers: Vec<f32> = (0..half).map(|i| (-2.0 * i as f64 / (dim - 2.0)) as f32).collect();
            let (plain, powers) =
                (graph.floats("frequencies", &[half], &plain), graph.floats("powers", &[half], &powers));
            let stretch = graph.apply("Pow", &[&stretch, &powers]);
            let frequencies = graph.apply("Mul", &[&plain, &stretch]);
            let (zero, one, axis) = (graph.integer(0), graph.integer(1), graph.integers(&[0]));
            let end = graph.apply("Squeeze", &[&total, &axis]);
            let positions = graph.apply("Range", &[&zero, &end, &one]);
            let positions = graph.cast(&positions, DataType::Float);
            let positions = graph.unsqueeze(&positions, &[1]);
            Ok(graph.apply("Mul", &[&positions, &frequencies]))
        })?;
        Ok(self.graph.apply(if function == "cos" { "Cos" } else { "Sin" }, &[&angles]))
    }

    /// Queries or keys `[B, S, heads · E]`, rotated.
    pub(crate) fn rotated(&mut self, x: Value, layer: usize, heads: usize) -> Result<Value, OnnxError> {
        let Some(tables) = self.rope_rows(layer)? else { return Ok(x) };
        let Some(rope) = self.rope_of(layer) else { return Ok(x) };
        let (rotary_dim, pairs) = (rope.rotary_dim, rope.pairs);
        let head_dim = self.config.layers[layer].head_dim;
        if self.is_fused() {
            let mut attributes = vec![
                Attribute::int("interleaved", i64::from(pairs == RopePairs::Interleaved)),
                Attribute::int("num_heads", heads as i64),
            ];
            if rotary_dim < head_dim {
                attributes.push(Attribute::int("rotary_embedding_dim", rotary_dim as i64));
            }
            let inputs = [x.as_str(), &tables.rows, &tables.cos, &tables.sin];
            return Ok(self.graph.node(MICROSOFT, "RotaryEmbedding", &inputs, 1, attributes).swap_remove(0));
        }
        let key = &tables.rows;
        let [cos, sin] = [&tables.cos, &tables.sin].map(|table| {
            self.shared(format!("rows {key} of {table}"), |network| {
                let rows = network.graph.op("Gather", &[table, key], vec![Attribute::int("axis", 0)]);
                Ok(network.graph.unsqueeze(&rows, &[2]))
            })
        });
        let (cos, sin) = (cos?, sin?);
        let graph = &mut self.graph;
        let x = graph.reshape(&x, &[0, 0, heads as i64, head_dim as i64]);
        let half = rotary_dim / 2;
        let (first, second) = match pairs {
            RopePairs::Halves => (graph.slice_last(&x, 0, half, 1), graph.slice_last(&x, half, rotary_dim, 1)),
            RopePairs::Interleaved => (graph.slice_last(&x, 0, rotary_dim, 2), graph.slice_last(&x, 1, rotary_dim, 2)),
        };
        let mut turned = |a: &str, b: &str, op: &str| {
            let (a, b) = (graph.apply("Mul", &[a, &cos]), graph.apply("Mul", &[b, &sin]));
            graph.apply(op, &[&a, &b])
        };
        let (low, high) = (turned(&first, &second, "Sub"), turned(&second, &first, "Add"));
        let mut parts = match pairs {
            RopePairs::Halves => vec![low, high],
            RopePairs::Interleaved => {
                let (low, high) = (graph.unsqueeze(&low, &[-1]), graph.unsqueeze(&high, &[-1]));
                let both = graph.concat(&[&low, &high], -1);
                vec![graph.reshape(&both, &[0, 0, heads as i64, rotary_dim as i64])]
            }
        };
        if rotary_dim < head_dim {
            parts.push(graph.slice_last(&x, rotary_dim, head_dim, 1));
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let x = if parts.len() == 1 { parts[0].to_owned() } else { graph.concat(&parts, -1) };
        Ok(graph.reshape(&x, &[0, 0, -1]))
    }

    /// Queries times what they grow by with their position.
    pub(crate) fn grown(&mut self, q: Value) -> Result<Value, OnnxError> {
        let Some(growth) = self.config.rope.query_growth else { return Ok(q) };
        let context = self.context;
        let positions = self.positions()?;
        let factors = self.shared("query growth", |network| {
            let values: Vec<f32> = (0..context).map(|position| growth.factor(position)).collect();
            let table = network.graph.floats("factors", &[context], &values);
            let rows = network.graph.op("Gather", &[&table, &positions], vec![Attribute::int("axis", 0)]);
            Ok(network.graph.unsqueeze(&rows, &[2]))
        })?;
        Ok(self.graph.apply("Mul", &[&q, &factors]))
    }
}
