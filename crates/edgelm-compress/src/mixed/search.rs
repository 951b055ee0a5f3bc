//! The smallest mixture within a limit on what is measured, guided by what is expected.
//!
//! Pure: measuring is a function that the caller gives.

use super::knapsack::{Solution, Table};
use crate::CompressError;
use serde::{Deserialize, Serialize};

/// A mixture that was made and measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Bytes of all matrices.
    pub matrix_bytes: u64,
    /// Sum of the tensors' costs.
    pub expected_kl: f64,
    /// On held-out data.
    pub measured_kl: f64,
}

/// What there was.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    /// In order.
    pub trials: Vec<Trial>,
    /// The smallest mixture that is within the limit.
    pub best: Option<Solution>,
}

/// Mixtures at most. Two or three are usual.
const TRIALS: usize = 8;

/// What is aimed at, as a part of the limit: a trial just below it ends the search, one just above it does not.
const AIM: f64 = 0.98;

/// A trial between this part of the limit and the limit ends the search: the divergence quarters with every bit, so at 4 bits
/// 5 % of it is 0.9 % of the size.
const CLOSE: f64 = 0.95;

/// Sizes that differ by less than this part of them are not told apart.
const SAME_SIZE: f64 = 0.002;

/// Looks for the smallest budget whose mixture measures at most `limit`.
///
/// What is measured follows a power of what is expected: the exponent comes from two trials (1 until there are two), the factor
/// from the last one. Trials that leave the interval in which the answer must lie are replaced by its middle. Ends when a
/// trial is close enough to the limit, when the interval is narrow, or after 8 trials.
pub(super) fn smallest(
    table: &Table<'_>,
    limit: f64,
    measure: &mut dyn FnMut(&Solution) -> Result<f64, CompressError>,
) -> Result<Found, CompressError> {
    let mut found = Found { trials: Vec::new(), best: None };
    let most = table.most();
    let largest = table.within(most).map_or(0, |solution| solution.bytes);
    let mut too_small = table.budget_for(f64::MAX).map_or(0, |least| least.saturating_sub(1));
    while found.trials.len() < TRIALS {
        let enough = found.best.as_ref().map_or(largest, |best| best.bytes);
        let is_last = found.trials.len() + 1 == TRIALS;
        let aimed = table.budget_for(expected_for(AIM * limit, &found.trials)).unwrap_or(most);
        let middle = too_small + (enough - too_small) / 2;
        let budget = match &found.best {
            None if is_last => most,
            None if aimed <= too_small => middle,
            Some(_) if aimed <= too_small || aimed >= enough => middle,
            _ => aimed,
        };
        let Some(solution) = table.within(budget) else { break };
        if found.trials.iter().any(|trial| trial.matrix_bytes == solution.bytes) {
            break;
        }
        let measured = measure(&solution)?;
        found.trials.push(Trial { matrix_bytes: solution.bytes, expected_kl: solution.cost, measured_kl: measured });
        let bytes = solution.bytes;
        if measured <= limit {
            found.best = Some(solution);
        } else {
            too_small = bytes;
        }
        let enough = found.best.as_ref().map_or(u64::MAX, |best| best.bytes);
        let is_close = (CLOSE * limit..=limit).contains(&measured);
        let is_narrow = enough.saturating_sub(too_small) as f64 <= SAME_SIZE * enough as f64;
        if is_close || is_narrow || too_small >= largest {
            break;
        }
    }
    Ok(found)
}

/// The expected divergence at which `wanted` would be measured, after what was measured so far.
fn expected_for(wanted: f64, trials: &[Trial]) -> f64 {
    let Some(last) = trials.last() else { return wanted };
    let exponent = |before: &Trial| {
        let exponent = (last.measured_kl / before.measured_kl).ln() / (last.expected_kl / before.expected_kl).ln();
        exponent.is_finite().then(|| exponent.clamp(0.5, 2.0))
    };
    let exponent = trials.iter().rev().nth(1).and_then(exponent).unwrap_or(1.0);
    let expected = last.expected_kl * (wanted / last.measured_kl).powf(1.0 / exponent);
    if expected.is_finite() { expected } else { wanted }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::mixed::Item;

    /// Sixty tensors with formats of 2 to 8.5 bits.
    fn items() -> Vec<Item> {
        let bits = [2.06, 2.6, 3.4, 4.25, 4.5, 5.5, 6.6, 8.5];
        let item = |tensor: u64| {
            let size = 1000 + 37 * (tensor * tensor % 11);
            let choice = |bits: f64| {
                let weight = 1.0 + (tensor * 7 % 13) as f64;
                ((size as f64 * 32.0 * bits / 8.0) as u64, 0.01 * weight * 4f64.powf(-bits))
            };
            bits.map(choice).to_vec()
        };
        (0..60).map(item).collect()
    }

    fn search(limit: f64, of: impl Fn(f64) -> f64) -> (Found, u64) {
        let items = items();
        let table = Table::of_all(&items).unwrap();
        let most = table.most();
        let found = smallest(&table, limit, &mut |solution| Ok(of(solution.cost))).unwrap();
        // What a search over all budgets finds.
        let budgets = (0..2000).map(|index| most * index / 1999);
        let solutions = budgets.filter_map(|budget| table.within(budget));
        let best = solutions.filter(|solution| of(solution.cost) <= limit).map(|solution| solution.bytes).min();
        (found, best.unwrap_or(u64::MAX))
    }

    #[test]
    fn the_smallest_is_found_whatever_lies_between_expected_and_measured() {
        for limit in [3e-2, 1e-2, 1e-3, 5e-4] {
            for factor in [0.2, 0.6, 1.0, 3.0] {
                for exponent in [0.7, 1.0, 1.3] {
                    let floor = 5e-6;
                    let (found, best) = search(limit, |cost| floor + factor * 1e-3 * (cost / 1e-3f64).powf(exponent));
                    let bytes = found.best.unwrap().bytes;
                    assert!(bytes as f64 <= 1.03 * best as f64, "{limit} {factor} {exponent}: {bytes} {best}");
                    assert!(found.trials.len() <= 6, "{limit} {factor} {exponent}: {:?}", found.trials);
                    assert!(found.trials.iter().any(|trial| trial.matrix_bytes == bytes && trial.measured_kl <= limit));
                }
            }
        }
    }

    #[test]
    fn a_limit_that_nothing_keeps_is_found_out_with_the_largest() {
        let (found, _) = search(1e-6, |cost| 2e-6 + cost);
        assert!(found.best.is_none());
        let largest = items().iter().map(|item| item.last().unwrap().0).sum::<u64>();
        assert_eq!(found.trials.last().unwrap().matrix_bytes, largest);
        // One that everything keeps, with the smallest.
        let (found, best) = search(10.0, |cost| cost);
        assert_eq!((found.trials.len(), found.best.unwrap().bytes), (1, best));
    }

    #[test]
    fn measurements_that_jump_do_not_lead_astray() {
        // The expectation says nothing: what is measured depends on a threshold.
        let items = items();
        let table = Table::of_all(&items).unwrap();
        let most = table.most();
        for threshold in [most / 3, most / 2, most * 3 / 4] {
            let found = smallest(&table, 1e-4, &mut |solution| Ok(if solution.bytes < threshold { 1.0 } else { 1e-9 }));
            let found = found.unwrap();
            let bytes = found.best.unwrap().bytes;
            assert!(bytes >= threshold && found.trials.len() <= TRIALS, "{threshold} {:?}", found.trials);
        }
    }
}
