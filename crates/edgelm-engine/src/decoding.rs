//! What generating needs of an engine, whichever it is.

use crate::{Engine, EngineError, Sequence, Step, Want, Workspace};

/// One sequence of a model that is ready to run.
pub trait Decoding {
    /// Positions that it can have.
    fn context_length(&self) -> usize;

    /// Tokens that end an answer.
    fn eos_token_ids(&self) -> &[u32];

    /// Tokens that are held.
    fn tokens(&self) -> &[u32];

    /// Forgets everything from position `len` on.
    fn truncate(&mut self, len: usize) -> Result<(), EngineError>;

    /// Appends tokens; `logits` become those that are wanted of them, `[rows, V]`.
    ///
    /// Errors on no tokens, ids outside the vocabulary and an over-full context.
    fn forward(&mut self, tokens: &[u32], want: Want, logits: &mut Vec<f32>) -> Result<(), EngineError>;
}

/// A sequence of [`Engine`].
pub(crate) struct OwnDecoding<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) sequence: &'a mut Sequence,
    pub(crate) workspace: Workspace,
}

impl Decoding for OwnDecoding<'_> {
    fn context_length(&self) -> usize {
        self.engine.config().context_length()
    }

    fn eos_token_ids(&self) -> &[u32] {
        &self.engine.config().eos_token_ids
    }

    fn tokens(&self) -> &[u32] {
        self.sequence.tokens()
    }

    fn truncate(&mut self, len: usize) -> Result<(), EngineError> {
        self.sequence.truncate(len);
        Ok(())
    }

    fn forward(&mut self, tokens: &[u32], want: Want, logits: &mut Vec<f32>) -> Result<(), EngineError> {
        let step = Step { sequence: &mut *self.sequence, tokens, want };
        self.engine.forward(&mut [step], &mut self.workspace)?;
        logits.clear();
        logits.extend_from_slice(self.workspace.logits());
        Ok(())
    }
}
