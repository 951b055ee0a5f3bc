//! `edgelm audit verify`: does a log hold together, and does it hold all it should.
//!
//! The chain alone shows changes, cuts in the middle and another order. Signatures show a chain that was computed anew, and whatever
//! states the end (the signed checkpoint beside the log, or `last`) shows that the end is missing.

use super::{
    AuditError,
    chain::{Line, Place},
    key::VerifyingKey,
    log::{checkpoint_path, head, is_word_of, lines, rotated},
    note,
};
use crate::encoding::from_hex;
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What is known beside the files.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    /// Checkpoints must be signed by one of these. None = signatures are not looked at.
    pub trust: Vec<VerifyingKey>,
    /// What came before the first file, where older ones have been put away.
    pub after: Option<Place>,
    /// The log went at least so far.
    pub last: Option<Place>,
    /// A signed checkpoint to compare with, instead of the one beside the log.
    pub checkpoint: Option<PathBuf>,
}

/// What is in a log, and what is wrong with it.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Nothing was found.
    pub ok: bool,
    /// The log's id.
    pub log: String,
    /// Files, in their order.
    pub files: Vec<PathBuf>,
    /// All records.
    pub records: u64,
    /// Those of requests.
    pub requests: u64,
    /// Checkpoints with a signature of a key that is trusted.
    pub signed_checkpoints: u64,
    /// Records in front of the last of these.
    pub signed_records: u64,
    /// Something states where the log ends, and it does.
    pub end_is_stated: bool,
    /// The last record closes the log.
    pub is_closed: bool,
    /// Starts behind an end that was not clean.
    pub unclean_starts: u64,
    /// Lines that a crash has cut and the log itself names.
    pub torn_lines: u64,
    /// Records that could not be written, by the log's own word.
    pub lost_records: u64,
    /// Records with a time before that of their predecessor.
    pub clock_steps_back: u64,
    /// The end, as `last` takes it.
    pub last: String,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// Where.
    pub file: PathBuf,
    /// From 1; 0 = the file as a whole.
    pub line: usize,
    /// What.
    pub what: String,
}

/// Reads logs: the files given, each with the full files beside it, in the order of their records.
///
/// # Errors
/// Files that cannot be read. What is wrong inside them is in the report.
pub fn verify(paths: &[PathBuf], options: &VerifyOptions) -> Result<Report, AuditError> {
    let files = files(paths)?;
    let mut stated: Vec<Stated> =
        options.last.map(|place| Stated::new("what was stated as the end", place)).into_iter().collect();
    let mut reader = Reader { options, place: options.after.unwrap_or(Place::START), ..Reader::new(options) };
    let note_path = options.checkpoint.clone().or_else(|| paths.first().map(|path| checkpoint_path(path)));
    let note_path = note_path.filter(|path| options.checkpoint.is_some() || path.exists());
    let mut note_log = None;
    if let Some(path) = note_path.filter(|_| !options.trust.is_empty()) {
        let text = fs::read_to_string(&path).map_err(AuditError::io("read", &path))?;
        let opened = options.trust.iter().map(|key| note::open(&text, key)).reduce(Result::or);
        match opened {
            Some(Ok((log, place))) => {
                note_log = Some((path, log));
                stated.push(Stated::new("the signed checkpoint beside it", place));
            }
            Some(Err(what)) => reader.find(&path, 0, what),
            None => {}
        }
    }
    for path in &files {
        reader.file(path, &mut stated)?;
    }
    let last_file = files.last().cloned().unwrap_or_default();
    if let Some((path, log)) = note_log.filter(|(_, log)| !reader.report.log.is_empty() && *log != reader.report.log) {
        reader.find(&path, 0, format!("the checkpoint is of another log, `{log}`"));
    }
    for Stated { by, place, .. } in stated.iter().filter(|stated| !stated.is_met) {
        let what = match reader.place.records < place.records {
            true => format!("the log ends after {} records, {by} tells of {}", reader.place.records, place.records),
            false => format!("the first {} records are not those that {by} tells of", place.records),
        };
        reader.find(&last_file, 0, what);
    }
    reader.report.end_is_stated = stated.iter().any(|stated| stated.is_met);
    if !options.trust.is_empty() && reader.report.signed_checkpoints == 0 {
        reader.find(&last_file, 0, "no checkpoint is signed by a key that is trusted");
    }
    let mut report = reader.report;
    report.last = reader.place.to_string();
    report.ok = report.findings.is_empty();
    report.files = files;
    Ok(report)
}

/// An end that something tells of.
struct Stated {
    by: &'static str,
    place: Place,
    is_met: bool,
}

impl Stated {
    fn new(by: &'static str, place: Place) -> Self {
        Self { by, place, is_met: place == Place::START }
    }
}

/// The given files and the full ones beside them, by the numbers of their first records.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, AuditError> {
    let mut all: Vec<PathBuf> = Vec::new();
    for path in paths {
        let beside = rotated(path)?.into_iter().map(|(_, path)| path);
        for path in beside.chain([path.clone()]) {
            if !all.contains(&path) {
                all.push(path);
            }
        }
    }
    let mut placed = Vec::new();
    for path in all {
        let first = lines(&path)?.next().transpose()?;
        let seq = first.and_then(|(line, _)| Line::parse(&line).ok()).map_or(u64::MAX, |line| line.seq);
        placed.push((seq, path));
    }
    placed.sort_by_key(|(seq, _)| *seq);
    Ok(placed.into_iter().map(|(_, path)| path).collect())
}

struct Reader<'a> {
    options: &'a VerifyOptions,
    report: Report,
    place: Place,
    time: String,
}

impl<'a> Reader<'a> {
    fn new(options: &'a VerifyOptions) -> Self {
        Self { options, report: Report::default(), place: Place::START, time: String::new() }
    }

    fn find(&mut self, file: &Path, line: usize, what: impl Into<String>) {
        self.report.findings.push(Finding { file: file.into(), line, what: what.into() });
    }

    fn file(&mut self, path: &Path, stated: &mut [Stated]) -> Result<(), AuditError> {
        // A line that is not whole, until the next one explains it.
        let mut torn: Option<(Vec<u8>, &'static str)> = None;
        let mut count = 0;
        for line in lines(path)? {
            let (bytes, has_end) = line?;
            count += 1;
            if !has_end {
                self.find(
                    path,
                    count,
                    "ends in the middle of a record: cut, or its writer crashed and has not been started since",
                );
            }
            let line = match Line::parse(&bytes) {
                Ok(line) if has_end => line,
                Ok(_) => continue,
                Err(what) => {
                    if let Some((_, what)) = torn.replace((bytes, what)) {
                        self.find(path, count - 1, what);
                    }
                    continue;
                }
            };
            if let Some((bytes, what)) = torn.take() {
                match is_word_of(&line, &bytes) {
                    true => self.report.torn_lines += 1,
                    false => self.find(path, count - 1, what),
                }
            } else if line.kind() == "torn" {
                self.find(path, count, "tells of a line that a crash has cut, but there is none");
            }
            self.record(path, count, &line, stated);
        }
        if let Some((_, what)) = torn {
            self.find(path, count, what);
        }
        if count == 0 {
            self.find(path, 0, "empty");
        }
        Ok(())
    }

    fn record(&mut self, path: &Path, at: usize, line: &Line, stated: &mut [Stated]) {
        if let Err(what) = line.follows(self.place) {
            self.find(path, at, what);
        }
        if at == 1 {
            match head(line) {
                Some((log, _)) if self.report.log.is_empty() => self.report.log = log,
                Some((log, _)) if log == self.report.log => {}
                Some((log, _)) => self.find(path, at, format!("a file of another log, `{log}`")),
                None => self.find(path, at, "not a record that begins a file"),
            }
        }
        let before = Place { records: line.seq, head: line.prev };
        self.report.records += 1;
        match line.kind() {
            "request" => self.report.requests += 1,
            "open" if line.fields["clean"] == false => self.report.unclean_starts += 1,
            "lost" => self.report.lost_records += line.fields["records"].as_u64().unwrap_or(0),
            "checkpoint" => self.checkpoint(path, at, line, before),
            _ => {}
        }
        self.report.is_closed = line.kind() == "checkpoint" && line.fields["last"] == true;
        // All are in UTC and of one length, so their order is that of their texts.
        let time = line.text("time").unwrap_or_default();
        self.report.clock_steps_back += u64::from(time < self.time.as_str());
        time.clone_into(&mut self.time);
        self.place = line.place();
        for stated in stated.iter_mut().filter(|stated| stated.place == line.place()) {
            stated.is_met = true;
        }
    }

    fn checkpoint(&mut self, path: &Path, at: usize, line: &Line, before: Place) {
        if self.options.trust.is_empty() {
            return;
        }
        let signature: Option<[u8; 64]> = line.text("signature").and_then(from_hex);
        let (Some(signature), Some(time)) = (signature, line.text("signed_time")) else {
            return self.find(path, at, "a checkpoint without a signature");
        };
        let text = note::text(&self.report.log, before, time);
        match self.options.trust.iter().any(|key| key.verifies(text.as_bytes(), &signature)) {
            true => {
                self.report.signed_checkpoints += 1;
                self.report.signed_records = before.records;
            }
            false => self.find(path, at, "a checkpoint that is not signed by a key that is trusted"),
        }
    }
}
