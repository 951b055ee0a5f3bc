//! Tensors of a model that a file stores as one: queries, keys and values; gate and up; the experts of a layer.

use crate::CompressError;
use edgelm_model::{
    ModelConfig, TensorId,
    arch::{Names, Rows, Stored},
};
use std::collections::HashMap;

/// How the tensors of a config lie in files with these names.
pub(crate) struct Fuse {
    stored: HashMap<TensorId, Stored>,
    members: HashMap<String, Vec<TensorId>>,
    /// Rows that wait for the other tensors of theirs.
    pending: HashMap<String, Vec<(TensorId, Vec<u8>)>>,
}

/// One tensor of a file, as it is declared.
pub(crate) struct Declared {
    pub name: String,
    pub shape: Vec<usize>,
    /// Which tensors of the model it holds.
    pub members: Vec<TensorId>,
}

impl Fuse {
    pub fn new(names: &Names, config: &ModelConfig) -> Self {
        let prefix = names.prefixes.first().copied().unwrap_or_default();
        let mut members: HashMap<String, Vec<TensorId>> = HashMap::new();
        let mut stored = HashMap::new();
        for id in config.tensor_ids() {
            let place = names.stored(prefix, config, id);
            members.entry(place.name.clone()).or_default().push(id);
            stored.insert(id, place);
        }
        Self { stored, members, pending: HashMap::new() }
    }

    /// The tensors that are stored as one with this one, itself among them.
    pub fn members(&self, id: TensorId) -> &[TensorId] {
        self.stored.get(&id).and_then(|place| self.members.get(&place.name)).map_or(&[], Vec::as_slice)
    }

    /// True if it is stored by itself and as it is: its rows may be written as they come.
    pub fn is_alone(&self, id: TensorId) -> bool {
        self.stored.get(&id).is_none_or(|place| place.rows.is_none() && place.expert.is_none() && !place.transposed)
    }

    /// Bytes of a tensor that is complete, as the file's tensors that they are: several where its rows are tensors of their
    /// own.
    pub fn split<'a>(&self, id: TensorId, bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let parts = self.stored.get(&id).and_then(|place| place.spread).unwrap_or(1);
        bytes.chunks((bytes.len() / parts.max(1)).max(1))
    }

    /// True if rows of the tensor are rows of the stored one.
    pub fn has_whole_rows(&self, id: TensorId) -> bool {
        self.stored.get(&id).is_some_and(|place| place.expert.is_none() && !place.transposed)
    }

    /// Rows of the stored tensor, where it holds several.
    pub fn stored_rows(&self, id: TensorId) -> Option<usize> {
        self.stored.get(&id).filter(|_| !self.is_alone(id)).map(|place| place.shape[0])
    }

    /// The file's tensors for tensors of the model that are written in this order: each is complete with the last of its
    /// members.
    pub fn declare(&self, order: &[TensorId]) -> Vec<Declared> {
        let mut missing: HashMap<&str, usize> =
            self.members.iter().map(|(name, members)| (name.as_str(), members.len())).collect();
        let mut declared = Vec::new();
        for id in order {
            let Some(place) = self.stored.get(id) else { continue };
            let Some(left) = missing.get_mut(place.name.as_str()) else { continue };
            *left -= 1;
            if *left == 0 {
                let members = self.members.get(&place.name).cloned().unwrap_or_default();
                let one = |name| Declared { name, shape: place.shape.clone(), members: members.clone() };
                declared.extend(place.names().into_iter().map(one));
            }
        }
        declared
    }

    /// Takes the rows of one tensor, in the file's pairing of rotary components; returns the bytes of the stored tensor if
    /// it is complete. Errors if its members came in different formats, or in blocks that lie across stored rows.
    pub fn push(&mut self, id: TensorId, bytes: Vec<u8>) -> Result<Option<Vec<u8>>, CompressError> {
        if self.is_alone(id) {
            return Ok(Some(bytes));
        }
        let Some(place) = self.stored.get(&id) else { return Ok(Some(bytes)) };
        let waiting = self.pending.entry(place.name.clone()).or_default();
        waiting.push((id, bytes));
        if waiting.len() < self.members.get(&place.name).map_or(1, Vec::len) {
            return Ok(None);
        }
        let parts = std::mem::take(waiting);
        self.pending.remove(&place.name);
        self.join(&parts).map(Some)
    }

    fn join(&self, parts: &[(TensorId, Vec<u8>)]) -> Result<Vec<u8>, CompressError> {
        let total = parts.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut out = vec![0; total];
        for (id, bytes) in parts {
            let Some(place) = self.stored.get(id) else { continue };
            let mixed = || CompressError::Fused { name: place.name.clone() };
            let (one, of_one) = match place.expert {
                Some((expert, count)) => (expert * (total / count.max(1)), &place.shape[1..]),
                None => (0, place.shape.as_slice()),
            };
            let size = total / place.expert.map_or(1, |(_, count)| count.max(1));
            let room = out.get_mut(one..one + size).ok_or_else(mixed)?;
            // Rows of the part, which are columns where the file is transposed.
            let lines = if place.transposed { of_one.get(1) } else { of_one.first() }.copied().unwrap_or(1).max(1);
            let line_bytes = size / lines;
            let targets: Vec<usize> = match &place.rows {
                None => (0..lines).collect(),
                Some(Rows::Range(range)) => range.clone().collect(),
                Some(Rows::List(list)) => list.clone(),
            };
            if line_bytes * targets.len() != bytes.len() || line_bytes * lines != size {
                return Err(mixed());
            }
            let inputs = if place.transposed { of_one[0].max(1) } else { 1 };
            let element = line_bytes / inputs;
            for (line, &target) in bytes.chunks_exact(line_bytes).zip(&targets) {
                match place.transposed {
                    false => room[target * line_bytes..][..line_bytes].copy_from_slice(line),
                    true => {
                        for (input, value) in line.chunks_exact(element).enumerate() {
                            room[(input * lines + target) * element..][..element].copy_from_slice(value);
                        }
                    }
                }
            }
        }
        Ok(out)
    }
}
