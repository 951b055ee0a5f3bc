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

/// The least costs for all budgets up to one.
///
/// Dynamic programming over bytes in steps of their greatest common divisor, or of the largest budget / 65,536 where that is
/// more: exact in the first case. O(items · choices · steps) time, O(items · steps) bytes.
pub struct Table<'a> {
    items: &'a [Item],
    step: u64,
    /// By budget in steps.
    least: Vec<f64>,
    /// By item and budget of the items up to it.
    picked: Vec<Vec<u16>>,
}

impl<'a> Table<'a> {
    /// `None` for more steps or choices than can be counted.
    pub fn new(items: &'a [Item], budget: u64) -> Option<Self> {
        let common = items.iter().flatten().fold(0, |common, choice| greatest_common_divisor(common, choice.0)).max(1);
        let step = common.max(budget.div_ceil(STEPS));
        let room = usize::try_from(budget / step).ok()?;
        let mut least = vec![0.0; room + 1];
        let mut picked: Vec<Vec<u16>> = Vec::with_capacity(items.len());
        for item in items {
            let mut next = vec![f64::INFINITY; room + 1];
            let mut picks = vec![u16::MAX; room + 1];
            for (index, &(bytes, cost)) in item.iter().enumerate() {
                let size = steps(bytes, step);
                for total in size..=room {
                    let sum = least[total - size] + cost;
                    if sum < next[total] {
                        next[total] = sum;
                        picks[total] = u16::try_from(index).ok()?;
                    }
                }
            }
            least = next;
            picked.push(picks);
        }
        Some(Self { items, step, least, picked })
    }

    /// For budgets up to one that every choice fits into, rounded up to steps or not.
    pub fn of_all(items: &'a [Item]) -> Option<Self> {
        let most: u64 = items.iter().filter_map(|item| item.iter().map(|choice| choice.0).max()).sum();
        Self::new(items, most + (most / STEPS + 1) * 2 * items.len() as u64)
    }

    /// The largest budget.
    pub fn most(&self) -> u64 {
        self.step * (self.least.len() as u64).saturating_sub(1)
    }

    /// The choices of least cost whose bytes are at most `budget`, or the largest budget; `None` if there are none, or an item
    /// has no choice.
    pub fn within(&self, budget: u64) -> Option<Solution> {
        let last = self.least.len().checked_sub(1)?;
        let mut at = usize::try_from(budget / self.step).map_or(last, |room| room.min(last));
        if !self.least[at].is_finite() {
            return None;
        }
        let mut choices = vec![0; self.items.len()];
        for (index, item) in self.items.iter().enumerate().rev() {
            let choice = usize::from(self.picked[index][at]);
            choices[index] = choice;
            at -= steps(item[choice].0, self.step);
        }
        let sum =
            |of: fn(&(u64, f64)) -> f64| self.items.iter().zip(&choices).map(|(item, &choice)| of(&item[choice])).sum();
        let bytes = self.items.iter().zip(&choices).map(|(item, &choice)| item[choice].0).sum();
        Some(Solution { bytes, cost: sum(|choice| choice.1), choices })
    }

    /// The smallest budget whose choices cost at most `cost`; `None` if the largest one is too small.
    pub fn budget_for(&self, cost: f64) -> Option<u64> {
        // A larger budget costs no more.
        let at = self.least.partition_point(|least| *least > cost);
        (at < self.least.len()).then_some(at as u64 * self.step)
    }
}

/// Of a size, rounded up.
fn steps(bytes: u64, step: u64) -> usize {
    usize::try_from(bytes.div_ceil(step)).unwrap_or(usize::MAX)
}

/// The choices of least cost whose bytes are at most `budget`; `None` if there are none, or an item has no choice.
pub fn allocate(items: &[Item], budget: u64) -> Option<Solution> {
    Table::new(items, budget)?.within(budget)
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

        #[test]
        fn a_table_answers_for_every_budget(
            items in prop::collection::vec(prop::collection::vec((1u64..40, 0.0f64..10.0), 1..5), 1..6),
            cost in 0.0f64..40.0,
        ) {
            let most = 240;
            let table = Table::new(&items, most).unwrap();
            for budget in 0..=most {
                let (part, whole) = (table.within(budget), allocate(&items, budget));
                prop_assert_eq!(part.map(|part| part.cost), whole.map(|whole| whole.cost));
            }
            let first = (0..=most).find(|&budget| allocate(&items, budget).is_some_and(|found| found.cost <= cost));
            prop_assert_eq!(table.budget_for(cost), first);
            let all = Table::of_all(&items).unwrap();
            let least = |item: &Item| item.iter().map(|choice| choice.1).fold(f64::INFINITY, f64::min);
            let best: f64 = items.iter().map(least).sum();
            prop_assert!((all.within(all.most()).unwrap().cost - best).abs() < 1e-9);
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
