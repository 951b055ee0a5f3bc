//! `edgelm audit`: audit logs of servers.

use crate::{options::Global, output};
use clap::{Args, Subcommand};
use edgelm_serve::audit::{Place, Report, VerifyOptions, VerifyingKey, verify};
use std::{path::PathBuf, process::ExitCode};

#[derive(Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Find what was changed, cut, reordered or is missing in a log
    Verify(VerifyArgs),
}

#[derive(Args)]
struct VerifyArgs {
    /// Log files; full ones beside them (F.000000 …) are read too
    #[arg(required = true, value_name = "F")]
    files: Vec<PathBuf>,
    /// Checkpoints must be signed by this key: a file, or ed25519:HEX (repeatable)
    #[arg(long, value_name = "KEY")]
    trust: Vec<String>,
    /// The log went at least so far [default: what F.checkpoint says]
    #[arg(long, value_name = "RECORDS:HASH")]
    last: Option<Place>,
    /// What came before the first file, where older ones have been put away
    #[arg(long, value_name = "RECORDS:HASH")]
    after: Option<Place>,
    /// A signed checkpoint kept elsewhere [default: F.checkpoint, if it is there]
    #[arg(long, value_name = "F", requires = "trust")]
    checkpoint: Option<PathBuf>,
}

pub fn run(args: AuditArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let AuditCommand::Verify(VerifyArgs { files, trust, last, after, checkpoint }) = args.command;
    let mut keys = Vec::new();
    for key in trust {
        keys.push(match key.parse() {
            Ok(key) => key,
            Err(_) => VerifyingKey::read(key.as_ref())?,
        });
    }
    let is_signed = !keys.is_empty();
    let report = verify(&files, &VerifyOptions { trust: keys, after, last, checkpoint })?;
    if global.json {
        output::json(&report)?;
    } else {
        print(&report, is_signed)?;
        if !is_signed {
            global.note("signatures were not looked at: a log that was computed anew passes; use --trust KEY");
        }
        if !report.end_is_stated {
            global.note("nothing states where the log ends: a missing end cannot be told; use --trust or --last");
        }
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &Report, is_signed: bool) -> anyhow::Result<()> {
    for finding in &report.findings {
        let at = if finding.line == 0 { String::new() } else { format!(":{}", finding.line) };
        output::line(format!("{}{at}: {}", finding.file.display(), finding.what))?;
    }
    let mut parts = vec![
        format!("{} records in {} files, {} of requests", report.records, report.files.len(), report.requests),
        if report.is_closed { "closed".to_owned() } else { "not closed".to_owned() },
    ];
    if is_signed {
        parts.push(format!("{} signed checkpoints up to record {}", report.signed_checkpoints, report.signed_records));
    }
    for (count, what) in [
        (report.torn_lines, "lines cut by crashes"),
        (report.unclean_starts, "starts behind an end that was not clean"),
        (report.lost_records, "records lost, as the log says"),
        (report.clock_steps_back, "steps back of the clock"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    output::line(parts.join("; "))?;
    output::line(format!("last: {}", report.last))?;
    output::line(if report.ok { "ok".to_owned() } else { format!("NOT ok: {} findings", report.findings.len()) })
}
