//! Orthogonal matrices that spread every coordinate over all others, applied in n·log n steps.

use rayon::prelude::*;

/// Q = S·(H ⊗ T), n × n: S random signs, H the Hadamard matrix of the largest power of two in n, T the Hartley matrix of the
/// odd rest m, T[i, j] = (cos 2πij/m + sin 2πij/m) / √m. Orthogonal; no entry is larger than √(2/n), √(1/n) for powers of two.
///
/// Numerics: f32, relative error below 1e-6. Cost per row: n·(log₂(n/m) + m).
/// Source: randomized Hadamard transforms as in QuIP# (Tseng et al. 2024, arXiv:2402.04396) and QuaRot (Ashkboos et al. 2024,
/// arXiv:2404.00456).
#[derive(Debug, Clone)]
pub struct Rotation {
    signs: Vec<f32>,
    /// First row of T, divided by the root of H's size.
    hartley: Vec<f32>,
}

impl Rotation {
    /// Of size `size`; the same for the same seed.
    pub fn new(size: usize, seed: u64) -> Self {
        let mut random = SplitMix(seed);
        let signs = (0..size).map(|_| if random.next() >> 63 == 0 { 1.0 } else { -1.0 }).collect();
        let odd = if size == 0 { 0 } else { size >> size.trailing_zeros() };
        let entry = |j: usize| {
            let angle = std::f64::consts::TAU * j as f64 / odd as f64;
            ((angle.cos() + angle.sin()) / (size as f64).sqrt()) as f32
        };
        Self { signs, hartley: (0..odd).map(entry).collect() }
    }

    /// n.
    pub fn size(&self) -> usize {
        self.signs.len()
    }

    /// x·Q for every row x of `values` `[N, n]`.
    pub fn turn_rows(&self, values: &mut [f32]) {
        let odd = self.hartley.len();
        values.par_chunks_exact_mut(self.size().max(1)).for_each_init(
            || vec![0.0; odd],
            |block, row| {
                row.iter_mut().zip(&self.signs).for_each(|(value, sign)| *value *= sign);
                row.chunks_exact_mut(odd).for_each(|part| {
                    for (i, out) in block.iter_mut().enumerate() {
                        *out = part.iter().enumerate().map(|(j, value)| value * self.hartley[i * j % odd]).sum();
                    }
                    part.copy_from_slice(block);
                });
                let mut stride = odd;
                while stride < row.len() {
                    for pair in row.chunks_exact_mut(2 * stride) {
                        let (low, high) = pair.split_at_mut(stride);
                        for (a, b) in low.iter_mut().zip(high) {
                            (*a, *b) = (*a + *b, *a - *b);
                        }
                    }
                    stride *= 2;
                }
            },
        );
    }

    /// Qᵀ·W for `values` W `[n, K]`. Memory: W once more.
    pub fn turn_columns(&self, values: &mut [f32]) {
        let columns = values.len() / self.size().max(1);
        let mut turned = transposed(values, columns);
        self.turn_rows(&mut turned);
        values.copy_from_slice(&transposed(&turned, self.size()));
    }
}

/// `[N, K]` → `[K, N]`.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns.max(1);
    let mut out = vec![0.0; values.len()];
    out.par_chunks_exact_mut(rows.max(1)).enumerate().for_each(|(column, out)| {
        out.iter_mut().enumerate().for_each(|(row, out)| *out = values[row * columns + column]);
    });
    out
}

/// SplitMix64 (Steele, Lea and Flood 2014): one step of 64 random bits.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(size: usize, seed: u64) -> Vec<f32> {
        let mut unit: Vec<f32> = (0..size * size).map(|i| f32::from(u8::from(i / size == i % size))).collect();
        Rotation::new(size, seed).turn_rows(&mut unit);
        unit
    }

    #[test]
    fn every_size_is_orthogonal_and_spreads() {
        for size in [1, 2, 3, 4, 6, 7, 24, 64, 80, 96, 101] {
            let q = matrix(size, 5);
            for i in 0..size {
                for j in 0..size {
                    let dot: f32 = (0..size).map(|k| q[i * size + k] * q[j * size + k]).sum();
                    let wanted = f32::from(u8::from(i == j));
                    assert!((dot - wanted).abs() < 1e-5, "{size}: ({i}, {j}) {dot}");
                }
            }
            let bound = if size.is_power_of_two() { 1.0 } else { 2.0 } / size as f32;
            assert!(q.iter().all(|value| value * value <= bound * 1.0001), "{size}");
        }
    }

    #[test]
    fn columns_turn_as_rows_of_the_transpose_do() {
        let (size, columns) = (24, 5);
        let rotation = Rotation::new(size, 9);
        let values: Vec<f32> = (0..size * columns).map(|i| ((i * 37) % 19) as f32 - 9.0).collect();
        let mut by_columns = values.clone();
        rotation.turn_columns(&mut by_columns);
        let q = matrix(size, 9);
        for i in 0..size {
            for k in 0..columns {
                let wanted: f32 = (0..size).map(|j| q[j * size + i] * values[j * columns + k]).sum();
                assert!((by_columns[i * columns + k] - wanted).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn seeds_differ() {
        assert_eq!(matrix(64, 1), matrix(64, 1));
        assert_ne!(matrix(64, 1), matrix(64, 2));
    }
}
