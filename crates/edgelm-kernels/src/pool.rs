//! Persistent workers: spin, then yield, then park; static partition.
//!
//! Decode enters hundreds of regions per token, so starting one must cost about a microsecond: idle workers spin for a
//! short while before they give their core back. A region that is entered from inside a region runs on its caller
//! alone, since the workers are busy.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Longer than the serial stretches between the regions of a layer, shorter than a scheduler tick.
const SPIN: Duration = Duration::from_micros(40);
/// Yields (each a system call of roughly half a microsecond when the core is free) before parking.
const YIELDS: usize = 100;

/// Thread pool; the calling thread is worker 0.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held for the length of a region.
    region: Mutex<()>,
    /// Where each worker's time goes, if anybody asked.
    pub(crate) recorder: OnceLock<crate::Recorder>,
}

type Body<'a> = &'a (dyn Fn(usize) + Sync);

struct Shared {
    /// Counts regions; a worker that sees it move runs `body`.
    generation: AtomicUsize,
    /// The region's function. Written by the caller before `generation` moves, read by workers after.
    body: UnsafeCell<Option<Body<'static>>>,
    /// Workers that have not finished the region.
    running: AtomicUsize,
    stop: AtomicBool,
    /// One per worker: it is parked, or about to be.
    parked: Vec<AtomicBool>,
    caller_parked: AtomicBool,
    caller: Mutex<Option<Thread>>,
    /// The first panic of the region.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `body` is the only field that is not `Sync` by itself. It is written only by the holder of `Pool::region`
// while `running` is 0, and read by workers only between their seeing a new `generation` and their decrement of
// `running`; both are release/acquire pairs.
unsafe impl Sync for Shared {}

thread_local! {
    static IN_REGION: Cell<bool> = const { Cell::new(false) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Starts `threads - 1` workers.
    pub fn new(threads: usize) -> Self {
        let others = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            generation: AtomicUsize::new(0),
            body: UnsafeCell::new(None),
            running: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            parked: (0..others).map(|_| AtomicBool::new(false)).collect(),
            caller_parked: AtomicBool::new(false),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
        });
        let start = |index: usize| {
            let shared = Arc::clone(&shared);
            let name = format!("edgelm-{}", index + 1);
            std::thread::Builder::new().name(name).spawn(move || shared.work(index))
        };
        // A system that refuses threads leaves a smaller pool, not a failure.
        let workers = (0..others).map_while(|index| start(index).ok()).collect();
        Self { shared, workers, region: Mutex::new(()), recorder: OnceLock::new() }
    }

    /// Workers, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f(worker)` once on every worker and waits for all. Concurrent callers are serialized.
    /// A panic in a worker is re-raised in the caller.
    pub fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        match self.recorder.get() {
            None => self.enter(f),
            Some(recorder) => self.enter(&|worker| recorder.part(worker, || f(worker))),
        }
    }

    fn enter(&self, f: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return f(0);
        }
        if IN_REGION.get() {
            return (0..self.threads()).for_each(f);
        }
        let _region = lock(&self.region);
        // SAFETY: only the lifetime changes. This function does not return, nor unwind, before `running` is 0 again,
        // after which no worker touches `body`.
        let body = unsafe { std::mem::transmute::<Body<'_>, Body<'static>>(f) };
        // SAFETY: see `Sync for Shared`: the region lock is held and no worker is running.
        unsafe { *self.shared.body.get() = Some(body) };
        self.shared.running.store(self.workers.len(), Ordering::Relaxed);
        // SeqCst here and in `wait`: either the worker sees the new generation or we see that it parked.
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        self.wake();

        IN_REGION.set(true);
        let own = catch_unwind(AssertUnwindSafe(|| f(0)));
        IN_REGION.set(false);

        self.shared.wait_for_workers();
        let other = lock(&self.shared.panic).take();
        if let Some(panic) = own.err().or(other) {
            resume_unwind(panic);
        }
    }

    /// Splits `0..items` into one contiguous range per worker, boundaries at multiples of `grain`, and runs
    /// `f(range)` for each non-empty range. Runs on the caller alone when there is a single range.
    pub fn split(&self, items: usize, grain: usize, f: &(dyn Fn(std::ops::Range<usize>) + Sync)) {
        let chunks = items.div_ceil(grain.max(1));
        if chunks <= 1 || self.workers.is_empty() {
            if items > 0 {
                f(0..items);
            }
            return;
        }
        self.run(&|worker| {
            let range = self.share(worker, items, grain);
            if !range.is_empty() {
                f(range);
            }
        });
    }

    /// The part of `0..items` that `split` gives to one worker.
    pub(crate) fn share(&self, worker: usize, items: usize, grain: usize) -> Range<usize> {
        let grain = grain.max(1);
        let chunks = items.div_ceil(grain);
        let bound = |worker: usize| (worker * chunks / self.threads() * grain).min(items);
        bound(worker)..bound(worker + 1)
    }

    fn wake(&self) {
        for (parked, worker) in self.shared.parked.iter().zip(&self.workers) {
            if parked.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        self.wake();
        for worker in self.workers.drain(..) {
            // Workers catch every panic of a region, so there is nothing to report here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        IN_REGION.set(true);
        let mut seen = 0;
        loop {
            let moved = || self.generation.load(Ordering::SeqCst) != seen;
            wait(moved, &self.parked[index], || ());
            seen += 1;
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: see `Sync for Shared`: the generation moved and this worker has not decremented `running`.
            let body = unsafe { *self.body.get() };
            if let Some(body) = body
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(index + 1)))
            {
                lock(&self.panic).get_or_insert(panic);
            }
            let last = self.running.fetch_sub(1, Ordering::SeqCst) == 1;
            if last
                && self.caller_parked.swap(false, Ordering::SeqCst)
                && let Some(caller) = lock(&self.caller).as_ref()
            {
                caller.unpark();
            }
        }
    }

    fn wait_for_workers(&self) {
        let done = || self.running.load(Ordering::SeqCst) == 0;
        wait(done, &self.caller_parked, || *lock(&self.caller) = Some(std::thread::current()));
    }
}

/// Returns once `ready` holds. Whoever makes it hold must afterwards unpark this thread if it takes `parked` down.
fn wait(ready: impl Fn() -> bool, parked: &AtomicBool, before_park: impl FnOnce()) {
    for _ in 0..64 {
        if ready() {
            return;
        }
        std::hint::spin_loop();
    }
    let start = Instant::now();
    while start.elapsed() < SPIN {
        for _ in 0..32 {
            if ready() {
                return;
            }
            std::hint::spin_loop();
        }
    }
    for _ in 0..YIELDS {
        if ready() {
            return;
        }
        std::thread::yield_now();
    }
    before_park();
    loop {
        parked.store(true, Ordering::SeqCst);
        if ready() {
            parked.store(false, Ordering::SeqCst);
            return;
        }
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_runs_once() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads);
            let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..200 {
                pool.run(&|worker| {
                    counts[worker].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 200), "{threads} threads");
        }
    }

    #[test]
    fn split_covers_everything_once_at_multiples_of_the_grain() {
        for threads in [1, 2, 3, 5] {
            let pool = Pool::new(threads);
            for items in [0, 1, 2, 15, 16, 17, 64, 97] {
                for grain in [1, 4, 16, 100] {
                    let hits: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                    pool.split(items, grain, &|range| {
                        assert!(range.start.is_multiple_of(grain) && !range.is_empty());
                        assert!(range.end == items || range.end.is_multiple_of(grain));
                        hits[range].iter().for_each(|hit| {
                            hit.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                    assert!(hits.iter().all(|hit| hit.load(Ordering::Relaxed) == 1), "{threads} {items} {grain}");
                }
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(3);
        for bad in 0..3 {
            let result = catch_unwind(AssertUnwindSafe(|| pool.run(&|worker| assert_ne!(worker, bad, "worker {bad}"))));
            let panic = result.expect_err("the worker panicked");
            let text = panic.downcast_ref::<String>().expect("a message");
            assert!(text.contains(&format!("worker {bad}")), "{text}");
            let runs = AtomicUsize::new(0);
            pool.run(&|_| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(runs.into_inner(), 3);
        }
    }

    #[test]
    fn a_nested_region_runs_on_its_caller() {
        let pool = Pool::new(2);
        let runs = AtomicUsize::new(0);
        pool.run(&|_| {
            pool.run(&|_| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(runs.into_inner(), 4);
    }

    #[test]
    fn concurrent_callers_take_turns() {
        let pool = Pool::new(3);
        let inside = AtomicUsize::new(0);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..300 {
                        pool.run(&|_| {
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                            total.fetch_add(1, Ordering::Relaxed);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                        if round % 100 == 0 {
                            std::thread::sleep(Duration::from_micros(300));
                        }
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 300 * 3);
    }

    #[test]
    fn workers_wake_after_they_parked() {
        let pool = Pool::new(4);
        for pause in [0, 30, 60, 200, 2000] {
            for _ in 0..10 {
                std::thread::sleep(Duration::from_micros(pause));
                let runs = AtomicUsize::new(0);
                pool.run(&|worker| {
                    // Uneven work makes the caller wait, in some rounds long enough to park.
                    if worker == 3 {
                        std::thread::sleep(Duration::from_micros(pause));
                    }
                    runs.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(runs.into_inner(), 4);
            }
        }
    }
}
