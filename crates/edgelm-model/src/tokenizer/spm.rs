//! SentencePiece vocabularies of the BPE kind: from scores to merges and back.
//!
//! SentencePiece joins, again and again, the two neighbours whose joined text is the token of the highest score; how
//! the token splits does not matter. A BPE model with every split of every token as a merge, ordered by score, does
//! the same.

use crate::ModelError;
use std::collections::{HashMap, HashSet};

/// Tokens longer than this are refused: the work per token grows with the square of its length, and the longest
/// tokens of real vocabularies (runs of spaces or dashes) stay well below it.
const MAX_TOKEN_BYTES: usize = 512;

/// A merge by the ids of its two parts and of its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Merge {
    pub left: u32,
    pub right: u32,
    pub joined: u32,
}

/// Every way to split a token into two tokens, for all tokens that `may_merge`, best score first; equal scores in the
/// order of ids.
///
/// `tokens` and `scores` are of one length; `ids` maps each text to its index.
pub(super) fn merges_from_scores(
    tokens: &[String],
    scores: &[f32],
    ids: &HashMap<&str, u32>,
    may_merge: impl Fn(u32) -> bool,
) -> Result<Vec<Merge>, ModelError> {
    let mut merges = Vec::new();
    for (joined, token) in (0u32..).zip(tokens) {
        if !may_merge(joined) {
            continue;
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(ModelError::Tokenizer(format!("token {joined} has {} bytes", token.len())));
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                merges.push(Merge { left, right, joined });
            }
        }
    }
    merges.sort_by(|a, b| scores[b.joined as usize].total_cmp(&scores[a.joined as usize]));
    Ok(merges)
}

/// Scores that bring the tokens into the order of the merges that make them: minus the rank of a token's first merge,
/// and for tokens that no merge makes a value below all of these.
pub(super) fn scores_from_merges(token_count: usize, merges: &[Merge]) -> Vec<f32> {
    let lowest = -(merges.len() as f32) - 1.0;
    let mut scores = vec![lowest; token_count];
    for (rank, merge) in merges.iter().enumerate().rev() {
        scores[merge.joined as usize] = -(rank as f32);
    }
    scores
}

/// Whether merges say no more than scores do: all splits of a token are there, one after the other.
pub(super) fn are_equivalent(merges: &[Merge], derived: &[Merge]) -> bool {
    let mut finished = HashSet::new();
    let mut current = None;
    for merge in merges {
        if current != Some(merge.joined) && !finished.insert(merge.joined) {
            return false;
        }
        current = Some(merge.joined);
    }
    merges.len() == derived.len() && merges.iter().collect::<HashSet<_>>() == derived.iter().collect()
}
