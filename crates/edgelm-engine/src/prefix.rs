//! Beginnings of sequences, kept for those that begin the same: a tree of cache pages.
//!
//! A node is a page of tokens behind its parent's; a leaf may hold fewer tokens than a page. Keys and values of any number of
//! a node's first tokens can be shared (the reader of a part copies the page when it writes on). The states of layers that
//! are not attention cannot: they fit behind exactly the tokens they were taken at, so a model with such layers goes on from
//! nodes with states only. Sequences of different adapters share nothing.
//!
//! The idea is the radix tree of Zheng et al. 2024 (SGLang, arXiv:2312.07104, §3), with pages for edges.

use crate::{LoadedAdapter, Sequence, block::State, engine::Past};
use edgelm_kernels::{KvCache, KvPages};
use std::{collections::BTreeMap, sync::Arc};

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
}

/// Where the sequences of one adapter begin.
struct Root {
    adapter: Option<Arc<LoadedAdapter>>,
    children: Vec<NodeId>,
}

struct Node {
    parent: Parent,
    children: Vec<NodeId>,
    /// 1 to a page; fewer than a page in leaves only.
    tokens: Box<[u32]>,
    pages: KvPages,
    /// After the last of `tokens`.
    states: Option<Box<[State]>>,
    last_used: u64,
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
    /// Empty, for a model whose pages (all layers) and states take so many bytes.
    pub(crate) fn new(page_bytes: usize, state_bytes: usize) -> Self {
        Self { page_bytes, state_bytes, ..Self::default() }
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
                node.last_used = self.clock;
            }
        }
        best
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

    /// Keeps what a sequence holds. Returns what of it is in the tree now, for the sequence to share.
    pub(crate) fn insert(&mut self, adapter: Option<&Arc<LoadedAdapter>>, sequence: &Sequence) -> Match {
        self.clock += 1;
        let root = self.root(adapter).unwrap_or_else(|| {
            self.roots.push(Root { adapter: adapter.cloned(), children: Vec::new() });
            self.roots.len() - 1
        });
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
            node.last_used = clock;
            if let (None, Some(states)) = (&node.states, states) {
                node.states = Some(states.into());
                self.bytes += self.state_bytes;
            }
            return Some(id);
        }
        if states.is_none() {
            // Without states a part is worth nothing beside the whole.
            if self.state_bytes > 0 && tokens.len() < PAGE {
                return None;
            }
            if let Some(id) = find(&|node| node.tokens.starts_with(tokens)) {
                self.nodes.get_mut(&id)?.last_used = clock;
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
        let node =
            Node { parent, children: Vec::new(), tokens: tokens.into(), pages: pages(), states, last_used: clock };
        self.bytes += self.node_bytes(&node);
        self.nodes.insert(id, node);
        self.children_mut(parent).push(id);
        Some(id)
    }

    /// Frees something that was not used for longest and that no sequence holds; false where there is nothing.
    pub(crate) fn evict(&mut self) -> bool {
        let oldest = |keep: &dyn Fn(&Node) -> bool| {
            let nodes = self.nodes.iter().filter(|(_, node)| keep(node));
            nodes.min_by_key(|(_, node)| node.last_used).map(|(&id, _)| id)
        };
        if let Some(id) = oldest(&|node| node.children.is_empty() && !node.pages.is_shared()) {
            self.remove(id);
            return true;
        }
        // States are copied, never shared: they can always go.
        match oldest(&|node| node.states.is_some()) {
            Some(id) => {
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
