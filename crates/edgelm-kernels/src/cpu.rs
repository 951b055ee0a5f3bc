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
        let threads = threads.unwrap_or_else(default_threads);
        if !(1..=1024).contains(&threads) {
            return Err(KernelError::Threads(threads));
        }
        let available = Isa::available();
        let isa = match isa {
            None => available[0],
            Some(isa) if available.contains(&isa) => isa,
            Some(isa) => {
                let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
                return Err(KernelError::IsaAbsent { isa, available: names.join(", ") });
            }
        };
        Ok(Self { pool: Pool::new(threads), isa })
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

/// Two hardware threads of one core share its vector units and caches, so a second one per core only adds waiting.
/// The standard library's count already honours the affinity mask and cgroup v1 and v2 quotas.
fn default_threads() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    physical_cores().map_or(logical, |physical| logical.min(physical)).clamp(1, 1024)
}

/// Distinct cores among the CPUs of the affinity mask; `None` where the system does not tell.
#[cfg(target_os = "linux")]
fn physical_cores() -> Option<usize> {
    let mut cores = std::collections::BTreeSet::new();
    for cpu in affinity()? {
        let siblings = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        cores.insert(std::fs::read_to_string(siblings).ok()?);
    }
    Some(cores.len()).filter(|&count| count > 0)
}

#[cfg(not(target_os = "linux"))]
fn physical_cores() -> Option<usize> {
    None
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn affinity() -> Option<Vec<usize>> {
    // SAFETY: all zeroes is an empty `cpu_set_t`, a plain bit array.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer and size describe `set`; pid 0 is the calling thread.
    let status = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    if status != 0 {
        return None;
    }
    // SAFETY: the index stays below the number of bits of the set.
    Some((0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_possible_choices() {
        let cpu = Cpu::new(None, None).expect("defaults");
        assert!((1..=1024).contains(&cpu.threads()));
        assert_eq!(cpu.isa(), Isa::available()[0]);
    }

    #[test]
    fn impossible_choices_are_errors() {
        assert!(matches!(Cpu::new(Some(0), None), Err(KernelError::Threads(0))));
        assert!(matches!(Cpu::new(Some(1025), None), Err(KernelError::Threads(1025))));
        let absent = if cfg!(target_arch = "x86_64") { Isa::Neon } else { Isa::Avx2 };
        let error = Cpu::new(Some(1), Some(absent)).err().expect("absent").to_string();
        assert!(error.contains(absent.name()) && error.contains("scalar"), "{error}");
    }

    #[test]
    fn every_available_family_can_be_forced() {
        for isa in Isa::available() {
            assert_eq!(Cpu::new(Some(1), Some(isa)).expect("available").isa(), isa);
        }
    }
}
