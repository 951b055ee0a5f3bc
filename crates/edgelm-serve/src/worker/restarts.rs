//! How often an engine may be started again: a fault that comes back at once must end in an error that is seen, not in a loop.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

const WINDOW: Duration = Duration::from_secs(600);

/// Counts restarts in the last ten minutes.
pub(super) struct Restarts {
    most: usize,
    taken: Mutex<VecDeque<Instant>>,
}

impl Restarts {
    pub(super) fn new(most: usize) -> Self {
        Self { most, taken: Mutex::default() }
    }

    /// One more; false where there were too many.
    pub(super) fn take(&self) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while taken.front().is_some_and(|at| at.elapsed() > WINDOW) {
            taken.pop_front();
        }
        let is_allowed = taken.len() < self.most;
        if is_allowed {
            taken.push_back(Instant::now());
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_allowed() {
        let restarts = Restarts::new(2);
        assert_eq!([restarts.take(), restarts.take(), restarts.take()], [true, true, false]);
        assert!(!Restarts::new(0).take());
    }
}
