//! Memory before a model is loaded: what it needs against what is left, with something kept free.
//!
//! A process that allocates beyond its limit is killed, or aborts, in the middle of an answer. So everything that a model may
//! come to take is added up first; what does not fit is made smaller (caches, then generations at once), and said; what cannot
//! be made to fit is refused with the figures.

mod limits;

pub use limits::{BLOCKING_THREADS, Limit, Limits, THREADS_BYTES};

use crate::models::{MemoryPlan, PlanError, Room};

/// What a model would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Prepared weights.
    pub weights_bytes: u64,
    /// Activations, logits, tokenizer: whatever is not weights or caches.
    pub work_bytes: u64,
    /// Files that stay mapped; they count against the address space only.
    pub mapped_bytes: u64,
    /// A page of the cache, all layers.
    pub page_bytes: u64,
    /// Tokens of a page.
    pub page_tokens: u64,
    /// States of a sequence, however long.
    pub state_bytes: u64,
    /// Context in tokens.
    pub context: u64,
    /// Generations at once.
    pub parallel: usize,
    /// Caches as asked for; `None` = what is of use.
    pub kv_bytes: Option<u64>,
    /// Models that share the memory, for what is taken where nothing is asked for.
    pub models: u64,
}

/// A sequence below this is of no use.
const LEAST_TOKENS: u64 = 512;
/// Kept free: a sixteenth of what is left, within bounds.
const LEAST_HEADROOM: u64 = 16 << 20;
const MOST_HEADROOM: u64 = 1 << 30;

impl Need {
    /// A sequence of so many tokens. A page more: what is shared up to the next write is counted twice.
    fn lane(&self, tokens: u64) -> u64 {
        let pages = tokens.div_ceil(self.page_tokens.max(1)) + 1;
        pages.saturating_mul(self.page_bytes).saturating_add(self.state_bytes)
    }

    /// Plans with the limits of the process.
    ///
    /// # Errors
    /// It does not fit, however small its caches are.
    pub fn plan(&self, room: &Room, limits: &Limits) -> Result<MemoryPlan, PlanError> {
        let fixed = self.weights_bytes.saturating_add(self.work_bytes);
        let least_kv = self.lane(self.context.min(LEAST_TOKENS));
        let full = self.lane(self.context);
        let useful = full.saturating_mul(self.parallel as u64).saturating_mul(2);
        // Memory that models will take but have not touched is not free, whatever the system says.
        let untouched = room.committed_bytes.saturating_sub(limits.own_bytes);
        let mut tightest: Option<(String, u64, u64)> = None;
        let mut bound = |name: String, left: u64, headroom: u64, mapped: u64| {
            let space = left.saturating_sub(headroom).saturating_sub(mapped);
            if tightest.as_ref().is_none_or(|(_, other, _)| space < *other) {
                tightest = Some((name, space, left));
            }
        };
        for limit in &limits.limits {
            let left = limit.left_bytes.saturating_sub(untouched);
            let headroom = (left / 16).clamp(LEAST_HEADROOM, MOST_HEADROOM);
            bound(limit.name.clone(), left, headroom, if limit.counts_mappings { self.mapped_bytes } else { 0 });
        }
        if let Some(left) = room.budget_bytes {
            bound("the budget for models (--memory)".to_owned(), left, 0, 0);
        }
        let (name, space, left) = tightest.unwrap_or(("no limit".to_owned(), u64::MAX, u64::MAX));
        let kv_space = space.saturating_sub(fixed);
        if fixed > space || kv_space < least_kv {
            return Err(PlanError::Memory(format!(
                "the model needs {} bytes (weights {}, work space {}, caches at least {least_kv}), but only {space} of the \
                 {left} bytes that {name} leaves may be used",
                fixed.saturating_add(least_kv),
                self.weights_bytes,
                self.work_bytes,
            )));
        }
        let mut notes = Vec::new();
        let kv = match self.kv_bytes {
            Some(asked) if asked > kv_space => {
                notes.push(format!("caches get {kv_space} bytes instead of {asked}: {name} leaves no more"));
                kv_space
            }
            Some(asked) => asked,
            // The rest is for other models, other programs and what they come to need.
            None => useful.min(kv_space / 4 * 3 / self.models.max(1)).max(least_kv.min(kv_space)),
        };
        let lanes = kv / least_kv.max(1);
        let parallel = self.parallel.min(usize::try_from(lanes).unwrap_or(usize::MAX)).max(1);
        if parallel < self.parallel {
            notes.push(format!("{parallel} generations at once instead of {}: caches have {kv} bytes", self.parallel));
        }
        if kv < full {
            let tokens =
                (kv.saturating_sub(self.state_bytes) / self.page_bytes.max(1)).saturating_sub(1) * self.page_tokens;
            notes.push(format!("requests of up to {tokens} tokens fit, of a context of {}", self.context));
        }
        Ok(MemoryPlan {
            total_bytes: fixed.saturating_add(kv),
            kv_bytes: usize::try_from(kv).unwrap_or(usize::MAX),
            parallel,
            is_cramped: kv < full,
            notes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;
    /// A context of 4096 tokens takes 65 MB.
    const NEED: Need = Need {
        weights_bytes: 500 * MB,
        work_bytes: 50 * MB,
        mapped_bytes: 400 * MB,
        page_bytes: MB,
        page_tokens: 64,
        state_bytes: 0,
        context: 4096,
        parallel: 4,
        kv_bytes: None,
        models: 1,
    };

    fn limits(left_bytes: u64, counts_mappings: bool) -> Limits {
        Limits { limits: vec![Limit { name: "a test".to_owned(), left_bytes, counts_mappings }], own_bytes: 0 }
    }

    fn plan(need: Need, left: u64) -> Result<MemoryPlan, PlanError> {
        need.plan(&Room::default(), &limits(left, false))
    }

    #[test]
    fn with_room_caches_get_what_is_of_use() {
        let plan = plan(NEED, 10_000 * MB).expect("fits");
        assert_eq!((plan.kv_bytes as u64, plan.total_bytes, plan.parallel), (520 * MB, 1070 * MB, 4));
        assert!(!plan.is_cramped && plan.notes.is_empty());
    }

    #[test]
    fn caches_shrink_then_parallel_then_it_is_refused() {
        let all = plan(Need { kv_bytes: Some(300 * MB), ..NEED }, 1000 * MB).expect("fits");
        assert_eq!((all.kv_bytes as u64, all.notes.len()), (300 * MB, 0));
        let less = plan(Need { kv_bytes: Some(300 * MB), ..NEED }, 750 * MB).expect("fits");
        assert!((150 * MB..160 * MB).contains(&(less.kv_bytes as u64)) && less.parallel == 4 && less.notes.len() == 1);
        let few = plan(Need { kv_bytes: Some(300 * MB), ..NEED }, 610 * MB).expect("fits");
        assert!(few.parallel < 4 && few.is_cramped && few.notes.len() == 3, "{few:?}");
        let message = plan(NEED, 570 * MB).expect_err("too little").to_string();
        assert!(message.contains("559000000 bytes") && message.contains("a test"), "{message}");
    }

    #[test]
    fn mappings_count_in_the_address_space_only() {
        assert!(NEED.plan(&Room::default(), &limits(900 * MB, true)).is_err());
        assert!(NEED.plan(&Room::default(), &limits(900 * MB, false)).is_ok());
    }

    #[test]
    fn what_other_models_have_not_touched_yet_is_taken() {
        let room = Room { budget_bytes: None, committed_bytes: 800 * MB };
        let mut limits = limits(1000 * MB, false);
        assert!(NEED.plan(&room, &limits).is_err());
        limits.own_bytes = 700 * MB;
        assert!(NEED.plan(&room, &limits).is_ok());
        let room = Room { budget_bytes: Some(400 * MB), committed_bytes: 0 };
        assert!(NEED.plan(&room, &limits).expect_err("too little").to_string().contains("--memory"));
    }
}
