//! How many guesses pay.
//!
//! With a chance `p` that a guess comes true where all before it did, `g` guesses bring `1 + p + p² + … + p^g` tokens in a
//! pass of `1 + g` rows. What a pass of so many rows costs depends on the machine, the model and what else runs; it is measured
//! all the time, and so is `p`, for each sequence. For several sequences the guesses are taken in the order of what they are
//! likely to bring, as long as that raises the tokens per second of all together.

use std::time::Duration;

/// Passes without guesses after which some are tried again: costs 1 % where they do not pay.
pub(super) const PROBE_AFTER: usize = 64;
/// So many then.
pub(super) const PROBE: usize = 2;

/// Weight of the newest measurement of a pass.
const GAIN: f64 = 0.2;
/// What is assumed of a row that was never measured: it adds so much of a pass with one row. An optimistic figure, because an
/// attempt measures it and a pessimistic one would never be corrected.
const ROW: f64 = 0.05;
/// How fast old guesses are forgotten: half after 7 checks.
const DECAY: f64 = 0.9;
/// Bounds of a chance: never certain, never hopeless.
const LEAST: f64 = 0.01;
const MOST: f64 = 0.97;

/// How often guesses come true, of late.
#[derive(Debug, Clone)]
pub(super) struct Chance {
    right: f64,
    tried: f64,
}

impl Default for Chance {
    fn default() -> Self {
        // Two of three, soon outweighed.
        Self { right: 2.0, tried: 3.0 }
    }
}

impl Chance {
    /// After `made` guesses, of which the first `right` came true. Those behind the first wrong one say nothing.
    pub(super) fn observe(&mut self, made: usize, right: usize) {
        self.right = self.right * DECAY + right as f64;
        self.tried = self.tried * DECAY + (right + 1).min(made) as f64;
    }

    pub(super) fn value(&self) -> f64 {
        (self.right / self.tried).clamp(LEAST, MOST)
    }
}

/// What passes take, by their rows.
#[derive(Debug, Default)]
pub(super) struct Cost {
    /// Seconds of a pass of `index + 1` rows, where there has been one.
    passes: Vec<Option<f64>>,
    /// Seconds of a draft model's pass.
    draft_s: f64,
}

impl Cost {
    pub(super) fn observe(&mut self, rows: usize, took: Duration) {
        let Some(index) = rows.checked_sub(1) else { return };
        if self.passes.len() < rows {
            self.passes.resize(rows, None);
        }
        let took = took.as_secs_f64();
        let mean = self.passes[index].map_or(took, |before| before + GAIN * (took - before));
        self.passes[index] = Some(mean);
    }

    pub(super) fn observe_draft(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.draft_s = if self.draft_s == 0.0 { took } else { self.draft_s + GAIN * (took - self.draft_s) };
    }

    /// Seconds of a pass, between those measured in proportion; in units of a pass of one row where none was.
    fn pass(&self, rows: usize) -> f64 {
        let known = || self.passes.iter().enumerate().filter_map(|(index, &took)| Some((index + 1, took?)));
        let (below, above) = (known().rfind(|&(n, _)| n <= rows), known().find(|&(n, _)| n >= rows));
        let row = |(n, took): (usize, f64)| ROW * took / (1.0 + ROW * (n - 1) as f64);
        match (below, above) {
            (Some((_, took)), Some((n, _))) if n == rows => took,
            (Some((a, first)), Some((b, second))) => first + (second - first) * (rows - a) as f64 / (b - a) as f64,
            (Some(it), None) => it.1 + row(it) * (rows - it.0) as f64,
            (None, Some(it)) => it.1 - row(it) * (it.0 - rows) as f64,
            (None, None) => 1.0 + ROW * rows.saturating_sub(1) as f64,
        }
    }

    /// Guesses for sequences with these chances, of which each has at most so many, that bring the most tokens per second.
    pub(super) fn allot(&self, sequences: &[(f64, usize)], most: usize) -> Vec<usize> {
        let mut gains: Vec<(f64, usize, usize)> = Vec::new();
        for (index, &(chance, limit)) in sequences.iter().enumerate() {
            gains.extend((1..=limit).map(|guess| (chance.powi(guess as i32), index, guess)));
        }
        gains.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.2.cmp(&b.2)));
        let mut counts = vec![0; sequences.len()];
        let mut tokens = sequences.len() as f64;
        let mut best = (tokens / self.pass(sequences.len()), counts.clone());
        for (gain, index, guess) in gains.into_iter().take(most) {
            counts[index] = guess;
            tokens += gain;
            let rows = sequences.len() + counts.iter().sum::<usize>();
            let longest = counts.iter().max().copied().unwrap_or(0);
            let rate = tokens / (self.pass(rows) + self.draft_s * longest as f64);
            if rate > best.0 {
                best = (rate, counts.clone());
            }
        }
        best.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(seconds: impl Fn(usize) -> f64, draft_s: f64) -> Cost {
        let mut cost = Cost { draft_s, ..Cost::default() };
        (1..=40).for_each(|rows| cost.observe(rows, Duration::from_secs_f64(seconds(rows))));
        cost
    }

    #[test]
    fn a_chance_follows_what_comes_true() {
        let mut chance = Chance::default();
        (0..60).for_each(|_| chance.observe(4, 4));
        assert_eq!(chance.value(), MOST);
        (0..60).for_each(|_| chance.observe(4, 0));
        assert!(chance.value() <= 0.02);
        // Of guesses that come true with 0.7 each, four are right 0.7 + 0.49 + … times of 1 + 0.7 + 0.49 + 0.343 tried.
        (0..200).for_each(|i| chance.observe(4, [4, 0, 2, 1, 4, 0, 3, 0, 1, 2][i % 10]));
        assert!((0.55..0.75).contains(&chance.value()), "{}", chance.value());
    }

    #[test]
    fn guesses_are_made_as_long_as_they_pay() {
        // Rows for nothing: all. Rows as dear as passes: none.
        assert_eq!(cost(|_| 1.0, 0.0).allot(&[(0.5, 8)], 31), [8]);
        assert_eq!(cost(|rows| rows as f64, 0.0).allot(&[(0.9, 8)], 31), [0]);
        // A draft as dear as the model cannot pay.
        assert_eq!(cost(|_| 1.0, 1.0).allot(&[(0.97, 8)], 31), [0]);
        // By hand: rate(g) = (1 + 0.5 + …) / (1 + 0.2 g): 1, 1.25, 1.25, 1.17.
        assert_eq!(cost(|rows| 0.8 + 0.2 * rows as f64, 0.0).allot(&[(0.5, 8)], 31), [1]);
    }

    #[test]
    fn the_best_split_is_found() {
        let cost = cost(|rows| 1.0 + 0.11 * (rows as f64).powf(1.3), 0.03);
        let sequences = [(0.8, 4), (0.3, 4), (0.6, 2)];
        let rate = |counts: &[usize]| {
            let tokens: f64 = sequences
                .iter()
                .zip(counts)
                .map(|(&(p, _), &n)| (0..=n).map(|guess| f64::powi(p, guess as i32)).sum::<f64>())
                .sum();
            let rows = 3 + counts.iter().sum::<usize>();
            tokens / (cost.pass(rows) + 0.03 * counts.iter().max().copied().unwrap_or(0) as f64)
        };
        let mut best = (0.0, Vec::new());
        for a in 0..=4 {
            for b in 0..=4 {
                for c in 0..=2 {
                    let counts = vec![a, b, c];
                    if rate(&counts) > best.0 {
                        best = (rate(&counts), counts);
                    }
                }
            }
        }
        assert_eq!(cost.allot(&sequences, 29), best.1);
    }

    #[test]
    fn what_was_not_measured_is_estimated() {
        let mut cost = Cost::default();
        assert_eq!(cost.allot(&[(0.6, 4)], 31), [4]);
        cost.observe(1, Duration::from_secs(1));
        cost.observe(5, Duration::from_secs(3));
        assert_eq!(cost.pass(3), 2.0);
        assert!(cost.pass(9) > 3.0 && cost.pass(5) == 3.0);
    }
}
