//! Speed of every matrix kernel of one family, beside the limits of the machine.

use crate::limits::stream_bytes;
use crate::{Cpu, KernelError, Linear, Matrix, Scratch, f32_peak, int8_peak, read_bandwidth};
use edgelm_tensor::DType;
use std::time::{Duration, Instant};

/// One kernel at one batch size.
#[derive(Debug, Clone)]
pub struct KernelBench {
    /// `{arch}-{types}-{feature}`.
    pub name: &'static str,
    /// Format of the weights.
    pub dtype: DType,
    /// Rows of x.
    pub m: usize,
    /// Weight bytes read per second, in 10⁹.
    pub gb_per_second: f64,
    /// Operations per second (a multiply-add is two), in 10⁹.
    pub gops: f64,
    /// Of the measured read bandwidth or the arithmetic peak, whichever is nearer.
    pub fraction_of_limit: f64,
}

/// K of all shapes: the width of a model of some 7 billion weights.
const COLS: usize = 4096;
/// (M, N): decode over a stack of matrices that no cache holds, prefill over one that stays in the last level.
const DECODE: (usize, usize) = (1, 4096);
const PREFILL: (usize, usize) = (512, 1024);

/// Decode (one row) and prefill (512 rows) of every format on `cpu`'s family and threads. Takes under a minute on a
/// fast family, some minutes on `scalar`.
pub fn bench_kernels(cpu: &Cpu) -> Result<Vec<KernelBench>, KernelError> {
    let limits = Limits { bandwidth: read_bandwidth(cpu.pool()), int8: int8_peak(cpu), f32: f32_peak(cpu) };
    let mut results = Vec::new();
    for dtype in DType::all() {
        results.push(bench_decode(cpu, dtype, &limits)?);
        results.push(bench_prefill(cpu, dtype, &limits)?);
    }
    Ok(results)
}

struct Limits {
    bandwidth: f64,
    int8: f64,
    f32: f64,
}

fn bench_decode(cpu: &Cpu, dtype: DType, limits: &Limits) -> Result<KernelBench, KernelError> {
    let (m, rows) = DECODE;
    let bytes = weight_bytes(dtype, rows)?;
    let stack = (0..stream_bytes().div_ceil(bytes.len()))
        .map(|_| Matrix::pack(cpu, dtype, rows, COLS, &bytes))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(measure(cpu, &stack, m, limits))
}

fn bench_prefill(cpu: &Cpu, dtype: DType, limits: &Limits) -> Result<KernelBench, KernelError> {
    let (m, rows) = PREFILL;
    let weight = Matrix::pack(cpu, dtype, rows, COLS, &weight_bytes(dtype, rows)?)?;
    Ok(measure(cpu, &[weight], m, limits))
}

/// Times whole passes over the stack for at least a quarter of a second and reports the fastest.
fn measure(cpu: &Cpu, stack: &[Matrix], m: usize, limits: &Limits) -> KernelBench {
    let x: Vec<f32> = (0..m * COLS).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect();
    let mut out = vec![0.0; m * stack[0].rows()];
    let mut scratch = Scratch::default();
    let mut pass = || {
        let start = Instant::now();
        for weight in stack {
            cpu.matmul(&x, m, &mut [Linear { weight, bias: None, out: &mut out }], &mut scratch);
        }
        start.elapsed()
    };
    let (mut best, mut spent) = (pass(), Duration::ZERO);
    while spent < Duration::from_millis(250) {
        let elapsed = pass();
        best = best.min(elapsed);
        spent += elapsed;
    }
    let seconds = best.as_secs_f64();
    let bytes: usize = stack.iter().map(Matrix::bytes).sum();
    let operations: f64 = stack.iter().map(|weight| 2.0 * (m * weight.rows() * weight.cols()) as f64).sum();
    let dtype = stack[0].dtype();
    let peak = if dtype.is_quantized() { limits.int8 } else { limits.f32 };
    let (read, done) = (bytes as f64 / seconds, operations / seconds);
    KernelBench {
        name: stack[0].kernel(),
        dtype,
        m,
        gb_per_second: read / 1e9,
        gops: done / 1e9,
        fraction_of_limit: (read / limits.bandwidth).max(done / peak),
    }
}

/// Weights of small, ordinary values: speed does not depend on them as long as no subnormals arise.
fn weight_bytes(dtype: DType, rows: usize) -> Result<Vec<u8>, KernelError> {
    let row: Vec<f32> = (0..COLS).map(|i| ((i * 37 + 11) % 101) as f32 / 500.0 - 0.1).collect();
    let mut encoded = vec![0; dtype.row_bytes(COLS)?];
    edgelm_tensor::block::encode_row(dtype, &row, None, &mut encoded)?;
    Ok(encoded.repeat(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_fit_together() {
        let cpu = Cpu::new(Some(1), None).expect("defaults");
        let limits = Limits { bandwidth: 1e10, int8: 1e12, f32: 1e11 };
        let bench = bench_prefill(&cpu, DType::Q4_0, &limits).expect("a legal shape");
        assert_eq!((bench.dtype, bench.m), (DType::Q4_0, 512));
        // 512 rows, two operations each, per weight of 4.5 bits.
        let per_byte = bench.gops / bench.gb_per_second;
        assert!((per_byte - 1024.0 * 8.0 / 4.5).abs() < 1.0, "{per_byte}");
        assert!(bench.fraction_of_limit > 0.0);
    }
}
