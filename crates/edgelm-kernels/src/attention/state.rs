//! What a run of keys adds up to, for the rows of a block: the state of the online softmax, and how two are joined.

use crate::disjoint::Disjoint;
use crate::simd::{LANES, Lanes, exp, exp2_negative};

/// What the scores are logarithms to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    E,
    Two,
}

impl Base {
    /// What a natural logarithm is multiplied by.
    #[inline(always)]
    pub(super) fn unit(self) -> f32 {
        match self {
            Self::E => 1.0,
            Self::Two => std::f32::consts::LOG2_E,
        }
    }

    /// base^x for x ≤ 0.
    #[inline(always)]
    fn power<L: Lanes>(self, x: L) -> L {
        match self {
            Self::E => exp(x),
            Self::Two => exp2_negative(x),
        }
    }
}

/// Of some rows; the state of no keys at all is a largest score of -∞ and zeros.
pub(super) struct State<'a> {
    /// Σ_s base^(score_s - max) v_s, `[row][chunk]`.
    pub(super) out: &'a mut [[f32; LANES]],
    /// Σ_s base^(score_s - max) by lane (token mod 16), per row.
    pub(super) sum: &'a mut [[f32; LANES]],
    /// Largest score, per row, padded to whole vectors.
    pub(super) max: &'a mut [f32],
}

impl<'a> State<'a> {
    /// Vectors that the state of some rows takes.
    pub(super) fn len(rows: usize, chunks: usize) -> usize {
        rows * (chunks + 1) + rows.div_ceil(LANES)
    }

    /// The state kept in these vectors.
    #[inline(always)]
    pub(super) fn new(vectors: &'a mut [[f32; LANES]], rows: usize, chunks: usize) -> Self {
        let (out, rest) = vectors.split_at_mut(rows * chunks);
        let (sum, max) = rest.split_at_mut(rows);
        Self { out, sum, max: max.as_flattened_mut() }
    }

    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.out.fill([0.0; LANES]);
        self.sum.fill([0.0; LANES]);
        self.max.fill(f32::NEG_INFINITY);
    }

    /// Gives a row that has seen nothing a key with this score and a value of zeros.
    #[inline(always)]
    pub(super) fn sink(&mut self, row: usize, score: f32) {
        self.max[row] = score;
        self.sum[row][0] = 1.0;
    }

    /// Adds the keys of `other`, which come after these.
    #[inline(always)]
    pub(super) fn join<L: Lanes>(&mut self, other: &State<'_>, base: Base) {
        let chunks = self.out.len() / self.sum.len();
        let maxima = self.max.as_chunks_mut::<LANES>().0.iter_mut().zip(other.max.as_chunks::<LANES>().0);
        for (sixteen, (max, late)) in maxima.enumerate() {
            let largest = L::load(max).max(L::load(late));
            let mut shift = [0.0; LANES];
            largest.store(&mut shift);
            // A row that has seen nothing yet subtracts 0: -∞ - (-∞) would be NaN.
            shift.iter_mut().filter(|shift| **shift == f32::NEG_INFINITY).for_each(|shift| *shift = 0.0);
            let (mut early_factor, mut late_factor) = ([0.0; LANES], [0.0; LANES]);
            base.power(L::load(max).sub(L::load(&shift))).store(&mut early_factor);
            base.power(L::load(late).sub(L::load(&shift))).store(&mut late_factor);
            largest.store(max);
            let rows = sixteen * LANES..self.sum.len().min((sixteen + 1) * LANES);
            for row in rows {
                let (early, late) = (L::splat(early_factor[row % LANES]), L::splat(late_factor[row % LANES]));
                add_scaled(&mut self.sum[row], early, &other.sum[row], late);
                let out = row * chunks..(row + 1) * chunks;
                for (to, from) in self.out[out.clone()].iter_mut().zip(&other.out[out]) {
                    add_scaled(to, early, from, late);
                }
            }
        }
    }

    /// Writes out / Σ sum of one row to `part` of the result.
    ///
    /// # Safety
    /// As for [`Disjoint::part`].
    #[inline(always)]
    #[allow(unsafe_code)]
    pub(super) unsafe fn finish<L: Lanes>(&self, row: usize, to: &Disjoint<'_, f32>, part: std::ops::Range<usize>) {
        let chunks = self.out.len() / self.sum.len();
        let inverse = 1.0 / L::load(&self.sum[row]).sum();
        // SAFETY: the caller's promise.
        let to = unsafe { to.part(part) };
        for (to, x) in to.iter_mut().zip(self.out[row * chunks..][..chunks].as_flattened()) {
            // Whether a run without keys for this row was joined shows only in the sign of zeros: 0 takes it away.
            *to = x * inverse + 0.0;
        }
    }
}

/// to ← factor · to + from_factor · from.
#[inline(always)]
fn add_scaled<L: Lanes>(to: &mut [f32; LANES], factor: L, from: &[f32; LANES], from_factor: L) {
    L::load(to).mul(factor).add(L::load(from).mul(from_factor)).store(to);
}
