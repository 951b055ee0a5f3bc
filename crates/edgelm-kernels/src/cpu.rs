//! The machine as kernels see it: a thread pool and a chosen kernel family.

use crate::{Isa, KernelError, Pool};

/// Chosen once per process or model, then passed to every kernel.
pub struct Cpu {
    pool: Pool,
    isa: Isa,
}

impl Cpu {
    /// `threads`: `None` = physical cores allowed by affinity and cgroup quota. `isa`: `None` = best available.
    pub fn new(threads: Option<usize>, isa: Option<Isa>) -> Result<Self, KernelError> {
        let _ = (threads, isa);
        todo!()
    }
    /// Threads that take part in a region, the caller included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
    /// The kernel family in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
    /// The pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}
