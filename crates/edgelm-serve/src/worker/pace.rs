//! How much of a prompt goes into a pass beside the tokens of others.
//!
//! A pass costs what its tokens in generation cost, and something for each row of a prompt on top. Both are measured while the
//! server runs, so one rule serves a board and a server: the rows that stretch a pass to [`STRETCH`] times its length. Where
//! several prompts wait, each has that share, as long as tokens still come as fast as anybody reads ([`READABLE`]): else those
//! whose turn has come would be done before the next has begun, and batches stay small while the queue is long. Where more wait
//! than get tokens, these may come slower. The last of a crowd is not left alone with one share: a prompt counts for all that
//! could have been computed while it waited ([`Pace::urgency`]), so a long one that has just come counts once. Never more than a
//! pass of [`LONGEST`], so that whoever comes, goes or cancels does not wait for longer.

use std::time::Duration;

/// How much longer a pass may take because of a prompt. Below 2, the most that is promised for the 95th percentile between
/// tokens, because single rows differ in cost: those at the end of a long prompt look back at all of it. Measured with the `load`
/// example, mica-40m in Q4_0, two threads (AVX2), four streams and a prompt of 1,900 tokens beside them: 95th percentile 7.3 to 8.0
/// ms beside it, 5.3 to 6.2 ms without, 1.28 to 1.46 times in six runs.
const STRETCH: f64 = 1.7;
/// Of a pass that several prompts stretch: twenty tokens a second for each who reads. The same load with 32 streams, prompts of
/// 128 tokens and 64 generated: median time to the first token 0.3 s instead of 3.0 s, 810 tokens/s instead of 640, and
/// 21 ms between tokens instead of 3.
const READABLE: Duration = Duration::from_millis(50);
/// In how many times that a token may come where so many wait or more; each of fewer allows its share of another once. At 6.7
/// tokens a second people still read along (238 words a minute: Brysbaert, 2019). A model whose tokens alone take less has
/// only so much more: its crowd is through soon enough. The shape of TinyLlama-1.1B in Q4_0 on two slow cores, slowest first
/// token of 8 and of 32 streams: 8.2 and 30 s, with twice where more wait than get tokens 8.9 and 36 s (llama-server 8.7 and 37 s),
/// and 0.14 s between tokens of 32 (llama-server 0.62 s). With three times for two that wait, 4 streams have slower tokens than
/// llama-server's. mica-40m, three times for all: slowest first token of 32 streams 1.8 s (llama-server 3.7 s), but 95th
/// percentile between tokens 132 ms (llama-server 129 ms).
const SLOWEST: f64 = 3.0;
const CROWD: usize = 4;
/// Of a pass with prompts alone.
const LONGEST: Duration = Duration::from_millis(250);
/// The most that a prompt counts for because it has waited long for its size: passes of 4.5 times their length, so that a crowd
/// that came at once is through before the first of it have to wait for long.
const MOST_URGENT: f64 = 5.0;
/// Even where a row is expensive, prompts get on. With one token of another they are a panel of four rows. The shape of TinyLlama-1.1B
/// in Q4_0, two streams: 99th percentile between tokens 47 to 63 ms, and 80 to 118 with 4.
const LEAST_ROWS: usize = 3;
/// Rows that kernels at least multiply together: one alone costs nearly as much. Q4_0 with AVX2, ms per product of 2, 3, 4, 6 rows:
/// 3.5, 6.5, 5.4, 8.6.
const PANEL: usize = 2;
/// More at once is not cheaper per row: the engine itself cuts there.
const MOST_ROWS: usize = 512;
/// Before anything is known: little enough for a slow board, and enough to measure.
const FIRST_ROWS: usize = 32;
/// What each pass leaves of the weight of those before it.
const KEPT: f64 = 0.9;
/// A pass that took longer than so many times what was expected counts as one that took that: something else had the machine.
const SURPRISE: f64 = 4.0;

/// What passes cost: decode · (1 + D / 8) + row · R seconds with D sequences in generation and R rows of prompts, by recursive least
/// squares. Where prompts never end there is no pass without them, so the two parts have to be told apart by how much the
/// passes differ. A pass takes weight from older ones in its own direction x = (1 + D / 8, R) alone (L. Cao, H. Schwartz: A directional
/// forgetting algorithm based on the decomposition of the information matrix, 2000): else many passes of one kind would leave
/// nothing of what others have said about the other kind.
///
/// The first pass over the weights is taken to cost what eight sequences add. That matters little: the number of sequences changes slowly.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The two costs, once a prompt has been seen.
    cost: Option<[f64; 2]>,
    /// Whether there ever was a sequence in generation.
    has_decoded: bool,
    /// Σ x · xᵀ over what is remembered of the passes.
    information: [[f64; 2]; 2],
}

impl Pace {
    /// Rows of prompts for the next pass, in which so many other sequences get a token, while so many prompts wait, or one that
    /// counts for so many.
    pub(super) fn prompt_rows(&self, decoding: usize, waiting: usize, urgency: f64) -> usize {
        let Some([decode, row_s]) = self.cost.filter(|_| decoding == 0 || self.has_decoded) else { return FIRST_ROWS };
        let time = if decoding > 0 {
            let decode_s = decode * sequences(decoding);
            let one = (STRETCH - 1.0) * decode_s;
            let slower = if waiting < CROWD { 1.0 + waiting as f64 / CROWD as f64 } else { SLOWEST };
            let readable = READABLE.as_secs_f64();
            let most = readable + (slower - 1.0) * decode_s.min(readable);
            let bearable = (most - decode_s).max(one);
            (one * urgency.max(waiting as f64)).min(bearable).min(LONGEST.as_secs_f64())
        } else {
            LONGEST.as_secs_f64()
        };
        let rows = ((time / row_s) as usize).clamp(LEAST_ROWS, MOST_ROWS);
        ((decoding + rows).next_multiple_of(PANEL) - decoding).min(MOST_ROWS)
    }

    /// For how many prompts of so many rows one counts that has waited for this time: itself, and those that could have been
    /// computed meanwhile.
    pub(super) fn urgency(&self, waited: Duration, rows: usize) -> f64 {
        let Some([_, row_s]) = self.cost else { return 1.0 };
        (1.0 + waited.as_secs_f64() / (row_s * rows.max(1) as f64)).min(MOST_URGENT)
    }

    /// What a pass took.
    pub(super) fn observe(&mut self, decoding: usize, prompt_rows: usize, took: Duration) {
        self.has_decoded |= decoding > 0;
        let x = [if decoding > 0 { sequences(decoding) } else { 0.0 }, prompt_rows as f64];
        let took = took.as_secs_f64();
        let Some([decode, row_s]) = self.cost else {
            if prompt_rows > 0 {
                self.cost = Some([0.0, took / x[1]]);
                // As little as one sequence in one pass, and one row.
                self.information = [[1.0, 0.0], [0.0, 1.0]];
            }
            return;
        };
        let expected = decode * x[0] + row_s * x[1];
        let surprise = took.min(SURPRISE * expected) - expected;
        let r = &mut self.information;
        let seen = [0, 1].map(|i| r[i][0] * x[0] + r[i][1] * x[1]);
        let along = seen[0] * x[0] + seen[1] * x[1];
        for i in 0..2 {
            for j in 0..2 {
                r[i][j] += x[i] * x[j] - (1.0 - KEPT) * seen[i] * seen[j] / along;
            }
        }
        let determinant = r[0][0] * r[1][1] - r[0][1] * r[1][0];
        let gain = [(r[1][1] * x[0] - r[0][1] * x[1]) / determinant, (r[0][0] * x[1] - r[1][0] * x[0]) / determinant];
        let decode = (decode + gain[0] * surprise).max(0.0);
        // No row is free, whatever chance says.
        self.cost = Some([decode, (row_s + gain[1] * surprise).max(decode / 1e4)]);
    }
}

/// A pass with so many sequences in generation, in units of one with none.
fn sequences(decoding: usize) -> f64 {
    1.0 + decoding as f64 / 8.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(pace: &mut Pace, decode_ms: f64, row_ms: f64) -> usize {
        for _ in 0..100 {
            pace.observe(4, 0, Duration::from_secs_f64(decode_ms / 1e3));
            let rows = pace.prompt_rows(4, 1, 1.0);
            pace.observe(4, rows, Duration::from_secs_f64((decode_ms + row_ms * rows as f64) / 1e3));
        }
        pace.prompt_rows(4, 1, 1.0)
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
        // With the four others' an even number.
        assert_eq!(settle(&mut Pace::default(), 10.0, 50.0), LEAST_ROWS + 1);
        assert_eq!(settle(&mut Pace::default(), 200.0, 0.001), MOST_ROWS);
    }

    #[test]
    fn many_that_wait_stretch_a_pass_as_far_as_can_be_read() {
        let rows = |decode_ms, waiting| {
            let mut pace = Pace::default();
            settle(&mut pace, decode_ms, 0.5);
            pace.prompt_rows(4, waiting, 1.0)
        };
        for (decode_ms, waiting, expected) in [
            (10.0, 1, 14),
            (10.0, 2, 28),
            (10.0, 4, 56),
            (10.0, 32, 120),
            (40.0, 3, 80),
            (40.0, 4, 180),
            (2.0, 80, 104),
        ] {
            let rows = rows(decode_ms, waiting);
            assert!(rows.abs_diff(expected) <= 2, "{decode_ms} {waiting}: {rows}");
        }
        // Slower than anybody reads as it is.
        assert_eq!(rows(100.0, 32), rows(100.0, 1));
    }

    #[test]
    fn who_has_waited_long_for_its_size_counts_for_several() {
        let mut pace = Pace::default();
        assert_eq!(pace.urgency(Duration::from_secs(9), 100), 1.0);
        settle(&mut pace, 10.0, 0.5);
        let urgency = |waited_ms, rows| pace.urgency(Duration::from_millis(waited_ms), rows);
        assert!((urgency(100, 100) - 3.0).abs() < 0.1, "{}", urgency(100, 100));
        assert!(urgency(100, 2000) < 1.2, "{}", urgency(100, 2000));
        assert_eq!(urgency(60_000, 100), MOST_URGENT);
    }

    /// A server that is never without prompts learns the cost of a token nevertheless, from passes that differ.
    #[test]
    fn costs_are_told_apart_where_prompts_never_end() {
        let mut pace = Pace::default();
        settle(&mut pace, 1.0, 0.3);
        for step in 0..400 {
            let rows = 20 + 7 * (step % 5);
            pace.observe(24, rows, Duration::from_secs_f64(0.010 + 0.000_3 * rows as f64));
        }
        let rows = pace.prompt_rows(24, 1, 1.0);
        assert!((19..=24).contains(&rows), "{rows}");
    }

    #[test]
    fn one_pass_that_waited_for_the_machine_changes_little() {
        let mut pace = Pace::default();
        let before = settle(&mut pace, 10.0, 0.1);
        pace.observe(4, before, Duration::from_secs(5));
        let after = pace.prompt_rows(4, 1, 1.0);
        assert!((before / 2..before * 2).contains(&after), "{before} {after}");
    }

    #[test]
    fn prompts_alone_take_passes_of_bounded_length() {
        let mut pace = Pace::default();
        assert_eq!(pace.prompt_rows(0, 1, 1.0), FIRST_ROWS);
        pace.observe(0, FIRST_ROWS, Duration::from_millis(32));
        assert_eq!(pace.prompt_rows(0, 1, 1.0), 250);
        pace.observe(0, 250, Duration::from_millis(2500));
        assert!(pace.prompt_rows(0, 1, 1.0) < 120);
    }
}
