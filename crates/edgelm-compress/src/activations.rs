//! Arrays of f32 that move to a file when they are many.

use crate::CompressError;
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    sync::{Mutex, PoisonError},
};

/// Bytes kept in memory: the hidden states of 128 windows of 512 tokens of a 7B model. Beyond it everything is in the file.
const MEMORY_BYTES: usize = 1 << 30;

/// Arrays of given lengths, zero at first.
pub(crate) struct Activations {
    /// First value of each array, and the end.
    starts: Vec<usize>,
    store: Store,
}

enum Store {
    Memory(Vec<f32>),
    /// Without a name: the system removes it with the process.
    File(Mutex<File>),
}

impl Activations {
    pub(crate) fn new(lengths: impl Iterator<Item = usize>) -> Result<Self, CompressError> {
        Self::with_limit(lengths, MEMORY_BYTES)
    }

    fn with_limit(lengths: impl Iterator<Item = usize>, limit: usize) -> Result<Self, CompressError> {
        let mut starts = vec![0];
        for length in lengths {
            starts.push(starts[starts.len() - 1] + length);
        }
        let total = starts[starts.len() - 1];
        let store = if total.saturating_mul(4) <= limit {
            Store::Memory(vec![0.0; total])
        } else {
            let file = tempfile::tempfile().map_err(CompressError::Spill)?;
            file.set_len(4 * total as u64).map_err(CompressError::Spill)?;
            Store::File(Mutex::new(file))
        };
        Ok(Self { starts, store })
    }

    /// Number of arrays.
    pub(crate) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Values of all arrays.
    pub(crate) fn values(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// A copy of array `index`.
    pub(crate) fn load(&self, index: usize) -> Result<Vec<f32>, CompressError> {
        let part = self.starts[index]..self.starts[index + 1];
        match &self.store {
            Store::Memory(values) => Ok(values[part].to_vec()),
            Store::File(file) => {
                let mut values = vec![0.0; part.len()];
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(4 * part.start as u64)).map_err(CompressError::Spill)?;
                file.read_exact(bytemuck::cast_slice_mut(&mut values)).map_err(CompressError::Spill)?;
                Ok(values)
            }
        }
    }

    /// Sets array `index`. Panics if its length is another.
    pub(crate) fn store(&mut self, index: usize, values: &[f32]) -> Result<(), CompressError> {
        let part = self.starts[index]..self.starts[index + 1];
        assert_eq!(values.len(), part.len());
        match &mut self.store {
            Store::Memory(all) => all[part].copy_from_slice(values),
            Store::File(file) => {
                let file = file.get_mut().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(4 * part.start as u64)).map_err(CompressError::Spill)?;
                file.write_all(bytemuck::cast_slice(values)).map_err(CompressError::Spill)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn memory_and_file_hold_the_same() {
        for limit in [0, 1 << 20] {
            let mut arrays = Activations::with_limit([3, 0, 5].into_iter(), limit).unwrap();
            arrays.store(2, &[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
            arrays.store(0, &[-1.0, -2.0, -3.0]).unwrap();
            arrays.store(2, &[6.0, 7.0, 8.0, 9.0, 10.0]).unwrap();
            assert_eq!(arrays.len(), 3);
            assert_eq!(arrays.load(0).unwrap(), [-1.0, -2.0, -3.0]);
            assert_eq!(arrays.load(1).unwrap(), [0.0f32; 0]);
            assert_eq!(arrays.load(2).unwrap(), [6.0, 7.0, 8.0, 9.0, 10.0]);
        }
    }
}
