//! A graph in the making: nodes in the order in which they run, and the tensors that they take.

use edgelm_format::onnx::{Attribute, DataType, Dimension, Node, TensorShape, TensorType, Type, ValueInfo};
use std::collections::HashMap;

/// The domain of ONNX Runtime's own operators.
pub(crate) const MICROSOFT: &str = "com.microsoft";

/// Name of a tensor of the graph.
pub(crate) type Value = String;

/// Where a parameter's bytes come from.
pub(crate) enum Content {
    Bytes(Vec<u8>),
    /// Made when they are written: exactly those of its type and dimensions.
    Made(Box<dyn Fn() -> Vec<u8>>),
    /// Part of a matrix of the checkpoint, which is read when it is written.
    Part {
        matrix: usize,
        part: usize,
    },
}

/// A tensor that is stored with the model.
pub(crate) struct Parameter {
    pub(crate) name: Value,
    pub(crate) data_type: DataType,
    pub(crate) dims: Vec<usize>,
    pub(crate) content: Content,
}

/// A dimension of an input or output.
pub(crate) enum Dim {
    Size(usize),
    Named(&'static str),
}

#[derive(Default)]
pub(crate) struct Graph {
    pub(crate) nodes: Vec<Node>,
    pub(crate) inputs: Vec<ValueInfo>,
    pub(crate) outputs: Vec<ValueInfo>,
    pub(crate) parameters: Vec<Parameter>,
    /// Of the nodes to come: what they are a part of.
    scope: String,
    names: HashMap<String, usize>,
    integers: HashMap<Vec<i64>, Value>,
}

impl Graph {
    /// What the next nodes are a part of, e.g. `layers.0.attn`.
    pub(crate) fn enter(&mut self, scope: &str) {
        scope.clone_into(&mut self.scope);
    }

    fn name(&mut self, what: &str) -> String {
        let base = format!("/{}/{what}", self.scope);
        let count = self.names.entry(base.clone()).or_insert(0);
        *count += 1;
        if *count == 1 { base } else { format!("{base}_{}", *count - 1) }
    }

    /// A node with so many outputs. An empty input is one that is left out.
    pub(crate) fn node(
        &mut self,
        domain: &str,
        op_type: &str,
        inputs: &[&str],
        outputs: usize,
        attribute: Vec<Attribute>,
    ) -> Vec<Value> {
        let name = self.name(op_type);
        let output: Vec<Value> = (0..outputs).map(|index| format!("{name}:{index}")).collect();
        self.nodes.push(Node {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: output.clone(),
            name,
            op_type: op_type.to_owned(),
            attribute,
            domain: domain.to_owned(),
        });
        output
    }

    /// Takes the last node out again if it is the sum of two values that `output` names: an operator that adds them itself comes in
    /// its place, and makes `output` too.
    pub(crate) fn take_sum(&mut self, output: &str) -> Option<(Value, Value)> {
        let last = self.nodes.last()?;
        let (true, [sum], [a, b]) = (last.op_type == "Add", &last.output[..], &last.input[..]) else { return None };
        // A bias is no second stream.
        let is_stored = self.parameters.iter().any(|parameter| parameter.name == *a || parameter.name == *b);
        if sum != output || is_stored {
            return None;
        }
        let operands = (a.clone(), b.clone());
        self.nodes.pop();
        Some(operands)
    }

    /// A node of ONNX Runtime's whose fourth output is `sum`, and its first.
    pub(crate) fn skip(&mut self, op_type: &str, inputs: &[&str], sum: &str, attribute: Vec<Attribute>) -> Value {
        let first = self.node(MICROSOFT, op_type, inputs, 1, attribute).swap_remove(0);
        if let Some(node) = self.nodes.last_mut() {
            node.output.extend([String::new(), String::new(), sum.to_owned()]);
        }
        first
    }

    /// A standard operator with one output.
    pub(crate) fn op(&mut self, op_type: &str, inputs: &[&str], attribute: Vec<Attribute>) -> Value {
        self.node("", op_type, inputs, 1, attribute).swap_remove(0)
    }

    /// The same without attributes.
    pub(crate) fn apply(&mut self, op_type: &str, inputs: &[&str]) -> Value {
        self.op(op_type, inputs, Vec::new())
    }

    pub(crate) fn cast(&mut self, x: &str, to: DataType) -> Value {
        self.op("Cast", &[x], vec![Attribute::int("to", to as i64)])
    }

    /// Dimensions of 0 stay as they are, one of −1 is what is left.
    pub(crate) fn reshape(&mut self, x: &str, shape: &[i64]) -> Value {
        let shape = self.integers(shape);
        self.apply("Reshape", &[x, &shape])
    }

    pub(crate) fn transpose(&mut self, x: &str, order: &[i64]) -> Value {
        self.op("Transpose", &[x], vec![Attribute::ints("perm", order)])
    }

    pub(crate) fn concat(&mut self, parts: &[&str], axis: i64) -> Value {
        self.op("Concat", parts, vec![Attribute::int("axis", axis)])
    }

    pub(crate) fn unsqueeze(&mut self, x: &str, axes: &[i64]) -> Value {
        let axes = self.integers(axes);
        self.apply("Unsqueeze", &[x, &axes])
    }

    /// Every `step`-th component from `start` to `end` along the last axis.
    pub(crate) fn slice_last(&mut self, x: &str, start: usize, end: usize, step: usize) -> Value {
        let [start, end, axis, step] = [start as i64, end as i64, -1, step as i64].map(|value| self.integers(&[value]));
        self.apply("Slice", &[x, &start, &end, &axis, &step])
    }

    /// x · factor; x itself where the factor is 1.
    pub(crate) fn scale(&mut self, x: Value, factor: f32) -> Value {
        if factor == 1.0 {
            return x;
        }
        let factor = self.scalar(factor);
        self.apply("Mul", &[&x, &factor])
    }

    /// cap · tanh(x / cap).
    pub(crate) fn softcap(&mut self, x: &str, cap: f32) -> Value {
        let cap = self.scalar(cap);
        let x = self.apply("Div", &[x, &cap]);
        let x = self.apply("Tanh", &[&x]);
        self.apply("Mul", &[&x, &cap])
    }

    /// A tensor with its bytes.
    pub(crate) fn parameter(&mut self, name: &str, data_type: DataType, dims: &[usize], bytes: Vec<u8>) -> Value {
        let name = self.name(name);
        self.declare(name, data_type, dims.to_vec(), Content::Bytes(bytes))
    }

    /// Numbers in f32 that are made when they are written.
    pub(crate) fn made(&mut self, name: &str, dims: &[usize], make: impl Fn() -> Vec<u8> + 'static) -> Value {
        let name = self.name(name);
        self.declare(name, DataType::Float, dims.to_vec(), Content::Made(Box::new(make)))
    }

    /// A part of a matrix of the checkpoint.
    pub(crate) fn part(
        &mut self,
        name: &str,
        data_type: DataType,
        dims: &[usize],
        matrix: usize,
        part: usize,
    ) -> Value {
        let name = self.name(name);
        self.declare(name, data_type, dims.to_vec(), Content::Part { matrix, part })
    }

    fn declare(&mut self, name: Value, data_type: DataType, dims: Vec<usize>, content: Content) -> Value {
        self.parameters.push(Parameter { name: name.clone(), data_type, dims, content });
        name
    }

    /// Numbers in f32.
    pub(crate) fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> Value {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.parameter(name, DataType::Float, dims, bytes)
    }

    pub(crate) fn scalar(&mut self, value: f32) -> Value {
        self.floats("scalar", &[], &[value])
    }

    /// Whole numbers `[n]`, each list stored once.
    pub(crate) fn integers(&mut self, values: &[i64]) -> Value {
        if let Some(name) = self.integers.get(values) {
            return name.clone();
        }
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let text: Vec<String> = values.iter().map(i64::to_string).collect();
        let name = format!("/integers/{}", text.join(","));
        let name = self.declare(name, DataType::Int64, vec![values.len()], Content::Bytes(bytes));
        self.integers.insert(values.to_vec(), name.clone());
        name
    }

    /// A whole number without dimensions.
    pub(crate) fn integer(&mut self, value: i64) -> Value {
        self.parameter("integer", DataType::Int64, &[], value.to_le_bytes().to_vec())
    }

    pub(crate) fn input(&mut self, name: &str, data_type: DataType, dims: &[Dim]) -> Value {
        self.inputs.push(value_info(name, data_type, dims));
        name.to_owned()
    }

    /// Gives a value a name that those who run the graph know.
    pub(crate) fn output(&mut self, value: &str, name: &str, data_type: DataType, dims: &[Dim]) {
        self.outputs.push(value_info(name, data_type, dims));
        for node in &mut self.nodes {
            for name_of in node.output.iter_mut().chain(&mut node.input) {
                if name_of == value {
                    name.clone_into(name_of);
                }
            }
        }
    }
}

fn value_info(name: &str, data_type: DataType, dims: &[Dim]) -> ValueInfo {
    let dim = |dim: &Dim| match dim {
        Dim::Size(size) => Dimension { dim_value: Some(*size as i64), dim_param: None },
        Dim::Named(name) => Dimension { dim_value: None, dim_param: Some((*name).to_owned()) },
    };
    let shape = TensorShape { dim: dims.iter().map(dim).collect() };
    let tensor_type = TensorType { elem_type: data_type as i32, shape: Some(shape) };
    ValueInfo { name: name.to_owned(), kind: Some(Type { tensor_type: Some(tensor_type) }) }
}
