//! What a model is loaded from, and what is known of it before.

use crate::backend::{Backend, Description};
use std::{error::Error, sync::Arc};

/// An error of what is outside this crate.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// One file or folder that a model can be loaded from, again and again.
pub trait Artifact: Send + Sync + 'static {
    /// For messages: what the user wrote.
    fn name(&self) -> &str;
    /// What loading it now would take, and how it would be cut to fit.
    ///
    /// # Errors
    /// [`PlanError::Memory`] where it does not fit however it is cut; anything else is a fault of the artifact.
    fn plan(&self, room: &Room) -> Result<MemoryPlan, PlanError>;
    /// Loads it as planned.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    fn load(&self, plan: &MemoryPlan) -> Result<Arc<dyn Backend>, BoxError>;
    /// SHA-256 of the files, in hexadecimal. Reads them all the first time.
    ///
    /// # Errors
    /// Files that cannot be read.
    fn digest(&self) -> Result<String, BoxError>;
    /// The same; reads the files whatever is known of them.
    ///
    /// # Errors
    /// Files that cannot be read.
    fn digest_anew(&self) -> Result<String, BoxError>;
}

/// Memory for one more model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// What is left of the server's own budget; `None` = it has none.
    pub budget_bytes: Option<u64>,
    /// What the models that are loaded may come to take, used already or not.
    pub committed_bytes: u64,
}

/// How a model is to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Everything it may come to take.
    pub total_bytes: u64,
    /// The part of it for keys, values and states.
    pub kv_bytes: usize,
    /// Generations that run at once.
    pub parallel: usize,
    /// Less than one request with a full context fits: worth unloading another model for.
    pub is_cramped: bool,
    /// What was made smaller than asked for.
    pub notes: Vec<String>,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It is too large.
    #[error("{0}")]
    Memory(String),
    /// It cannot be read.
    #[error("{0}")]
    Artifact(#[source] BoxError),
}

/// A model as it is configured.
pub struct ModelSpec {
    /// The id in requests and listings.
    pub id: String,
    /// Ids of its adapters.
    pub adapters: Vec<String>,
    /// Where it is loaded from: the first that can be.
    pub artifacts: Vec<Arc<dyn Artifact>>,
    /// What clients may know before it is loaded.
    pub about: About,
}

/// What listings say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct About {
    /// What it is.
    pub description: Description,
    /// Limit of prompt and answer together.
    pub context: usize,
    /// Unix time of its files.
    pub modified: u64,
}
