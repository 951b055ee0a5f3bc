//! Persistent workers: spin, then yield, then park.
//!
//! Decode enters hundreds of regions per token, so starting one must cost about a microsecond: idle workers spin for a
//! short while before they give their core back. A region is cut into parts that whoever is free takes, first come
//! first served; its caller takes parts too and waits only for parts that another thread has begun. So a worker whose
//! core another program has taken delays nobody, as long as it holds no part. A region that is entered from inside a
//! region runs on its caller alone, since the workers are busy.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
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

/// Called with a worker and a part.
type Body<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// What one thread writes often has a cache line (two, as they are fetched in pairs) of its own.
#[repr(align(128))]
struct Padded<T>(T);

struct Shared {
    /// Which region this is, and below it, in [`LEFT_BITS`] bits, how many of its parts nobody has taken. To lower the
    /// number is to take a part; that fails once the region is over, as the upper bits have moved on.
    ticket: Padded<AtomicU64>,
    /// Parts that are not finished.
    running: Padded<AtomicUsize>,
    /// The region's function and number of parts. Written by the caller before `ticket`, read by who has taken a part.
    body: UnsafeCell<Option<(Body<'static>, usize)>>,
    stop: AtomicBool,
    /// One per worker: it is parked, or about to be.
    parked: Vec<AtomicBool>,
    caller_parked: AtomicBool,
    caller: Mutex<Option<Thread>>,
    /// The first panic of the region.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Idle threads spin before they park: there is a core for each of them.
    spin: bool,
}

/// So that regions are told apart for as long as a thread may be held up between two instructions: 2⁴⁸ regions of a
/// microsecond are nine years.
const LEFT_BITS: u32 = 16;
const LEFT: u64 = (1 << LEFT_BITS) - 1;

// SAFETY: `body` is the only field that is not `Sync` by itself. It is written only by the holder of `Pool::region`
// while no part is left or running, and read only between taking a part (which acquires what the caller released with
// `ticket`) and that part's decrement of `running` (which the caller acquires before it leaves the region).
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
            ticket: Padded(AtomicU64::new(0)),
            running: Padded(AtomicUsize::new(0)),
            body: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            parked: (0..others).map(|_| AtomicBool::new(false)).collect(),
            caller_parked: AtomicBool::new(false),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
            // The affinity mask and cgroup quotas count.
            spin: std::thread::available_parallelism().is_ok_and(|cores| threads <= cores.get()),
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

    /// Runs `f(part)` once for as many parts as there are workers and waits for all. As a rule each worker runs one,
    /// but one that is held up leaves its part to another. Concurrent callers are serialized.
    /// A panic in a part is re-raised in the caller.
    pub fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        self.run_parts(self.threads(), &|_, part| f(part));
    }

    /// Runs `f(worker, part)` once for every part below `parts`, on whichever worker is free, in ascending order of
    /// where they begin; waits for all. No two parts run on the same worker at the same time.
    pub(crate) fn run_parts(&self, parts: usize, f: Body<'_>) {
        match self.recorder.get() {
            None => self.run_region(parts, f),
            Some(recorder) => self.run_region(parts, &|worker, part| recorder.part(worker, || f(worker, part))),
        }
    }

    fn run_region(&self, parts: usize, f: Body<'_>) {
        if parts <= 1 || self.workers.is_empty() || IN_REGION.get() {
            return (0..parts).for_each(|part| f(0, part));
        }
        assert!(parts as u64 <= LEFT, "{parts} parts");
        let _region = lock(&self.region);
        // SAFETY: only the lifetime changes. This function does not return, nor unwind, before `running` is 0 again,
        // after which no thread touches `body`.
        let body = unsafe { std::mem::transmute::<Body<'_>, Body<'static>>(f) };
        // SAFETY: see `Sync for Shared`: the region lock is held and all parts of the last region are finished.
        unsafe { *self.shared.body.get() = Some((body, parts)) };
        self.shared.running.0.store(parts, Ordering::Relaxed);
        let region = (self.shared.ticket.0.load(Ordering::Relaxed) >> LEFT_BITS).wrapping_add(1);
        // SeqCst here and in `wait`: either the worker sees the new ticket or we see that it parked.
        self.shared.ticket.0.store(region << LEFT_BITS | parts as u64, Ordering::SeqCst);
        self.wake(parts - 1);

        IN_REGION.set(true);
        self.shared.take_parts(0);
        IN_REGION.set(false);

        let done = || self.shared.running.0.load(Ordering::SeqCst) == 0;
        let register = || *lock(&self.shared.caller) = Some(std::thread::current());
        wait(done, self.shared.spin, &self.shared.caller_parked, register);
        if let Some(panic) = lock(&self.shared.panic).take() {
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

    /// Wakes up to `count` workers that have parked.
    fn wake(&self, count: usize) {
        for (parked, worker) in self.shared.parked.iter().zip(&self.workers).take(count) {
            // A plain load first: a swap would take the line from the worker in every region.
            if parked.load(Ordering::SeqCst) && parked.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wake(self.workers.len());
        for worker in self.workers.drain(..) {
            // Workers catch every panic of a region, so there is nothing to report here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        IN_REGION.set(true);
        loop {
            let stopped = || self.stop.load(Ordering::SeqCst);
            let called = || self.ticket.0.load(Ordering::SeqCst) & LEFT != 0 || stopped();
            wait(called, self.spin, &self.parked[index], || ());
            if stopped() {
                return;
            }
            self.take_parts(index + 1);
        }
    }

    /// Runs parts of the current region until none is left.
    fn take_parts(&self, worker: usize) {
        loop {
            let ticket = self.ticket.0.load(Ordering::Relaxed);
            let left = (ticket & LEFT) as usize;
            if left == 0 {
                return;
            }
            let taken = self.ticket.0.compare_exchange_weak(ticket, ticket - 1, Ordering::Acquire, Ordering::Relaxed);
            if taken.is_err() {
                continue;
            }
            // SAFETY: see `Sync for Shared`: this thread has taken a part and not yet finished it.
            let body = unsafe { *self.body.get() };
            if let Some((body, parts)) = body
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(worker, parts - left)))
            {
                lock(&self.panic).get_or_insert(panic);
            }
            let last = self.running.0.fetch_sub(1, Ordering::SeqCst) == 1;
            if last
                && worker != 0
                && self.caller_parked.swap(false, Ordering::SeqCst)
                && let Some(caller) = lock(&self.caller).as_ref()
            {
                caller.unpark();
            }
        }
    }
}

/// Returns once `ready` holds. Whoever makes it hold must afterwards unpark this thread if it takes `parked` down.
fn wait(ready: impl Fn() -> bool, spin: bool, parked: &AtomicBool, before_park: impl FnOnce()) {
    if spin {
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

    #[test]
    fn parts_run_once_each_and_never_two_on_one_worker() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads);
            for parts in [0, 1, 2, 5, 64] {
                for _ in 0..50 {
                    let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                    let busy: Vec<AtomicBool> = (0..threads).map(|_| AtomicBool::new(false)).collect();
                    pool.run_parts(parts, &|worker, part| {
                        assert!(!busy[worker].swap(true, Ordering::SeqCst), "worker {worker} has two parts");
                        counts[part].fetch_add(1, Ordering::Relaxed);
                        busy[worker].store(false, Ordering::SeqCst);
                    });
                    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{threads} {parts}");
                }
            }
        }
    }

    #[test]
    fn a_worker_that_is_held_up_leaves_its_part_to_another() {
        let pool = Pool::new(2);
        // The worker is asleep in the first region's second part; the caller does everything else in the meantime.
        let released = AtomicBool::new(false);
        let others = AtomicUsize::new(0);
        pool.run_parts(20, &|worker, _| {
            if worker == 1 {
                while !released.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            } else if others.fetch_add(1, Ordering::Relaxed) == 17 {
                released.store(true, Ordering::Relaxed);
            }
        });
        assert!(others.into_inner() >= 18);
    }

    /// `cargo test -p edgelm-kernels region_cost -- --ignored --nocapture` on a quiet machine.
    #[test]
    #[ignore = "a measurement"]
    fn region_cost() {
        for threads in [1, 2] {
            let pool = Pool::new(threads);
            for pause_us in [0, 5, 200] {
                let mut nanos: Vec<u128> = (0..20_000 / (1 + pause_us))
                    .map(|_| {
                        let begin = Instant::now();
                        while begin.elapsed() < Duration::from_micros(pause_us) {}
                        let begin = Instant::now();
                        pool.run(&|_| ());
                        begin.elapsed().as_nanos()
                    })
                    .collect();
                nanos.sort_unstable();
                let (median, p99) = (nanos[nanos.len() / 2], nanos[nanos.len() * 99 / 100]);
                println!("{threads} threads, {pause_us} us between regions: median {median} ns, p99 {p99} ns");
            }
        }
    }
}
