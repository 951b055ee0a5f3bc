#![allow(clippy::unwrap_used)]

use super::*;
use crate::Isa;
use edgelm_tensor::block::decode_row;

/// SplitMix64: good enough to fill buffers, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in -1 .. 1.
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.uniform()).collect()
    }
}

/// Where the f16 fields of a block stand.
fn half_fields(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => &[],
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4_NL | DType::IQ4_XS => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S | DType::IQ3_XXS | DType::IQ3_S => &[0],
        DType::NF4 | DType::FP4 | DType::Q8_24 | DType::Q4_24 => &[0],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
        DType::MXFP4 => &[],
        DType::TQ1_0 => &[52],
        DType::TQ2_0 => &[64],
    }
}

/// Where an exponent in the place of a scale stands.
fn exponent_field(dtype: DType) -> Option<usize> {
    (dtype == DType::MXFP4).then_some(0)
}

/// Every bit pattern of quants and integer scales, and f16 fields of ordinary size.
fn random_weights(dtype: DType, rows: usize, cols: usize, random: &mut Random) -> Vec<u8> {
    let count = rows * cols;
    match dtype {
        DType::F32 => random.floats(count).into_iter().flat_map(f32::to_le_bytes).collect(),
        DType::F16 => random.floats(count).into_iter().flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect(),
        DType::BF16 => random.floats(count).into_iter().flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        _ => {
            let mut bytes: Vec<u8> = (0..rows * dtype.row_bytes(cols).unwrap()).map(|_| random.next() as u8).collect();
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                for &at in half_fields(dtype) {
                    let half = half::f16::from_f32(random.uniform() * 0.1);
                    block[at..at + 2].copy_from_slice(&half.to_le_bytes());
                }
                if let Some(at) = exponent_field(dtype) {
                    block[at] = 120 + block[at] % 8;
                }
            }
            bytes
        }
    }
}

struct Case {
    dtype: DType,
    rows: usize,
    cols: usize,
    weights: Vec<u8>,
}

impl Case {
    fn new(dtype: DType, rows: usize, cols: usize, random: &mut Random) -> Self {
        Self { dtype, rows, cols, weights: random_weights(dtype, rows, cols, random) }
    }

    fn product(&self, cpu: &Cpu, x: &[f32], m: usize, bias: Option<&[f32]>) -> Vec<f32> {
        let weight = Matrix::pack(cpu, self.dtype, self.rows, self.cols, &self.weights).unwrap();
        let mut out = vec![f32::NAN; m * self.rows];
        let mut group = [Linear { weight: &weight, bias, out: &mut out }];
        cpu.matmul(x, m, &mut group, &mut Scratch::default());
        out
    }

    /// (Σ, Σ |terms|) in f64 over decoded weights, for quantized ones with scales and activations rounded as documented.
    fn reference(&self, x: &[f32], m: usize) -> Vec<(f64, f64)> {
        let row_bytes = self.dtype.row_bytes(self.cols).unwrap();
        let x: Vec<f64> = if self.dtype.is_quantized() {
            x.chunks(self.cols).flat_map(round_activations).collect()
        } else {
            x.iter().map(|&v| v.into()).collect()
        };
        let mut out = vec![(0.0, 0.0); m * self.rows];
        for row in 0..self.rows {
            let decoded = decoded(self.dtype, &self.weights[row * row_bytes..][..row_bytes], self.cols);
            for i in 0..m {
                for (w, x) in decoded.iter().zip(&x[i * self.cols..]) {
                    let term = w * x;
                    out[i * self.rows + row].0 += term;
                    out[i * self.rows + row].1 += term.abs();
                }
            }
        }
        out
    }
}

fn round_activations(row: &[f32]) -> Vec<f64> {
    let round = |group: &[f32]| {
        let max = group.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        let (scale, factor) = if max == 0.0 { (0.0, 0.0) } else { (max / 127.0, 127.0 / max) };
        group.iter().map(|v| f64::from(scale) * f64::from((v * factor).round_ties_even())).collect::<Vec<_>>()
    };
    row.chunks(128).flat_map(round).collect()
}

/// One row of weights. Scales and mins become integers of a unit that 128 values share, unless they are integers as stored.
fn decoded(dtype: DType, row: &[u8], cols: usize) -> Vec<f64> {
    let of_128 = 128 / dtype.block_len().min(128);
    let groups = row.chunks(of_128 * dtype.block_bytes());
    match dtype {
        DType::Q4_0 => groups.flat_map(|group| with_steps(dtype, group, 2048.0)).collect(),
        DType::Q5_0 => groups.flat_map(|group| with_steps(dtype, group, 1024.0)).collect(),
        DType::IQ4_NL => groups.flat_map(|group| with_steps(dtype, group, 127.75)).collect(),
        DType::Q8_0 | DType::Q8_24 => groups.flat_map(|group| with_steps(dtype, group, 127.75)).collect(),
        DType::Q4_24 => groups.flat_map(|group| with_steps(dtype, group, 2048.0)).collect(),
        DType::NF4 => groups.flat_map(|group| with_table(dtype, group, 127.75, 112.03)).collect(),
        DType::FP4 => groups.flat_map(|group| with_table(dtype, group, 127.75, 120.0)).collect(),
        DType::Q4_1 => groups.flat_map(|group| with_range(dtype, group, [15.0, 1.0], 0, 0x11)).collect(),
        DType::Q5_1 => groups.flat_map(|group| with_range(dtype, group, [31.0, 1.0], 0, 0x11)).collect(),
        DType::Q4_K => groups.flat_map(|group| with_range(dtype, group, [945.0, 63.0], 6, 0x11)).collect(),
        DType::Q5_K => groups.flat_map(|group| with_range(dtype, group, [1953.0, 63.0], 6, 0x11)).collect(),
        DType::Q2_K => groups.flat_map(|group| with_range(dtype, group, [45.0, 15.0], 4, 0x55)).collect(),
        _ => decode(dtype, row, cols),
    }
}

fn decode(dtype: DType, blocks: &[u8], values: usize) -> Vec<f64> {
    let mut decoded = vec![0.0; values];
    decode_row(dtype, blocks, &mut decoded).unwrap();
    decoded.into_iter().map(f64::from).collect()
}

/// A group with other f16 fields.
fn with_fields(dtype: DType, group: &[u8], values: &[f32]) -> Vec<f64> {
    let mut group = group.to_vec();
    for block in group.chunks_exact_mut(dtype.block_bytes()) {
        for (&at, &value) in half_fields(dtype).iter().zip(values) {
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
        }
    }
    decode(dtype, &group, group.len() / dtype.block_bytes() * dtype.block_len())
}

/// An f16 field of each block.
fn field(dtype: DType, group: &[u8], index: usize) -> Vec<f32> {
    let at = half_fields(dtype)[index];
    let half = |block: &[u8]| half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    group.chunks_exact(dtype.block_bytes()).map(half).collect()
}

fn power_below(values: impl Iterator<Item = f32>) -> f32 {
    let largest = values.fold(2.0f32.powi(-24), f32::max);
    f32::from_bits(largest.to_bits() & 0x7f80_0000)
}

/// The largest scale has `steps` units for the power of two below it; values of the table are rounded to multiples of 1 / one.
fn with_table(dtype: DType, group: &[u8], steps: f32, one: f64) -> Vec<f64> {
    let exact = with_fields(dtype, group, &[1.0]);
    let scaled = with_steps(dtype, group, steps);
    let rounded = |(exact, scaled): (&f64, &f64)| {
        if *exact == 0.0 { 0.0 } else { scaled / exact * ((exact * one).round() / one) }
    };
    exact.iter().zip(&scaled).map(rounded).collect()
}

/// The largest scale has `steps` units for the power of two below it.
fn with_steps(dtype: DType, group: &[u8], steps: f32) -> Vec<f64> {
    let scales = field(dtype, group, 0);
    let power = power_below(scales.iter().map(|scale| scale.abs()));
    let unit = f64::from(power * (1.0 / steps));
    let scale = |scale: f32| unit * f64::from((scale * (1.0 / power * steps)).round_ties_even());
    let quants = with_fields(dtype, group, &[1.0]);
    quants.iter().zip(scales.into_iter().flat_map(|s| [scale(s); 32])).map(|(quant, scale)| quant * scale).collect()
}

/// The largest values that d and dmin allow, `most` of each, have 15000 units for the power of two below them. `ones`: a byte
/// of quants that are 1. Scales of `bits` bits, if any, multiply d and dmin as fractions.
fn with_range(dtype: DType, group: &[u8], most: [f32; 2], bits: i32, ones: u8) -> Vec<f64> {
    let (d, dmin) = (field(dtype, group, 0), field(dtype, group, 1));
    let range = d.iter().map(|d| d.abs()).fold(0.0, f32::max);
    let min_range = dmin.iter().map(|dmin| dmin.abs()).fold(0.0, f32::max);
    let power = power_below([range.mul_add(most[0], min_range * most[1])].into_iter());
    let (unit, per_unit) = (f64::from(power * (1.0 / 15000.0)), 1.0 / power * 15000.0);
    // With quants of 1, values are scales; the fields of quants are all but f16, scales and fifth bits.
    let mut of_one = group.to_vec();
    for block in of_one.chunks_exact_mut(dtype.block_bytes()) {
        let (zeros, quants) = match dtype {
            DType::Q4_1 => (0..0, 4..20),
            DType::Q5_1 => (4..8, 8..24),
            DType::Q4_K => (0..0, 16..144),
            DType::Q5_K => (16..48, 48..176),
            _ => (0..0, 16..80),
        };
        block[zeros].fill(0);
        block[quants].fill(ones);
    }
    let scales = with_fields(dtype, &of_one, &[1.0, 0.0]);
    let scaled = with_fields(dtype, group, &[1.0, 0.0]);
    let mins = with_fields(dtype, group, &[0.0, 1.0]);
    let integer = |stored: f64, d: f32| {
        let per_one = f64::from((d * per_unit * 2.0f32.powi(bits)).round_ties_even());
        match bits {
            0 => f64::from((stored as f32 * (d * per_unit)).round_ties_even()),
            _ => (stored * 2.0f64.powi(15 - bits) * per_one / 2.0f64.powi(15) + 0.5).floor(),
        }
    };
    let mut out = Vec::new();
    for index in 0..scales.len() {
        let block = index / dtype.block_len();
        let quant = if scales[index] == 0.0 { 0.0 } else { scaled[index] / scales[index] };
        let scale = integer(scales[index], d[block]);
        out.push(unit * (scale * quant + integer(mins[index], dmin[block])));
    }
    out
}

fn cpus() -> Vec<Cpu> {
    Isa::available().into_iter().map(|isa| Cpu::new(Some(1), Some(isa)).unwrap()).collect()
}

fn lengths(dtype: DType) -> Vec<usize> {
    match dtype.block_len() {
        1 => vec![1, 7, 31, 33, 257, 600],
        32 => vec![32, 64, 128, 544],
        block => vec![block, 2 * block, 5 * block],
    }
}

const ROW_COUNTS: [usize; 5] = [1, 15, 16, 17, 33];
const BATCHES: [usize; 10] = [1, 2, 3, 5, 8, 9, 12, 17, 33, 70];

fn assert_close(got: &[f32], want: &[(f64, f64)], cols: usize, what: &dyn std::fmt::Display) {
    assert_eq!(got.len(), want.len());
    for (index, (got, (want, size))) in got.iter().zip(want).enumerate() {
        // Every term, every partial sum and every scale product rounds at most a few times.
        let tolerance = size * f64::from(f32::EPSILON) * (4.0 + (cols as f64).sqrt()) + 1e-30;
        let error = (f64::from(*got) - want).abs();
        assert!(error <= tolerance, "{what}: value {index} is {got}, expected {want} ± {tolerance:e}");
    }
}

#[test]
fn every_kernel_agrees_with_decoded_weights() {
    let cpus = cpus();
    for (seed, dtype) in DType::all().enumerate() {
        let mut random = Random(seed as u64);
        for rows in ROW_COUNTS {
            for cols in lengths(dtype) {
                let case = Case::new(dtype, rows, cols, &mut random);
                for m in BATCHES {
                    let x = random.floats(m * cols);
                    let want = case.reference(&x, m);
                    for cpu in &cpus {
                        let what = format!("{dtype} {} seed {seed} N={rows} K={cols} M={m}", cpu.isa());
                        assert_close(&case.product(cpu, &x, m, None), &want, cols, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn quantized_results_are_the_same_bits_in_every_family() {
    let cpus = cpus();
    for (seed, dtype) in DType::all().filter(|dtype| dtype.is_quantized()).enumerate() {
        let mut random = Random(100 + seed as u64);
        let cols = 3 * dtype.block_len();
        let case = Case::new(dtype, 35, cols, &mut random);
        for m in [1, 3, 19] {
            let x = random.floats(m * cols);
            let want = case.product(cpus.last().unwrap(), &x, m, None);
            for cpu in &cpus {
                assert_eq!(case.product(cpu, &x, m, None), want, "{dtype} {} M={m}", cpu.isa());
            }
        }
    }
}

/// Rows out of a buffer.
struct Rows {
    cols: usize,
    values: Vec<f32>,
}

impl RowSource for Rows {
    fn write(&self, rows: std::ops::Range<usize>, out: &mut [f32]) {
        out.copy_from_slice(&self.values[rows.start * self.cols..rows.end * self.cols]);
    }
}

#[test]
fn streamed_weights_give_the_bits_of_f32_ones() {
    let mut random = Random(31);
    for threads in [1, 2] {
        for isa in Isa::available() {
            let cpu = Cpu::new(Some(threads), Some(isa)).unwrap();
            for (rows, cols) in [(1, 1), (15, 7), (33, 64), (200, 300), (17, 0)] {
                let case = Case::new(DType::F32, rows, cols, &mut random);
                let values =
                    decode(DType::F32, &case.weights, rows * cols).into_iter().map(|value| value as f32).collect();
                let weight = Matrix::streamed(&cpu, rows, cols, Arc::new(Rows { cols, values }));
                assert_eq!(weight.bytes(), 0);
                let bias = random.floats(rows);
                for m in [1, 3, 11, 12, 40] {
                    let x = random.floats(m * cols);
                    let mut out = vec![f32::NAN; m * rows];
                    let mut group = [Linear { weight: &weight, bias: Some(&bias), out: &mut out }];
                    cpu.matmul(&x, m, &mut group, &mut Scratch::default());
                    assert_eq!(out, case.product(&cpu, &x, m, Some(&bias)), "{isa} N={rows} K={cols} M={m}");
                }
            }
        }
    }
}

#[test]
fn columns_meet_their_own_values_of_the_input() {
    let mut random = Random(32);
    let cpu = Cpu::new(Some(2), None).unwrap();
    let cols = 256;
    for dtype in [DType::F32, DType::Q4_0, DType::Q8_0] {
        let cases = [(); 3].map(|()| Case::new(dtype, 35, cols, &mut random));
        let reversed: Vec<u32> = (0..cols as u32).rev().collect();
        let turned: Vec<u32> = (0..cols as u32).map(|k| (k + 77) % cols as u32).collect();
        let orders = [Some(reversed), None, Some(turned)];
        for m in [1, 5, 20] {
            let x = rows_with_outliers(m, cols, &mut random);
            let weights: Vec<Matrix> = cases
                .iter()
                .zip(&orders)
                .map(|(case, order)| {
                    let weight = Matrix::pack(&cpu, dtype, 35, cols, &case.weights).unwrap();
                    match order {
                        Some(order) => weight.with_order(order.clone()),
                        None => weight,
                    }
                })
                .collect();
            let mut outs = [(); 3].map(|()| vec![0.0; m * 35]);
            let mut outs_of = outs.iter_mut();
            let mut group: Vec<_> =
                weights.iter().map(|weight| Linear { weight, bias: None, out: outs_of.next().unwrap() }).collect();
            cpu.matmul_two_terms(&x, m, &mut group, &mut Scratch::default());
            for ((case, order), out) in cases.iter().zip(&orders).zip(&outs) {
                let ordered: Vec<f32> = match order {
                    Some(order) => {
                        x.chunks(cols).flat_map(|x| order.iter().map(|k| x[*k as usize]).collect::<Vec<_>>()).collect()
                    }
                    None => x.clone(),
                };
                assert_eq!(out, &case.product_in_two_terms(&cpu, &ordered, m, None), "{dtype} M={m}");
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_on_threads() {
    for isa in Isa::available() {
        let cpus: Vec<Cpu> = [1, 2, 3].map(|threads| Cpu::new(Some(threads), Some(isa)).unwrap()).into();
        for (seed, dtype) in DType::all().enumerate() {
            let mut random = Random(200 + seed as u64);
            let cols = if dtype.is_quantized() { 768 } else { 777 };
            let case = Case::new(dtype, 83, cols, &mut random);
            let most = 150;
            let x = random.floats(most * cols);
            let one_by_one: Vec<f32> =
                x.chunks_exact(cols).flat_map(|row| case.product(&cpus[0], row, 1, None)).collect();
            for m in [2, 3, 4, 7, 11, 12, 13, 31, most] {
                for cpu in &cpus {
                    let got = case.product(cpu, &x[..m * cols], m, None);
                    assert_eq!(got, one_by_one[..m * 83], "{dtype} {isa} M={m} {} threads", cpu.threads());
                }
            }
        }
    }
}

#[test]
fn a_group_mixes_formats_sizes_and_biases() {
    for isa in Isa::available() {
        let cpu = Cpu::new(Some(3), Some(isa)).unwrap();
        let mut random = Random(7);
        let cols = 512;
        let dtypes = [DType::Q4_K, DType::F16, DType::Q6_K, DType::Q8_0, DType::BF16];
        let cases: Vec<Case> =
            dtypes.into_iter().zip([1, 300, 17, 64, 5]).map(|(d, n)| Case::new(d, n, cols, &mut random)).collect();
        let weights: Vec<Matrix> =
            cases.iter().map(|c| Matrix::pack(&cpu, c.dtype, c.rows, cols, &c.weights).unwrap()).collect();
        let mut scratch = Scratch::default();
        for m in [40, 1, 6] {
            let x = random.floats(m * cols);
            let biases: Vec<Vec<f32>> = cases.iter().map(|c| random.floats(c.rows)).collect();
            let mut outs: Vec<Vec<f32>> = cases.iter().map(|c| vec![0.0; m * c.rows]).collect();
            let mut group: Vec<Linear<'_>> = weights
                .iter()
                .zip(&mut outs)
                .zip(&biases)
                .map(|((weight, out), bias)| Linear { weight, bias: Some(bias), out })
                .collect();
            cpu.matmul(&x, m, &mut group, &mut scratch);
            for ((case, out), bias) in cases.iter().zip(&outs).zip(&biases) {
                assert_eq!(*out, case.product(&cpu, &x, m, Some(bias)), "{} {isa} M={m}", case.dtype);
                let mut plain = case.product(&cpu, &x, m, None);
                plain.iter_mut().zip(bias.iter().cycle()).for_each(|(value, bias)| *value += bias);
                assert_eq!(*out, plain);
            }
        }
    }
}

/// Rows that one term suits, and rows with an outlier in each group.
fn rows_with_outliers(m: usize, cols: usize, random: &mut Random) -> Vec<f32> {
    let mut x = random.floats(m * cols);
    for row in x.chunks_mut(cols).skip(1).step_by(3) {
        row.iter_mut().step_by(100).for_each(|value| *value *= 3000.0);
    }
    x
}

impl Case {
    fn product_in_two_terms(&self, cpu: &Cpu, x: &[f32], m: usize, bias: Option<&[f32]>) -> Vec<f32> {
        let weight = Matrix::pack(cpu, self.dtype, self.rows, self.cols, &self.weights).unwrap();
        let mut out = vec![f32::NAN; m * self.rows];
        cpu.matmul_two_terms(x, m, &mut [Linear { weight: &weight, bias, out: &mut out }], &mut Scratch::default());
        out
    }
}

#[test]
fn a_second_term_makes_up_for_rounding() {
    let cols = 512;
    let mut random = Random(31);
    for dtype in [DType::Q8_0, DType::Q6_K, DType::Q4_0, DType::F16] {
        let case = Case::new(dtype, 37, cols, &mut random);
        let row_bytes = dtype.row_bytes(cols).unwrap();
        for m in [1, 2, 5, 40, 300] {
            let x = rows_with_outliers(m, cols, &mut random);
            let bias = random.floats(case.rows);
            let results = cpus().into_iter().map(|cpu| {
                let (one, two) =
                    (case.product(&cpu, &x, m, Some(&bias)), case.product_in_two_terms(&cpu, &x, m, Some(&bias)));
                for row in 0..m {
                    let part = row * case.rows..(row + 1) * case.rows;
                    // Four bits are coarser than any row can be.
                    let has_two = matches!(dtype, DType::Q8_0 | DType::Q6_K) && row % 3 == 1;
                    assert_eq!(one[part.clone()] != two[part.clone()], has_two, "{dtype} row {row} of {m}");
                    let x = &x[row * cols..][..cols];
                    let (mut off, mut size) = (0.0, 0.0);
                    for n in 0..case.rows {
                        let weights = decoded(dtype, &case.weights[n * row_bytes..][..row_bytes], cols);
                        let exact = x.iter().zip(&weights).map(|(x, w)| f64::from(*x) * w).sum::<f64>();
                        off += (f64::from(two[part.start + n]) - exact - f64::from(bias[n])).powi(2);
                        size += exact.powi(2);
                    }
                    if has_two {
                        assert!(off.sqrt() < 3e-4 * size.sqrt(), "{dtype} row {row} of {m}: {off} {size}");
                    }
                }
                two
            });
            let results: Vec<Vec<f32>> = results.collect();
            if dtype.is_quantized() {
                assert!(results.iter().all(|result| *result == results[0]), "{dtype} M={m}: families differ");
            }
        }
    }
}

#[test]
fn second_terms_do_not_depend_on_the_batch_or_on_threads() {
    let (cols, most) = (384, 290);
    for isa in Isa::available() {
        let cpus: Vec<Cpu> = [1, 2, 3].map(|threads| Cpu::new(Some(threads), Some(isa)).unwrap()).into();
        let mut random = Random(57);
        for dtype in [DType::Q8_0, DType::Q6_K] {
            let cols = cols.max(2 * dtype.block_len());
            let case = Case::new(dtype, 21, cols, &mut random);
            let x = rows_with_outliers(most, cols, &mut random);
            let alone = |row: &[f32]| case.product_in_two_terms(&cpus[0], row, 1, None);
            let one_by_one: Vec<f32> = x.chunks_exact(cols).flat_map(alone).collect();
            for m in [2, 3, 11, 12, 31, most] {
                for cpu in &cpus {
                    let got = case.product_in_two_terms(cpu, &x[..m * cols], m, None);
                    assert_eq!(got, one_by_one[..m * case.rows], "{dtype} {isa} M={m} {} threads", cpu.threads());
                }
            }
        }
    }
}

#[test]
fn float_weights_meet_whole_inputs_beside_second_terms() {
    let cpu = Cpu::new(Some(1), None).unwrap();
    let mut random = Random(9);
    let cases = [DType::F16, DType::Q8_0].map(|dtype| Case::new(dtype, 20, 256, &mut random));
    let weights = cases.each_ref().map(|c| Matrix::pack(&cpu, c.dtype, c.rows, c.cols, &c.weights).unwrap());
    for m in [1, 30] {
        let x = rows_with_outliers(m, 256, &mut random);
        let mut outs = [(); 2].map(|()| vec![0.0; m * 20]);
        let mut outs_of = outs.iter_mut();
        let mut group = weights.each_ref().map(|weight| Linear { weight, bias: None, out: outs_of.next().unwrap() });
        cpu.matmul_two_terms(&x, m, &mut group, &mut Scratch::default());
        assert_eq!(outs[0], cases[0].product(&cpu, &x, m, None));
        assert_eq!(outs[1], cases[1].product_in_two_terms(&cpu, &x, m, None));
    }
}

#[test]
fn extreme_quants_do_not_saturate() {
    for dtype in DType::all().filter(|dtype| dtype.is_quantized()) {
        let cols = 2 * dtype.block_len();
        for byte in [0x00, 0x7f, 0x80, 0xff] {
            let mut weights = vec![byte; 16 * dtype.row_bytes(cols).unwrap()];
            for block in weights.chunks_exact_mut(dtype.block_bytes()) {
                for &at in half_fields(dtype) {
                    block[at..at + 2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
                }
                if let Some(at) = exponent_field(dtype) {
                    block[at] = 127;
                }
            }
            let case = Case { dtype, rows: 16, cols, weights };
            for sign in [1.0, -1.0] {
                let x = vec![sign * 3.0; 13 * cols];
                let want = case.reference(&x, 13);
                for cpu in cpus() {
                    assert_close(&case.product(&cpu, &x, 13, None), &want, cols, &format!("{dtype} {}", cpu.isa()));
                }
            }
        }
    }
}

#[test]
fn unusual_activations() {
    let mut random = Random(9);
    let case = Case::new(DType::Q4_0, 20, 64, &mut random);
    for cpu in cpus() {
        assert!(case.product(&cpu, &[0.0; 64], 1, None).iter().all(|&v| v == 0.0));
        // Too small for a scale whose reciprocal is finite: zero, not infinity.
        assert!(case.product(&cpu, &[1e-45; 64], 1, None).iter().all(|&v| v == 0.0));
        assert!(case.product(&cpu, &[f32::MAX; 64], 1, None).iter().all(|v| !v.is_nan()));
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = random.floats(2 * 64);
            x[64 + 40] = bad;
            let out = case.product(&cpu, &x, 2, None);
            assert!(out[..20].iter().all(|v| v.is_finite()), "the other row is untouched");
            assert!(out[20..].iter().all(|v| v.is_nan()), "{bad} must show in its row");
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_errors() {
    let cpu = Cpu::new(Some(1), None).unwrap();
    let pack = |dtype, rows, cols, bytes: usize| Matrix::pack(&cpu, dtype, rows, cols, &vec![0; bytes]);
    assert!(pack(DType::Q4_0, 2, 32, 36).is_ok());
    for bytes in [0, 35, 37] {
        let error = pack(DType::Q4_0, 2, 32, bytes).err().unwrap();
        assert!(matches!(error, KernelError::Weights(TensorError::ByteLength { want: 36, .. })), "{error}");
    }
    let error = pack(DType::Q4_K, 1, 32, 18).err().unwrap();
    assert!(matches!(error, KernelError::Weights(TensorError::RowLength { block_len: 256, .. })), "{error}");
    assert!(pack(DType::F32, usize::MAX, usize::MAX / 64, 4).is_err());
}

#[test]
fn empty_shapes() {
    for cpu in cpus() {
        for dtype in [DType::F32, DType::Q4_0] {
            let no_rows = Matrix::pack(&cpu, dtype, 0, 64, &[]).unwrap();
            cpu.matmul(
                &[0.0; 64],
                1,
                &mut [Linear { weight: &no_rows, bias: None, out: &mut [] }],
                &mut Scratch::default(),
            );
            let no_cols = Matrix::pack(&cpu, dtype, 3, 0, &[]).unwrap();
            let mut out = [7.0; 6];
            let bias = [1.0, 2.0, 3.0];
            let mut group = [Linear { weight: &no_cols, bias: Some(&bias), out: &mut out }];
            cpu.matmul(&[], 2, &mut group, &mut Scratch::default());
            assert_eq!(out, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
            let some = Matrix::pack(&cpu, dtype, 3, 32, &vec![0; 3 * dtype.row_bytes(32).unwrap()]).unwrap();
            cpu.matmul(&[], 0, &mut [Linear { weight: &some, bias: None, out: &mut [] }], &mut Scratch::default());
        }
    }
    Cpu::new(Some(1), None).unwrap().matmul(&[], 0, &mut [], &mut Scratch::default());
}

#[test]
fn every_f16_scale_is_read_as_it_is() {
    for isa in Isa::available() {
        let cpu = Cpu::new(Some(1), Some(isa)).unwrap();
        for dtype in [DType::F16, DType::Q8_0] {
            let weights: Vec<u8> = (0..=u16::MAX)
                .flat_map(|bits| {
                    let mut block = vec![0; dtype.row_bytes(32).unwrap()];
                    let at = if dtype == DType::F16 {
                        0
                    } else {
                        block[2] = 1;
                        0
                    };
                    block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
                    block
                })
                .collect();
            let case = Case { dtype, rows: 1 << 16, cols: 32, weights };
            let mut x = [0.0; 32];
            x[0] = 127.0;
            for (bits, got) in case.product(&cpu, &x, 1, None).into_iter().enumerate() {
                let scale = half::f16::from_bits(bits as u16).to_f32();
                // Q8_0 keeps 8 bits of it.
                let error = if dtype == DType::F16 { 0.0 } else { 1.0 / 256.0 };
                let want = scale * 127.0;
                let same = got == want || (got - want).abs() <= error * want.abs();
                assert!(
                    same || got.is_nan() && !scale.is_finite(),
                    "{dtype} {isa} {bits:#06x}: {got}, expected {want}"
                );
            }
        }
    }
}

#[test]
fn names_tell_format_and_family() {
    let cpu = Cpu::new(Some(1), Some(Isa::Scalar)).unwrap();
    let matrix = Matrix::pack(&cpu, DType::Q4_K, 1, 256, &[0; 144]).unwrap();
    assert!(matrix.kernel().ends_with("-q4_kq8-scalar"), "{}", matrix.kernel());
    assert_eq!((matrix.rows(), matrix.cols(), matrix.dtype(), matrix.bytes()), (1, 256, DType::Q4_K, 16 * 144));
}
