//! Which KV heads go: one after another, always the one without which the model, pruned so far, loses least.

use super::{allocation::Losses, layers::GoOn};
use crate::CompressError;
use edgelm_model::Edited;

/// A candidate is taken if it costs at most this part more than what the first one cost when it was last looked at. Most costs
/// rise with everything that goes: without it, nearly all of them would be measured again each time. Chosen, not measured.
const SLACK: f64 = 0.1;

/// A KV head that may go.
struct Candidate {
    layer: usize,
    head: usize,
    /// What the model loses by it in addition, when `removed` heads were gone.
    loss: f64,
    removed: usize,
}

/// Shares out `total` KV heads, of layer l at most `most[l]`: the heads that stay, per layer. `alone[l][h]` is what is lost by
/// each alone; costs are measured again, on the model as it is by then, only for what comes first by the costs known so far
/// (lazy greedy: Minoux 1978). `edited` is left with what was settled.
pub(crate) fn choose_heads<'a>(
    losses: &Losses<'a>,
    edited: &mut Edited<'a>,
    alone: &[Vec<f64>],
    most: &[usize],
    total: usize,
    go_on: &mut GoOn<'_>,
) -> Result<Vec<Vec<usize>>, CompressError> {
    let mut kept: Vec<Vec<usize>> = alone.iter().map(|heads| (0..heads.len()).collect()).collect();
    let mut candidates: Vec<Candidate> = Vec::new();
    for (layer, heads) in alone.iter().enumerate() {
        let of_head = |(head, &loss): (usize, &f64)| Candidate { layer, head, loss, removed: 0 };
        candidates.extend(heads.iter().enumerate().map(of_head));
    }
    let mut reached = 0.0;
    for removed in 0..total {
        let gone = |layer: usize| alone[layer].len() - kept[layer].len();
        candidates.retain(|candidate| gone(candidate.layer) < most[candidate.layer]);
        let chosen = loop {
            candidates.sort_by(|a, b| a.loss.total_cmp(&b.loss).then((a.layer, a.head).cmp(&(b.layer, b.head))));
            let Some(first) = candidates.first() else { return Ok(kept) };
            let is_good =
                |other: &Candidate| other.removed == removed && other.loss <= first.loss + SLACK * first.loss.abs();
            if let Some(place) = candidates.iter().position(is_good) {
                break candidates.remove(place);
            }
            let (layer, head) = (first.layer, first.head);
            go_on(&format!("loss without KV head {head} of layer {} too", edited.layers()[layer]))?;
            let rest: Vec<usize> = kept[layer].iter().copied().filter(|other| *other != head).collect();
            let loss = losses.without(edited, layer, &rest)? - reached;
            candidates[0] = Candidate { layer, head, loss, removed };
        };
        reached += chosen.loss;
        kept[chosen.layer].retain(|head| *head != chosen.head);
        if removed + 1 < total {
            losses.settle(edited, chosen.layer, &kept[chosen.layer])?;
        }
    }
    Ok(kept)
}
