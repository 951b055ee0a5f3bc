//! What ran when: a recorder of operators and of each worker's part in them, for `run --trace`.
//!
//! It hangs on the pool of a `Cpu`. While none is attached an operator costs one atomic load. Workers write only to a
//! slot of their own, without locks; the caller gathers the slots when the operator ends. One thread of control at a
//! time: operators that two threads run on one `Cpu` at once would mix their parts.

use crate::{Cpu, f32_peak, int8_peak, read_bandwidth};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Operators kept. A 22-layer model has some 250 per token, so this is a run of 800 tokens; with two workers it makes
/// a file of about 150 MB, beyond which the viewers give up.
const MAX_OPERATORS: usize = 200_000;

/// What the machine can do at most, all threads together.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes per second.
    pub bandwidth: f64,
    /// Int8 operations per second.
    pub int8: f64,
    /// f32 operations per second.
    pub f32: f64,
}

impl Limits {
    /// Measures for about a second.
    pub fn measure(cpu: &Cpu) -> Self {
        Self { bandwidth: read_bandwidth(cpu.pool()), int8: int8_peak(cpu), f32: f32_peak(cpu) }
    }
}

/// What an operator has to do at least.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work {
    /// Weights, keys and values read; for elementwise operators everything read and written.
    pub bytes: u64,
    /// A multiply-add is two.
    pub operations: u64,
    /// Arithmetic in int8, not f32.
    pub is_int8: bool,
}

impl Work {
    /// Elementwise f32 work over `values` that are read or written.
    pub(crate) fn elementwise(values: usize, operations: usize) -> Self {
        Self { bytes: 4 * values as u64, operations: operations as u64, is_int8: false }
    }
}

/// A time between two instants, in nanoseconds from the recorder's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Interval {
    pub start: u64,
    pub end: u64,
}

/// One call of an operator.
#[derive(Debug, Clone)]
pub struct OperatorRecord {
    /// What ran.
    pub name: &'static str,
    /// Of the decoder; `None` outside it.
    pub layer: Option<u32>,
    /// What it had to do.
    pub work: Work,
    /// From the call to the return.
    pub time: Interval,
    /// Worker and time from the beginning of its first to the end of its last region, for those that took part.
    pub parts: Vec<(usize, Interval)>,
}

/// One pass of tokens through the model.
#[derive(Debug, Clone)]
pub struct StepRecord {
    /// Sequences in the batch.
    pub sequences: usize,
    /// Rows of the batch.
    pub tokens: usize,
    /// From the call to the return.
    pub time: Interval,
}

/// Everything recorded so far.
#[derive(Debug, Clone, Default)]
pub struct Records {
    /// In order of their ends.
    pub steps: Vec<StepRecord>,
    /// In order of their ends.
    pub operators: Vec<OperatorRecord>,
    /// Operators that came after the buffer was full.
    pub dropped: u64,
}

/// Attached to a `Cpu` by [`Cpu::record`].
pub struct Recorder {
    start: Instant,
    slots: Vec<Slot>,
    is_open: AtomicBool,
    /// One more than the layer; 0 = outside.
    layer: AtomicU64,
    records: Mutex<Records>,
}

/// A worker's part of the open operator. A cache line each, so that workers do not slow one another down.
#[derive(Default)]
#[repr(align(64))]
struct Slot {
    /// One more than the nanoseconds; 0 = has not taken part.
    start: AtomicU64,
    end: AtomicU64,
}

impl Recorder {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            start: Instant::now(),
            slots: (0..threads).map(|_| Slot::default()).collect(),
            is_open: AtomicBool::new(false),
            layer: AtomicU64::new(0),
            records: Mutex::default(),
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a worker's part of a region and notes its time. Relaxed everywhere: the pool orders a region's end before
    /// what the caller does next.
    pub(crate) fn part(&self, worker: usize, work: impl FnOnce()) {
        let start = self.now();
        work();
        if let Some(slot) = self.slots.get(worker).filter(|_| self.is_open.load(Ordering::Relaxed)) {
            let _ = slot.start.compare_exchange(0, start + 1, Ordering::Relaxed, Ordering::Relaxed);
            slot.end.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Takes what was recorded and goes on with empty buffers.
    pub fn take(&self) -> Records {
        std::mem::take(&mut *self.records())
    }
}

/// Ends the operator when dropped.
#[must_use]
pub struct Operator<'a> {
    recorder: &'a Recorder,
    name: &'static str,
    work: Work,
    start: u64,
}

impl Drop for Operator<'_> {
    fn drop(&mut self) {
        let recorder = self.recorder;
        let end = recorder.now();
        recorder.is_open.store(false, Ordering::Relaxed);
        let mut parts = Vec::new();
        for (worker, slot) in recorder.slots.iter().enumerate() {
            if let Some(start) = slot.start.swap(0, Ordering::Relaxed).checked_sub(1) {
                parts.push((worker, Interval { start, end: slot.end.load(Ordering::Relaxed) }));
            }
        }
        let time = Interval { start: self.start, end };
        if parts.is_empty() {
            // Too little work for a region: the caller did it alone.
            parts.push((0, time));
        }
        let layer = recorder.layer.load(Ordering::Relaxed).checked_sub(1).map(|layer| layer as u32);
        let mut records = recorder.records();
        if records.operators.len() < MAX_OPERATORS {
            records.operators.push(OperatorRecord { name: self.name, layer, work: self.work, time, parts });
        } else {
            records.dropped += 1;
        }
    }
}

/// Ends the step when dropped.
#[must_use]
pub struct StepSpan<'a> {
    recorder: &'a Recorder,
    sequences: usize,
    tokens: usize,
    start: u64,
}

impl Drop for StepSpan<'_> {
    fn drop(&mut self) {
        let time = Interval { start: self.start, end: self.recorder.now() };
        let mut records = self.recorder.records();
        if records.steps.len() < MAX_OPERATORS {
            records.steps.push(StepRecord { sequences: self.sequences, tokens: self.tokens, time });
        }
    }
}

impl Cpu {
    /// Attaches a recorder, for good; what it holds is had from [`Recorder::take`].
    pub fn record(&self) -> &Recorder {
        self.pool().recorder.get_or_init(|| Recorder::new(self.threads()))
    }

    /// Opens an operator where a recorder is attached; inside an open one, nothing: it counts as a part of that.
    pub(crate) fn operator(&self, name: &'static str, work: impl FnOnce() -> Work) -> Option<Operator<'_>> {
        let recorder = self.pool().recorder.get()?;
        if recorder.is_open.swap(true, Ordering::Relaxed) {
            return None;
        }
        Some(Operator { recorder, name, work: work(), start: recorder.now() })
    }

    /// Opens a pass of `tokens` rows of `sequences` through the model, where a recorder is attached.
    pub fn trace_step(&self, sequences: usize, tokens: usize) -> Option<StepSpan<'_>> {
        let recorder = self.pool().recorder.get()?;
        Some(StepSpan { recorder, sequences, tokens, start: recorder.now() })
    }

    /// The decoder layer that operators belong to from here on.
    pub fn trace_layer(&self, layer: Option<usize>) {
        if let Some(recorder) = self.pool().recorder.get() {
            recorder.layer.store(layer.map_or(0, |layer| layer as u64 + 1), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_hold_the_parts_of_their_workers() {
        for threads in [1, 3] {
            let cpu = Cpu::new(Some(threads), None).expect("defaults");
            assert!(cpu.operator("unseen", Work::default).is_none());
            let recorder = cpu.record();
            {
                let _step = cpu.trace_step(1, 5);
                cpu.trace_layer(Some(7));
                let _operator = cpu.operator("outer", || Work { bytes: 10, operations: 20, is_int8: true });
                assert!(cpu.operator("inner", Work::default).is_none());
                // Parts that wait for each other run on different workers.
                let all = std::sync::Barrier::new(threads);
                cpu.pool().run(&|_| {
                    all.wait();
                    std::thread::sleep(std::time::Duration::from_micros(50));
                });
                cpu.pool().run(&|_| ());
            }
            cpu.trace_layer(None);
            drop(cpu.operator("alone", Work::default));
            cpu.pool().run(&|_| ());
            let records = recorder.take();
            assert!(recorder.take().operators.is_empty());
            let [outer, alone] = &records.operators[..] else { panic!("{records:?}") };
            assert_eq!((outer.name, outer.layer, outer.work.bytes), ("outer", Some(7), 10));
            assert_eq!(outer.parts.iter().map(|part| part.0).collect::<Vec<_>>(), (0..threads).collect::<Vec<_>>());
            for (_, part) in &outer.parts {
                assert!(outer.time.start <= part.start && part.end <= outer.time.end);
                assert!(part.end - part.start >= 50_000, "both regions: {part:?}");
            }
            assert_eq!((alone.name, alone.layer, &alone.parts[..]), ("alone", None, &[(0, alone.time)][..]));
            let [step] = &records.steps[..] else { panic!("{records:?}") };
            assert!(step.tokens == 5 && step.time.start <= outer.time.start && outer.time.end <= step.time.end);
        }
    }

    #[test]
    fn a_full_buffer_counts_what_it_drops() {
        let cpu = Cpu::new(Some(1), None).expect("defaults");
        let recorder = cpu.record();
        (0..MAX_OPERATORS + 3).for_each(|_| drop(cpu.operator("one", Work::default)));
        let records = recorder.take();
        assert_eq!((records.operators.len(), records.dropped), (MAX_OPERATORS, 3));
    }
}
