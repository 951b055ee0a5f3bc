//! A circuit breaker per model: when too many of its requests fail, or are too slow, it takes none for a while, so that clients
//! learn at once that they have to go elsewhere, and the model is not kept busy with what fails.
//!
//! Closed: requests pass and are counted over a window. Open: none pass. Half open, after some time: a few pass as probes; if
//! they all do well it closes, and the first that does not opens it again (Nygard, Release It!, 2007, §5.2).

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// When a breaker opens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerConfig {
    /// Share of the requests in the window, above 0, up to 1: as many failed, or as many slow ones, open it.
    pub rate: f64,
    /// To the first token, waiting included; more is slow. `None` = nothing is.
    pub latency: Option<Duration>,
    /// Fewer requests in the window say nothing.
    pub least: usize,
    /// What is looked back on.
    pub window: Duration,
    /// Before it is tried again.
    pub open_for: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { rate: 0.5, latency: None, least: 10, window: Duration::from_secs(60), open_for: Duration::from_secs(15) }
    }
}

/// Probes that all have to do well.
const PROBES: usize = 3;
/// Requests that are looked back on, at most.
const MOST: usize = 10_000;

/// Whether requests pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Circuit {
    Closed,
    HalfOpen,
    Open,
}

impl Circuit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// One model's.
pub(crate) struct Breaker {
    config: BreakerConfig,
    state: Mutex<State>,
    /// Told of each change.
    on_change: Box<dyn Fn(Circuit) + Send + Sync>,
}

struct State {
    circuit: Circuit,
    since: Instant,
    /// Counts changes, so that what began before one is not counted after it.
    era: u64,
    seen: VecDeque<Seen>,
    probes: usize,
    did_well: usize,
}

struct Seen {
    at: Instant,
    failed: bool,
    slow: bool,
}

/// How a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) failed: bool,
    /// Until the first token, or the end.
    pub(crate) latency: Duration,
}

/// A request that passed. One that is dropped without a report counts as neither good nor bad: its client left.
pub(crate) struct Pass {
    breaker: Arc<Breaker>,
    era: u64,
    is_probe: bool,
    is_reported: bool,
}

impl Breaker {
    pub(crate) fn new(config: BreakerConfig, on_change: impl Fn(Circuit) + Send + Sync + 'static) -> Self {
        let state = State {
            circuit: Circuit::Closed,
            since: Instant::now(),
            era: 0,
            seen: VecDeque::new(),
            probes: 0,
            did_well: 0,
        };
        Self { config, state: Mutex::new(state), on_change: Box::new(on_change) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn circuit(&self) -> Circuit {
        self.lock().circuit
    }

    /// Lets a request pass, or says after how many seconds to come again.
    pub(crate) fn pass(self: &Arc<Self>) -> Result<Pass, u64> {
        let mut state = self.lock();
        if state.circuit == Circuit::Open {
            let left = self.config.open_for.saturating_sub(state.since.elapsed());
            if left > Duration::ZERO {
                return Err(left.as_secs() + 1);
            }
            self.change(&mut state, Circuit::HalfOpen);
        }
        let is_probe = state.circuit == Circuit::HalfOpen;
        if is_probe {
            if state.probes >= PROBES {
                return Err(1);
            }
            state.probes += 1;
        }
        Ok(Pass { breaker: Arc::clone(self), era: state.era, is_probe, is_reported: false })
    }

    fn change(&self, state: &mut State, circuit: Circuit) {
        state.circuit = circuit;
        state.since = Instant::now();
        state.era += 1;
        state.seen.clear();
        state.probes = 0;
        state.did_well = 0;
        (self.on_change)(circuit);
    }

    fn report(&self, era: u64, outcome: Outcome) {
        let mut state = self.lock();
        if era != state.era {
            return;
        }
        let slow = self.config.latency.is_some_and(|limit| outcome.latency > limit);
        match state.circuit {
            Circuit::HalfOpen if outcome.failed || slow => self.change(&mut state, Circuit::Open),
            Circuit::HalfOpen => {
                state.did_well += 1;
                if state.did_well == PROBES {
                    self.change(&mut state, Circuit::Closed);
                }
            }
            Circuit::Closed => {
                let now = Instant::now();
                state.seen.push_back(Seen { at: now, failed: outcome.failed, slow });
                while state.seen.len() > MOST
                    || state.seen.front().is_some_and(|seen| now.duration_since(seen.at) > self.config.window)
                {
                    state.seen.pop_front();
                }
                let share = |is: fn(&Seen) -> bool| {
                    state.seen.iter().filter(|seen| is(seen)).count() as f64 / state.seen.len() as f64
                };
                let worst = share(|seen| seen.failed).max(share(|seen| seen.slow));
                if state.seen.len() >= self.config.least && worst >= self.config.rate {
                    self.change(&mut state, Circuit::Open);
                }
            }
            Circuit::Open => {}
        }
    }
}

impl Pass {
    /// The request is over. Only the first report counts.
    pub(crate) fn report(&mut self, outcome: Outcome) {
        if !std::mem::replace(&mut self.is_reported, true) {
            self.breaker.report(self.era, outcome);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.is_probe && !self.is_reported {
            let mut state = self.breaker.lock();
            if state.era == self.era {
                state.probes = state.probes.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Outcome = Outcome { failed: false, latency: Duration::ZERO };
    const BAD: Outcome = Outcome { failed: true, latency: Duration::ZERO };
    const SLOW: Outcome = Outcome { failed: false, latency: Duration::from_secs(2) };

    fn breaker(open_for: Duration) -> Arc<Breaker> {
        let config =
            BreakerConfig { latency: Some(Duration::from_secs(1)), least: 4, open_for, ..BreakerConfig::default() };
        Arc::new(Breaker::new(config, |_| ()))
    }

    fn passes(breaker: &Arc<Breaker>) -> Pass {
        breaker.pass().unwrap_or_else(|wait| panic!("refused for {wait} s"))
    }

    fn run(breaker: &Arc<Breaker>, outcomes: &[Outcome]) {
        for &outcome in outcomes {
            passes(breaker).report(outcome);
        }
    }

    #[test]
    fn half_of_enough_requests_open_it() {
        let breaker = breaker(Duration::from_secs(100));
        run(&breaker, &[BAD, BAD, GOOD]);
        assert_eq!(breaker.circuit(), Circuit::Closed, "three say nothing");
        run(&breaker, &[GOOD]);
        assert_eq!(breaker.circuit(), Circuit::Open);
        assert!(matches!(breaker.pass(), Err(100)));
    }

    #[test]
    fn slow_ones_open_it_too() {
        let breaker = breaker(Duration::from_secs(100));
        run(&breaker, &[SLOW, GOOD, SLOW, GOOD]);
        assert_eq!(breaker.circuit(), Circuit::Open);
    }

    #[test]
    fn probes_decide() {
        let breaker = breaker(Duration::ZERO);
        run(&breaker, &[BAD; 4]);
        assert_eq!(breaker.circuit(), Circuit::Open);
        run(&breaker, &[GOOD, BAD]);
        assert_eq!(breaker.circuit(), Circuit::Open);
        let mut probes: Vec<Pass> = (0..PROBES).map(|_| passes(&breaker)).collect();
        assert!(breaker.pass().is_err(), "no more at once");
        // A client that left makes room for another.
        probes.pop();
        run(&breaker, &[GOOD]);
        probes.iter_mut().for_each(|probe| probe.report(GOOD));
        assert_eq!(breaker.circuit(), Circuit::Closed);
        run(&breaker, &[GOOD, BAD, GOOD, GOOD, GOOD]);
        assert_eq!(breaker.circuit(), Circuit::Closed);
    }

    #[test]
    fn what_began_before_a_change_is_not_counted_after_it() {
        let breaker = breaker(Duration::ZERO);
        let mut late = passes(&breaker);
        run(&breaker, &[BAD; 4]);
        let mut probe = passes(&breaker);
        late.report(BAD);
        assert_eq!(breaker.circuit(), Circuit::HalfOpen);
        probe.report(GOOD);
        assert_eq!(breaker.circuit(), Circuit::HalfOpen);
    }
}
