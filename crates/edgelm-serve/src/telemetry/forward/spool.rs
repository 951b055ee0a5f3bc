//! A queue of batches on the disk, for the time that the collector is away: encrypted, bounded in size and age, oldest first.
//!
//! A file per batch, named by its number. It is written under another name, forced to the disk and renamed, so a process that dies
//! leaves whole batches; it is removed when the collector has acknowledged it. A batch is sent twice only if the process dies
//! between these two.
//!
//! | bytes | |
//! | --- | --- |
//! | 0..8 | `EDGELMQ1` |
//! | 8..16 | kind |
//! | 16..24 | number |
//! | 24..32 | seconds since 1970 when it was written |
//! | 32.. | nonce, ciphertext and tag of AES-256-GCM, with bytes 0..32 as associated data |
//!
//! Numbers are little-endian. A batch under another's name, and one that a bit of is another, is dropped and counted.

use super::{ForwardConfig, ForwardError, Kind, key::Key};
use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
};

const MAGIC: &[u8; 8] = b"EDGELMQ1";
const HEAD: usize = 32;
const ENDING: &str = ".batch";
const NEW: &str = ".new";
/// Says which key the folder is of.
const CHECK: &str = "check";
/// Batches that make room for a new one on a full disk, at most.
const MOST_FOR_ONE: usize = 16;

/// Batches that were dropped, by why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    /// For newer ones.
    pub(super) full: u64,
    /// Nobody fetched them in time.
    pub(super) expired: u64,
    /// They came back changed.
    pub(super) corrupt: u64,
    /// They could not be written.
    pub(super) unwritten: u64,
}

/// See the module. For one process at a time.
pub(super) struct Spool {
    config: ForwardConfig,
    key: Key,
    batches: VecDeque<Batch>,
    bytes: u64,
    next: u64,
    dropped: Dropped,
    /// Held for as long as this lives.
    _lock: File,
}

struct Batch {
    number: u64,
    bytes: u64,
    /// Seconds since 1970.
    written: u64,
}

impl Spool {
    /// Opens the folder, or makes it, with all that is in it.
    ///
    /// # Errors
    /// A folder that cannot be used, is in use, or is of another key.
    pub(super) fn open(config: ForwardConfig) -> Result<Self, ForwardError> {
        let folder = config.folder.clone();
        let io = |source| ForwardError::Io { path: folder.clone(), source };
        make_folder(&folder).map_err(io)?;
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).open(folder.join("lock")).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io(io::Error::new(ErrorKind::ResourceBusy, "in use"))),
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let key_path = config.key.clone().unwrap_or_else(|| folder.join("key"));
        let key = Key::read_or_create(&key_path)?;
        check_key(&key, &key_path, &folder)?;
        let mut batches = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.ends_with(NEW) {
                // A process died over it.
                fs::remove_file(&path).map_err(io)?;
            } else if let Some(number) = name.strip_suffix(ENDING).and_then(|name| name.parse().ok()) {
                let bytes = fs::metadata(&path).map_err(io)?.len();
                // What cannot be read shows when its turn comes.
                let written = head(&path).map_or(0, |head| number_at(&head, 24));
                batches.push(Batch { number, bytes, written });
            }
        }
        batches.sort_unstable_by_key(|batch| batch.number);
        let next = batches.last().map_or(0, |batch| batch.number + 1);
        let bytes = batches.iter().map(|batch| batch.bytes).sum();
        let mut spool =
            Self { config, key, batches: batches.into(), bytes, next, dropped: Dropped::default(), _lock: lock };
        spool.make_room(0);
        Ok(spool)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Batches and bytes.
    pub(super) fn size(&self) -> (usize, u64) {
        (self.batches.len(), self.bytes)
    }

    /// Since it was opened.
    pub(super) fn dropped(&self) -> Dropped {
        self.dropped
    }

    /// Appends a batch; older ones go for it where there is no room.
    pub(super) fn push(&mut self, kind: Kind, content: &[u8], now: u64) {
        let number = self.next;
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(MAGIC);
        head[8..16].copy_from_slice(&(kind as u64).to_le_bytes());
        head[16..24].copy_from_slice(&number.to_le_bytes());
        head[24..].copy_from_slice(&now.to_le_bytes());
        let Ok(sealed) = self.key.seal(&head, content) else {
            self.dropped.unwritten += 1;
            return;
        };
        let bytes = (HEAD + sealed.len()) as u64;
        if bytes > self.config.limit_bytes {
            self.dropped.unwritten += 1;
            return;
        }
        self.make_room(bytes);
        for _ in 0..=MOST_FOR_ONE {
            match self.write(number, &[&head, &sealed]) {
                Ok(()) => {
                    self.next += 1;
                    self.bytes += bytes;
                    self.batches.push_back(Batch { number, bytes, written: now });
                    return;
                }
                // The disk is full with other things: what is older goes first.
                Err(error) if is_full(&error) && !self.batches.is_empty() => {
                    self.dropped.full += 1;
                    self.pop();
                }
                Err(_) => break,
            }
        }
        self.dropped.unwritten += 1;
    }

    fn make_room(&mut self, bytes: u64) {
        while self.bytes.saturating_add(bytes) > self.config.limit_bytes && !self.batches.is_empty() {
            self.dropped.full += 1;
            self.pop();
        }
    }

    fn write(&self, number: u64, parts: &[&[u8]]) -> io::Result<()> {
        let path = self.path(number);
        let mut new = path.clone().into_os_string();
        new.push(NEW);
        let write = || {
            let mut file = File::create(&new)?;
            parts.iter().try_for_each(|part| file.write_all(part))?;
            file.sync_data()?;
            fs::rename(&new, &path)
        };
        write().inspect_err(|_| _ = fs::remove_file(&new))
    }

    /// The oldest batch that is whole and not too old.
    pub(super) fn front(&mut self, now: u64) -> Option<(Kind, Vec<u8>)> {
        while let Some(batch) = self.batches.front() {
            let (number, age) = (batch.number, now.abs_diff(batch.written));
            // One from a time that is far ahead is of a clock that was wrong; else it would stay until then.
            if age > self.config.max_age.as_secs() {
                self.dropped.expired += 1;
                self.pop();
                continue;
            }
            match self.read(number) {
                Some(found) => return Some(found),
                None => {
                    self.dropped.corrupt += 1;
                    self.pop();
                }
            }
        }
        None
    }

    fn read(&self, number: u64) -> Option<(Kind, Vec<u8>)> {
        let mut bytes = Vec::new();
        File::open(self.path(number)).ok()?.take(self.config.limit_bytes).read_to_end(&mut bytes).ok()?;
        let (head, sealed) = bytes.split_at_checked(HEAD)?;
        let content = self.key.open(head, sealed)?;
        let is_fit = head.starts_with(MAGIC) && number_at(head.first_chunk()?, 16) == number;
        let kind = Kind::from_number(number_at(head.first_chunk()?, 8)).filter(|_| is_fit)?;
        Some((kind, content))
    }

    /// Removes the oldest batch.
    pub(super) fn pop(&mut self) {
        let Some(batch) = self.batches.pop_front() else { return };
        self.bytes -= batch.bytes;
        // One that cannot be removed is sent again after a restart, which is better than not to go on.
        let _ = fs::remove_file(self.path(batch.number));
    }

    fn path(&self, number: u64) -> PathBuf {
        self.config.folder.join(format!("{number:020}{ENDING}"))
    }
}

fn make_folder(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(folder)
}

/// An error where the folder was begun with another key: its batches would all seem to be changed, and be lost.
fn check_key(key: &Key, key_path: &Path, folder: &Path) -> Result<(), ForwardError> {
    let path = folder.join(CHECK);
    let io = |source| ForwardError::Io { path: path.clone(), source };
    match fs::read(&path) {
        Ok(sealed) if key.open(MAGIC, &sealed).is_some() => Ok(()),
        Ok(_) => Err(ForwardError::Key {
            path: key_path.into(),
            what: format!("is not the key of what is in `{}`; empty that folder to begin anew", folder.display()),
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let new = folder.join(format!("{CHECK}{NEW}"));
            fs::write(&new, key.seal(MAGIC, b"")?).and_then(|()| fs::rename(&new, &path)).map_err(io)
        }
        Err(error) => Err(io(error)),
    }
}

fn head(path: &Path) -> Option<[u8; HEAD]> {
    let mut head = [0; HEAD];
    File::open(path).ok()?.read_exact(&mut head).ok()?;
    Some(head)
}

fn number_at(head: &[u8; HEAD], at: usize) -> u64 {
    head[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NOW: u64 = 1_800_000_000;

    fn config(folder: &Path, limit_bytes: u64) -> ForwardConfig {
        ForwardConfig { folder: folder.into(), limit_bytes, key: None, max_age: Duration::from_secs(86_400) }
    }

    fn open(folder: &Path, limit_bytes: u64) -> Spool {
        Spool::open(config(folder, limit_bytes)).expect("a folder")
    }

    fn all(spool: &mut Spool, now: u64) -> Vec<(Kind, Vec<u8>)> {
        std::iter::from_fn(|| {
            let front = spool.front(now)?;
            spool.pop();
            Some(front)
        })
        .collect()
    }

    #[test]
    fn batches_come_back_in_order_after_a_death() {
        let folder = tempfile::tempdir().expect("a folder");
        {
            let mut spool = open(folder.path(), 1 << 20);
            (0..12u8).for_each(|index| spool.push(Kind::Traces, &[index; 100], NOW));
            spool.push(Kind::Logs, b"an input", NOW);
            assert!(matches!(Spool::open(config(folder.path(), 1 << 20)), Err(ForwardError::Io { .. })), "in use");
            // Acknowledged, then dead.
            spool.front(NOW);
            spool.pop();
        }
        fs::write(folder.path().join("00000000000000000099.batch.new"), "half").expect("written");
        for entry in fs::read_dir(folder.path()).expect("there") {
            let bytes = fs::read(entry.expect("there").path()).expect("there");
            assert!(!bytes.windows(5).any(|five| five == b"input" || five == [7; 5]), "encrypted");
        }
        let mut spool = open(folder.path(), 1 << 20);
        assert_eq!(spool.size().0, 12);
        spool.push(Kind::Metrics, b"new", NOW);
        let found = all(&mut spool, NOW);
        let firsts: Vec<u8> = found.iter().map(|(_, content)| content[0]).collect();
        assert_eq!(firsts, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, b'a', b'n']);
        assert_eq!((found[11].0, found[12].0), (Kind::Logs, Kind::Metrics));
        assert_eq!((spool.size(), spool.dropped()), ((0, 0), Dropped::default()));
        assert!(!folder.path().join("00000000000000000099.batch.new").exists());
    }

    #[test]
    fn the_oldest_make_room_and_time_passes() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut spool = open(folder.path(), 1000);
        (0..20u64).for_each(|index| spool.push(Kind::Traces, &[index as u8; 100], NOW + index));
        // Each is 100 bytes, and 60 around them.
        assert_eq!((spool.size(), spool.dropped().full), ((6, 960), 14));
        spool.push(Kind::Traces, &[0; 2000], NOW);
        assert_eq!((spool.size().0, spool.dropped().unwritten), (6, 1), "too large for itself");
        // 14 to 19 were written in these seconds.
        let later = all(&mut spool, NOW + 16 + 86_400);
        assert_eq!((later.len(), later[0].1[0], spool.dropped().expired), (4, 16, 2));
        // A clock that was a year ahead.
        spool.push(Kind::Traces, b"future", NOW + 365 * 86_400);
        spool.push(Kind::Traces, b"a little ahead", NOW + 100);
        assert_eq!(all(&mut spool, NOW), [(Kind::Traces, b"a little ahead".to_vec())]);
        drop(spool);
        let bytes: u64 = fs::read_dir(folder.path()).expect("there").count() as u64;
        assert_eq!(bytes, 3, "lock, key and check");
    }

    #[test]
    fn a_smaller_limit_holds_for_what_is_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut spool = open(folder.path(), 10_000);
        (0..20u8).for_each(|index| spool.push(Kind::Traces, &[index; 100], NOW));
        drop(spool);
        let mut spool = open(folder.path(), 500);
        let left = all(&mut spool, NOW);
        assert_eq!((left.len(), left[0].1[0], spool.dropped().full), (3, 17, 17));
    }

    #[test]
    fn every_bit_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut spool = open(folder.path(), 1 << 20);
        spool.push(Kind::Traces, b"content", NOW);
        let path = spool.path(0);
        let whole = fs::read(&path).expect("there");
        for at in 0..whole.len() {
            // The time is judged before the rest is read.
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).expect("written");
            assert_eq!(spool.read(0), None, "byte {at}");
        }
        for end in 0..whole.len() {
            fs::write(&path, &whole[..end]).expect("written");
            assert_eq!(spool.read(0), None, "cut at {end}");
        }
        fs::write(&path, &whole).expect("written");
        assert!(spool.read(0).is_some());
        // Under another's name: old batches cannot be played again.
        spool.push(Kind::Traces, b"another", NOW);
        fs::copy(&path, spool.path(1)).expect("copied");
        assert_eq!(all(&mut spool, NOW), [(Kind::Traces, b"content".to_vec())]);
        assert_eq!(spool.dropped().corrupt, 1);
    }

    #[cfg(unix)]
    #[test]
    fn keys_are_for_their_owner_and_for_one_folder() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let key = folder.path().join("key");
        let spool = || folder.path().join("spool");
        let config = |key: &Path| ForwardConfig { key: Some(key.into()), ..config(&spool(), 1000) };
        drop(Spool::open(config(&key)).expect("a new key"));
        assert_eq!(fs::metadata(&key).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(spool()).expect("there").permissions().mode() & 0o777, 0o700);
        drop(Spool::open(config(&key)).expect("the same"));
        let error = |key: &Path| Spool::open(config(key)).err().expect("an error").to_string();
        assert!(error(&folder.path().join("other")).contains("is not the key of what is in"));
        fs::write(&key, "x".repeat(64)).expect("written");
        assert!(error(&key).contains("64 hexadecimal digits"));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("set");
        assert!(error(&key).contains("chmod 600"));
    }
}
