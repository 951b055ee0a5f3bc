//! Vector quantization: neighbouring values share one index into a codebook of magnitudes, and have signs of their own.
//!
//! value[i] = scale · sign[i] · level[grid[index][i]]
//!
//! The nearest vector is found exactly. A vector is two halves, and there are few different halves; so the errors of all of
//! them are tabulated, which leaves one addition per vector, and a first half that alone is worse than the best vector so far
//! rules all its vectors out.
//!
//! The one thing a reader would get wrong: some formats store seven signs of eight, the last one making the number of
//! negative values even. Where the values want an odd number, the index is chosen together with the value that gets the
//! wrong sign: with x and the level q ≥ 0 that costs w · (x + scale·q)² − w · (x − scale·q)² = 4 · w · x · scale · q more.

use super::grid::Grid;

/// Different halves: V values of L levels are at most so many.
const HALVES: usize = 81;

/// Vectors of 2·V values with L levels each.
pub struct Codebook<const V: usize, const L: usize> {
    levels: [f32; L],
    /// Numbers of levels, a vector after the other.
    grid: &'static [u8],
    /// The vectors whose first half is h are `vectors[starts[h]..starts[h + 1]]`.
    starts: [u16; HALVES + 1],
    /// Second half and index.
    vectors: Vec<(u8, u16)>,
}

/// Errors of every half: with the signs that the values want and, if they are wanted, with one sign that is wrong.
struct Halves {
    right: [f32; HALVES],
    wrong: [f32; HALVES],
}

#[derive(Clone, Copy)]
struct Found {
    error: f32,
    index: u16,
}

impl<const V: usize, const L: usize> Codebook<V, L> {
    const DIM: usize = 2 * V;

    pub(super) fn new<const D: usize>(levels: [u8; L], grid: &'static [[u8; D]]) -> Self {
        assert_eq!(D, Self::DIM);
        let half = |digits: &[u8]| digits.iter().fold(0, |code, digit| code * L + usize::from(*digit));
        let mut starts = [0; HALVES + 1];
        let mut vectors = Vec::with_capacity(grid.len());
        for h in 0..HALVES {
            let of_half = grid.iter().enumerate().filter(|(_, vector)| half(&vector[..V]) == h);
            vectors.extend(of_half.map(|(index, vector)| (half(&vector[V..]) as u8, index as u16)));
            starts[h + 1] = vectors.len() as u16;
        }
        Self { levels: levels.map(f32::from), grid: grid.as_flattened(), starts, vectors }
    }

    /// The magnitudes of a vector.
    pub(super) fn magnitudes(&self, index: u16) -> impl Iterator<Item = f32> {
        let digits = &self.grid[usize::from(index) * Self::DIM..][..Self::DIM];
        digits.iter().map(|digit| self.levels[usize::from(*digit)])
    }

    fn halves(&self, x: &[f32], w: &[f32], scale: f32, wrong_sign: bool) -> Halves {
        let mut halves = Halves { right: [0.0; HALVES], wrong: [f32::INFINITY; HALVES] };
        let mut count = 1;
        for i in 0..V {
            let errors: [f32; L] = std::array::from_fn(|l| w[i] * (x[i] - scale * self.levels[l]).powi(2));
            let flips: [f32; L] = std::array::from_fn(|l| w[i] * (x[i] + scale * self.levels[l]).powi(2));
            // Backwards, because what grows from a code does not stand before it.
            for code in (0..count).rev() {
                let (right, wrong) = (halves.right[code], halves.wrong[code]);
                for l in 0..L {
                    halves.right[code * L + l] = right + errors[l];
                    if wrong_sign {
                        halves.wrong[code * L + l] = (wrong + errors[l]).min(right + flips[l]);
                    }
                }
            }
            count *= L;
        }
        halves
    }

    /// The vector of the least `error(first half, second half)`, which is no less than `bound(first half)`.
    fn least(&self, bound: impl Fn(usize) -> f32, error: impl Fn(usize, usize) -> f32) -> Found {
        let mut best = Found { error: f32::INFINITY, index: 0 };
        let count = L.pow(V as u32);
        let of = |h: usize| &self.vectors[usize::from(self.starts[h])..usize::from(self.starts[h + 1])];
        let visit = |h: usize, best: &mut Found| {
            for &(second, index) in of(h) {
                let error = error(h, usize::from(second));
                if error < best.error {
                    *best = Found { error, index };
                }
            }
        };
        let mut start = (f32::INFINITY, 0);
        for h in 0..count {
            if bound(h) < start.0 && !of(h).is_empty() {
                start = (bound(h), h);
            }
        }
        visit(start.1, &mut best);
        for h in 0..count {
            if bound(h) < best.error {
                visit(h, &mut best);
            }
        }
        best
    }

    /// The nearest vector to magnitudes x, with right signs and, if that is wanted, with one wrong sign.
    fn nearest(&self, x: &[f32], w: &[f32], scale: f32, wrong_sign: bool) -> [Found; 2] {
        let least = |errors: &[f32; HALVES]| errors[..L.pow(V as u32)].iter().copied().fold(f32::INFINITY, f32::min);
        let first = self.halves(&x[..V], &w[..V], scale, wrong_sign);
        let second = self.halves(&x[V..], &w[V..], scale, wrong_sign);
        let (right, wrong) = (least(&second.right), least(&second.wrong));
        let all_right = self.least(|a| first.right[a] + right, |a, b| first.right[a] + second.right[b]);
        if !wrong_sign {
            return [all_right; 2];
        }
        let one_wrong = self.least(
            |a| (first.right[a] + wrong).min(first.wrong[a] + right),
            |a, b| (first.right[a] + second.wrong[b]).min(first.wrong[a] + second.right[b]),
        );
        [all_right, one_wrong]
    }
}

/// Values that are coded together, `STEP` at a time.
pub trait Vectors: Copy {
    /// Values of a step.
    const STEP: usize;
    /// The largest and the least magnitude of a level.
    fn range(self) -> (f32, f32);
    /// The codes of a step with the least Σ w · (x − scale · level)², and their levels with their signs. All slices have `STEP`
    /// elements.
    fn choose(self, scale: f32, x: &[f32], w: &[f32], codes: &mut [u16], levels: &mut [f32]);
}

/// K vectors and the signs of their values; `EVEN`: an even number of which are negative. The codes of a step are K indices
/// and a word of signs, from the lowest bit up; the rest is zero.
pub struct Signed<const K: usize, const EVEN: bool, const V: usize, const L: usize>(pub(super) &'static Codebook<V, L>);

impl<const K: usize, const EVEN: bool, const V: usize, const L: usize> Clone for Signed<K, EVEN, V, L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<const K: usize, const EVEN: bool, const V: usize, const L: usize> Copy for Signed<K, EVEN, V, L> {}

impl<const K: usize, const EVEN: bool, const V: usize, const L: usize> Vectors for Signed<K, EVEN, V, L> {
    const STEP: usize = K * Codebook::<V, L>::DIM;

    fn range(self) -> (f32, f32) {
        (self.0.levels[L - 1], self.0.levels[0])
    }

    fn choose(self, scale: f32, x: &[f32], w: &[f32], codes: &mut [u16], levels: &mut [f32]) {
        assert!(x.len() == Self::STEP && w.len() == Self::STEP && codes.len() == Self::STEP);
        let dim = Codebook::<V, L>::DIM;
        let mut signs = 0;
        let mut magnitudes = [0.0; 8];
        for i in 0..Self::STEP {
            signs |= u16::from((x[i] < 0.0) != (scale < 0.0)) << i;
            magnitudes[i] = x[i].abs();
        }
        let is_odd = EVEN && signs.count_ones() % 2 == 1;
        let mut found = [[Found { error: 0.0, index: 0 }; 2]; K];
        for (k, found) in found.iter_mut().enumerate() {
            let part = k * dim..(k + 1) * dim;
            *found = self.0.nearest(&magnitudes[part.clone()], &w[part], scale.abs(), is_odd);
        }
        // The vector for which one wrong sign costs least more.
        let cost = |found: [Found; 2]| found[1].error - found[0].error;
        let wrong = (1..K).fold(0, |best, k| if cost(found[k]) < cost(found[best]) { k } else { best });
        codes.fill(0);
        for k in 0..K {
            let index = found[k][usize::from(is_odd && k == wrong)].index;
            codes[k] = index;
            for (level, magnitude) in levels[k * dim..].iter_mut().zip(self.0.magnitudes(index)) {
                *level = magnitude;
            }
        }
        if is_odd {
            let cost = |i: usize| w[i] * magnitudes[i] * levels[i];
            let part = wrong * dim..(wrong + 1) * dim;
            let flip = part.fold(wrong * dim, |best, i| if cost(i) < cost(best) { i } else { best });
            signs ^= 1 << flip;
        }
        codes[K] = signs;
        apply_signs(signs, levels);
    }
}

/// Makes the values negative whose bits are set.
pub(super) fn apply_signs(signs: u16, values: &mut [f32]) {
    for (i, value) in values.iter_mut().enumerate() {
        if signs >> i & 1 == 1 {
            *value = -*value;
        }
    }
}

/// Eight signs of which seven are stored.
pub(super) fn even_signs(seven: u16) -> u16 {
    seven | ((seven.count_ones() % 2) << 7) as u16
}

/// value = scale[j] · level, with S scales of N values each.
pub struct ScaledVectors<Q, const S: usize, const N: usize> {
    scales: [f32; S],
    vectors: Q,
}

impl<Q: Vectors, const S: usize, const N: usize> ScaledVectors<Q, S, N> {
    pub(super) fn new(vectors: Q, scales: [f32; S]) -> Self {
        Self { scales, vectors }
    }
}

impl<Q: Vectors, const S: usize, const N: usize> Grid for ScaledVectors<Q, S, N> {
    const STEP: usize = Q::STEP;

    fn choose(&self, at: usize, values: &[f32], weights: &[f32], codes: &mut [u16], decoded: &mut [f32]) {
        let scale = self.scales[at / N];
        self.vectors.choose(scale, values, weights, codes, decoded);
        decoded.iter_mut().for_each(|value| *value *= scale);
    }
}
