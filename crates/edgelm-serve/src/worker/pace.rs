//! How much of a prompt goes into a pass beside the tokens of others.
//!
//! A pass costs what its tokens in generation cost, and something for each row of a prompt on top. Both are measured while the
//! server runs, so one rule serves a board and a server: the rows that stretch a pass to [`STRETCH`] times its length, and
//! never more than a pass of [`LONGEST`], so that whoever comes, goes or cancels does not wait for longer.

use std::time::Duration;

/// How much longer a pass may take because of prompts. Below 2, the most that is promised for the 95th percentile between
/// tokens, because single rows differ in cost: those at the end of a long prompt look back at all of it.
const STRETCH: f64 = 1.7;
/// Of a pass with prompts alone.
const LONGEST: Duration = Duration::from_millis(250);
/// Even where a row is expensive, prompts get on.
const LEAST_ROWS: usize = 4;
/// More at once is not cheaper per row: the engine itself cuts there.
const MOST_ROWS: usize = 512;
/// Before anything is known: little enough for a slow board, and enough to measure.
const FIRST_ROWS: usize = 32;
/// Weight of the newest measurement.
const GAIN: f64 = 0.2;

/// What passes have cost.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Seconds of a pass with nothing but tokens in generation.
    decode_s: Option<f64>,
    /// Seconds that a row of a prompt adds.
    row_s: Option<f64>,
}

impl Pace {
    /// Rows of prompts for the next pass, in which so many other sequences get a token.
    pub(super) fn prompt_rows(&self, decoding: usize) -> usize {
        let Some(row_s) = self.row_s else { return FIRST_ROWS };
        let most = (LONGEST.as_secs_f64() / row_s) as usize;
        let rows = match self.decode_s {
            Some(decode_s) if decoding > 0 => ((STRETCH - 1.0) * decode_s / row_s) as usize,
            None if decoding > 0 => FIRST_ROWS,
            _ => most,
        };
        rows.min(most).clamp(LEAST_ROWS, MOST_ROWS)
    }

    /// What a pass took.
    pub(super) fn observe(&mut self, decoding: usize, prompt_rows: usize, took: Duration) {
        let took = took.as_secs_f64();
        if prompt_rows == 0 {
            self.decode_s = Some(mean(self.decode_s, took));
            return;
        }
        // Of few rows the difference of two passes is mostly chance.
        if prompt_rows >= LEAST_ROWS {
            let beside = if decoding > 0 { self.decode_s.unwrap_or(0.0) } else { 0.0 };
            let row_s = (took - beside) / prompt_rows as f64;
            // A pass that is by chance shorter than those without a prompt does not mean that rows are free.
            self.row_s = Some(mean(self.row_s, row_s.max(took / (100.0 * prompt_rows as f64))));
        }
    }
}

fn mean(before: Option<f64>, new: f64) -> f64 {
    before.map_or(new, |before| before + GAIN * (new - before))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(pace: &mut Pace, decode_ms: f64, row_ms: f64) -> usize {
        for _ in 0..100 {
            pace.observe(4, 0, Duration::from_secs_f64(decode_ms / 1e3));
            let rows = pace.prompt_rows(4);
            pace.observe(4, rows, Duration::from_secs_f64((decode_ms + row_ms * rows as f64) / 1e3));
        }
        pace.prompt_rows(4)
    }

    #[test]
    fn a_pass_is_stretched_as_far_as_allowed() {
        for (decode_ms, row_ms) in [(10.0, 0.1), (3.0, 0.02), (100.0, 1.0)] {
            let rows = settle(&mut Pace::default(), decode_ms, row_ms) as f64;
            let stretched = (decode_ms + rows * row_ms) / decode_ms;
            assert!((1.6..=STRETCH + 0.01).contains(&stretched), "{decode_ms} {row_ms}: {stretched}");
        }
    }

    #[test]
    fn it_follows_a_machine_that_slows_down() {
        let mut pace = Pace::default();
        let fast = settle(&mut pace, 10.0, 0.1);
        let slow = settle(&mut pace, 10.0, 0.5);
        assert!((69..=70).contains(&fast) && (13..=14).contains(&slow), "{fast} {slow}");
    }

    #[test]
    fn expensive_rows_still_get_on_and_cheap_ones_are_bounded() {
        assert_eq!(settle(&mut Pace::default(), 10.0, 50.0), LEAST_ROWS);
        assert_eq!(settle(&mut Pace::default(), 200.0, 0.001), MOST_ROWS);
    }

    #[test]
    fn prompts_alone_take_passes_of_bounded_length() {
        let mut pace = Pace::default();
        assert_eq!(pace.prompt_rows(0), FIRST_ROWS);
        pace.observe(0, FIRST_ROWS, Duration::from_millis(32));
        assert_eq!(pace.prompt_rows(0), 250);
        pace.observe(0, 250, Duration::from_millis(2500));
        assert!(pace.prompt_rows(0) < 120);
    }
}
