//! `run --trace F`: what was recorded, as Chrome trace JSON (chrome://tracing, Perfetto).
//!
//! One row of the viewer for the model's steps with the operators inside them, one row per worker for its part of
//! each operator.

use crate::options::Global;
use anyhow::Context;
use edgelm_kernels::{Cpu, Interval, Limits, Records, Work};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The row of steps and operators; worker w has row w + 1.
const STEPS_ROW: usize = 0;

/// A trace under way.
pub(super) struct Trace {
    path: PathBuf,
    file: File,
    cpu: Arc<Cpu>,
    limits: Limits,
}

impl Trace {
    /// Creates the file, so that a wrong name fails before the work, measures the machine and starts to record.
    pub(super) fn begin(path: &Path, cpu: &Arc<Cpu>) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write `{}`", path.display()))?;
        let limits = Limits::measure(cpu);
        cpu.record();
        Ok(Self { path: path.into(), file, cpu: Arc::clone(cpu), limits })
    }

    /// Writes the file.
    pub(super) fn finish(self, global: &Global) -> anyhow::Result<()> {
        let records = self.cpu.record().take();
        if records.dropped > 0 {
            global.note(format!("the trace was full: it lacks the last {} operators", records.dropped));
        }
        let mut out = BufWriter::new(self.file);
        write(&mut out, &records, &self.limits, &self.cpu)
            .and_then(|()| Ok(out.flush()?))
            .with_context(|| format!("cannot write `{}`", self.path.display()))
    }
}

fn write(out: &mut impl Write, records: &Records, limits: &Limits, cpu: &Cpu) -> anyhow::Result<()> {
    let machine = json!({
        "kernels": cpu.isa().name(),
        "threads": cpu.threads(),
        "read_bandwidth_gb_per_second": limits.bandwidth / 1e9,
        "int8_peak_gops": limits.int8 / 1e9,
        "f32_peak_gops": limits.f32 / 1e9,
        "operators_dropped": records.dropped,
    });
    write!(out, "{{\"displayTimeUnit\":\"ns\",\"otherData\":{machine},\"traceEvents\":[")?;
    write!(out, "\n{}", name("process_name", STEPS_ROW, "edgelm"))?;
    write!(out, ",\n{}", name("thread_name", STEPS_ROW, "steps and operators"))?;
    for worker in 0..cpu.threads() {
        write!(out, ",\n{}", name("thread_name", worker + 1, &format!("worker {worker}")))?;
    }
    for step in &records.steps {
        let label = if step.tokens == step.sequences { "decode" } else { "prefill" };
        write!(out, ",\n{}", event(label, "step", STEPS_ROW, step.time, json!({ "tokens": step.tokens })))?;
    }
    for operator in &records.operators {
        let rate = |work: Work, time, threads| {
            let mut args = achieved(work, time, limits, threads as f64 / cpu.threads() as f64);
            args["layer"] = json!(operator.layer);
            args
        };
        let (work, workers) = (operator.work, operator.parts.len());
        let args = rate(work, operator.time, cpu.threads());
        write!(out, ",\n{}", event(operator.name, "operator", STEPS_ROW, operator.time, args))?;
        for &(worker, time) in &operator.parts {
            // Workers get equal shares; which rows they were, only the kernel knows.
            let n = workers as u64;
            let share = Work { bytes: work.bytes / n, operations: work.operations / n, ..work };
            write!(out, ",\n{}", event(operator.name, "part", worker + 1, time, rate(share, time, 1)))?;
        }
    }
    writeln!(out, "\n]}}")?;
    Ok(())
}

fn name(kind: &str, row: usize, name: &str) -> Value {
    json!({ "name": kind, "ph": "M", "pid": 1, "tid": row, "args": { "name": name } })
}

/// A complete event; the format counts in microseconds.
fn event(name: &str, category: &str, row: usize, time: Interval, args: Value) -> Value {
    json!({
        "name": name,
        "cat": category,
        "ph": "X",
        "pid": 1,
        "tid": row,
        "ts": time.start as f64 / 1e3,
        "dur": (time.end - time.start) as f64 / 1e3,
        "args": args,
    })
}

/// Rates, and the share of the nearer limit; `part` is the part of the machine that worked. A share above 1 means that
/// the bytes came from a cache.
fn achieved(work: Work, time: Interval, limits: &Limits, part: f64) -> Value {
    let seconds = (time.end - time.start).max(1) as f64 / 1e9;
    let (read, done) = (work.bytes as f64 / seconds, work.operations as f64 / seconds);
    let peak = if work.is_int8 { limits.int8 } else { limits.f32 };
    json!({
        "bytes": work.bytes,
        "operations": work.operations,
        "gb_per_second": read / 1e9,
        "gops": done / 1e9,
        "share_of_limit": (read / limits.bandwidth).max(done / peak) / part,
    })
}
