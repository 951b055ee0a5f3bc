//! Log-probabilities of single positions, from full-vocabulary logits.
//!
//! The trap here is `f32::exp`: it is a library call per element, and a pass over WikiText-2 with a vocabulary of 32,000
//! needs 10¹⁰ of them. `exp_nonpositive` has no branches and no calls, so it vectorizes on every target, and as it is
//! made of additions and multiplications alone it gives the same bits on every CPU.

/// Values summed in f32 (in `LANES` interleaved sums) before they go into an f64 sum.
const BLOCK: usize = 1024;
/// Interleaved sums: enough for two vectors of the widest instruction set.
const LANES: usize = 32;

/// exp(x) for x ≤ 0; below −87, where the result would leave the normal range, exp(−87) ≈ 1.6e-38.
///
/// exp(x) = 2ⁿ · exp(r), n = round(x / ln 2), |r| ≤ ln 2 / 2, with Cephes' polynomial of degree 7 for exp(r).
/// Numerics: relative error under 2e-7. NaN gives exp(−87): callers check their input.
/// Source: S. L. Moshier, Cephes `expf`.
#[inline(always)]
fn exp_nonpositive(x: f32) -> f32 {
    // Adding 1.5 · 2²³ leaves the rounded integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.max(-87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4_f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.000_000_1e-1;
    p = p * r * r + r + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000))
}

/// Largest value of a row, or `None` if any value is NaN or infinite (or there is none).
fn finite_max(row: &[f32]) -> Option<f32> {
    let mut all_finite = true;
    let mut max = f32::NEG_INFINITY;
    for &x in row {
        all_finite &= x.is_finite();
        max = if x > max { x } else { max };
    }
    (all_finite && max.is_finite()).then_some(max)
}

/// Position of the largest value; the lowest of several.
fn first_at(row: &[f32], max: f32) -> usize {
    row.iter().position(|&x| x == max).unwrap_or(0)
}

/// Negative log-likelihood of token `target` under a row of logits.
/// nll = ln Σᵢ exp(xᵢ − max x) − (x_target − max x)
///
/// Shapes: `row` [V], `target` < V. Natural logarithm.
/// Numerics: exponentials in f32, sums in f64 over blocks; within 1e-6 of f64 throughout.
/// `None` if a logit is not finite. Panics if `target` is outside the row.
pub(crate) fn negative_log_likelihood(row: &[f32], target: usize) -> Option<f64> {
    let max = finite_max(row)?;
    let mut sum = 0.0_f64;
    for block in row.chunks(BLOCK) {
        let mut lanes = [0.0_f32; LANES];
        let groups = block.chunks_exact(LANES);
        let rest = groups.remainder();
        for group in groups {
            for (lane, &x) in lanes.iter_mut().zip(group) {
                *lane += exp_nonpositive(x - max);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += exp_nonpositive(x - max);
        }
        sum += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
    }
    Some(sum.ln() - (f64::from(row[target]) - f64::from(max)))
}

/// One position seen by two models.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Comparison {
    /// Of the target under the parent.
    pub(crate) parent_nll: f64,
    /// Of the target under the model.
    pub(crate) model_nll: f64,
    /// KL(parent || model).
    pub(crate) kl: f64,
    /// Both rank the same token first.
    pub(crate) same_top: bool,
}

/// Which of two rows held a logit that is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotFinite {
    /// The parent's.
    Parent,
    /// The model's.
    Model,
}

/// Compares two rows of logits for the same position.
/// KL = Σᵢ pᵢ (ln pᵢ − ln qᵢ) = Σᵢ eᵢ ((xᵢ − max x) − (yᵢ − max y)) / Σᵢ eᵢ − ln Σᵢ exp(xᵢ − max x) + ln Σᵢ exp(yᵢ − max y),
/// where p = softmax(x), q = softmax(y), eᵢ = exp(xᵢ − max x).
///
/// Shapes: `parent` (x) and `model` (y) [V], `target` < V. Natural logarithm.
/// Numerics: as `negative_log_likelihood`; equal rows give exactly 0, nearly equal ones may give −1e-7.
/// Panics if the rows differ in length or `target` is outside them.
pub(crate) fn compare(parent: &[f32], model: &[f32], target: usize) -> Result<Comparison, NotFinite> {
    assert_eq!(parent.len(), model.len(), "rows of different vocabularies");
    let parent_max = finite_max(parent).ok_or(NotFinite::Parent)?;
    let model_max = finite_max(model).ok_or(NotFinite::Model)?;
    let (mut parent_sum, mut model_sum, mut weighted) = (0.0_f64, 0.0_f64, 0.0_f64);
    for (parent_block, model_block) in parent.chunks(BLOCK).zip(model.chunks(BLOCK)) {
        let (mut p_lanes, mut q_lanes, mut d_lanes) = ([0.0_f32; LANES], [0.0_f32; LANES], [0.0_f32; LANES]);
        let mut add = |lane: usize, x: f32, y: f32| {
            let (x, y) = (x - parent_max, y - model_max);
            let p = exp_nonpositive(x);
            p_lanes[lane] += p;
            q_lanes[lane] += exp_nonpositive(y);
            d_lanes[lane] += p * (x - y);
        };
        let (x_groups, y_groups) = (parent_block.chunks_exact(LANES), model_block.chunks_exact(LANES));
        let (x_rest, y_rest) = (x_groups.remainder(), y_groups.remainder());
        for (xs, ys) in x_groups.zip(y_groups) {
            for lane in 0..LANES {
                add(lane, xs[lane], ys[lane]);
            }
        }
        for (lane, (&x, &y)) in x_rest.iter().zip(y_rest).enumerate() {
            add(lane, x, y);
        }
        let total = |lanes: [f32; LANES]| lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        parent_sum += total(p_lanes);
        model_sum += total(q_lanes);
        weighted += total(d_lanes);
    }
    let (parent_log, model_log) = (parent_sum.ln(), model_sum.ln());
    Ok(Comparison {
        parent_nll: parent_log - (f64::from(parent[target]) - f64::from(parent_max)),
        model_nll: model_log - (f64::from(model[target]) - f64::from(model_max)),
        kl: weighted / parent_sum - parent_log + model_log,
        same_top: first_at(parent, parent_max) == first_at(model, model_max),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log_softmax(row: &[f32]) -> Vec<f64> {
        let max = row.iter().map(|&x| f64::from(x)).fold(f64::NEG_INFINITY, f64::max);
        let log = row.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln();
        row.iter().map(|&x| f64::from(x) - max - log).collect()
    }

    #[test]
    fn exp_is_close_over_its_whole_range() {
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let (got, want) = (f64::from(exp_nonpositive(x)), f64::from(x).exp());
            assert!(((got - want) / want).abs() < 2e-7, "exp({x}) = {got:e}, expected {want:e}");
        }
        assert_eq!(exp_nonpositive(0.0), 1.0);
        for x in [-87.5, -1e4, f32::MIN, f32::NEG_INFINITY] {
            assert!((0.0..2e-38).contains(&exp_nonpositive(x)), "exp({x})");
        }
    }

    #[test]
    fn likelihood_of_known_distributions() {
        let uniform = vec![3.5_f32; 5000];
        let nll = negative_log_likelihood(&uniform, 4999).expect("finite");
        assert!((nll - 5000_f64.ln()).abs() < 1e-7);
        let nll = negative_log_likelihood(&[0.0, 3_f32.ln()], 0).expect("finite");
        assert!((nll - 4_f64.ln()).abs() < 1e-6);
        assert!(negative_log_likelihood(&[100.0, -100.0], 0).expect("finite").abs() < 1e-6);
    }

    #[test]
    fn values_that_are_not_finite_are_reported() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(negative_log_likelihood(&[0.0, bad, 1.0], 0), None);
            assert_eq!(compare(&[0.0, bad], &[0.0, 0.0], 0), Err(NotFinite::Parent));
            assert_eq!(compare(&[0.0, 0.0], &[bad, 0.0], 0), Err(NotFinite::Model));
        }
    }

    #[test]
    fn equal_rows_diverge_by_exactly_nothing() {
        let row: Vec<f32> = (0..777).map(|i| ((i * 37) % 101) as f32 * 0.13 - 6.0).collect();
        let got = compare(&row, &row, 5).expect("finite");
        assert_eq!((got.kl, got.same_top), (0.0, true));
        assert_eq!(got.parent_nll, got.model_nll);
        assert_eq!(Some(got.model_nll), negative_log_likelihood(&row, 5));
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        assert!(compare(&[1.0, 1.0, 0.0], &[2.0, 1.0, 2.0], 0).expect("finite").same_top);
        assert!(!compare(&[1.0, 1.0, 0.0], &[0.0, 2.0, 2.0], 0).expect("finite").same_top);
    }

    proptest! {
        #[test]
        fn agrees_with_f64(rows in proptest::collection::vec((-30.0_f32..30.0, -30.0_f32..30.0), 1..2500), pick in 0_usize..10_000) {
            let (parent, model): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let target = pick % parent.len();
            let (p, q) = (log_softmax(&parent), log_softmax(&model));
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            let got = compare(&parent, &model, target).expect("finite");
            prop_assert!((got.parent_nll + p[target]).abs() < 2e-6);
            prop_assert!((got.model_nll + q[target]).abs() < 2e-6);
            prop_assert!((got.kl - kl).abs() < 1e-5 * (1.0 + kl), "{} {}", got.kl, kl);
            prop_assert_eq!(negative_log_likelihood(&model, target), Some(got.model_nll));
        }
    }
}
