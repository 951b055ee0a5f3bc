//! Sees that a pass hangs: the engine thread cannot say so itself.
//!
//! A thread cannot be ended from outside. It is left behind instead: its requests are told, and another thread goes on with the
//! requests that wait, on threads of its own. Once that has happened too often, new requests are refused and `/health` says
//! so, until the pass returns after all, or whoever watches over the process starts it anew.

use super::{Event, MutexGuard, PoisonError};
use crate::error::ApiError;
use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::mpsc::UnboundedSender;

/// What the engine thread is at.
#[derive(Default)]
pub(super) struct Watchdog {
    pass: Mutex<Option<Pass>>,
    stalled: AtomicBool,
    abandoned: AtomicBool,
}

struct Pass {
    since: Instant,
    turn: u64,
    /// Of the requests in it.
    events: Vec<UnboundedSender<Event>>,
}

impl Watchdog {
    fn lock(&self) -> MutexGuard<'_, Option<Pass>> {
        self.pass.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pass begins in this turn, for these requests.
    pub(super) fn begin(&self, turn: u64, events: Vec<UnboundedSender<Event>>) {
        *self.lock() = Some(Pass { since: Instant::now(), turn, events });
    }

    /// It is over; true where it was taken to hang, so that its requests have failed already.
    pub(super) fn end(&self) -> bool {
        *self.lock() = None;
        self.stalled.swap(false, Ordering::Relaxed)
    }

    /// Another thread goes on in its place: whenever this one comes back, it ends without a word.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    /// It is not to be used again.
    pub(super) fn give_up(&self) {
        self.stalled.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    /// How long the pass has taken and its turn, once for every pass that takes longer than `limit`. Its requests are told.
    pub(super) fn newly_stalled(&self, limit: Duration) -> Option<(Duration, u64)> {
        let mut pass = self.lock();
        let current = pass.as_mut()?;
        let time = current.since.elapsed();
        if time < limit || self.stalled.swap(true, Ordering::Relaxed) {
            return None;
        }
        for events in current.events.drain(..) {
            // An error means that nobody listens any more.
            let _ = events.send(Event::Failed(ApiError::Stalled));
        }
        Some((time, current.turn))
    }
}
