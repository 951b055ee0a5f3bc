//! How many requests may be inside at once: some that run and a bounded number that wait.
//!
//! A slot is taken before a prompt is even tokenized, so a flood costs a JSON parse each and nothing more.

use crate::error::ApiError;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Hands out slots.
#[derive(Clone)]
pub(crate) struct Admission {
    slots: Arc<Semaphore>,
    waiting: usize,
}

/// A place inside; given back on drop, so also when the client goes away.
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
}

impl Admission {
    /// So many running requests and up to `waiting` behind them.
    pub(crate) fn new(running: usize, waiting: usize) -> Self {
        let slots = waiting.saturating_add(running.max(1)).min(Semaphore::MAX_PERMITS);
        Self { slots: Arc::new(Semaphore::new(slots)), waiting }
    }

    /// A slot, or 429 telling when to come again.
    pub(crate) fn admit(&self, retry_after_s: u64) -> Result<Slot, ApiError> {
        match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(permit) => Ok(Slot { _permit: permit }),
            Err(_) => Err(ApiError::QueueFull { capacity: self.waiting, retry_after_s }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_back() {
        let admission = Admission::new(1, 1);
        let first = admission.admit(1).ok();
        let second = admission.admit(1).ok();
        assert!(first.is_some() && second.is_some());
        assert!(matches!(admission.admit(7), Err(ApiError::QueueFull { capacity: 1, retry_after_s: 7 })));
        drop(first);
        assert!(admission.admit(1).is_ok());
    }
}
