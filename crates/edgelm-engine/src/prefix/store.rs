//! Kept beginnings in a file: what memory has no room for, and what the next start of the process finds again.
//!
//! A header that says whose file it is, then slots of one size: a record each, of a page of tokens with its keys, values and
//! states. Records name themselves and their parents by hashes of all tokens up to their end, so a record is right whoever
//! reads it. Nothing is trusted that comes back: header and content have checksums (BLAKE3), and what does not fit them is
//! as good as not there. A record is made invalid before its slot is written anew, so a process may die at any moment.
//!
//! | bytes of a slot | |
//! | --- | --- |
//! | 0..32 | BLAKE3 of bytes 32..512 |
//! | 32..64 | the record's key |
//! | 64..96 | its parent's key |
//! | 96..128 | BLAKE3 of the content |
//! | 128..136 | stamp: grows with every record that is written |
//! | 136..144 | bytes of the content |
//! | 144..148 | tokens, 1 to 64 |
//! | 256..512 | ids of the tokens, 4 bytes each |
//! | 512.. | content: pages of all layers, then states if there are any |
//!
//! Numbers are little-endian; pages and states are as in memory, which is the same on every machine we build for.

use crate::{EngineError, Model, block::State};
use edgelm_kernels::{KvCache, KvDtype, KvPages, KvShape};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

const MAGIC: &[u8; 8] = b"EDGELMKV";
const VERSION: u32 = 1;
/// Of the file and of each slot; slots begin where blocks of the disk do.
const BLOCK: usize = 4096;
const HEAD: usize = 512;
const TOKENS_AT: usize = 256;
/// For so long after a disk was full, the file does not grow.
const FULL_DISK_WAIT: Duration = Duration::from_secs(60);

/// Names a beginning: a hash of all its tokens and of what else decides its keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// Of the empty beginning of sequences that `who` tells from others.
    pub(crate) fn root(who: &[u8]) -> Self {
        Self(*blake3::hash(who).as_bytes())
    }

    /// Of the beginning that goes on with `tokens`.
    pub(crate) fn child(&self, tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }
}

/// What a store has done since it was opened, and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreState {
    /// Size of the records in the file.
    pub bytes: u64,
    /// Pages written.
    pub written: u64,
    /// Bytes written: what a disk wears by.
    pub written_bytes: u64,
    /// Pages that came back.
    pub read: u64,
    /// Pages that could not be written: a full disk, most likely.
    pub failed_writes: u64,
    /// Pages that came back changed, or not at all. They were not used.
    pub bad_reads: u64,
}

/// Beginnings of one model's sequences in a file. For one process at a time.
pub struct KvStore {
    path: PathBuf,
    shapes: Vec<KvShape>,
    dtype: KvDtype,
    states: Vec<State>,
    slot_bytes: u64,
    page_bytes: usize,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    records: BTreeMap<Key, Record>,
    /// Records by their parents.
    children: BTreeMap<Key, Vec<Key>>,
    free: Vec<u64>,
    /// Slots that the file has.
    slots: u64,
    limit: u64,
    stamp: u64,
    grows_again: Option<Instant>,
    state: StoreState,
    buffer: Vec<u8>,
}

/// What is known of a record without reading its content.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) key: Key,
    parent: Key,
    pub(crate) tokens: Box<[u32]>,
    pub(crate) has_states: bool,
    slot: u64,
    used: u64,
}

/// A record's content.
pub(crate) struct Content {
    pub(crate) pages: KvPages,
    pub(crate) states: Option<Vec<State>>,
}

impl KvStore {
    /// Opens the file for a model, or begins one: a file of another model, cache format, kernel family or version is begun anew.
    /// `identity` says which model it is: a digest of its weights. The file never grows beyond `limit_bytes`.
    ///
    /// # Errors
    /// A file that cannot be opened or written, is in use, or is something else; a limit below one page.
    pub fn open(
        path: &Path,
        limit_bytes: u64,
        model: &Model,
        kv: Option<KvDtype>,
        identity: &str,
    ) -> Result<Self, EngineError> {
        let engine = model.engine();
        let dtype = kv.unwrap_or_else(|| engine.default_kv());
        let whose = format!("{identity} {} {dtype:?}", engine.cpu().isa().name());
        let states = State::of_layers(engine.config());
        Self::with_layout(path, limit_bytes, &whose, engine.kv_shapes(), dtype, states)
    }

    fn with_layout(
        path: &Path,
        limit_bytes: u64,
        whose: &str,
        shapes: Vec<KvShape>,
        dtype: KvDtype,
        states: Vec<State>,
    ) -> Result<Self, EngineError> {
        let error = |source| EngineError::KvStore { path: path.into(), source };
        let page_bytes = KvCache::page_bytes(&shapes, dtype);
        let content = page_bytes + states.iter().map(State::bytes).sum::<usize>();
        let slot_bytes = (HEAD + content).next_multiple_of(BLOCK) as u64;
        let limit = limit_bytes.saturating_sub(BLOCK as u64) / slot_bytes;
        if limit == 0 {
            let what = format!("{limit_bytes} bytes do not hold a page of {slot_bytes}");
            return Err(error(io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        let whose = format!("{whose} {shapes:?} {} {}", KvCache::PAGE_TOKENS, env!("CARGO_PKG_VERSION"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true);
        #[cfg(unix)]
        {
            // What was said to the model can be read off it.
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        let mut file = options.open(path).map_err(error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(error(io::Error::new(io::ErrorKind::ResourceBusy, "in use by another process")));
            }
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
        let head = file_head(slot_bytes, whose.as_bytes());
        let mut found = Vec::with_capacity(BLOCK);
        (&file).take(BLOCK as u64).read_to_end(&mut found).map_err(error)?;
        if !found.starts_with(MAGIC) && !MAGIC.starts_with(&found) {
            return Err(error(io::Error::new(io::ErrorKind::InvalidData, "is something else; it stays as it is")));
        }
        if found != head {
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(&head)).map_err(error)?;
        }
        let mut inner = Inner {
            file,
            records: BTreeMap::new(),
            children: BTreeMap::new(),
            free: Vec::new(),
            slots: 0,
            limit,
            stamp: 0,
            grows_again: None,
            state: StoreState::default(),
            buffer: Vec::new(),
        };
        inner.index(slot_bytes, page_bytes).map_err(error)?;
        Ok(Self { path: path.into(), shapes, dtype, states, slot_bytes, page_bytes, inner: Mutex::new(inner) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it and how it fared.
    pub fn state(&self) -> StoreState {
        let inner = self.lock();
        StoreState { bytes: inner.records.len() as u64 * self.slot_bytes, ..inner.state }
    }

    /// Forces what is written to the disk.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self) -> io::Result<()> {
        self.lock().file.sync_data()
    }

    pub(crate) fn contains(&self, key: &Key, has_states: bool) -> bool {
        self.lock().records.get(key).is_some_and(|record| record.has_states || !has_states)
    }

    /// The record behind `parent` that has most of its first tokens in common with `tokens`, and how many.
    pub(crate) fn find(&self, parent: &Key, tokens: &[u32]) -> Option<(Record, usize)> {
        let mut inner = self.lock();
        let same = |record: &Record| record.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let children = inner.children.get(parent)?.iter().filter_map(|key| inner.records.get(key));
        let (key, count) = children.map(|record| (record.key, same(record))).max_by_key(|(_, count)| *count)?;
        if count == 0 {
            return None;
        }
        inner.stamp += 1;
        let stamp = inner.stamp;
        let record = inner.records.get_mut(&key)?;
        record.used = stamp;
        Some((record.clone(), count))
    }

    /// A record's content. None where it is gone or was changed: then it is forgotten.
    pub(crate) fn read(&self, record: &Record) -> Option<Content> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if inner.records.get(&record.key)?.slot != record.slot {
            return None;
        }
        let content = match inner.read(self.slot_bytes, record) {
            Ok(()) => self.content(&inner.buffer, record.has_states),
            Err(_) => None,
        };
        match content {
            Some(_) => inner.state.read += 1,
            None => {
                inner.state.bad_reads += 1;
                inner.forget(&record.key);
            }
        }
        content
    }

    fn content(&self, bytes: &[u8], has_states: bool) -> Option<Content> {
        let (pages, rest) = bytes.split_at_checked(self.page_bytes)?;
        let pages = KvPages::from_bytes(&self.shapes, self.dtype, pages)?;
        let mut states = None;
        if has_states {
            let mut rest = rest;
            let mut read = self.states.clone();
            for state in &mut read {
                rest = state.read(rest)?;
            }
            states = Some(read);
        }
        Some(Content { pages, states })
    }

    /// Writes a record, in the place of the one that was not used for longest where there is no room. False where that fails:
    /// what was in its place is lost then too.
    pub(crate) fn write(
        &self,
        key: Key,
        parent: Key,
        tokens: &[u32],
        pages: &KvPages,
        states: Option<&[State]>,
    ) -> bool {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let mut buffer = std::mem::take(&mut inner.buffer);
        buffer.clear();
        buffer.resize(HEAD, 0);
        pages.parts().for_each(|part| buffer.extend_from_slice(part));
        states.into_iter().flatten().for_each(|state| state.write(&mut buffer));
        let record = Record { key, parent, tokens: tokens.into(), has_states: states.is_some(), slot: 0, used: 0 };
        let outcome = inner.write(self.slot_bytes, record, &mut buffer);
        inner.buffer = buffer;
        match outcome {
            true => {
                inner.state.written += 1;
                inner.state.written_bytes += inner.buffer.len() as u64;
            }
            false => inner.state.failed_writes += 1,
        }
        outcome
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first block of a file.
fn file_head(slot_bytes: u64, whose: &[u8]) -> Vec<u8> {
    let mut head = vec![0; BLOCK];
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[16..24].copy_from_slice(&slot_bytes.to_le_bytes());
    head[32..64].copy_from_slice(blake3::hash(whose).as_bytes());
    head
}

impl Inner {
    /// Reads the heads of all slots. What cannot be reached from the beginning of sequences without adapters is dropped: an
    /// adapter of this process cannot be told from one of another.
    fn index(&mut self, slot_bytes: u64, page_bytes: usize) -> io::Result<()> {
        let bytes = self.file.metadata()?.len().saturating_sub(BLOCK as u64);
        // Nothing was written behind the content of the last one.
        self.slots = bytes.div_ceil(slot_bytes).min(self.limit);
        self.file.set_len(BLOCK as u64 + self.slots * slot_bytes)?;
        let mut head = [0; HEAD];
        let mut found: BTreeMap<Key, Vec<Record>> = BTreeMap::new();
        for slot in 0..self.slots {
            self.file.seek(SeekFrom::Start(BLOCK as u64 + slot * slot_bytes))?;
            self.file.read_exact(&mut head)?;
            if let Some(record) = parse(&head, slot, page_bytes) {
                self.stamp = self.stamp.max(record.used);
                found.entry(record.parent).or_default().push(record);
            }
        }
        let mut ends = vec![Key::root(b"")];
        while let Some(parent) = ends.pop() {
            for record in found.remove(&parent).into_iter().flatten() {
                if record.tokens.len() == KvCache::PAGE_TOKENS {
                    ends.push(record.key);
                }
                self.add(record);
            }
        }
        let used: BTreeSet<u64> = self.records.values().map(|record| record.slot).collect();
        self.free = (0..self.slots).filter(|slot| !used.contains(slot)).collect();
        Ok(())
    }

    fn add(&mut self, record: Record) {
        let (key, parent) = (record.key, record.parent);
        if self.records.insert(key, record).is_none() {
            self.children.entry(parent).or_default().push(key);
        }
    }

    fn forget(&mut self, key: &Key) {
        let Some(record) = self.records.remove(key) else { return };
        self.free.push(record.slot);
        if let Some(siblings) = self.children.get_mut(&record.parent) {
            siblings.retain(|other| other != key);
            if siblings.is_empty() {
                self.children.remove(&record.parent);
            }
        }
    }

    /// A slot to write to: a free one, a new one, or that of the oldest record that no other goes on from.
    fn slot(&mut self) -> Option<u64> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let grows = self.grows_again.is_none_or(|time| Instant::now() >= time);
        if grows && self.slots < self.limit {
            self.slots += 1;
            return Some(self.slots - 1);
        }
        let ends = self.records.values().filter(|record| !self.children.contains_key(&record.key));
        let oldest = ends.min_by_key(|record| record.used)?.key;
        self.forget(&oldest);
        self.free.pop()
    }

    /// `buffer`: room for the head, then the content.
    fn write(&mut self, slot_bytes: u64, mut record: Record, buffer: &mut [u8]) -> bool {
        self.forget(&record.key);
        let Some(slot) = self.slot() else { return false };
        self.stamp += 1;
        (record.slot, record.used) = (slot, self.stamp);
        let (head, content) = buffer.split_at_mut(HEAD);
        head[32..64].copy_from_slice(&record.key.0);
        head[64..96].copy_from_slice(&record.parent.0);
        head[96..128].copy_from_slice(blake3::hash(content).as_bytes());
        head[128..136].copy_from_slice(&record.used.to_le_bytes());
        head[136..144].copy_from_slice(&(content.len() as u64).to_le_bytes());
        head[144..148].copy_from_slice(&(record.tokens.len() as u32).to_le_bytes());
        for (at, token) in head[TOKENS_AT..].as_chunks_mut::<4>().0.iter_mut().zip(&record.tokens) {
            *at = token.to_le_bytes();
        }
        let checksum = blake3::hash(&head[32..]);
        head[..32].copy_from_slice(checksum.as_bytes());
        let at = BLOCK as u64 + slot * slot_bytes;
        let mut write = || -> io::Result<()> {
            // First, for a death in the middle not to leave an old head before a new content.
            self.file.seek(SeekFrom::Start(at))?;
            self.file.write_all(&[0; HEAD])?;
            self.file.write_all(content)?;
            self.file.seek(SeekFrom::Start(at))?;
            self.file.write_all(head)
        };
        match write() {
            Ok(()) => self.add(record),
            Err(_) => {
                // The space that a part of it took goes back to the disk.
                if slot + 1 == self.slots && self.file.set_len(at).is_ok() {
                    self.slots -= 1;
                } else {
                    self.free.push(slot);
                }
                self.grows_again = Some(Instant::now() + FULL_DISK_WAIT);
                return false;
            }
        }
        true
    }

    /// Reads a record's content into the buffer; an error where it is not what was written.
    fn read(&mut self, slot_bytes: u64, record: &Record) -> io::Result<()> {
        let mut head = [0; HEAD];
        self.file.seek(SeekFrom::Start(BLOCK as u64 + record.slot * slot_bytes))?;
        self.file.read_exact(&mut head)?;
        let changed = || io::Error::from(io::ErrorKind::InvalidData);
        if head[32..64] != record.key.0 {
            return Err(changed());
        }
        let bytes = u64::from_le_bytes(*head[136..].first_chunk().ok_or_else(changed)?);
        if bytes > slot_bytes - HEAD as u64 {
            return Err(changed());
        }
        self.buffer.resize(usize::try_from(bytes).map_err(|_| changed())?, 0);
        self.file.read_exact(&mut self.buffer)?;
        match head[96..128] == *blake3::hash(&self.buffer).as_bytes() {
            true => Ok(()),
            false => Err(changed()),
        }
    }
}

/// A record's head; None where it is not one.
fn parse(head: &[u8; HEAD], slot: u64, page_bytes: usize) -> Option<Record> {
    if head[..32] != *blake3::hash(&head[32..]).as_bytes() {
        return None;
    }
    let count = usize::try_from(u32::from_le_bytes(*head[144..].first_chunk()?)).ok()?;
    if !(1..=KvCache::PAGE_TOKENS).contains(&count) {
        return None;
    }
    let tokens: Box<[u32]> =
        head[TOKENS_AT..].as_chunks::<4>().0[..count].iter().map(|four| u32::from_le_bytes(*four)).collect();
    let parent = Key(*head[64..].first_chunk()?);
    let key = Key(*head[32..].first_chunk()?);
    let bytes = u64::from_le_bytes(*head[136..].first_chunk()?);
    let used = u64::from_le_bytes(*head[128..].first_chunk()?);
    (parent.child(&tokens) == key).then_some(Record {
        key,
        parent,
        tokens,
        has_states: bytes > page_bytes as u64,
        slot,
        used,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPES: [KvShape; 2] = [KvShape { num_key_value_heads: 2, head_dim: 8 }; 2];

    fn open(path: &Path, limit: u64, whose: &str) -> Result<KvStore, EngineError> {
        KvStore::with_layout(path, limit, whose, SHAPES.to_vec(), KvDtype::F16, Vec::new())
    }

    fn pages(seed: f32) -> KvPages {
        let mut cache = KvCache::new(&SHAPES, KvDtype::F16);
        let row: Vec<f32> = (0..16 * KvCache::PAGE_TOKENS).map(|i| seed + i as f32 / 64.0).collect();
        (0..2).for_each(|layer| cache.write(layer, 0, &row, &row));
        cache.share_page(0)
    }

    fn bytes(pages: &KvPages) -> Vec<u8> {
        pages.parts().flatten().copied().collect()
    }

    fn back(store: &KvStore, parent: &Key, tokens: &[u32]) -> Option<Vec<u8>> {
        let (record, count) = store.find(parent, tokens)?;
        assert_eq!(count, tokens.len());
        store.read(&record).map(|content| bytes(&content.pages))
    }

    #[test]
    fn records_come_back_after_a_restart_for_the_same_model_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kv");
        let root = Key::root(b"");
        let tokens: Vec<u32> = (0..64).collect();
        let child = root.child(&tokens);
        {
            let store = open(&path, 1 << 20, "a").expect("a new file");
            assert!(store.write(child, root, &tokens, &pages(1.0), None));
            assert!(store.write(child.child(&[7]), child, &[7], &pages(2.0), None));
            let adapter = Key::root(b"an adapter");
            assert!(store.write(adapter.child(&[7]), adapter, &[7], &pages(3.0), None));
            assert!(matches!(open(&path, 1 << 20, "a"), Err(EngineError::KvStore { .. })), "in use");
        }
        {
            let store = open(&path, 1 << 20, "a").expect("the same");
            assert_eq!(back(&store, &root, &tokens), Some(bytes(&pages(1.0))));
            assert_eq!(back(&store, &child, &[7]), Some(bytes(&pages(2.0))));
            assert!(store.find(&Key::root(b"an adapter"), &[7]).is_none());
            assert_eq!(store.state().read, 2);
        }
        let store = open(&path, 1 << 20, "b").expect("another model's");
        assert!(store.find(&root, &tokens).is_none());
        let letter = folder.path().join("letter");
        std::fs::write(&letter, "Dear all").expect("written");
        assert!(matches!(open(&letter, 1 << 20, "a"), Err(EngineError::KvStore { .. })));
        assert_eq!(std::fs::read(&letter).expect("there"), b"Dear all");
    }

    #[test]
    fn what_was_changed_on_the_disk_is_not_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kv");
        let root = Key::root(b"");
        let write = || {
            let store = open(&path, 1 << 20, "a").expect("a file");
            assert!(store.write(root.child(&[7]), root, &[7], &pages(1.0), None));
        };
        write();
        let whole = std::fs::read(&path).expect("there");
        // Every byte that counts, and the end cut off.
        let content = KvCache::page_bytes(&SHAPES, KvDtype::F16);
        for at in (0..HEAD).chain([HEAD, HEAD + content / 2, HEAD + content - 1]) {
            let mut changed = whole.clone();
            changed[BLOCK + at] ^= 1;
            std::fs::write(&path, &changed).expect("written");
            let store = open(&path, 1 << 20, "a").expect("a file");
            assert!(back(&store, &root, &[7]).is_none(), "byte {at}");
        }
        std::fs::write(&path, &whole[..whole.len() - content]).expect("written");
        assert!(back(&open(&path, 1 << 20, "a").expect("a file"), &root, &[7]).is_none());
        write();
        let store = open(&path, 1 << 20, "a").expect("a file");
        let mut file = OpenOptions::new().write(true).open(&path).expect("there");
        file.seek(SeekFrom::Start((BLOCK + HEAD + 5) as u64)).expect("there");
        file.write_all(b"x").expect("written");
        assert!(back(&store, &root, &[7]).is_none(), "while it is open");
        assert_eq!(store.state(), StoreState { bad_reads: 1, ..StoreState::default() });
    }

    #[test]
    fn the_oldest_ends_make_room() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Key::root(b"");
        let slot = (HEAD + KvCache::page_bytes(&SHAPES, KvDtype::F16)).next_multiple_of(BLOCK);
        let limit = (BLOCK + 3 * slot) as u64;
        assert!(open(&folder.path().join("small"), slot as u64, "a").is_err());
        let store = open(&folder.path().join("kv"), limit, "a").expect("a file");
        let tokens: Vec<u32> = (0..64).collect();
        let first = root.child(&tokens);
        assert!(store.write(first, root, &tokens, &pages(1.0), None));
        for token in [1, 2, 3, 4] {
            assert!(store.write(first.child(&[token]), first, &[token], &pages(2.0), None));
            assert!(store.find(&first, &[1]).is_some());
        }
        // The parent is older, but what goes on from it needs it.
        let there: Vec<u32> = (1..5).filter(|token| store.contains(&first.child(&[*token]), false)).collect();
        assert_eq!((there, store.contains(&first, false)), (vec![1, 4], true));
        assert!(std::fs::metadata(store.path()).expect("there").len() <= limit);
        assert_eq!(store.state().bytes, 3 * slot as u64);
    }
}
