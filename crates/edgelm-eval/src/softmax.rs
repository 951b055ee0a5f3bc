//! Log-probabilities of single positions, from full-vocabulary logits.
//!
//! The trap: the kernels expect finite numbers. A broken model's NaN would be lost in their maxima, so every row is looked
//! through first.

use edgelm_kernels::{Cpu, kl_divergence, log_sum_exp};

/// Maxima kept side by side, so that the search for the largest value vectorizes.
const LANES: usize = 16;

/// No value is NaN or infinite.
fn is_finite(row: &[f32]) -> bool {
    // The magnitude's bits order as integers do, and an integer maximum vectorizes where `all` would not.
    row.iter().fold(0, |most: i32, x| most.max(x.abs().to_bits() as i32)) < f32::INFINITY.to_bits() as i32
}

/// Position of the largest value; the lowest of several. The row is finite.
fn top(row: &[f32]) -> usize {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for group in row.chunks(LANES) {
        for (most, &x) in lanes.iter_mut().zip(group) {
            *most = if x > *most { x } else { *most };
        }
    }
    let largest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    row.iter().position(|&x| x == largest).unwrap_or(0)
}

/// Negative log-likelihood of token `target` under a row of logits.
/// nll = ln Σᵢ exp(xᵢ) − x_target
///
/// Shapes: `row` [V], `target` < V. Natural logarithm.
/// Numerics: those of `log_sum_exp`, within 1e-6.
/// `None` if a logit is not finite. Panics if `target` is outside the row.
pub(crate) fn negative_log_likelihood(cpu: &Cpu, row: &[f32], target: usize) -> Option<f64> {
    is_finite(row).then(|| log_sum_exp(cpu, row) - f64::from(row[target]))
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
///
/// Shapes: `parent` and `model` [V], `target` < V. Natural logarithm.
/// Numerics: those of `log_sum_exp` and `kl_divergence`; rows that are nearly equal may give a divergence of −1e-7.
/// Panics if the rows differ in length or `target` is outside them.
pub(crate) fn compare(cpu: &Cpu, parent: &[f32], model: &[f32], target: usize) -> Result<Comparison, NotFinite> {
    Ok(Comparison {
        parent_nll: negative_log_likelihood(cpu, parent, target).ok_or(NotFinite::Parent)?,
        model_nll: negative_log_likelihood(cpu, model, target).ok_or(NotFinite::Model)?,
        kl: kl_divergence(cpu, parent, model),
        same_top: top(parent) == top(model),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cpu() -> Cpu {
        Cpu::new(Some(1), None).expect("a CPU")
    }

    fn log_softmax(row: &[f32]) -> Vec<f64> {
        let max = row.iter().map(|&x| f64::from(x)).fold(f64::NEG_INFINITY, f64::max);
        let log = row.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln();
        row.iter().map(|&x| f64::from(x) - max - log).collect()
    }

    #[test]
    fn likelihood_of_known_distributions() {
        let cpu = cpu();
        let nll = |row: &[f32], target| negative_log_likelihood(&cpu, row, target).expect("finite");
        assert!((nll(&vec![3.5; 5000], 4999) - 5000_f64.ln()).abs() < 1e-6);
        assert!((nll(&[0.0, 3_f32.ln()], 0) - 4_f64.ln()).abs() < 1e-6);
        assert!(nll(&[100.0, -100.0], 0).abs() < 1e-6);
        assert!((nll(&[f32::MAX, f32::MIN], 1) - 2.0 * f64::from(f32::MAX)).abs() < 1e-6);
    }

    #[test]
    fn values_that_are_not_finite_are_reported() {
        let cpu = cpu();
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 15, 16, 40] {
                let good = [0.0; 41];
                let mut row = good;
                row[at] = bad;
                assert_eq!(negative_log_likelihood(&cpu, &row, 0), None);
                assert_eq!(compare(&cpu, &row, &good, 0), Err(NotFinite::Parent));
                assert_eq!(compare(&cpu, &good, &row, 0), Err(NotFinite::Model));
            }
        }
    }

    #[test]
    fn equal_rows_do_not_diverge() {
        let row: Vec<f32> = (0..777).map(|i| ((i * 37) % 101) as f32 * 0.13 - 6.0).collect();
        let got = compare(&cpu(), &row, &row, 5).expect("finite");
        assert!(got.kl.abs() < 1e-6 && got.same_top);
        assert_eq!(got.parent_nll, got.model_nll);
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        assert_eq!((top(&[1.0, 2.0, 2.0]), top(&[0.0]), top(&[-1.0, -1.0])), (1, 0, 0));
        let mut row = [0.0_f32; 100];
        row[20] = 1.0;
        row[5 * LANES] = 1.0;
        assert_eq!(top(&row), 20);
    }

    proptest! {
        #[test]
        fn agrees_with_f64(
            rows in proptest::collection::vec((-30.0_f32..30.0, -30.0_f32..30.0), 1..2500),
            pick in 0_usize..10_000,
        ) {
            let (parent, model): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let target = pick % parent.len();
            let (p, q) = (log_softmax(&parent), log_softmax(&model));
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            let got = compare(&cpu(), &parent, &model, target).expect("finite");
            prop_assert!((got.parent_nll + p[target]).abs() < 2e-6);
            prop_assert!((got.model_nll + q[target]).abs() < 2e-6);
            prop_assert!((got.kl - kl).abs() < 1e-5 * (1.0 + kl), "{} {}", got.kl, kl);
            let best = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            prop_assert_eq!(Some(top(&parent)), p.iter().position(|&x| x == best));
        }
    }
}
