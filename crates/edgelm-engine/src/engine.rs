//! Batches of tokens through all layers.
use crate::EngineError;
use edgelm_kernels::{Cpu, KvCache, KvDtype, KvShape};
use edgelm_model::{Checkpoint, ModelConfig};
use std::sync::Arc;

/// Prepared weights.
pub struct Engine {
    _private: (),
}

/// One conversation's state: the tokens seen and their cache. Cloning is cheap (pages are shared).
#[derive(Clone)]
pub struct Sequence {
    pub(crate) cache: KvCache,
    pub(crate) tokens: Vec<u32>,
}

impl Sequence {
    /// Tokens whose keys and values are held.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
    /// Forgets everything from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.cache.truncate(len);
    }
}

/// Which positions' logits a step wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Want {
    None,
    Last,
    All,
}

/// New tokens of one sequence in a batch.
pub struct Step<'a> {
    /// Where they are appended.
    pub sequence: &'a mut Sequence,
    /// At least one.
    pub tokens: &'a [u32],
    /// Logits to compute.
    pub want: Want,
}

/// Buffers reused between calls; one per thread of control.
#[derive(Default)]
pub struct Workspace {
    _private: (),
}

impl Workspace {
    /// Logits of the last `forward`, `[rows wanted, V]`, in batch order.
    pub fn logits(&self) -> &[f32] {
        todo!()
    }
}

impl Engine {
    /// Packs every weight of a checkpoint for this machine.
    pub fn load(checkpoint: &Checkpoint, cpu: Arc<Cpu>) -> Result<Self, EngineError> {
        let _ = (checkpoint, cpu);
        todo!()
    }
    /// The model's config.
    pub fn config(&self) -> &ModelConfig {
        todo!()
    }
    /// The machine.
    pub fn cpu(&self) -> &Arc<Cpu> {
        todo!()
    }
    /// f32 for unquantized weights (exact), f16 otherwise.
    pub fn default_kv(&self) -> KvDtype {
        todo!()
    }
    /// Cache shape per layer.
    pub fn kv_shapes(&self) -> Vec<KvShape> {
        todo!()
    }
    /// Bytes of packed weights.
    pub fn weights_bytes(&self) -> usize {
        todo!()
    }
    /// An empty sequence.
    pub fn sequence(&self, kv: KvDtype) -> Sequence {
        let _ = kv;
        todo!()
    }
    /// Appends each step's tokens to its sequence; the logits asked for are left in `workspace`.
    /// Long prompts are cut into chunks inside. Errors (before anything is changed) on bad ids or an over-full context.
    pub fn forward(&self, batch: &mut [Step<'_>], workspace: &mut Workspace) -> Result<(), EngineError> {
        let _ = (batch, workspace);
        todo!()
    }
}
