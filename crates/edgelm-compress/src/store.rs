//! Finished layers of a quantization on disk, so that one that was interrupted goes on where it was.
//!
//! One GGUF file per layer, written under a temporary name, synced and renamed: a file that is there is complete. What the
//! files belong to (model, settings, calibration data) is for the owner of the folder to check.

use crate::{CompressError, MatrixFormat, layer_pass::MatrixErrors};
use edgelm_format::{
    FormatError,
    gguf::{GgufFile, Value, Writer},
};
use edgelm_model::{Edited, Replaced, TensorId, Tensors};
use edgelm_tensor::DType;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// A folder of finished layers.
#[derive(Debug, Clone)]
pub struct LayerStore {
    folder: PathBuf,
}

impl LayerStore {
    /// The folder, made if it is not there.
    pub fn open(folder: &Path) -> Result<Self, CompressError> {
        std::fs::create_dir_all(folder).map_err(|source| FormatError::Io {
            path: folder.to_owned(),
            action: "create",
            source,
        })?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Layers that are done.
    pub fn finished(&self, layers: usize) -> usize {
        (0..layers).filter(|&layer| self.path(layer).exists()).count()
    }

    fn path(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("layer-{layer:04}.gguf"))
    }

    /// Puts the changed tensors of a finished layer into `edited`; the errors are those of its matrices that are quantized.
    /// `None` if it is not finished. Errors if quantized matrices are not of the formats of `choose`.
    pub(crate) fn load(
        &self,
        layer: usize,
        edited: &mut Edited<'_>,
        choose: &dyn Fn(TensorId) -> MatrixFormat,
    ) -> Result<Option<HashMap<TensorId, MatrixErrors>>, CompressError> {
        let path = self.path(layer);
        if !path.exists() {
            return Ok(None);
        }
        let file = GgufFile::open(&path)?;
        let mut errors = HashMap::new();
        for (id, name) in tensors(edited, layer) {
            let Some(view) = file.get(&name)? else { continue };
            let damaged = |what: String| CompressError::WorkDamaged { path: path.clone(), what };
            let wanted = edited.describe(id)?.1.to_vec();
            let dtype = if id.is_matrix() && choose(id).is_quantized() { choose(id).dtype() } else { DType::F32 };
            if view.dtype != dtype || view.shape != wanted {
                return Err(damaged(format!("`{name}` is {} {:?}", view.dtype, view.shape)));
            }
            let error = |kind: &str| {
                let key = error_key(kind, &name);
                let value = file.get_meta(&key).and_then(Value::as_f64);
                value.ok_or_else(|| damaged(format!("no `{key}`")))
            };
            if dtype.is_quantized() {
                errors.insert(id, MatrixErrors { output: error("output")?, weights: error("weights")? });
            }
            edited.replace(id, Replaced { dtype: view.dtype, shape: wanted, bytes: view.bytes.to_vec() });
        }
        Ok(Some(errors))
    }

    /// Stores the tensors of a layer that were changed; `errors` has its matrices that were quantized.
    pub(crate) fn save(
        &self,
        layer: usize,
        edited: &Edited<'_>,
        errors: &HashMap<TensorId, MatrixErrors>,
    ) -> Result<(), CompressError> {
        let mut metadata = vec![("general.architecture".to_owned(), Value::String("edgelm-layer".to_owned()))];
        let mut declared = Vec::new();
        let mut views = Vec::new();
        for (id, name) in tensors(edited, layer).into_iter().filter(|(id, _)| edited.is_replaced(*id)) {
            let view = edited.tensor(id)?;
            if let Some(error) = errors.get(&id) {
                metadata.push((error_key("output", &name), Value::F64(error.output)));
                metadata.push((error_key("weights", &name), Value::F64(error.weights)));
            }
            declared.push((name, view.dtype, view.shape.to_vec()));
            views.push(view);
        }
        let mut writer = Writer::create(&self.path(layer), &metadata, &declared)?;
        views.iter().try_for_each(|view| writer.write(&view.bytes))?;
        writer.finish()?;
        Ok(())
    }
}

/// The tensors of a layer and their names here: by role, since files of models may store several as one.
fn tensors(tensors: &Edited<'_>, layer: usize) -> Vec<(TensorId, String)> {
    let roles = tensors.config().layer_tensors(layer).into_iter();
    roles.map(|tensor| (TensorId::Layer(layer, tensor), format!("{tensor:?}"))).collect()
}

fn error_key(kind: &str, name: &str) -> String {
    format!("edgelm.{kind}_error.{name}")
}
