//! What this machine can do at most: read bandwidth and arithmetic peaks, measured. Benchmarks report their results as
//! fractions of these.

use crate::matmul::arena::Arena;
use crate::matmul::lanes::{Family, Job, Kind, Lanes, LanesVisitor, Line, ROWS};
use crate::matmul::quantized::PREFETCH_BYTES;
use crate::{Cpu, Pool};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes per second that all threads together read from memory beyond the caches. Takes about half a second.
pub fn read_bandwidth(pool: &Pool) -> f64 {
    ReadProbe::new().bytes_per_second(pool)
}

/// Memory to measure [`read_bandwidth`] with, for who does so again and again: a virtual machine may give a gigabyte that was
/// freed back to its host, which then disturbs what runs next.
pub struct ReadProbe(Arena);

impl ReadProbe {
    /// Takes memory well beyond the last-level cache, in huge pages, as weights are.
    pub fn new() -> Self {
        let mut arena = Arena::zeroed(stream_bytes() / size_of::<Line>());
        arena.lines_mut().fill(Line([1; ROWS]));
        Self(arena)
    }

    /// Streams over the memory, each thread its own part; the best of several passes.
    pub fn bytes_per_second(&self, pool: &Pool) -> f64 {
        let (isa, lines) = (crate::Isa::available()[0], self.0.lines());
        let pass = || {
            pool.split(lines.len(), 1, &|range| Family::of(isa).visit(ReadAll(&lines[range])));
        };
        pass();
        let best = (0..4).map(|_| time(&pass)).min().unwrap_or_default();
        size_of_val(lines) as f64 / best.as_secs_f64()
    }
}

impl Default for ReadProbe {
    fn default() -> Self {
        Self::new()
    }
}

/// A size well beyond the last-level cache, where memory allows: a quarter of the available memory at most.
pub(crate) fn stream_bytes() -> usize {
    const MIB: usize = 1 << 20;
    let beyond_cache = (2 * last_level_cache().unwrap_or(0)).clamp(256 * MIB, 1024 * MIB);
    available_memory().map_or(256 * MIB, |available| beyond_cache.min(available / 4)).max(MIB)
}

/// Size of the third-level cache of CPU 0, where the system tells.
fn last_level_cache() -> Option<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").ok()?;
    Some(text.trim().strip_suffix('K')?.parse::<usize>().ok()? << 10)
}

/// Bytes of memory that this process may still take: `MemAvailable` of Linux, or what is left below the limit of its
/// control group (version 2) where that is less. `None` where the system does not tell.
pub fn available_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.saturating_mul(1 << 10);
    Some(group_memory().map_or(machine, |group| group.min(machine)))
}

/// What the tightest limit on the way up from this process's control group leaves. Containers usually see their own group
/// as the root of the tree.
fn group_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let number = |path: PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
    let left = |group: &Path| {
        // `max` is no number: no limit here.
        let limit = number(root.join(group).join("memory.max"))?;
        Some(limit.saturating_sub(number(root.join(group).join("memory.current")).unwrap_or(0)))
    };
    Path::new(own).ancestors().filter_map(left).min()
}

/// Operations per second (a multiply-add is two) of int8 products of 4-bit weights, all threads together: of the
/// matrix registers where the family has them, else of the vector registers, with weights there or in the first-level cache.
pub fn int8_peak(cpu: &Cpu) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if cpu.isa() == crate::Isa::Amx {
        return peak(cpu, &amx_rounds);
    }
    let peak = |stored: bool| peak(cpu, &|rounds| Family::of(cpu.isa()).visit(Int8 { rounds, stored }));
    peak(false).max(peak(true))
}

/// Operations per second (a multiply-add is two) of f32 multiply-adds in registers, all threads together.
pub fn f32_peak(cpu: &Cpu) -> f64 {
    peak(cpu, &|rounds| Family::of(cpu.isa()).visit(Float { rounds }))
}

/// Runs `work(rounds)`, which returns operations done, on all threads for about a tenth of a second.
fn peak(cpu: &Cpu, work: &(dyn Fn(usize) -> usize + Sync)) -> f64 {
    let mut rounds = 100;
    while time(&|| _ = work(rounds)) < Duration::from_millis(5) {
        rounds *= 2;
    }
    let operations = work(rounds) * cpu.threads();
    let best = (0..10).map(|_| time(&|| cpu.pool().run(&|_| _ = work(rounds)))).min().unwrap_or_default();
    operations as f64 / best.as_secs_f64()
}

fn time(work: &dyn Fn()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Hands a job to the lanes it is visited with.
macro_rules! visit_by_entering {
    ($($job:ty => $output:ty),*) => {
        $(impl LanesVisitor for $job {
            type Output = $output;
            fn visit<L: Lanes>(self, l: L) -> $output {
                l.vector().enter(self)
            }
        })*
    };
}

visit_by_entering!(ReadAll<'_> => (), Int8 => usize, Float => usize);

struct ReadAll<'a>(&'a [Line]);

impl<L: Lanes> Job<L> for ReadAll<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, l: L) {
        let mut sums = [l.splat(0); 4];
        for lines in self.0.as_chunks::<4>().0 {
            for (sum, line) in sums.iter_mut().zip(lines) {
                l.prefetch(std::ptr::from_ref(line).wrapping_byte_add(PREFETCH_BYTES));
                *sum = l.xor(*sum, l.load(line));
            }
        }
        let mut sink = Line::ZERO;
        for sum in sums {
            l.store(sum, &mut sink);
            black_box(&sink);
        }
    }
}

/// Products of weights in registers, or of such that are stored in the first-level cache.
struct Int8 {
    rounds: usize,
    stored: bool,
}

impl<L: Lanes> Job<L> for Int8 {
    type Output = usize;

    #[inline(always)]
    fn run(self, l: L) -> usize {
        let Self { rounds, stored } = self;
        if L::TWO_TILES { int8_rounds::<L, 6, 2>(l, rounds, stored) } else { int8_rounds::<L, 4, 1>(l, rounds, stored) }
    }
}

/// Products of whole tiles, four sums in turn.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn amx_rounds(rounds: usize) -> usize {
    const K: usize = 64;
    const TILE: usize = 16;
    assert!(crate::amx::permitted());
    // SAFETY: permission was just checked; after `configure`, tile registers are zero and products touch nothing else.
    unsafe {
        crate::amx::configure();
        for _ in 0..rounds {
            crate::amx::dot_signed::<0, 4, 6>();
            crate::amx::dot_signed::<1, 5, 6>();
            crate::amx::dot_signed::<2, 4, 7>();
            crate::amx::dot_signed::<3, 5, 7>();
        }
        crate::amx::release();
    }
    rounds * 4 * TILE * TILE * K * 2
}

/// Words per sum: many, so that starting and ending a sum costs little beside it.
const WORDS: usize = 32;

#[inline(always)]
fn int8_rounds<L: Lanes, const R: usize, const T: usize>(l: L, rounds: usize, stored: bool) -> usize {
    let x = black_box([[0x0102_0304; R]; WORDS]);
    let lines = black_box([[Line([0x0f07_0301; ROWS]); WORDS]; T]);
    let q = [[l.load(black_box(&lines[0][0])); WORDS]; T];
    let mut sums = [[l.splat(0); T]; R];
    for _ in 0..rounds {
        if stored {
            let scale = [l.ready_scale(l.splat(1)); T];
            l.add_stored(Kind::Unsigned(15), black_box(&lines).each_ref(), scale, black_box(&x), &mut sums);
            continue;
        }
        let dots = l.dot_paired(Kind::Unsigned(15), &q, black_box(&x));
        for r in 0..R {
            for t in 0..T {
                sums[r][t] = l.xor(sums[r][t], dots[r][t]);
            }
        }
    }
    let mut sink = Line::ZERO;
    for sum in sums.as_flattened() {
        l.store(*sum, &mut sink);
        black_box(&sink);
    }
    rounds * R * T * ROWS * WORDS * 4 * 2
}

struct Float {
    rounds: usize,
}

impl<L: Lanes> Job<L> for Float {
    type Output = usize;

    #[inline(always)]
    fn run(self, l: L) -> usize {
        if L::TWO_TILES { float_rounds::<L, 16>(l, self.rounds) } else { float_rounds::<L, 6>(l, self.rounds) }
    }
}

#[inline(always)]
fn float_rounds<L: Lanes, const R: usize>(l: L, rounds: usize) -> usize {
    let (factor, term) = (l.splat_f32(black_box(0.5)), l.splat_f32(black_box(1.0)));
    let mut sums = [l.splat_f32(0.0); R];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = l.fma_wide(*sum, factor, term);
        }
    }
    let mut sink = [0.0; ROWS];
    for sum in sums {
        l.store_f32(sum, &mut sink);
        black_box(&sink);
    }
    rounds * R * ROWS * 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn limits_are_plausible() {
        for isa in Isa::available() {
            let cpu = Cpu::new(Some(1), Some(isa)).expect("available");
            // A CPU of any kind manages more than 10 million and less than 100 trillion.
            for peak in [int8_peak(&cpu), f32_peak(&cpu)] {
                assert!((1e7..1e14).contains(&peak), "{isa}: {peak:e}");
            }
        }
    }
}
