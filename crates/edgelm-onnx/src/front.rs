//! What comes before the first layer and after the last: embeddings and positions, the final norm and the output head.

use crate::{
    OnnxError,
    form::Form,
    graph::{Dim, MICROSOFT, Value},
    network::{INPUT_IDS, Network},
};
use edgelm_format::onnx::{Attribute, DataType};
use edgelm_model::TensorId;

/// The token embedding, which may be the output head too.
pub(crate) struct Table {
    form: Form,
    parts: Vec<Value>,
}

impl Network<'_> {
    /// Hidden states `[B, S, D]` of the tokens.
    pub(crate) fn front(&mut self) -> Result<(Value, Table), OnnxError> {
        self.graph.enter("embed");
        let (form, reason) = Form::of(self.checkpoint, TensorId::TokenEmbedding, self.style, self.floats, true)?;
        let parts = self.matrix(TensorId::TokenEmbedding, form.clone(), reason)?;
        let table = Table { form, parts };
        let mut x = self.embedded(&table)?;
        if self.checkpoint.has(TensorId::InputProjection) {
            x = self.linear(&x, TensorId::InputProjection, None)?;
        }
        let style = self.config.style;
        x = self.graph.scale(x, style.embedding_scale);
        if let Some(unused) = style.position_embedding {
            let mut rows = self.positions()?;
            let (form, reason) = Form::of(self.checkpoint, TensorId::PositionEmbedding, self.style, self.floats, true)?;
            // It is small; codes of it are nowhere stored.
            let (form, reason) = match form.layout() {
                Some(_) => (Form::Rows(self.floats), Some("positions are written as floats".to_owned())),
                None => (form, reason),
            };
            let parts = self.matrix(TensorId::PositionEmbedding, form, reason)?;
            if unused > 0 {
                let unused = self.graph.integers(&[unused as i64]);
                rows = self.graph.apply("Add", &[&rows, &unused]);
            }
            let learned = self.graph.op("Gather", &[&parts[0], &rows], vec![Attribute::int("axis", 0)]);
            let learned = self.floats_of(&learned, self.floats);
            x = self.graph.apply("Add", &[&x, &learned]);
        }
        if style.embedding_norm {
            x = self.norm(&x, TensorId::EmbeddingNorm, TensorId::EmbeddingNormBias)?;
        }
        Ok((x, table))
    }

    /// Rows of the token embedding.
    fn embedded(&mut self, table: &Table) -> Result<Value, OnnxError> {
        let columns = self.config.embedding_size;
        let gather = || vec![Attribute::int("axis", 0)];
        let rows = match &table.form {
            Form::Rows(floats) | Form::Columns(floats) => {
                let rows = self.graph.op("Gather", &[&table.parts[0], INPUT_IDS], gather());
                self.floats_of(&rows, *floats)
            }
            Form::IntRows(layout) | Form::IntColumns(layout) => {
                let values = self.dequantized_table(layout, &table.parts, columns)?;
                self.graph.op("Gather", &[&values, INPUT_IDS], gather())
            }
            Form::Blocks { layout, block } => {
                let codes = self.graph.reshape(&table.parts[0], &[self.config.vocab_size as i64, -1]);
                let mut inputs = vec![codes.as_str(), INPUT_IDS, &table.parts[1]];
                if layout.has_zeros {
                    inputs.push(&table.parts[2]);
                }
                let attributes = vec![
                    Attribute::int("bits", i64::from(layout.bits)),
                    Attribute::int("block_size", *block as i64),
                    Attribute::int("gather_axis", 0),
                    Attribute::int("quantize_axis", 1),
                ];
                self.graph.node(MICROSOFT, "GatherBlockQuantized", &inputs, 1, attributes).swap_remove(0)
            }
        };
        let Some(layout) = table.form.layout().filter(|layout| layout.has_offsets) else { return Ok(rows) };
        let offsets = &table.parts[table.parts.len() - 1];
        let group = layout.group as i64;
        let graph = &mut self.graph;
        let offsets = match table.form {
            Form::Blocks { .. } => graph.transpose(offsets, &[1, 0]),
            _ => offsets.clone(),
        };
        let offsets = graph.op("Gather", &[&offsets, INPUT_IDS], gather());
        let offsets = graph.unsqueeze(&offsets, &[3]);
        let rows = graph.reshape(&rows, &[0, 0, -1, group]);
        let rows = graph.apply("Add", &[&rows, &offsets]);
        Ok(graph.reshape(&rows, &[0, 0, columns as i64]))
    }

    /// Logits `[B, S, V]` of the stream after the last layer: cap(scale · (W x + b)).
    pub(crate) fn head(&mut self, hidden: Value, table: &Table) -> Result<(), OnnxError> {
        self.graph.enter("head");
        let style = self.config.style;
        let mut x = hidden;
        if style.output_norm {
            x = self.norm(&x, TensorId::OutputNorm, TensorId::OutputNormBias)?;
        }
        if self.checkpoint.has(TensorId::OutputProjection) {
            x = self.linear(&x, TensorId::OutputProjection, None)?;
        }
        let mut logits = match self.config.head() {
            TensorId::TokenEmbedding => self.tied(&x, table)?,
            other => self.linear(&x, other, None)?,
        };
        if self.checkpoint.has(TensorId::OutputBias) {
            let values = self.values(TensorId::OutputBias)?;
            let bias = self.graph.floats("bias", &[values.len()], &values);
            logits = self.graph.apply("Add", &[&logits, &bias]);
        }
        logits = self.graph.scale(logits, style.logit_scale);
        if let Some(cap) = style.logit_softcap {
            logits = self.graph.softcap(&logits, cap);
        }
        let dims = [Dim::Named("batch"), Dim::Named("sequence"), Dim::Size(self.config.vocab_size)];
        self.graph.output(&logits, "logits", DataType::Float, &dims);
        Ok(())
    }

    /// The embedding as output head, of one copy.
    fn tied(&mut self, x: &str, table: &Table) -> Result<Value, OnnxError> {
        let (n, k) = (self.config.vocab_size, self.config.embedding_size);
        let logits = self.product(x, &table.form, &table.parts, n, k)?;
        let Some(layout) = table.form.layout().filter(|layout| layout.has_offsets) else { return Ok(logits) };
        let offsets = &table.parts[table.parts.len() - 1];
        let offsets = match table.form {
            Form::IntRows(_) => self.graph.transpose(offsets, &[1, 0]),
            _ => offsets.clone(),
        };
        self.with_offsets(x, logits, layout, k, &offsets)
    }
}
