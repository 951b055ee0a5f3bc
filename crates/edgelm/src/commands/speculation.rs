//! Flags for speculative decoding, of `run` and `serve`.

use crate::{failure::Usage, options::Global, resolve};
use anyhow::Context;
use clap::Args;
use edgelm_engine::{Arithmetic, Model, Speculation};
use edgelm_kernels::Cpu;
use std::sync::Arc;

#[derive(Args, Debug, Clone)]
pub struct SpeculationArgs {
    /// Smaller model with the same tokens, whose guesses MODEL checks several at a time: the same answer, sooner
    #[arg(long, value_name = "MODEL", conflicts_with = "lookup")]
    draft: Option<String>,
    /// Guess what followed the same words before, and check several tokens at a time: the same answer, sooner
    #[arg(long)]
    lookup: bool,
}

impl SpeculationArgs {
    pub fn new(draft: Option<String>, lookup: bool) -> Self {
        Self { draft, lookup }
    }

    pub fn is_set(&self) -> bool {
        self.lookup || self.draft.is_some()
    }

    /// The draft model's path, if there is one.
    pub fn draft(&self) -> Option<&str> {
        self.draft.as_deref()
    }

    /// Loads the draft model, if there is one.
    pub fn load(&self, arithmetic: Arithmetic, cpu: &Arc<Cpu>, global: &Global) -> anyhow::Result<Option<Speculation>> {
        // With one in a file of settings, the command line's own check does not see it.
        if self.lookup && self.draft.is_some() {
            return Err(Usage("--draft and --lookup exclude each other".into()).into());
        }
        let Some(draft) = &self.draft else { return Ok(self.lookup.then_some(Speculation::Lookup)) };
        let model = resolve::checkpoint(draft, global)
            .and_then(|checkpoint| Ok(Model::load_with(checkpoint, Arc::clone(cpu), arithmetic)?))
            .context("--draft")?;
        Ok(Some(Speculation::Draft(Arc::new(model))))
    }
}
