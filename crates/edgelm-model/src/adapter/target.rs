//! Which tensors of a model a module of an adapter stands for.

use super::{Adapter, Lora};
use crate::{
    Checkpoint, ModelError, RopePairs, TensorId,
    arch::{Names, Stored},
};
use std::{collections::HashMap, path::Path};

/// Linear layers, embedding and output head of a model by the names that a kind of file has for them.
pub(super) struct Targets<'a> {
    model: &'a Checkpoint,
    pairs: RopePairs,
    by_name: HashMap<String, Vec<(TensorId, Stored)>>,
}

/// A and B of a module as they are stored, with what s·B is made with.
pub(super) struct Module {
    pub name: String,
    pub rank: usize,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub scale: f32,
    pub magnitude: Option<Vec<f32>>,
}

impl<'a> Targets<'a> {
    /// `pairs`: the order that the adapter's file has queries and keys in.
    pub fn new(model: &'a Checkpoint, names: &Names, pairs: RopePairs) -> Self {
        let config = model.config();
        let mut by_name: HashMap<String, Vec<(TensorId, Stored)>> = HashMap::new();
        for prefix in names.prefixes {
            for id in config.tensor_ids().into_iter().filter(|id| id.is_matrix()) {
                let stored = names.stored(*prefix, config, id);
                let members = by_name.entry(stored.name.clone()).or_default();
                if !members.iter().any(|(member, _)| *member == id) {
                    members.push((id, stored));
                }
            }
        }
        Self { model, pairs, by_name }
    }

    /// [rows, columns] of the matrix of a module; an error if the model has none of this name, or one that adapters cannot
    /// change here.
    pub fn shape(&self, name: &str, path: &Path) -> Result<[usize; 2], ModelError> {
        let fail = |what: String| ModelError::Config { path: path.to_owned(), what };
        let Some(members) = self.by_name.get(name) else {
            return Err(fail(format!("`{name}` is no linear layer of `{}`", self.model.name())));
        };
        match members.first() {
            Some((_, stored)) if stored.expert.is_none() && stored.shape.len() == 2 => Ok(match stored.transposed {
                true => [stored.shape[1], stored.shape[0]],
                false => [stored.shape[0], stored.shape[1]],
            }),
            _ => Err(fail(format!("`{name}`: adapters of experts are not supported"))),
        }
    }

    /// Puts a module into an adapter, as the tensors that the model has for it.
    pub fn put(&self, adapter: &mut Adapter, module: Module) {
        let config = self.model.config();
        for (id, stored) in self.by_name.get(&module.name).into_iter().flatten() {
            let rows = config.tensor_shape(*id).map_or(0, |shape| shape[0]);
            let mut b = vec![0.0; rows * module.rank];
            let mut magnitude = module.magnitude.as_ref().map(|_| vec![0.0; rows]);
            for row in 0..rows {
                let (from, to) = (stored.row(row), config.row_source(*id, row, self.pairs));
                let source = &module.b[from * module.rank..][..module.rank];
                let target = &mut b[to * module.rank..][..module.rank];
                target.iter_mut().zip(source).for_each(|(target, source)| *target = source * module.scale);
                if let (Some(own), Some(theirs)) = (&mut magnitude, &module.magnitude) {
                    own[to] = theirs[from];
                }
            }
            adapter.lora.insert(*id, Lora { rank: module.rank, a: module.a.clone(), b, magnitude });
        }
    }

    /// Puts a whole matrix into an adapter.
    pub fn replace(&self, adapter: &mut Adapter, name: &str, values: &[f32]) {
        let config = self.model.config();
        for (id, stored) in self.by_name.get(name).into_iter().flatten() {
            let Some([rows, columns]) = config.tensor_shape(*id).and_then(|shape| <[usize; 2]>::try_from(shape).ok())
            else {
                continue;
            };
            let mut own = vec![0.0; rows * columns];
            for row in 0..rows {
                let (from, to) = (stored.row(row), config.row_source(*id, row, self.pairs));
                own[to * columns..][..columns].copy_from_slice(&values[from * columns..][..columns]);
            }
            adapter.replaced.insert(*id, own);
        }
    }
}
