//! Turns at the CPU: one pass over the weights at a time, whichever model it is of.
//!
//! Two passes at once would share every core and every cache line of bandwidth and both take longer than twice their time.
//! So models take turns, and who had the least of the CPU is next: an account of seconds for each, as in fair queueing
//! (Demers, Keshav and Shenker 1989). A model that was idle begins at the account of the one that is served, so that it
//! cannot save up a claim.
//!
//! Where the server may have a part of the time only, nobody is next for a while after each turn: as much longer as the turn took.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What all models of a process have in common.
pub(crate) struct Turns {
    state: Mutex<State>,
    free: Condvar,
    /// Of rest after a turn, by the time that it took.
    rest: f64,
}

/// However long a turn was: requests would not be heard meanwhile.
const LONGEST_REST: Duration = Duration::from_secs(5);

#[derive(Default)]
struct State {
    /// Number of the turn that is on, if any.
    current: Option<u64>,
    next: u64,
    /// Accounts of those that wait, each with its place in the line.
    waiting: Vec<(u64, Duration)>,
    /// The account of the last that was served.
    served: Duration,
    /// Nobody is next before.
    rest_until: Option<Instant>,
}

/// What one model has had of the CPU.
#[derive(Default)]
pub(crate) struct Account(Mutex<Duration>);

/// A turn. It ends when it is dropped, or when somebody takes it away.
pub(crate) struct Turn {
    turns: Arc<Turns>,
    account: Arc<Account>,
    number: u64,
    since: Instant,
}

impl Turns {
    /// For so much of the time, above 0 and up to 1.
    pub(crate) fn new(share: f64) -> Self {
        let rest = if share > 0.0 && share < 1.0 { 1.0 / share - 1.0 } else { 0.0 };
        Self { state: Mutex::default(), free: Condvar::new(), rest }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn.
    pub(crate) fn take(self: &Arc<Self>, account: &Arc<Account>) -> Turn {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        let had = {
            let mut had = account.0.lock().unwrap_or_else(PoisonError::into_inner);
            *had = (*had).max(state.served);
            *had
        };
        state.waiting.push((number, had));
        loop {
            let first = state.waiting.iter().min_by_key(|(number, had)| (*had, *number)).map(|(number, _)| *number);
            if state.current.is_some() || first != Some(number) {
                state = self.free.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let rest = state.rest_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
            if rest.is_zero() {
                break;
            }
            // Somebody who had less may come meanwhile.
            (state, _) = self.free.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting.retain(|(other, _)| *other != number);
        state.served = state.served.max(had);
        state.rest_until = None;
        state.current = Some(number);
        Turn { turns: Arc::clone(self), account: Arc::clone(account), number, since: Instant::now() }
    }

    /// Takes a turn away from a thread that does not come back. Nothing if it has ended.
    pub(crate) fn revoke(&self, number: u64) {
        self.end(number, Duration::ZERO);
    }

    fn end(&self, number: u64, took: Duration) {
        let mut state = self.lock();
        if state.current == Some(number) {
            state.current = None;
            let rest = took.as_secs_f64() * self.rest;
            let rest = Duration::try_from_secs_f64(rest).unwrap_or(LONGEST_REST).min(LONGEST_REST);
            state.rest_until = (!rest.is_zero()).then(|| Instant::now() + rest);
            self.free.notify_all();
        }
    }
}

impl Turn {
    /// Its name, for [`Turns::revoke`].
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let took = self.since.elapsed();
        *self.account.0.lock().unwrap_or_else(PoisonError::into_inner) += took;
        self.turns.end(self.number, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    fn account(had: Duration) -> Arc<Account> {
        Arc::new(Account(Mutex::new(had)))
    }

    #[test]
    fn turns_come_one_at_a_time_and_are_put_on_the_account() {
        let turns = Arc::new(Turns::new(1.0));
        let inside = AtomicUsize::new(0);
        let accounts = [Arc::default(), Arc::default(), Arc::default()];
        thread::scope(|scope| {
            for account in &accounts {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let turn = turns.take(account);
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        thread::sleep(Duration::from_millis(1));
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(turn);
                    }
                });
            }
        });
        let least = Duration::from_millis(20);
        assert!(accounts.iter().all(|account| *account.0.lock().expect("no panic") >= least));
    }

    #[test]
    fn who_had_least_is_next_whoever_came_first() {
        let turns = Arc::new(Turns::new(1.0));
        let order = Mutex::new(Vec::new());
        let first = turns.take(&Arc::default());
        thread::scope(|scope| {
            for (place, seconds) in [300, 100, 200].into_iter().enumerate() {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let turn = turns.take(&account(Duration::from_secs(seconds)));
                    order.lock().expect("no panic").push(seconds);
                    drop(turn);
                });
                while turns.lock().waiting.len() <= place {
                    thread::yield_now();
                }
            }
            drop(first);
        });
        assert_eq!(*order.lock().expect("no panic"), [100, 200, 300]);
    }

    #[test]
    fn who_was_idle_has_saved_up_nothing() {
        let turns = Arc::new(Turns::new(1.0));
        drop(turns.take(&account(Duration::from_secs(100))));
        let idle: Arc<Account> = Arc::default();
        drop(turns.take(&idle));
        assert!(*idle.0.lock().expect("no panic") >= Duration::from_secs(100));
    }

    #[test]
    fn nobody_is_next_before_the_server_has_rested() {
        let turns = Arc::new(Turns::new(0.25));
        let (begin, accounts) = (Instant::now(), [Arc::default(), Arc::default()]);
        let mut worked = Duration::ZERO;
        for index in 0..10 {
            let turn = turns.take(&accounts[index % 2]);
            let since = Instant::now();
            thread::sleep(Duration::from_millis(5));
            worked += since.elapsed();
            drop(turn);
        }
        // The last rest is still to come.
        assert!(begin.elapsed() >= worked.mul_f64(3.6), "{worked:?} in {:?}", begin.elapsed());
        assert!(turns.lock().rest_until.is_some());
    }

    #[test]
    fn a_turn_that_does_not_end_can_be_taken_away() {
        let turns = Arc::new(Turns::new(1.0));
        let stuck = turns.take(&Arc::default());
        turns.revoke(stuck.number());
        let next = turns.take(&Arc::default());
        // The one that comes back late ends nobody else's.
        drop(stuck);
        assert_eq!(turns.lock().current, Some(next.number()));
    }
}
