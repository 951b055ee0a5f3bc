//! Names of beginnings that were forgotten: who comes again is worth keeping.
//!
//! Most prompts come once. Writing each of them to a disk that wears would cost far more than it brings, so what is pushed out
//! of memory before anybody came back to it is dropped, and only its name stays for a while. Where it is computed again, it was
//! wanted twice. The idea is the ghost list of Megiddo and Modha 2003 (ARC, FAST '03, §III).

use super::store::Key;
use std::collections::{BTreeSet, VecDeque};

/// Names that are remembered: some 2 MB.
const CAPACITY: usize = 1 << 14;

/// See the module.
#[derive(Default)]
pub(super) struct Ghosts {
    names: BTreeSet<Key>,
    /// Oldest first.
    order: VecDeque<Key>,
}

impl Ghosts {
    /// Remembers a name.
    pub(super) fn add(&mut self, key: Key) {
        if self.names.insert(key) {
            self.order.push_back(key);
        }
        while self.order.len() > CAPACITY {
            if let Some(oldest) = self.order.pop_front() {
                self.names.remove(&oldest);
            }
        }
    }

    /// Whether a name is remembered.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.names.contains(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_names_are_forgotten() {
        let mut ghosts = Ghosts::default();
        let key = |index: usize| Key::root(&index.to_le_bytes());
        (0..CAPACITY).for_each(|index| ghosts.add(key(index)));
        ghosts.add(key(0));
        assert!(ghosts.has(&key(0)), "a name that is there takes no place of another");
        ghosts.add(key(CAPACITY));
        let there: Vec<_> = [0, 1, CAPACITY].into_iter().map(|index| ghosts.has(&key(index))).collect();
        assert_eq!(there, [false, true, true]);
    }
}
