//! ONNX models: the messages that this project writes and reads back, and a model whose weights lie in a file beside it.
//!
//! Messages and field numbers are those of `onnx.proto` (ONNX 1.17, IR version 10, in which 4-bit integers came). What is not
//! written is not declared; a reader skips it.
//!
//! The one thing a reader would get wrong: an attribute's number is written also where it is 0, so it is an `Option`: the
//! specification wants exactly one value field to be present.

mod messages;
mod writer;

pub use messages::{
    Attribute, AttributeKind, DataType, Dimension, Entry, Graph, Model, Node, OperatorSet, Tensor, TensorShape,
    TensorType, Type, ValueInfo,
};
pub use writer::{ALIGNMENT, DataFile, decode_model, encode_model, external};
