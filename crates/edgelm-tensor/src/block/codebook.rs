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
    /// The least of each.
    least_right: f32,
    least_wrong: f32,
    /// The half of the least error with right signs, which a codebook need not have.
    nearest: usize,
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

    fn halves<const WRONG: bool>(&self, x: &[f32], w: &[f32], scale: f32) -> Halves {
        let mut halves = Halves {
            right: [0.0; HALVES],
            wrong: [f32::INFINITY; HALVES],
            least_right: 0.0,
            least_wrong: f32::INFINITY,
            nearest: 0,
        };
        let mut count = 1;
        for i in 0..V {
            let errors: [f32; L] = std::array::from_fn(|l| w[i] * (x[i] - scale * self.levels[l]).powi(2));
            let flips: [f32; L] = std::array::from_fn(|l| w[i] * (x[i] + scale * self.levels[l]).powi(2));
            // Backwards, because what grows from a code does not stand before it.
            for code in (0..count).rev() {
                let (right, wrong) = (halves.right[code], halves.wrong[code]);
                for l in 0..L {
                    halves.right[code * L + l] = right + errors[l];
                    if WRONG {
                        halves.wrong[code * L + l] = lesser(wrong + errors[l], right + flips[l]);
                    }
                }
            }
            count *= L;
            let nearest = (1..L).fold(0, |best, l| if errors[l] < errors[best] { l } else { best });
            // Of the magnitudes with the wrong sign the least is nearest.
            halves.least_wrong = lesser(halves.least_wrong + errors[nearest], halves.least_right + flips[0]);
            halves.least_right += errors[nearest];
            halves.nearest = halves.nearest * L + nearest;
        }
        halves
    }

    /// The vector of the least `error(first half, second half)`, which is no less than `bound(first half)`. Fast if half
    /// `likely` is in the best one.
    #[inline(always)]
    fn least(&self, likely: usize, bound: impl Fn(usize) -> f32, error: impl Fn(usize, usize) -> f32) -> Found {
        let mut best = Found { error: f32::INFINITY, index: 0 };
        let visit = |h: usize, best: &mut Found| {
            for &(second, index) in &self.vectors[usize::from(self.starts[h])..usize::from(self.starts[h + 1])] {
                let error = error(h, usize::from(second));
                if error < best.error {
                    *best = Found { error, index };
                }
            }
        };
        visit(likely, &mut best);
        for h in 0..const { L.pow(V as u32) } {
            if bound(h) < best.error && h != likely {
                visit(h, &mut best);
            }
        }
        best
    }

    /// The nearest vector to magnitudes x.
    fn with_right_signs(&self, x: &[f32], w: &[f32], scale: f32) -> Found {
        let first = self.halves::<false>(&x[..V], &w[..V], scale);
        let second = self.halves::<false>(&x[V..], &w[V..], scale);
        self.least(first.nearest, |a| first.right[a] + second.least_right, |a, b| first.right[a] + second.right[b])
    }

    /// The nearest vector if one sign is wrong.
    fn with_wrong_sign(&self, x: &[f32], w: &[f32], scale: f32) -> Found {
        let first = self.halves::<true>(&x[..V], &w[..V], scale);
        let second = self.halves::<true>(&x[V..], &w[V..], scale);
        self.least(
            first.nearest,
            |a| lesser(first.right[a] + second.least_wrong, first.wrong[a] + second.least_right),
            |a, b| lesser(first.right[a] + second.wrong[b], first.wrong[a] + second.right[b]),
        )
    }
}

/// One instruction, which `f32::min` is not.
fn lesser(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
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
        let part = |k: usize| k * dim..(k + 1) * dim;
        let mut found = [Found { error: 0.0, index: 0 }; K];
        let mut wrong = 0;
        if K > 1 || !is_odd {
            for k in 0..K {
                found[k] = self.0.with_right_signs(&magnitudes[part(k)], &w[part(k)], scale.abs());
            }
        }
        if is_odd {
            // In the vector for which a wrong sign costs least more.
            let mut least = f32::INFINITY;
            let mut with_wrong = found;
            for k in 0..K {
                with_wrong[k] = self.0.with_wrong_sign(&magnitudes[part(k)], &w[part(k)], scale.abs());
                let more = with_wrong[k].error - found[k].error;
                if more < least {
                    (least, wrong) = (more, k);
                }
            }
            found[wrong] = with_wrong[wrong];
        }
        codes.fill(0);
        for k in 0..K {
            codes[k] = found[k].index;
            for (level, magnitude) in levels[k * dim..].iter_mut().zip(self.0.magnitudes(found[k].index)) {
                *level = magnitude;
            }
        }
        if is_odd {
            let cost = |i: usize| w[i] * magnitudes[i] * levels[i];
            let flip = part(wrong).fold(wrong * dim, |best, i| if cost(i) < cost(best) { i } else { best });
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

#[cfg(test)]
mod tests {
    use super::super::iq_grids::*;
    use super::*;

    /// The least error of all codes there are.
    fn exhaustive<const K: usize, const EVEN: bool, const V: usize, const L: usize>(
        Signed(codebook): Signed<K, EVEN, V, L>,
        scale: f32,
        x: &[f32],
        w: &[f32],
    ) -> f32 {
        let count = codebook.vectors.len();
        let mut best = f32::INFINITY;
        for indices in 0..count.pow(K as u32) {
            let vectors = (0..K).flat_map(|k| codebook.magnitudes((indices / count.pow(k as u32) % count) as u16));
            let magnitudes: Vec<f32> = vectors.collect();
            let errors = |sign: f32| {
                let mut errors = [0.0; 8];
                for i in 0..x.len() {
                    errors[i] = w[i] * (x[i] - sign * scale * magnitudes[i]).powi(2);
                }
                errors
            };
            let (positive, negative) = (errors(1.0), errors(-1.0));
            for signs in (0u32..1 << x.len()).filter(|signs| !EVEN || signs.count_ones() % 2 == 0) {
                let of = |i: usize| if signs >> i & 1 == 1 { negative[i] } else { positive[i] };
                best = best.min((0..x.len()).map(of).sum());
            }
        }
        best
    }

    fn check<const K: usize, const EVEN: bool, const V: usize, const L: usize>(vectors: Signed<K, EVEN, V, L>) {
        let mut state = 1u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let step = <Signed<K, EVEN, V, L> as Vectors>::STEP;
        for round in 0..4 {
            let x: Vec<f32> = (0..step).map(|_| 4.0 * random() - 2.0).collect();
            let w: Vec<f32> = (0..step).map(|_| random().powi(round)).collect();
            let scale = [0.5, 1.0, -1.5, 2.0][round as usize] / vectors.range().0;
            let (mut codes, mut levels) = (vec![0; step], vec![0.0; step]);
            vectors.choose(scale, &x, &w, &mut codes, &mut levels);
            let error: f32 = (0..step).map(|i| w[i] * (x[i] - scale * levels[i]).powi(2)).sum();
            let least = exhaustive(vectors, scale, &x, &w);
            assert!((error - least).abs() <= 1e-5 * least, "K={K} even={EVEN} L={L}: {error}, but there is {least}");
            assert!(!EVEN || codes[K].count_ones() % 2 == 0);
        }
    }

    #[test]
    fn no_codes_are_better_than_the_chosen_ones() {
        fn codebook<const V: usize, const L: usize, const D: usize>(
            levels: [u8; L],
            grid: &'static [[u8; D]],
        ) -> &'static Codebook<V, L> {
            Box::leak(Box::new(Codebook::new(levels, grid)))
        }
        check(Signed::<1, false, 2, 8>(codebook(IQ3_S_LEVELS, &IQ3_S_GRID)));
        check(Signed::<2, true, 2, 8>(codebook(IQ3_XXS_LEVELS, &IQ3_XXS_GRID)));
        check(Signed::<1, false, 4, 3>(codebook(IQ2_LEVELS, &IQ2_S_GRID)));
        check(Signed::<1, true, 4, 3>(codebook(IQ2_LEVELS, &IQ2_XS_GRID)));
        check(Signed::<1, true, 4, 3>(codebook(IQ2_LEVELS, &IQ2_XXS_GRID)));
    }
}
