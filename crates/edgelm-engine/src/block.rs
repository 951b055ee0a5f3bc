//! One decoder layer, prepared for this machine: what `Engine` stacks and what calibration walks one at a time.
use crate::EngineError;
use edgelm_kernels::{Cpu, KvCache};
use edgelm_model::{Checkpoint, LayerTensor};

/// Sees the input of every linear layer: which ones read it (they share it), and its rows `[T, K]`.
pub type Observer<'a> = dyn FnMut(&[LayerTensor], &[f32], usize) + 'a;

/// A prepared decoder layer.
pub struct Block {
    _private: (),
}

impl Block {
    /// Packs the weights of layer `index`.
    pub fn load(checkpoint: &Checkpoint, cpu: &Cpu, index: usize) -> Result<Self, EngineError> {
        let _ = (checkpoint, cpu, index);
        todo!()
    }
    /// Runs one whole window of `t` positions from position 0 through this layer alone, in place on `hidden` `[T, D]`,
    /// with a fresh cache; `observer` sees the inputs of its linear layers. For calibration.
    pub fn run_window(&self, cpu: &Cpu, hidden: &mut [f32], t: usize, observer: Option<&mut Observer<'_>>) {
        let _ = (cpu, hidden, t, observer);
        todo!()
    }
}
#[allow(unused)]
type _Unused = KvCache;
