//! Guesses from the text itself: summaries, corrections, code and structured answers repeat what is there.

/// Longer matches say no more.
const LONGEST: usize = 16;
/// A single token has followed too many others.
const SHORTEST: usize = 2;

/// Up to `most` tokens that followed the longest part of the end of `known` that was there before; of equally long ones, the
/// last.
pub(super) fn guess(known: &[u32], most: usize) -> Vec<u32> {
    let mut best = (SHORTEST - 1, 0);
    for end in (1..known.len()).rev() {
        let (before, all) = (known[..end].iter().rev(), known.iter().rev());
        let length = before.zip(all).take(LONGEST).take_while(|(a, b)| a == b).count();
        if length > best.0 {
            best = (length, end);
            if length == LONGEST {
                break;
            }
        }
    }
    match best {
        (SHORTEST.., end) => known[end..].iter().copied().take(most).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::guess;

    #[test]
    fn the_longest_and_then_the_last_match_counts() {
        assert_eq!(guess(&[1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], 2), [4, 9]);
        assert_eq!(guess(&[7, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], 3), [5, 1, 2]);
        assert_eq!(guess(&[1, 1, 1, 1], 8), [1]);
    }

    #[test]
    fn one_token_is_no_match() {
        assert!(guess(&[1, 2, 3, 4, 3], 4).is_empty());
        assert!(guess(&[3], 4).is_empty());
        assert!(guess(&[], 4).is_empty());
    }
}
