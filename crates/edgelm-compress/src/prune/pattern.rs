//! Which zeros are allowed: anywhere, in every few columns, or in rectangles.

use crate::CompressError;
use std::{cmp::Ordering, fmt, str::FromStr};

/// Where zeros may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Anywhere.
    Unstructured,
    /// `keep` weights of every `of` along a row: `2:4`, `4:8`.
    NOfM {
        /// Weights that stay.
        keep: usize,
        /// Columns of a group.
        of: usize,
    },
    /// Whole rectangles of `rows` × `columns`.
    Block {
        /// Height.
        rows: usize,
        /// Width.
        columns: usize,
    },
}

/// How many zeros, and where.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sparsity {
    fraction: f64,
    pattern: Pattern,
}

/// Among which weights the least are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Each row (each row of rectangles) loses the same part.
    Row,
    /// The matrix loses it where it is least.
    Matrix,
}

/// Rectangles wider or higher than any hardware's tile are a slip of the finger.
const MAX_SIDE: usize = 1024;

impl FromStr for Pattern {
    type Err = CompressError;

    fn from_str(text: &str) -> Result<Self, CompressError> {
        let pair = |text: &str, by| {
            let (a, b) = text.split_once(by)?;
            Some((a.parse().ok()?, b.parse().ok()?))
        };
        if text == "unstructured" {
            return Ok(Pattern::Unstructured);
        }
        if let Some((rows, columns)) = text.strip_prefix("block:").and_then(|sides| pair(sides, 'x'))
            && (1..=MAX_SIDE).contains(&rows)
            && (1..=MAX_SIDE).contains(&columns)
        {
            return Ok(Pattern::Block { rows, columns });
        }
        match pair(text, ':') {
            Some((keep, of)) if (1..of).contains(&keep) && of <= MAX_SIDE => Ok(Pattern::NOfM { keep, of }),
            _ => Err(CompressError::BadPattern(text.to_owned())),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Unstructured => f.write_str("unstructured"),
            Pattern::NOfM { keep, of } => write!(f, "{keep}:{of}"),
            Pattern::Block { rows, columns } => write!(f, "block:{rows}x{columns}"),
        }
    }
}

impl Sparsity {
    /// `fraction` of zeros in (0, 1); where the pattern implies it, it may be left out and must not differ.
    pub fn new(fraction: Option<f64>, pattern: Pattern) -> Result<Self, CompressError> {
        let implied = match pattern {
            Pattern::NOfM { keep, of } => Some(1.0 - keep as f64 / of as f64),
            Pattern::Unstructured | Pattern::Block { .. } => None,
        };
        let setting = |problem: String| CompressError::Setting {
            what: "--sparsity",
            value: fraction.map_or_else(|| "not given".to_owned(), |value| value.to_string()),
            problem,
        };
        match (fraction, implied) {
            (Some(given), Some(implied)) if given != implied => {
                Err(setting(format!("pattern {pattern} means {implied}")))
            }
            (_, Some(fraction)) => Ok(Self { fraction, pattern }),
            (Some(fraction), None) if fraction > 0.0 && fraction < 1.0 => Ok(Self { fraction, pattern }),
            (_, None) => Err(setting(format!("pattern {pattern} needs a fraction between 0 and 1"))),
        }
    }

    /// Fraction of zeros.
    pub fn fraction(&self) -> f64 {
        self.fraction
    }

    /// Where they may stand.
    pub fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// Columns that must be decided together.
    pub(crate) fn columns_together(&self) -> usize {
        match self.pattern {
            Pattern::Unstructured => 1,
            Pattern::NOfM { of, .. } => of,
            Pattern::Block { columns, .. } => columns,
        }
    }

    /// Errors where a matrix `[N, K]` is not whole groups.
    pub(crate) fn check(&self, rows: usize, columns: usize) -> Result<(), CompressError> {
        let height = if let Pattern::Block { rows, .. } = self.pattern { rows } else { 1 };
        if rows.is_multiple_of(height) && columns.is_multiple_of(self.columns_together()) {
            return Ok(());
        }
        Err(CompressError::PatternShape { pattern: self.pattern, rows, columns })
    }

    /// Rectangles that stand for one decision in a matrix `[N, K]`.
    fn side(&self) -> (usize, usize) {
        if let Pattern::Block { rows, columns } = self.pattern { (rows, columns) } else { (1, 1) }
    }

    /// True where a weight stays: those of the largest `scores` `[N, K]`, which are not negative. Equal scores: the earlier
    /// weight goes first. Panics if the shape was not checked.
    pub(crate) fn mask(&self, scores: &[f32], columns: usize, scope: Scope) -> Vec<bool> {
        let mut kept = vec![true; scores.len()];
        if let Pattern::NOfM { keep, of } = self.pattern {
            for (scores, kept) in scores.chunks_exact(of).zip(kept.chunks_exact_mut(of)) {
                drop_least(scores, of - keep).into_iter().for_each(|index| kept[index] = false);
            }
            return kept;
        }
        let (height, width) = self.side();
        let per_row = columns / width;
        let totals =
            if (height, width) == (1, 1) { scores.to_vec() } else { block_sums(scores, columns, height, width) };
        let chunk = match scope {
            Scope::Row => per_row,
            Scope::Matrix => totals.len(),
        };
        let count = (chunk as f64 * self.fraction).round() as usize;
        for (part, totals) in totals.chunks(chunk.max(1)).enumerate() {
            for index in drop_least(totals, count) {
                let block = part * chunk + index;
                let (top, left) = (block / per_row * height, block % per_row * width);
                (top..top + height).for_each(|row| kept[row * columns + left..][..width].fill(false));
            }
        }
        kept
    }
}

/// Σ over each rectangle, in rows of rectangles.
fn block_sums(scores: &[f32], columns: usize, height: usize, width: usize) -> Vec<f32> {
    let mut sums = Vec::with_capacity(scores.len() / (height * width).max(1));
    for rows in scores.chunks_exact(columns * height) {
        for left in (0..columns).step_by(width) {
            sums.push(rows.chunks_exact(columns).flat_map(|row| &row[left..left + width]).sum());
        }
    }
    sums
}

/// The places of the `count` least.
fn drop_least(scores: &[f32], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..scores.len()).collect();
    let order = |&a: &usize, &b: &usize| -> Ordering { scores[a].total_cmp(&scores[b]).then(a.cmp(&b)) };
    if count == 0 || count >= places.len() {
        places.truncate(count);
        return places;
    }
    places.select_nth_unstable_by(count - 1, order);
    places.truncate(count);
    places
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn patterns_are_read_and_printed() {
        for text in ["unstructured", "2:4", "4:8", "block:1x8", "block:16x16"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
        for text in ["", "2", "4:4", "0:4", "5:4", "block:0x4", "block:4", "block:4x", "2:4:8", "block:9999x1"] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn fractions_are_checked() {
        let two_of_four = "2:4".parse().unwrap();
        assert_eq!(Sparsity::new(None, two_of_four).unwrap().fraction(), 0.5);
        assert_eq!(Sparsity::new(Some(0.5), two_of_four).unwrap().fraction(), 0.5);
        assert!(Sparsity::new(Some(0.6), two_of_four).is_err());
        for bad in [None, Some(0.0), Some(1.0), Some(-0.1), Some(f64::NAN)] {
            assert!(Sparsity::new(bad, Pattern::Unstructured).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn masks_keep_the_largest_where_the_pattern_allows() {
        let scores = [3.0, 1.0, 2.0, 0.0, 9.0, 8.0, 7.0, 6.0];
        let places = |mask: Vec<bool>| -> Vec<usize> { (0..mask.len()).filter(|&i| mask[i]).collect() };
        let half = Sparsity::new(Some(0.5), Pattern::Unstructured).unwrap();
        assert_eq!(places(half.mask(&scores, 4, Scope::Row)), [0, 2, 4, 5]);
        assert_eq!(places(half.mask(&scores, 4, Scope::Matrix)), [4, 5, 6, 7]);
        let pairs = Sparsity::new(None, "1:2".parse().unwrap()).unwrap();
        assert_eq!(places(pairs.mask(&scores, 4, Scope::Matrix)), [0, 2, 4, 6]);
        let blocks = Sparsity::new(Some(0.5), "block:2x2".parse().unwrap()).unwrap();
        assert_eq!(places(blocks.mask(&scores, 4, Scope::Row)), [0, 1, 4, 5]);
        assert!(blocks.check(2, 4).is_ok());
        assert!(blocks.check(3, 4).is_err() && blocks.check(2, 5).is_err());
    }
}
