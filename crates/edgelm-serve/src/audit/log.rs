//! The files of a log: opening with recovery, appending, rotation, checkpoints.
//!
//! Bytes are only ever appended. The one exception is what a failed write has left behind, which is cut off again by the process
//! that wrote it: it was never part of the log.

use super::{
    AuditError,
    chain::{Line, MAX_LINE_BYTES, Place, line, sha256},
    key::SigningKey,
    note,
    record::Entry,
};
use crate::{
    encoding::hex,
    time::{Fraction, rfc3339},
};
use aws_lc_rs::rand;
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::SystemTime,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Digits of a rotated file's number.
const NUMBER_DIGITS: usize = 6;
/// How every record begins: a file that begins otherwise is not a log.
const RECORD_BEGIN: &[u8] = b"{\"seq\":";

/// When written records are forced to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fsync {
    /// After every record, or every few that arrive together.
    Record,
    /// At checkpoints: a power cut costs what came after the last one; a crash of the process costs nothing.
    #[default]
    Checkpoint,
    /// When the system sees fit.
    Never,
}

impl FromStr for Fsync {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "record" => Ok(Self::Record),
            "checkpoint" => Ok(Self::Checkpoint),
            "never" => Ok(Self::Never),
            _ => Err(format!("`{text}` is none of record, checkpoint, never")),
        }
    }
}

/// Where a log is and how it is kept.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// The file that is written; full ones are `PATH.000000`, `PATH.000001` …
    pub path: PathBuf,
    /// Signs checkpoints; without one they are only marks.
    pub key: Option<Arc<SigningKey>>,
    /// A file is full when it is as large as this.
    pub rotate_bytes: u64,
    /// When records are forced to the disk.
    pub fsync: Fsync,
}

/// A log that is being written.
#[derive(Debug)]
pub(super) struct Log {
    config: LogConfig,
    /// Held for as long as the log is.
    _lock: File,
    /// `None` between a rotation and the first record of the next file.
    file: Option<File>,
    /// Bytes of it that are whole records.
    len: u64,
    /// A failed write may have left more.
    has_rest: bool,
    number: u64,
    id: String,
    place: Place,
    /// Records since the last checkpoint.
    unsigned: u64,
}

impl Log {
    /// Opens or begins a log, verifies its newest file, closes a line that was cut, and says so in the log.
    pub(super) fn open(config: LogConfig) -> Result<Self, AuditError> {
        let path = &config.path;
        let lock = lock(path)?;
        let rotated = rotated(path)?;
        let newest = match read_if_there(path)? {
            Some(text) => Some((path.clone(), text)),
            None => match rotated.last() {
                Some((_, last)) => read_if_there(last)?.map(|text| (last.clone(), text)),
                None => None,
            },
        };
        let mut log = Self {
            _lock: lock,
            file: None,
            len: 0,
            has_rest: false,
            number: 0,
            id: String::new(),
            place: Place::START,
            unsigned: 0,
            config,
        };
        match newest {
            Some((file, text)) => log.go_on(&file, &text, &rotated)?,
            None => log.begin()?,
        }
        log.sync()?;
        Ok(log)
    }

    fn begin(&mut self) -> Result<(), AuditError> {
        let mut id = [0; 16];
        rand::fill(&mut id).map_err(|_| AuditError::Random)?;
        self.id = hex(&id);
        self.append(SystemTime::now(), &Entry::Start { log: self.id.clone(), version: VERSION })
    }

    /// Behind what `file` holds: the current one, or the last full one where a crash came before the next began.
    fn go_on(&mut self, file: &Path, text: &[u8], rotated: &[(u64, PathBuf)]) -> Result<(), AuditError> {
        let is_current = file == self.config.path;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let torn = &text[whole..];
        if whole == 0 && is_current {
            // The first record was cut, so nothing was logged here yet.
            if !torn.is_empty() && !RECORD_BEGIN.starts_with(&torn[..torn.len().min(RECORD_BEGIN.len())]) {
                return Err(AuditError::Broken { path: file.into(), line: 1, what: "not an audit log".to_owned() });
            }
            fs::remove_file(file).map_err(AuditError::io("remove the empty", file))?;
            return match rotated.last() {
                None => self.begin(),
                Some((_, last)) => {
                    let text = fs::read(last).map_err(AuditError::io("read", last))?;
                    self.go_on(last, &text, rotated)
                }
            };
        }
        let last = self.scan(file, &text[..whole])?;
        if is_current {
            self.file = Some(append_to(file)?);
            self.len = text.len() as u64;
            if !torn.is_empty() {
                let found = Entry::Torn { bytes: torn.len() as u64, sha256: hex(&sha256(torn)) };
                tracing::warn!(bytes = torn.len(), path = %file.display(), "the audit log's last record was cut by a crash");
                self.write(b"\n")?;
                self.append(SystemTime::now(), &found)?;
            }
        } else {
            self.number += 1;
        }
        let clean = last.kind() == "checkpoint" && last.fields["last"] == true && torn.is_empty();
        self.append(SystemTime::now(), &Entry::Open { version: VERSION, clean })
    }

    /// Takes over a file's records; returns the last.
    fn scan(&mut self, path: &Path, text: &[u8]) -> Result<Line, AuditError> {
        let mut torn: Option<&[u8]> = None;
        let mut last: Option<Line> = None;
        for (index, bytes) in text.split(|&byte| byte == b'\n').enumerate() {
            let broken = |what: String| AuditError::Broken { path: path.into(), line: index + 1, what };
            if bytes.is_empty() && last.is_some() {
                continue;
            }
            let line = match Line::parse(bytes) {
                Ok(line) => line,
                // Whether that is so, the next line says.
                Err(_) if last.is_some() && torn.is_none() => {
                    torn = Some(bytes);
                    continue;
                }
                Err(what) => return Err(broken(what.to_owned())),
            };
            if let Some(torn) = torn.take()
                && !is_word_of(&line, torn)
            {
                return Err(broken("the line before it is not a whole record".to_owned()));
            }
            match &last {
                Some(last) => line.follows(last.place()).map_err(broken)?,
                None => {
                    (self.id, self.number) =
                        head(&line).ok_or_else(|| broken("no record that begins a file".to_owned()))?
                }
            }
            self.unsigned = if line.kind() == "checkpoint" { 0 } else { self.unsigned + 1 };
            self.place = line.place();
            last = Some(line);
        }
        let end = |what: &str| AuditError::Broken { path: path.into(), line: 1, what: what.to_owned() };
        if torn.is_some() {
            return Err(end("its last line is not a whole record"));
        }
        last.ok_or_else(|| end("no records"))
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Records since the last checkpoint.
    pub(super) fn unsigned(&self) -> u64 {
        self.unsigned
    }

    /// Appends a record. On an error the log is as it was.
    pub(super) fn append(&mut self, time: SystemTime, entry: &Entry) -> Result<(), AuditError> {
        self.rotate_if_full()?;
        self.begin_file()?;
        self.append_line(time, entry)
    }

    /// The file that the next record goes to, with its first record.
    fn begin_file(&mut self) -> Result<(), AuditError> {
        if self.file.is_none() {
            self.file = Some(append_to(&self.config.path)?);
            self.len = 0;
        }
        if self.len == 0 && self.place != Place::START {
            self.append_line(SystemTime::now(), &Entry::File { log: self.id.clone(), file: self.number })?;
        }
        Ok(())
    }

    fn append_line(&mut self, time: SystemTime, entry: &Entry) -> Result<(), AuditError> {
        let json = |error: serde_json::Error| AuditError::io("write", &self.config.path)(error.into());
        let (text, place) = line(self.place, time, entry).map_err(json)?;
        self.write(text.as_bytes())?;
        self.place = place;
        self.unsigned += 1;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), AuditError> {
        let io = |source| AuditError::Io { what: "write", path: self.config.path.clone(), source };
        let file = self.file.as_mut().ok_or_else(|| io(io::ErrorKind::NotFound.into()))?;
        if self.has_rest {
            file.set_len(self.len).map_err(io)?;
            self.has_rest = false;
        }
        if let Err(error) = file.write_all(bytes) {
            // If this fails too, it is tried again before the next write.
            self.has_rest = file.set_len(self.len).is_err();
            return Err(io(error));
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Forces what is written to the disk.
    pub(super) fn sync(&mut self) -> Result<(), AuditError> {
        match &self.file {
            Some(file) if self.config.fsync != Fsync::Never => {
                file.sync_data().map_err(AuditError::io("write", &self.config.path))
            }
            _ => Ok(()),
        }
    }

    /// Forces records to the disk where each is to be.
    pub(super) fn sync_records(&mut self) -> Result<(), AuditError> {
        if self.config.fsync == Fsync::Record { self.sync() } else { Ok(()) }
    }

    fn rotate_if_full(&mut self) -> Result<(), AuditError> {
        if self.file.is_some() && self.len >= self.config.rotate_bytes { self.rotate() } else { Ok(()) }
    }

    /// The file is full: signs it, gives it its number, and lets the next record begin a new one.
    fn rotate(&mut self) -> Result<(), AuditError> {
        let to = numbered(&self.config.path, self.number);
        if to.exists() {
            return Err(AuditError::io("rename to", &to)(io::ErrorKind::AlreadyExists.into()));
        }
        self.checkpoint_here(false)?;
        let path = &self.config.path;
        fs::rename(path, &to).map_err(AuditError::io("rename", path))?;
        self.file = None;
        self.number += 1;
        self.sync_folder()
    }

    /// Signs all there is. `last`: nothing comes after.
    pub(super) fn checkpoint(&mut self, last: bool) -> Result<(), AuditError> {
        self.rotate_if_full()?;
        self.checkpoint_here(last)
    }

    fn checkpoint_here(&mut self, last: bool) -> Result<(), AuditError> {
        // Before the signature: the record that begins a file is under it too.
        self.begin_file()?;
        let now = SystemTime::now();
        let time = rfc3339(now, Fraction::Millis);
        let key = self.config.key.clone();
        let entry = match &key {
            None => Entry::Checkpoint { last, key: None, signature: None, signed_time: None },
            Some(key) => Entry::Checkpoint {
                last,
                key: Some(key.verifying_key().to_string()),
                signature: Some(hex(&key.sign(note::text(&self.id, self.place, &time).as_bytes()))),
                signed_time: Some(time.clone()),
            },
        };
        self.append_line(now, &entry)?;
        self.sync()?;
        if let Some(key) = key {
            // Of this record too, which its own signature cannot be.
            self.state(&note::signed(&note::text(&self.id, self.place, &time), &self.id, &key))?;
        }
        self.unsigned = 0;
        Ok(())
    }

    /// Writes the newest checkpoint beside the log, where it says how far the log goes.
    fn state(&self, note: &str) -> Result<(), AuditError> {
        let path = checkpoint_path(&self.config.path);
        let temporary = with_suffix(&path, "new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(note.as_bytes())?;
            if self.config.fsync != Fsync::Never {
                file.sync_all()?;
            }
            fs::rename(&temporary, &path)
        };
        write().map_err(AuditError::io("write", &path))?;
        self.sync_folder()
    }

    fn sync_folder(&self) -> Result<(), AuditError> {
        if self.config.fsync == Fsync::Never {
            return Ok(());
        }
        let folder = folder(&self.config.path);
        File::open(folder).and_then(|file| file.sync_all()).map_err(AuditError::io("write", folder))
    }
}

/// Whether a record says that the line before it is the rest of one that a crash cut.
pub(super) fn is_word_of(line: &Line, torn: &[u8]) -> bool {
    let hash = hex(&sha256(torn));
    line.kind() == "torn" && line.fields["bytes"] == torn.len() && line.text("sha256") == Some(&hash)
}

/// The log's id and the file's number, if the record can begin a file.
pub(super) fn head(line: &Line) -> Option<(String, u64)> {
    let log = line.text("log")?.to_owned();
    match line.kind() {
        "start" => Some((log, 0)),
        "file" => Some((log, line.fields["file"].as_u64()?)),
        _ => None,
    }
}

/// The signed checkpoint beside a log.
pub(super) fn checkpoint_path(path: &Path) -> PathBuf {
    with_suffix(path, "checkpoint")
}

fn numbered(path: &Path, number: u64) -> PathBuf {
    with_suffix(path, &format!("{number:0NUMBER_DIGITS$}"))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A log's full files, by their numbers.
pub(super) fn rotated(path: &Path) -> Result<Vec<(u64, PathBuf)>, AuditError> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Err(AuditError::Setting(format!("`{}` does not name a file", path.display())));
    };
    let folder = folder(path);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(AuditError::io("read", folder))? {
        let entry = entry.map_err(AuditError::io("read", folder))?;
        let other = entry.file_name();
        let suffix = other.to_str().and_then(|other| other.strip_prefix(name)?.strip_prefix('.'));
        let digits =
            suffix.filter(|suffix| suffix.len() >= NUMBER_DIGITS && suffix.bytes().all(|c| c.is_ascii_digit()));
        if let Some(number) = digits.and_then(|digits| digits.parse().ok()) {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

fn lock(path: &Path) -> Result<File, AuditError> {
    let lock_path = with_suffix(path, "lock");
    let open = OpenOptions::new().write(true).create(true).truncate(false).open(&lock_path);
    let file = open.map_err(AuditError::io("open", &lock_path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AuditError::InUse { path: path.into() }),
        Err(TryLockError::Error(source)) => Err(AuditError::io("lock", &lock_path)(source)),
    }
}

fn append_to(path: &Path) -> Result<File, AuditError> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Records tell who asked, and may hold contents.
        options.mode(0o600);
    }
    options.open(path).map_err(AuditError::io("open", path))
}

/// A file's bytes: it is at most as long as one is before it is full, and a record.
fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, AuditError> {
    match fs::metadata(path) {
        Ok(about) if !about.is_file() => Err(AuditError::Setting(format!("`{}` is not a file", path.display()))),
        Ok(_) => fs::read(path).map(Some).map_err(AuditError::io("read", path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AuditError::io("read", path)(error)),
    }
}

/// Lines of a file with their ends taken off; `true` where there was one. Stops at a line that is too long to be ours.
pub(super) fn lines(path: &Path) -> Result<impl Iterator<Item = Result<(Vec<u8>, bool), AuditError>>, AuditError> {
    let file = File::open(path).map_err(AuditError::io("read", path))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let path = path.to_owned();
    Ok(std::iter::from_fn(move || {
        let mut line = Vec::new();
        let read = (&mut reader).take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line);
        match read {
            Ok(0) => None,
            Ok(_) => {
                let is_whole = line.last() == Some(&b'\n');
                line.truncate(line.len() - usize::from(is_whole));
                Some(Ok((line, is_whole)))
            }
            Err(error) => Some(Err(AuditError::io("read", &path)(error))),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{VerifyOptions, verify},
        *,
    };
    use std::time::{Duration, UNIX_EPOCH};

    /// Set back, far ahead, before 1970: times are written as they are, and order is the chain's.
    #[test]
    fn a_clock_that_jumps_breaks_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let after = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let times = [
            (after(2_000_000_000), "2033-05-18T03:33:20.000Z"),
            (after(1_000_000_000), "2001-09-09T01:46:40.000Z"),
            (UNIX_EPOCH - Duration::from_secs(5), "1970-01-01T00:00:00.000Z"),
            (after(253_402_300_800), "10000-01-01T00:00:00.000Z"),
            (after(1_500_000_000), "2017-07-14T02:40:00.000Z"),
        ];
        for _ in 0..2 {
            let config = LogConfig { path: path.clone(), key: None, rotate_bytes: 1 << 20, fsync: Fsync::Never };
            let mut log = Log::open(config).expect("opened, whatever the last time is");
            for (time, _) in times {
                log.append(time, &Entry::Lost { records: 1 }).expect("written");
            }
        }
        let report = verify(std::slice::from_ref(&path), &VerifyOptions::default()).expect("read");
        assert!(report.ok && report.lost_records == 10, "{report:?}");
        let text = fs::read_to_string(&path).expect("read");
        let mut rest = text.as_str();
        for (_, written) in times {
            let at = rest.find(written).unwrap_or_else(|| panic!("{written} in {text}"));
            rest = &rest[at..];
        }
    }
}
