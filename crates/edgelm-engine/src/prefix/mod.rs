//! Beginnings of sequences, kept for those that begin the same: a tree of cache pages.
//!
//! A node is a page of tokens behind its parent's; a leaf may hold fewer tokens than a page. Keys and values of any number of
//! a node's first tokens can be shared (the reader of a part copies the page when it writes on). The states of layers that
//! are not attention cannot: they fit behind exactly the tokens they were taken at, so a model with such layers goes on from
//! nodes with states only. Sequences of different adapters share nothing.
//!
//! Where there is a [`KvStore`], what has to go is written to it if somebody came back to it before, and comes back from there when
//! somebody begins the same. What nobody touches for a while is written too, whoever used it: see [`PrefixCache::save_next`].
//!
//! The idea is the radix tree of Zheng et al. 2024 (SGLang, arXiv:2312.07104, §3), with pages for edges.

mod ghosts;
mod store;

pub use store::{KvStore, StoreState};

use crate::{LoadedAdapter, Sequence, block::State, engine::Past};
use edgelm_kernels::{KvCache, KvPages};
use ghosts::Ghosts;
use std::{
    collections::{BTreeMap, BTreeSet},
    process,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use store::{Key, Record};

const PAGE: usize = KvCache::PAGE_TOKENS;

type NodeId = u64;

/// The tree. Memory is the caller's to bound: see [`PrefixCache::bytes`] and [`PrefixCache::evict`].
#[derive(Default)]
pub(crate) struct PrefixCache {
    nodes: BTreeMap<NodeId, Node>,
    roots: Vec<Root>,
    next: NodeId,
    clock: u64,
    page_bytes: usize,
    state_bytes: usize,
    bytes: usize,
    store: Option<Arc<KvStore>>,
    /// Nodes that the store has not been given yet; empty without one.
    unsaved: BTreeSet<NodeId>,
    /// What went without being written.
    ghosts: Ghosts,
}

/// What became of a wish to write something to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saving {
    /// It has a page more than before.
    Written,
    /// Nothing yet; there will be something after this time, if nobody touches it until then.
    After(Duration),
    /// There is nothing to write, or it cannot be.
    Nothing,
}

/// Where the sequences of one adapter begin.
struct Root {
    adapter: Option<Arc<LoadedAdapter>>,
    key: Key,
    children: Vec<NodeId>,
}

struct Node {
    parent: Parent,
    /// Of all tokens up to its end.
    key: Key,
    children: Vec<NodeId>,
    /// 1 to a page; fewer than a page in leaves only.
    tokens: Box<[u32]>,
    pages: KvPages,
    /// After the last of `tokens`.
    states: Option<Box<[State]>>,
    last_used: u64,
    touched: Instant,
    /// Somebody came back to it: worth a place on a disk.
    is_wanted: bool,
}

impl Node {
    fn touch(&mut self, clock: u64) {
        self.last_used = clock;
        self.touched = Instant::now();
    }
}

#[derive(Clone, Copy)]
enum Parent {
    Root(usize),
    Node(NodeId),
}

/// A beginning that is there: nodes from the root on, and how many tokens of the last one count.
pub(crate) struct Match {
    path: Vec<NodeId>,
    /// Tokens of them all.
    pub(crate) tokens: usize,
    /// Tokens that are the same in the tree, also where no states are at hand to go on from.
    pub(crate) seen: usize,
}

impl PrefixCache {
    /// Empty, for a model whose pages (all layers) and states take so many bytes. `store` is that model's.
    pub(crate) fn new(page_bytes: usize, state_bytes: usize, store: Option<Arc<KvStore>>) -> Self {
        Self { page_bytes, state_bytes, store, ..Self::default() }
    }

    /// Memory of all pages and states in the tree, those that sequences hold too included.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The longest beginning of `tokens` to go on from.
    pub(crate) fn find(&mut self, adapter: Option<&Arc<LoadedAdapter>>, tokens: &[u32]) -> Match {
        let mut path = Vec::new();
        let mut best = Match { path: Vec::new(), tokens: 0, seen: 0 };
        let Some(root) = self.root(adapter) else { return best };
        self.clock += 1;
        let mut children = &self.roots[root].children;
        let mut seen = 0;
        loop {
            let rest = &tokens[seen..];
            let same = |id: &NodeId| self.nodes[id].tokens.iter().zip(rest).take_while(|(a, b)| a == b).count();
            if self.state_bytes > 0 {
                let ends = children.iter().filter(|id| self.nodes[id].states.is_some());
                let ends = ends.filter(|id| same(id) == self.nodes[id].tokens.len());
                if let Some(&id) = ends.max_by_key(|id| same(id)) {
                    let tokens = seen + self.nodes[&id].tokens.len();
                    best = Match { path: path.iter().copied().chain([id]).collect(), tokens, seen };
                }
            }
            let Some(&id) = children.iter().max_by_key(|id| same(id)) else { break };
            let count = same(&id);
            if count == 0 {
                break;
            }
            path.push(id);
            seen += count;
            if count < PAGE {
                break;
            }
            children = &self.nodes[&id].children;
        }
        if self.state_bytes == 0 {
            best = Match { path, tokens: seen, seen };
        }
        best.seen = seen;
        for id in &best.path {
            if let Some(node) = self.nodes.get_mut(id) {
                node.touch(self.clock);
            }
        }
        best
    }

    /// Another request goes on from a beginning that was kept: it is worth more from now on than one that came once. Of the
    /// last page at least half has to be the same; every prompt has its first token in common with another.
    pub(crate) fn is_taken(&mut self, found: &Match) {
        let mut left = found.tokens;
        for id in &found.path {
            let Some(node) = self.nodes.get_mut(id) else { return };
            let count = node.tokens.len().min(left);
            left -= count;
            node.is_wanted |= 2 * count >= node.tokens.len();
        }
    }

    /// What a sequence takes over.
    pub(crate) fn past(&self, found: &Match) -> Past<'_> {
        let mut left = found.tokens;
        let mut pages = Vec::with_capacity(found.path.len());
        let mut states = None;
        for id in &found.path {
            let node = &self.nodes[id];
            let count = node.tokens.len().min(left);
            pages.push((&node.pages, &node.tokens[..count]));
            states = node.states.as_deref();
            left -= count;
        }
        Past { pages, states }
    }

    /// Brings back from the store what it has of the beginning of `tokens` beyond what memory has, as far as `budget` bytes allow
    /// for the tree; older beginnings go for it. Nothing that a sequence holds is touched.
    pub(crate) fn fetch(&mut self, adapter: Option<&Arc<LoadedAdapter>>, tokens: &[u32], budget: usize) {
        let Some(store) = self.store.clone() else { return };
        let root = self.root_or_new(adapter);
        self.clock += 1;
        let now = self.clock;
        let (mut parent, mut rest) = (Parent::Root(root), tokens);
        // Down to where memory ends.
        let known = loop {
            let same = |id: &NodeId| self.nodes[id].tokens.iter().zip(rest).take_while(|(a, b)| a == b).count();
            let best = self.children(parent).iter().copied().max_by_key(|id| same(id));
            match best.map(|id| (id, same(&id))) {
                Some((id, PAGE)) => {
                    if let Some(node) = self.nodes.get_mut(&id) {
                        node.touch(now);
                    }
                    (parent, rest) = (Parent::Node(id), &rest[PAGE..]);
                }
                best => break best.map_or(0, |(_, count)| count),
            }
        };
        for record in self.stored(&store, self.key(parent), rest, known) {
            while self.bytes + self.page_bytes + self.state_bytes > budget {
                if !self.evict_unused_since(now) {
                    return;
                }
            }
            let Some(content) = store.read(&record) else { return };
            let states = content.states.as_deref();
            let Some(id) = self.put(parent, &record.tokens, states, || content.pages) else { return };
            self.unsaved.remove(&id);
            if let Some(node) = self.nodes.get_mut(&id) {
                node.is_wanted = true;
            }
            parent = Parent::Node(id);
        }
    }

    /// Records that continue a beginning with the first of `tokens`, in order, if more of them than `known` can be used.
    fn stored(&self, store: &KvStore, from: Key, tokens: &[u32], known: usize) -> Vec<Record> {
        let (mut key, mut rest) = (from, tokens);
        let mut found: Vec<Record> = Vec::new();
        let mut usable = (0, 0);
        while let Some((record, count)) = store.find(&key, rest) {
            let is_whole = count == record.tokens.len();
            (key, rest) = (record.key, &rest[count..]);
            let is_end = count < PAGE;
            let can_go_on = self.state_bytes == 0 || record.has_states && is_whole;
            found.push(record);
            if can_go_on {
                usable = (found.len(), tokens.len() - rest.len());
            }
            if is_end {
                break;
            }
        }
        // With states memory may know the tokens and still have nothing to go on from.
        found.truncate(if usable.1 > known || self.state_bytes > 0 { usable.0 } else { 0 });
        found
    }

    /// Writes a page to the store that it does not have yet and that nobody has touched for this time.
    pub(crate) fn save_next(&mut self, untouched: Duration) -> Saving {
        let Some(store) = self.store.clone() else { return Saving::Nothing };
        let now = Instant::now();
        let mut soonest: Option<Duration> = None;
        let unsaved = self.unsaved.iter().filter_map(|id| Some((*id, self.nodes.get(id)?.touched)));
        let due = unsaved.into_iter().find(|(_, touched)| {
            let left = untouched.saturating_sub(now.saturating_duration_since(*touched));
            if !left.is_zero() {
                soonest = Some(soonest.map_or(left, |soonest| soonest.min(left)));
            }
            left.is_zero()
        });
        let Some((mut id, _)) = due else { return soonest.map_or(Saving::Nothing, Saving::After) };
        // What was saved must be found again, so the beginning goes first.
        while let Some(Parent::Node(parent)) = self.nodes.get(&id).map(|node| node.parent)
            && self.unsaved.contains(&parent)
        {
            id = parent;
        }
        let before = store.state().failed_writes;
        self.save(id);
        // A full disk: there is no use in trying the rest.
        if store.state().failed_writes > before { Saving::Nothing } else { Saving::Written }
    }

    /// True where the store has the node now.
    fn save(&mut self, id: NodeId) -> bool {
        self.unsaved.remove(&id);
        let (Some(store), Some(node)) = (&self.store, self.nodes.get(&id)) else { return false };
        let states = node.states.as_deref();
        store.contains(&node.key, states.is_some())
            || store.write(node.key, self.key(node.parent), &node.tokens, &node.pages, states)
    }

    /// For what has to go.
    fn save_if_wanted(&mut self, id: NodeId) {
        if self.store.is_none() {
            return;
        }
        match self.nodes.get(&id) {
            Some(node) if node.is_wanted => _ = self.save(id),
            Some(node) => self.ghosts.add(node.key),
            None => {}
        }
    }

    /// Keeps what a sequence holds. Returns what of it is in the tree now, for the sequence to share.
    pub(crate) fn insert(&mut self, adapter: Option<&Arc<LoadedAdapter>>, sequence: &Sequence) -> Match {
        self.clock += 1;
        let root = self.root_or_new(adapter);
        let tokens = sequence.tokens();
        let mut parent = Parent::Root(root);
        let mut kept = Match { path: Vec::new(), tokens: 0, seen: 0 };
        for (index, chunk) in tokens.chunks(PAGE).enumerate() {
            let is_end = index * PAGE + chunk.len() == tokens.len();
            let states = if is_end { sequence.states() } else { None };
            let Some(id) = self.put(parent, chunk, states, || sequence.share_page(index)) else { break };
            kept.path.push(id);
            kept.tokens += chunk.len();
            parent = Parent::Node(id);
        }
        kept.seen = kept.tokens;
        kept
    }

    /// The child of `parent` with these tokens: the one that is there, or a new one. None where a part of a page would be
    /// kept that others hold already.
    fn put(
        &mut self,
        parent: Parent,
        tokens: &[u32],
        states: Option<&[State]>,
        pages: impl FnOnce() -> KvPages,
    ) -> Option<NodeId> {
        let clock = self.clock;
        let find =
            |keep: &dyn Fn(&Node) -> bool| self.children(parent).iter().copied().find(|id| keep(&self.nodes[id]));
        if let Some(id) = find(&|node| *node.tokens == *tokens) {
            let node = self.nodes.get_mut(&id)?;
            node.touch(clock);
            if let (None, Some(states)) = (&node.states, states) {
                node.states = Some(states.into());
                self.bytes += self.state_bytes;
                if self.store.is_some() {
                    self.unsaved.insert(id);
                }
            }
            return Some(id);
        }
        if states.is_none() {
            // Without states a part is worth nothing beside the whole.
            if self.state_bytes > 0 && tokens.len() < PAGE {
                return None;
            }
            if let Some(id) = find(&|node| node.tokens.starts_with(tokens)) {
                self.nodes.get_mut(&id)?.touch(clock);
                return None;
            }
            while let Some(part) = self.children(parent).iter().copied().find(|id| {
                let node = &self.nodes[id];
                node.states.is_none() && tokens.starts_with(&node.tokens)
            }) {
                self.remove(part);
            }
        }
        let id = self.next;
        self.next += 1;
        let states = states.map(Box::from);
        let key = self.key(parent).child(tokens);
        let (children, tokens, pages) = (Vec::new(), tokens.into(), pages());
        let (touched, is_wanted) = (Instant::now(), self.ghosts.has(&key));
        let node = Node { parent, key, children, tokens, pages, states, last_used: clock, touched, is_wanted };
        self.bytes += self.node_bytes(&node);
        if self.store.is_some() {
            self.unsaved.insert(id);
        }
        self.nodes.insert(id, node);
        self.children_mut(parent).push(id);
        Some(id)
    }

    /// Frees something that was not used for longest and that no sequence holds; false where there is nothing.
    pub(crate) fn evict(&mut self) -> bool {
        self.evict_unused_since(u64::MAX)
    }

    fn evict_unused_since(&mut self, time: u64) -> bool {
        let oldest = |keep: &dyn Fn(&Node) -> bool| {
            let nodes = self.nodes.iter().filter(|(_, node)| node.last_used < time && keep(node));
            nodes.min_by_key(|(_, node)| node.last_used).map(|(&id, _)| id)
        };
        if let Some(id) = oldest(&|node| node.children.is_empty() && !node.pages.is_shared()) {
            self.save_if_wanted(id);
            self.remove(id);
            return true;
        }
        // States are copied, never shared: they can always go.
        match oldest(&|node| node.states.is_some()) {
            Some(id) => {
                self.save_if_wanted(id);
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.states = None;
                    self.bytes -= self.state_bytes;
                }
                true
            }
            None => false,
        }
    }

    fn remove(&mut self, id: NodeId) {
        let Some(node) = self.nodes.remove(&id) else { return };
        self.unsaved.remove(&id);
        self.bytes -= self.node_bytes(&node);
        self.children_mut(node.parent).retain(|&child| child != id);
    }

    fn node_bytes(&self, node: &Node) -> usize {
        self.page_bytes + if node.states.is_some() { self.state_bytes } else { 0 }
    }

    fn root(&self, adapter: Option<&Arc<LoadedAdapter>>) -> Option<usize> {
        let same = |root: &Root| match (&root.adapter, adapter) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        self.roots.iter().position(same)
    }

    fn root_or_new(&mut self, adapter: Option<&Arc<LoadedAdapter>>) -> usize {
        self.root(adapter).unwrap_or_else(|| {
            let who = match adapter {
                None => String::new(),
                // An adapter is known for as long as it is loaded, so what its sequences leave in a store is lost on a restart.
                Some(adapter) => format!("{} {:?} {:p}", process::id(), SystemTime::now(), Arc::as_ptr(adapter)),
            };
            let (adapter, key) = (adapter.cloned(), Key::root(who.as_bytes()));
            self.roots.push(Root { adapter, key, children: Vec::new() });
            self.roots.len() - 1
        })
    }

    fn key(&self, parent: Parent) -> Key {
        match parent {
            Parent::Root(root) => self.roots[root].key,
            Parent::Node(id) => self.nodes[&id].key,
        }
    }

    fn children(&self, parent: Parent) -> &[NodeId] {
        match parent {
            Parent::Root(root) => &self.roots[root].children,
            Parent::Node(id) => &self.nodes[&id].children,
        }
    }

    fn children_mut(&mut self, parent: Parent) -> &mut Vec<NodeId> {
        match parent {
            Parent::Root(root) => &mut self.roots[root].children,
            Parent::Node(id) => &mut self.nodes.get_mut(&id).expect("a parent outlives its children").children,
        }
    }
}
