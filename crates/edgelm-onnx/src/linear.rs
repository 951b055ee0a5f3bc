//! Linear layers: W x + b, whatever the form of W.

use crate::{
    OnnxError,
    form::{Floats, Form},
    graph::{MICROSOFT, Value},
    network::Network,
};
use edgelm_format::{
    IntLayout,
    onnx::{Attribute, DataType},
};
use edgelm_model::{LayerTensor, TensorId};

/// The level of `MatMulNBits` at which inputs are rounded to int8.
const INT8: usize = 4;

impl Network<'_> {
    /// Products of x with the matrices of one layer that read it, those that the layer has.
    pub(crate) fn linear_group(
        &mut self,
        x: &str,
        layer: usize,
        roles: &[LayerTensor],
    ) -> Result<Vec<Value>, OnnxError> {
        let id = |role| TensorId::Layer(layer, role);
        let roles: Vec<_> = roles.iter().copied().filter(|&role| self.checkpoint.has(id(role))).collect();
        let scales: Vec<_> = roles.iter().map(|&role| self.checkpoint.input_scale(id(role))).collect();
        if scales.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(OnnxError::InputScales { layer });
        }
        let x = match scales.first().copied().flatten() {
            Some(scale) => self.rounded(x, scale),
            None => x.to_owned(),
        };
        roles
            .into_iter()
            .map(|role| {
                let bias = role.bias().map(id).filter(|&bias| self.checkpoint.has(bias));
                self.linear(&x, id(role), bias)
            })
            .collect()
    }

    /// x as int8 with a scale that calibration fixed.
    fn rounded(&mut self, x: &str, scale: f32) -> Value {
        let scale = self.graph.scalar(scale);
        let zero = self.graph.parameter("zero", DataType::Int8, &[], vec![0]);
        let codes = self.graph.apply("QuantizeLinear", &[x, &scale, &zero]);
        self.graph.apply("DequantizeLinear", &[&codes, &scale, &zero])
    }

    /// W x + b of one matrix.
    pub(crate) fn linear(&mut self, x: &str, id: TensorId, bias: Option<TensorId>) -> Result<Value, OnnxError> {
        let (form, reason) = Form::of(self.checkpoint, id, self.style, self.floats, false)?;
        let shape = self.checkpoint.describe(id)?.1;
        let (n, k) = (shape[0], shape[1]);
        let parts = self.matrix(id, form.clone(), reason)?;
        let x = match form.layout().and_then(|layout| layout.order.as_ref()) {
            Some(order) => {
                let order: Vec<i64> = order.iter().map(|&column| i64::from(column)).collect();
                let order = self.graph.integers(&order);
                self.graph.op("Gather", &[x, &order], vec![Attribute::int("axis", -1)])
            }
            None => x.to_owned(),
        };
        let mut y = self.product(&x, &form, &parts, n, k)?;
        if let Some(layout) = form.layout().filter(|layout| layout.has_offsets) {
            y = self.with_offsets(&x, y, layout, k, &parts[parts.len() - 1])?;
        }
        if let Some(bias) = bias {
            let values = self.values(bias)?;
            let bias = self.graph.floats("bias", &[values.len()], &values);
            y = self.graph.apply("Add", &[&y, &bias]);
        }
        Ok(y)
    }

    /// x · Wᵀ without what offsets add.
    pub(crate) fn product(
        &mut self,
        x: &str,
        form: &Form,
        parts: &[Value],
        n: usize,
        k: usize,
    ) -> Result<Value, OnnxError> {
        Ok(match form {
            Form::Columns(floats) => {
                let weight = self.floats_of(&parts[0], *floats);
                self.graph.apply("MatMul", &[x, &weight])
            }
            Form::Rows(floats) => {
                let weight = self.graph.transpose(&parts[0], &[1, 0]);
                let weight = self.floats_of(&weight, *floats);
                self.graph.apply("MatMul", &[x, &weight])
            }
            Form::IntColumns(layout) => {
                let weight = self.dequantized(layout, parts, k, false);
                self.graph.apply("MatMul", &[x, &weight])
            }
            Form::IntRows(layout) => {
                let weight = self.dequantized_table(layout, parts, k)?;
                let weight = self.graph.transpose(&weight, &[1, 0]);
                self.graph.apply("MatMul", &[x, &weight])
            }
            Form::Blocks { layout, block } => {
                let mut inputs = vec![x, &parts[0], &parts[1]];
                if layout.has_zeros {
                    inputs.push(&parts[2]);
                }
                let attribute = |name, value: usize| Attribute::int(name, value as i64);
                let mut attributes = vec![
                    attribute("N", n),
                    attribute("K", k),
                    attribute("bits", layout.bits as usize),
                    attribute("block_size", *block),
                ];
                if self.int8_inputs {
                    attributes.push(attribute("accuracy_level", INT8));
                }
                self.graph.node(MICROSOFT, "MatMulNBits", &inputs, 1, attributes).swap_remove(0)
            }
        })
    }

    /// A parameter as f32.
    pub(crate) fn floats_of(&mut self, value: &str, floats: Floats) -> Value {
        match floats {
            Floats::F32 => value.to_owned(),
            Floats::F16 => self.graph.cast(value, DataType::Float),
        }
    }

    /// The values of a table of codes `[N, K]`, less what offsets add; a tied one serves two.
    pub(crate) fn dequantized_table(
        &mut self,
        layout: &IntLayout,
        parts: &[Value],
        k: usize,
    ) -> Result<Value, OnnxError> {
        let (layout, parts) = (layout.clone(), parts.to_vec());
        self.shared(format!("values of {}", parts[0]), |network| Ok(network.dequantized(&layout, &parts, k, true)))
    }

    /// scale · (code − zero), where groups lie along the rows or, of a transpose, along the columns.
    fn dequantized(&mut self, layout: &IntLayout, parts: &[Value], k: usize, is_rows: bool) -> Value {
        let mut inputs = vec![parts[0].as_str(), &parts[1]];
        if layout.has_zeros {
            inputs.push(&parts[2]);
        }
        let attributes = match layout.group == k {
            true => vec![Attribute::int("axis", if is_rows { 0 } else { 1 })],
            false => vec![
                Attribute::int("axis", if is_rows { 1 } else { 0 }),
                Attribute::int("block_size", layout.group as i64),
            ],
        };
        self.graph.op("DequantizeLinear", &inputs, attributes)
    }

    /// y + (Σ of x over each group) · offsets, offsets `[K / group, N]`: what the offsets of all groups add, without a second
    /// matrix of full size.
    pub(crate) fn with_offsets(
        &mut self,
        x: &str,
        y: Value,
        layout: &IntLayout,
        k: usize,
        offsets: &str,
    ) -> Result<Value, OnnxError> {
        let group = layout.group;
        let sums = self.shared(format!("sums of {x} in {group}"), |network| {
            let graph = &mut network.graph;
            let grouped = graph.reshape(x, &[0, 0, (k / group.max(1)) as i64, group as i64]);
            let axis = graph.integers(&[-1]);
            Ok(graph.op("ReduceSum", &[&grouped, &axis], vec![Attribute::int("keepdims", 0)]))
        })?;
        let added = self.graph.apply("MatMul", &[&sums, offsets]);
        Ok(self.graph.apply("Add", &[&y, &added]))
    }
}
