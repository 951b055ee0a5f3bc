//! Into a GGUF file.

use super::{Out, Plan, Written};
use crate::{
    CompressError,
    fuse::Fuse,
    tensor_pass::{Distortion, encode_rows, offset_f32},
};
use edgelm_format::gguf::{Value, Writer};
use edgelm_model::{Checkpoint, Edited, TensorId, Tensors};
use edgelm_tensor::DType;
use std::{collections::HashMap, path::Path};

/// f32 values in work at a time: 16 MiB of them, with their encoded form. Large enough that threads stay busy, small
/// beside any model worth compressing.
const VALUES_AT_A_TIME: usize = 4 << 20;

pub(super) struct GgufOut {
    writer: Writer,
    fuse: Fuse,
}

impl GgufOut {
    pub fn create(
        checkpoint: &Checkpoint,
        output: &Path,
        plans: &[Plan],
        file_type: Option<u32>,
    ) -> Result<Self, CompressError> {
        let extras = checkpoint.gguf_extra_tensors();
        let mut metadata = checkpoint.gguf_metadata()?;
        if let Some(file_type) = file_type {
            metadata.push(("general.file_type".into(), Value::U32(file_type)));
        }
        let mut declared = Vec::with_capacity(plans.len() + extras.len());
        for (name, shape, _) in &extras {
            declared.push((name.clone(), DType::F32, shape.clone()));
        }
        let fuse = Fuse::new(&checkpoint.config().arch.gguf_names, checkpoint.config());
        let order: Vec<TensorId> = plans.iter().map(|plan| plan.id).collect();
        let formats: HashMap<TensorId, DType> = plans.iter().map(|plan| (plan.id, plan.format.dtype())).collect();
        for tensor in fuse.declare(&order) {
            declared.push((tensor.name, formats[&tensor.members[0]], tensor.shape));
        }
        let mut writer = Writer::create(output, &metadata, &declared)?;
        for (_, _, values) in &extras {
            writer.write(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        Ok(Self { writer, fuse })
    }
}

impl Out for GgufOut {
    /// A tensor that is in its format already is copied, so it does not matter who brought it there.
    fn write(
        &mut self,
        edited: &Edited<'_>,
        plan: &Plan,
        _is_done: bool,
        importance: Option<&[f32]>,
        go_on: &mut dyn FnMut() -> Result<(), CompressError>,
    ) -> Result<Written, CompressError> {
        let (checkpoint, view) = (edited.base(), edited.tensor(plan.id)?);
        let named = |source| CompressError::Tensor { name: checkpoint.stored_name(plan.id), source };
        let (dtype, row_len) = (plan.format.dtype(), view.row_len());
        let row_bytes = view.dtype.row_bytes(row_len).map_err(named)?;
        // A bias is one row of values that are permuted like the rows of its weight: single values are its rows.
        let (rows, row_len, row_bytes) = if view.shape.len() == 1 {
            (row_len, 1, row_bytes / row_len.max(1))
        } else {
            (view.rows(), row_len, row_bytes)
        };
        let rows_at_a_time = (VALUES_AT_A_TIME / row_len.max(1)).max(1);
        let mut distortion = Distortion::default();
        let mut bytes = 0;
        let (mut out, mut whole) = (Vec::new(), Vec::new());
        for start in (0..rows).step_by(rows_at_a_time) {
            go_on()?;
            let end = (start + rows_at_a_time).min(rows);
            let source =
                |row| &view.bytes[checkpoint.config().gguf_row_source(plan.id, row) * row_bytes..][..row_bytes];
            let sources: Vec<&[u8]> = (start..end).map(source).collect();
            out.clear();
            let part = encode_rows(view.dtype, dtype, &sources, row_len, importance, &mut out).map_err(named)?;
            offset_f32(&mut out, checkpoint.config().gguf_offset(plan.id));
            distortion.error += part.error;
            distortion.energy += part.energy;
            bytes += out.len() as u64;
            match self.fuse.is_alone(plan.id) {
                true => self.writer.write(&out)?,
                false => whole.extend_from_slice(&out),
            }
        }
        if !self.fuse.is_alone(plan.id)
            && let Some(bytes) = self.fuse.push(plan.id, whole)?
        {
            self.writer.write(&bytes)?;
        }
        Ok(Written { bytes, relative_rms_error: distortion.relative_rms() })
    }

    fn finish(self: Box<Self>) -> Result<u64, CompressError> {
        Ok(self.writer.finish()?)
    }
}
