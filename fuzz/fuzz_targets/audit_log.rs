//! Audit logs: verified or found wanting, whatever is in the file.
#![no_main]

use edgelm_serve::audit::{VerifyOptions, verify};
use libfuzzer_sys::fuzz_target;
use std::{fs, path::PathBuf, sync::LazyLock};

/// One file for the process: logs are read from files.
static LOG: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("edgelm-fuzz-audit-{}", std::process::id())));

fuzz_target!(|data: &[u8]| {
    // The signed note beside the log is the part behind the last form feed.
    let (log, note) = match data.iter().rposition(|&byte| byte == 0x0c) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[][..]),
    };
    fs::write(&*LOG, log).expect("written");
    fs::write(LOG.with_extension("checkpoint"), note).expect("written");
    if let Ok(report) = verify(std::slice::from_ref(&*LOG), &VerifyOptions::default()) {
        assert_eq!(report.ok, report.findings.is_empty());
    }
});
