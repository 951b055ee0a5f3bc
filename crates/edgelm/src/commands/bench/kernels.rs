//! `bench kernels`: every kernel this CPU can run with the chosen family, against the machine's measured limits.

use crate::{machine, options::Global, output};
use edgelm_kernels::{KernelBench, bench_kernels};
use serde_json::json;

pub(super) fn run(global: &Global) -> anyhow::Result<()> {
    let cpu = machine::cpu(global)?;
    let results = bench_kernels(&cpu)?;
    if global.json {
        let row = |kernel: &KernelBench| {
            json!({
                "kernel": kernel.name,
                "format": kernel.dtype.name(),
                "rows": kernel.m,
                "gb_per_second": kernel.gb_per_second,
                "gops": kernel.gops,
                "fraction_of_limit": kernel.fraction_of_limit,
                "threads": cpu.threads(),
            })
        };
        return output::json(&results.iter().map(row).collect::<Vec<_>>());
    }
    let mut table = output::table(&["kernel", "rows of x", "GB/s", "GOP/s", "of limit"]);
    for kernel in &results {
        table.add_row([
            kernel.name.to_owned(),
            kernel.m.to_string(),
            format!("{:.1}", kernel.gb_per_second),
            format!("{:.1}", kernel.gops),
            format!("{:.0} %", kernel.fraction_of_limit * 100.0),
        ]);
    }
    output::line(table)
}
