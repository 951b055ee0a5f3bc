//! Persistent workers: spin, then yield, then park; static partition.

/// Thread pool; the calling thread is worker 0.
pub struct Pool {
    _private: (),
}

impl Pool {
    /// Starts `threads - 1` workers.
    pub fn new(threads: usize) -> Self {
        let _ = threads;
        todo!()
    }
    /// Workers, the caller included.
    pub fn threads(&self) -> usize {
        todo!()
    }
    /// Runs `f(worker)` once on every worker and waits for all. Concurrent callers are serialized.
    /// A panic in a worker is re-raised in the caller.
    pub fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        let _ = f;
        todo!()
    }
    /// Splits `0..items` into one contiguous range per worker, boundaries at multiples of `grain`, and runs
    /// `f(range)` for each non-empty range. Runs on the caller alone when there is a single range.
    pub fn split(&self, items: usize, grain: usize, f: &(dyn Fn(std::ops::Range<usize>) + Sync)) {
        let _ = (items, grain, f);
        todo!()
    }
}
