//! The normalizer of a row of logits and the distance between two rows, for evaluation.

use crate::Cpu;
use crate::simd::{Kernel, LANES, Lanes, dispatch, exp, load_partial};

/// Values whose f32 sums go into f64: 16 additions per lane.
const PIECE: usize = 256;

/// ln Σ_i exp(logits[i]), so that ln softmax(logits)[i] = logits[i] - this.
///
/// Numerics: relative to the largest logit; exponentials in f32 within 1 ULP, summed in f32 by 256 and then in f64: the
/// result is off by less than 3e-7. -∞ for an empty row. Scalar differs from the vector paths by fused multiply-add.
pub fn log_sum_exp(cpu: &Cpu, logits: &[f32]) -> f64 {
    let largest = dispatch(cpu, Largest(logits));
    if largest == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    f64::from(largest) + dispatch(cpu, SumExp { logits, shift: largest }).ln()
}

/// KL(p ‖ q) = Σ_i p_i (ln p_i - ln q_i) with p = softmax(p_logits), q = softmax(q_logits); in nats.
///
/// Numerics: as [`log_sum_exp`]; the logarithms are differences in f32, so the result is off by about 1e-6.
/// Logits are finite. Panics if lengths disagree.
/// Source: Kullback and Leibler 1951.
pub fn kl_divergence(cpu: &Cpu, p_logits: &[f32], q_logits: &[f32]) -> f64 {
    assert_eq!(p_logits.len(), q_logits.len());
    if p_logits.is_empty() {
        return 0.0;
    }
    // Σ p_i (a_i - b_i) - (ln Σ e^a - ln Σ e^b), with p_i = e^(a_i - shift) / Σ e^(a - shift).
    let shift = dispatch(cpu, Largest(p_logits));
    let (weighted, total) = dispatch(cpu, WeightedDifference { p_logits, q_logits, shift });
    weighted / total - (f64::from(shift) + total.ln() - log_sum_exp(cpu, q_logits))
}

struct Largest<'a>(&'a [f32]);

impl Kernel for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        let (whole, tail) = self.0.as_chunks::<LANES>();
        let mut largest = load_partial::<L>(tail, f32::NEG_INFINITY);
        for values in whole {
            largest = largest.max(L::load(values));
        }
        largest.largest()
    }
}

struct SumExp<'a> {
    logits: &'a [f32],
    shift: f32,
}

impl Kernel for SumExp<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<L: Lanes>(self) -> f64 {
        let shift = L::splat(self.shift);
        let mut total = 0.0;
        for piece in self.logits.chunks(PIECE) {
            let (whole, tail) = piece.as_chunks::<LANES>();
            let mut sum = exp(load_partial::<L>(tail, f32::NEG_INFINITY).sub(shift));
            for values in whole {
                sum = sum.add(exp(L::load(values).sub(shift)));
            }
            total += f64::from(sum.sum());
        }
        total
    }
}

/// (Σ e^(a_i - shift) (a_i - b_i), Σ e^(a_i - shift)).
struct WeightedDifference<'a> {
    p_logits: &'a [f32],
    q_logits: &'a [f32],
    shift: f32,
}

impl Kernel for WeightedDifference<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run<L: Lanes>(self) -> (f64, f64) {
        let shift = L::splat(self.shift);
        let (mut weighted, mut total) = (0.0, 0.0);
        for (p, q) in self.p_logits.chunks(PIECE).zip(self.q_logits.chunks(PIECE)) {
            let (mut weighted_sum, mut sum) = (L::splat(0.0), L::splat(0.0));
            let (p, p_tail) = p.as_chunks::<LANES>();
            let (q, q_tail) = q.as_chunks::<LANES>();
            for (a, b) in p.iter().zip(q) {
                let (a, b) = (L::load(a), L::load(b));
                let weight = exp(a.sub(shift));
                weighted_sum = weight.mul_add(a.sub(b), weighted_sum);
                sum = sum.add(weight);
            }
            if !p_tail.is_empty() {
                // Lanes beyond the end weigh e^-∞ = 0; their difference is of two finite numbers, so it adds 0.
                let weight = exp(load_partial::<L>(p_tail, f32::NEG_INFINITY).sub(shift));
                let difference = load_partial::<L>(p_tail, 0.0).sub(load_partial(q_tail, 0.0));
                weighted_sum = weight.mul_add(difference, weighted_sum);
                sum = sum.add(weight);
            }
            weighted += f64::from(weighted_sum.sum());
            total += f64::from(sum.sum());
        }
        (weighted, total)
    }
}
