//! The keys of one architecture in GGUF metadata, each of which must be accounted for.

use crate::ModelError;
use edgelm_format::gguf::{Metadata, Value};
use std::{cell::RefCell, collections::BTreeSet, path::Path};

/// Keys after `{arch}.` that cannot change the forward pass, whatever their value.
const HARMLESS: &[&str] = &[
    "vocab_size",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    // Some files have both; the family says which one counts, and that one is read.
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
];

/// Counts that say "not here" when 0.
const ONLY_ZERO: &[&str] = &["expert_count", "expert_used_count", "nextn_predict_layers", "leading_dense_block_count"];

/// The keys of one architecture, and which of them were read.
pub(crate) struct GgufKeys<'a> {
    path: &'a Path,
    arch: &'a str,
    metadata: &'a Metadata,
    shape: &'a dyn Fn(&str) -> Option<Vec<usize>>,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> GgufKeys<'a> {
    pub(super) fn new(
        path: &'a Path,
        arch: &'a str,
        metadata: &'a Metadata,
        shape: &'a dyn Fn(&str) -> Option<Vec<usize>>,
    ) -> Self {
        Self { path, arch, metadata, shape, read: RefCell::default() }
    }

    /// Row-major shape of a tensor of the file.
    pub(super) fn tensor_shape(&self, name: &str) -> Option<Vec<usize>> {
        (self.shape)(name)
    }

    /// True if the file has a tensor of this name.
    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.tensor_shape(name).is_some()
    }

    /// True if the file has a weight of the first layer, by its name inside the layer.
    pub(crate) fn has_layer_weight(&self, name: &str) -> bool {
        self.has_tensor(&format!("blk.0.{name}.weight"))
    }

    pub(super) fn fail(&self, what: String) -> ModelError {
        ModelError::Config { path: self.path.to_owned(), what }
    }

    pub(crate) fn bad(&self, key: &str, what: &str) -> ModelError {
        let value = self.raw(key).map_or_else(|| "absent".to_owned(), brief);
        self.fail(format!("key `{}.{key}` is {value}: {what}", self.arch))
    }

    /// The value of `{arch}.{key}` or, for our own keys, of `{key}`.
    fn raw(&self, key: &str) -> Option<&'a Value> {
        let full = format!("{}.{key}", self.arch);
        self.metadata
            .iter()
            .find(|(name, _)| *name == full || (*name == key && key.starts_with("edgelm.")))
            .map(|(_, value)| value)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(format!("{}.{key}", self.arch));
        self.raw(key)
    }

    pub(crate) fn size(&self, key: &str, max: usize) -> Result<Option<usize>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| bounded(n, max)) {
                Some(n) => Ok(Some(n)),
                None => Err(self.bad(key, &format!("must be a whole number from 1 to {max}"))),
            },
        }
    }

    /// The same from 0 on.
    pub(super) fn whole(&self, key: &str, max: usize) -> Result<Option<usize>, ModelError> {
        match self.get(key).and_then(Value::as_u64) {
            Some(0) => Ok(Some(0)),
            _ => self.size(key, max),
        }
    }

    pub(crate) fn required<T>(&self, key: &str, value: Result<Option<T>, ModelError>) -> Result<T, ModelError> {
        value?.ok_or_else(|| self.fail(format!("key `{}.{key}` is missing", self.arch)))
    }

    /// A finite number; 0 is how some writers say "not here".
    pub(super) fn nonzero(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|n| n.is_finite()) {
                Some(n) => Ok(Some(n).filter(|n| *n != 0.0)),
                None => Err(self.bad(key, "must be a finite number")),
            },
        }
    }

    /// One size for all layers, or an array with one per layer.
    pub(super) fn per_layer(&self, key: &str, layers: usize, max: usize) -> Result<Option<Vec<usize>>, ModelError> {
        self.per_layer_from(1, key, layers, max)
    }

    /// The same with a least size.
    pub(super) fn per_layer_from(
        &self,
        least: u64,
        key: &str,
        layers: usize,
        max: usize,
    ) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(value @ Value::Array(_)) = self.get(key) else {
            let one = if least == 0 { self.whole(key, max) } else { self.size(key, max) };
            return Ok(one?.map(|value| vec![value; layers]));
        };
        let values = value.as_u64s().filter(|values| values.len() == layers);
        let size = |n: u64| if n == 0 && least == 0 { Some(0) } else { bounded(n, max) };
        match values.map(|values| values.into_iter().map(size).collect::<Option<Vec<_>>>()) {
            Some(Some(values)) => Ok(Some(values)),
            _ => Err(self.bad(key, &format!("must hold {layers} whole numbers from {least} to {max}"))),
        }
    }

    /// A finite number above 0.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|n| n.is_finite() && *n > 0.0) {
                Some(n) => Ok(Some(n)),
                None => Err(self.bad(key, "must be a finite number above 0")),
            },
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.bad(key, "must be a string")),
        }
    }

    pub(super) fn finish(self) -> Result<(), ModelError> {
        let prefix = format!("{}.", self.arch);
        let read = self.read.borrow();
        for (name, value) in self.metadata {
            let Some(key) = name.strip_prefix(&prefix) else { continue };
            if read.contains(name) {
                continue;
            }
            if ONLY_ZERO.contains(&key) && value.as_u64() != Some(0) {
                return Err(self.bad(key, "only 0 is supported"));
            }
            if !HARMLESS.contains(&key) && !ONLY_ZERO.contains(&key) {
                let value = brief(value);
                return Err(
                    self.fail(format!("unknown key `{name}` ({value}): it could change what the model computes"))
                );
            }
        }
        Ok(())
    }
}

fn bounded(value: u64, max: usize) -> Option<usize> {
    usize::try_from(value).ok().filter(|n| (1..=max).contains(n))
}

/// A value for a message, cut where it is long.
fn brief(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Bool(flag) => flag.to_string(),
        Value::Array(_) => "an array".to_owned(),
        number => number
            .as_u64()
            .map(|n| n.to_string())
            .or_else(|| number.as_f64().map(|n| n.to_string()))
            .unwrap_or_else(|| "negative".to_owned()),
    };
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}
