//! The keys that open a server, and the file they come from.

use super::{
    key::StoredKey,
    revocation::{Revocation, Validity},
};
use crate::ServeError;
use std::{
    collections::HashSet,
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

/// A key, and whether it is good still.
#[derive(Clone)]
struct Held {
    key: StoredKey,
    validity: Arc<Validity>,
}

impl Held {
    fn new(key: StoredKey) -> Self {
        Self { key, validity: Arc::default() }
    }
}

/// Keys, any of which opens the API. Never printed. Clones share what a [reload](Self::reload) changes.
#[derive(Clone, Default)]
pub struct ApiKeys {
    /// `None`: no keys are wanted.
    table: Option<Arc<RwLock<Arc<[Held]>>>>,
    path: Option<PathBuf>,
}

impl ApiKeys {
    /// Reads one key per line, as [`NewKey::line`](super::NewKey::line) has it or as it is sent; empty lines and lines
    /// that start with `#` are skipped.
    ///
    /// # Errors
    /// A file that cannot be read, holds no key (an empty file must not mean "open"), or holds a line that is no key.
    pub fn from_file(path: &Path) -> Result<Self, ServeError> {
        let keys = read(path)?;
        if keys.is_empty() {
            return Err(ServeError::Keys { path: path.to_owned(), what: "holds no key".to_owned() });
        }
        let keys = keys.into_iter().map(Held::new).collect();
        Ok(Self { table: Some(Arc::new(RwLock::new(keys))), path: Some(path.to_owned()) })
    }

    /// Reads the file again. A key that is gone opens nothing from now on, and what was begun under it ends; a file without keys
    /// leaves nobody in: that is how the last key is revoked. Returns how many there are.
    ///
    /// # Errors
    /// Those of [`Self::from_file`] for a file that cannot be read or holds a line that is no key: the keys stay as they were.
    pub(crate) fn reload(&self) -> Result<usize, ServeError> {
        let (Some(table), Some(path)) = (&self.table, &self.path) else { return Ok(0) };
        let keys = read(path)?;
        let count = keys.len();
        let mut held = table.write().unwrap_or_else(PoisonError::into_inner);
        let was = Arc::clone(&held);
        let same = |key: &StoredKey| was.iter().find(|held| held.key.id() == key.id());
        // A key that stays is good without a break, with the name and the scope that it has now.
        let is = |key: StoredKey| match same(&key) {
            Some(Held { validity, .. }) => Held { key, validity: Arc::clone(validity) },
            None => Held::new(key),
        };
        *held = keys.into_iter().map(is).collect();
        let is_gone = |old: &&Held| !held.iter().any(|new| new.key.id() == old.key.id());
        was.iter().filter(is_gone).for_each(|held| held.validity.end());
        Ok(count)
    }

    /// Whether a key is needed at all.
    #[must_use]
    pub fn are_wanted(&self) -> bool {
        self.table.is_some()
    }

    /// The file that they came from.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The name and the scope of every key, in the order of the file.
    #[must_use]
    pub fn list(&self) -> Vec<(String, super::Scope)> {
        self.all().iter().map(|held| (held.key.name.to_string(), held.key.scope)).collect()
    }

    fn all(&self) -> Arc<[Held]> {
        let table = self.table.as_ref().map(|table| Arc::clone(&table.read().unwrap_or_else(PoisonError::into_inner)));
        table.unwrap_or_default()
    }

    /// Which of the keys `candidate` is, and what tells when it is revoked. Looks at all of them, whichever it is.
    pub(crate) fn find(&self, candidate: &[u8]) -> Option<(StoredKey, Revocation)> {
        let all = self.all();
        let found = all.iter().fold(None, |found, held| if held.key.is(candidate) { Some(held) } else { found });
        found.map(|held| (held.key.clone(), held.validity.watch()))
    }
}

fn read(path: &Path) -> Result<Vec<StoredKey>, ServeError> {
    let text = fs::read_to_string(path).map_err(|source| ServeError::KeyFile { path: path.to_owned(), source })?;
    let mut keys = Vec::new();
    let mut names = HashSet::new();
    for (index, line) in text.lines().enumerate() {
        let (line, number) = (line.trim(), index + 1);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: String| ServeError::Keys { path: path.to_owned(), what: format!("line {number} {what}") };
        let key = StoredKey::parse(line, number).map_err(wrong)?;
        if !names.insert(Arc::clone(&key.name)) {
            return Err(wrong(format!("has the name `{}` of an earlier line", key.name)));
        }
        keys.push(key);
    }
    Ok(keys)
}

/// Keys as they are sent. What no header can carry opens nothing.
impl<S: Into<String>> FromIterator<S> for ApiKeys {
    fn from_iter<I: IntoIterator<Item = S>>(keys: I) -> Self {
        let keys = keys.into_iter().enumerate();
        let keys =
            keys.filter_map(|(index, key)| StoredKey::plain(&key.into(), index + 1).ok().map(Held::new)).collect();
        Self { table: Some(Arc::new(RwLock::new(keys))), path: None }
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({} keys)", self.all().len())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{NewKey, Scope},
        *,
    };

    fn names(keys: &ApiKeys, candidates: &[&str]) -> Vec<Option<String>> {
        candidates.iter().map(|key| keys.find(key.as_bytes()).map(|(key, _)| key.name.to_string())).collect()
    }

    #[test]
    fn keys_match_whole() {
        let keys: ApiKeys = ["alpha-1", "beta"].into_iter().collect();
        assert_eq!(names(&keys, &["alpha-1", "beta"]), [Some("line-1".to_owned()), Some("line-2".to_owned())]);
        assert_eq!(names(&keys, &["", "alpha-", "alpha-11", "Beta", "bet\0"]), vec![None; 5]);
        assert_eq!(format!("{keys:?}"), "ApiKeys(2 keys)");
        assert!(keys.are_wanted() && !ApiKeys::default().are_wanted());
    }

    #[test]
    fn key_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys");
        let new = NewKey::random("ci", Scope::Use).expect("random numbers");
        fs::write(&path, format!("# ours\n\n  one \n{}\n", new.line)).expect("written");
        let keys = ApiKeys::from_file(&path).expect("two keys");
        let found = names(&keys, &["one", &new.key, "# ours", &new.line]);
        assert_eq!(found, [Some("line-3".to_owned()), Some("ci".to_owned()), None, None]);
        assert_eq!(keys.list(), [("line-3".to_owned(), Scope::Admin), ("ci".to_owned(), Scope::Use)]);
        fs::write(&path, "# nobody\n").expect("written");
        assert!(matches!(ApiKeys::from_file(&path), Err(ServeError::Keys { .. })));
        fs::write(&path, "secret word\n").expect("written");
        let message = ApiKeys::from_file(&path).expect_err("a space").to_string();
        assert!(message.contains("line 1") && !message.contains("secret"));
        fs::write(&path, format!("{0}\n{0}\n", new.line)).expect("written");
        assert!(ApiKeys::from_file(&path).expect_err("twice").to_string().contains("line 2"));
        assert!(matches!(ApiKeys::from_file(&folder.path().join("none")), Err(ServeError::KeyFile { .. })));
    }

    #[test]
    fn reloading_revokes_and_a_broken_file_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys");
        fs::write(&path, "one\ntwo\n").expect("written");
        let keys = ApiKeys::from_file(&path).expect("two keys");
        let shared = keys.clone();
        fs::write(&path, "two\nthr ee\n").expect("written");
        assert!(keys.reload().is_err() && shared.find(b"one").is_some());
        let before = shared.find(b"two").expect("still there").0.id();
        fs::write(&path, "two\n").expect("written");
        assert_eq!(keys.reload().expect("one key"), 1);
        assert!(shared.find(b"one").is_none());
        assert_eq!(shared.find(b"two").expect("still there").0.id(), before, "on another line it is the same client");
        fs::write(&path, "").expect("written");
        assert_eq!(keys.reload().expect("none"), 0);
        assert!(shared.are_wanted() && shared.find(b"two").is_none(), "nobody, not everybody");
    }
}
