//! One choice per item, least cost in all, bytes within a budget: the multiple-choice knapsack.

/// (bytes, cost) of every choice.
pub type Item = Vec<(u64, f64)>;

/// What was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// Index of the choice, per item.
    pub choices: Vec<usize>,
    /// Their bytes.
    pub bytes: u64,
    /// Their cost.
    pub cost: f64,
}

/// Steps that the budget is cut into: with 300 items, each rounded up to a whole step, at most half a percent of the
/// budget stays unused.
const STEPS: u64 = 1 << 16;

/// The choices of least cost whose bytes are at most `budget`; `None` if there are none, or an item has no choice.
///
/// Dynamic programming over bytes in steps of their greatest common divisor, or of `budget` / 65,536 where that is more:
/// exact in the first case. O(items · choices · steps) time, O(items · steps) bytes.
pub fn allocate(items: &[Item], budget: u64) -> Option<Solution> {
    let common = items.iter().flatten().fold(0, |common, choice| greatest_common_divisor(common, choice.0)).max(1);
    let step = common.max(budget.div_ceil(STEPS));
    let room = usize::try_from(budget / step).ok()?;
    let steps_of = |bytes: u64| usize::try_from(bytes.div_ceil(step)).unwrap_or(usize::MAX);
    // best[s]: least cost of the items so far within s steps.
    let mut best = vec![0.0; room + 1];
    let mut picked: Vec<Vec<u16>> = Vec::with_capacity(items.len());
    for item in items {
        let mut next = vec![f64::INFINITY; room + 1];
        let mut picks = vec![u16::MAX; room + 1];
        for (index, &(bytes, cost)) in item.iter().enumerate() {
            let size = steps_of(bytes);
            for total in size..=room {
                let sum = best[total - size] + cost;
                if sum < next[total] {
                    next[total] = sum;
                    picks[total] = u16::try_from(index).ok()?;
                }
            }
        }
        best = next;
        picked.push(picks);
    }
    if !best[room].is_finite() {
        return None;
    }
    let mut at = room;
    let mut choices = vec![0; items.len()];
    for (index, item) in items.iter().enumerate().rev() {
        let choice = usize::from(picked[index][at]);
        choices[index] = choice;
        at -= steps_of(item[choice].0);
    }
    let sum = |of: fn(&(u64, f64)) -> f64| items.iter().zip(&choices).map(|(item, &choice)| of(&item[choice])).sum();
    let bytes = items.iter().zip(&choices).map(|(item, &choice)| item[choice].0).sum();
    Some(Solution { bytes, cost: sum(|choice| choice.1), choices })
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn brute_force(items: &[Item], budget: u64) -> Option<f64> {
        let Some((first, rest)) = items.split_first() else { return Some(0.0) };
        let with = |&(bytes, cost): &(u64, f64)| Some(cost + brute_force(rest, budget.checked_sub(bytes)?)?);
        first.iter().filter_map(with).min_by(f64::total_cmp)
    }

    proptest! {
        #[test]
        fn is_optimal(
            items in prop::collection::vec(prop::collection::vec((1u64..40, 0.0f64..10.0), 1..5), 1..6),
            budget in 0u64..120,
        ) {
            let items: Vec<Item> =
                items.into_iter().map(|item| item.into_iter().map(|(bytes, cost)| (bytes * 144, cost)).collect()).collect();
            let solution = allocate(&items, budget * 144);
            let best = brute_force(&items, budget * 144);
            prop_assert_eq!(solution.is_some(), best.is_some());
            if let (Some(solution), Some(best)) = (solution, best) {
                prop_assert!((solution.cost - best).abs() < 1e-9, "{} {}", solution.cost, best);
                prop_assert!(solution.bytes <= budget * 144);
            }
        }
    }

    #[test]
    fn large_sizes_stay_within_the_budget() {
        let item = |scale: u64| vec![(1_000_003 * scale, 8.0), (1_500_007 * scale, 4.0), (3_000_011 * scale, 1.0)];
        let items: Vec<Item> = (1..=40).map(item).collect();
        let budget = 1_700_000_000;
        let solution = allocate(&items, budget).unwrap();
        assert!(solution.bytes <= budget && solution.bytes > budget - budget / 50, "{}", solution.bytes);
        assert!(allocate(&items, 800_000_000).is_none());
        assert!(allocate(&[vec![]], 1000).is_none());
    }
}
