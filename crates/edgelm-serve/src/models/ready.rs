//! A model that was loaded by somebody else: there is nothing to plan, and it can be had again at any time.

use super::{About, Artifact, BoxError, MemoryPlan, ModelSpec, PlanError, Room};
use crate::{backend::Backend, service::unix_now};
use std::sync::Arc;

pub(super) struct Ready {
    backend: Arc<dyn Backend>,
    parallel: usize,
}

impl ModelSpec {
    /// A model that is there already.
    pub(crate) fn ready(backend: Arc<dyn Backend>, parallel: usize) -> Self {
        Self {
            id: backend.name().to_owned(),
            adapters: backend.adapters().iter().map(|(id, _)| id.clone()).collect(),
            about: About {
                description: backend.description().clone(),
                context: backend.context(),
                modified: unix_now(),
            },
            artifacts: vec![Arc::new(Ready { backend, parallel })],
        }
    }
}

impl Artifact for Ready {
    fn name(&self) -> &str {
        self.backend.name()
    }
    fn plan(&self, _: &Room) -> Result<MemoryPlan, PlanError> {
        Ok(MemoryPlan {
            total_bytes: 0,
            kv_bytes: self.backend.kv_limit().map_or(0, |limit| limit.budget_bytes),
            parallel: self.parallel,
            is_cramped: false,
            notes: Vec::new(),
        })
    }
    fn load(&self, _: &MemoryPlan) -> Result<Arc<dyn Backend>, BoxError> {
        Ok(Arc::clone(&self.backend))
    }
    fn digest(&self) -> Result<String, BoxError> {
        Err("this model has no files".into())
    }
    fn digest_anew(&self) -> Result<String, BoxError> {
        self.digest()
    }
}
