//! What the process knows of itself and its machine.

use crate::options::Global;
use edgelm_kernels::Cpu;
use std::sync::Arc;

/// The CPU with the threads and kernel family that were asked for.
pub fn cpu(global: &Global) -> anyhow::Result<Arc<Cpu>> {
    Ok(Arc::new(Cpu::new(global.threads, global.isa)?))
}

/// Peak resident memory of this process (`VmHWM`); `None` where the system does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
