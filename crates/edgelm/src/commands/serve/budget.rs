//! How much memory caches may take where nobody says so.

use edgelm_engine::{Engine, state_bytes};
use edgelm_kernels::{KvCache, KvDtype, available_memory};

/// Three quarters of the memory that is free once the weights are there: the rest is for activations, other programs and what
/// they come to need. No more than is of use: every lane with a full context, and as much again for prompts that are kept.
pub(super) fn default(engine: &Engine, kv: Option<KvDtype>, context: Option<usize>, parallel: usize) -> usize {
    let context = context.unwrap_or(engine.config().context_length());
    let kv = kv.unwrap_or_else(|| engine.default_kv());
    // A page more than the context: what is shared up to the next write is counted twice.
    let pages = context.div_ceil(KvCache::PAGE_TOKENS) + 1;
    let page_bytes = KvCache::page_bytes(&engine.kv_shapes(), kv);
    let lane = pages.saturating_mul(page_bytes).saturating_add(state_bytes(engine.config()));
    let useful = lane.saturating_mul(parallel).saturating_mul(2);
    available_memory().map_or(useful, |free| (free / 4 * 3).min(useful))
}
