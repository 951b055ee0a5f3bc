//! What a server says about itself: logs and the audit log.

use super::parse_seconds;
use crate::{
    failure::Usage,
    options::Global,
    output::{self, LogFormat},
};
use clap::Args;
use edgelm_compress::parse_size;
use edgelm_serve::{
    ForwardConfig, HealthBaseline, OtlpConfig, ServerConfig,
    audit::{AuditConfig, Fsync, LogConfig, OnFailure, SigningKey},
    otlp_headers,
};
use std::{env, path::PathBuf, sync::Arc, time::Duration};

/// Seconds, or 0.
fn parse_interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(_) => Ok(seconds),
        Err(_) => Err(format!("{seconds} is not a time between probes")),
    }
}

#[derive(Args)]
pub struct ObserveArgs {
    /// Log lines on stderr as text, or as one JSON object each with the time
    #[arg(long, value_name = "text|json", default_value = "text")]
    log_format: LogFormat,
    /// Seconds between probes of what each loaded model says, made when nobody waits; 0 = none
    #[arg(long, value_name = "S", default_value_t = 30.0, value_parser = parse_interval)]
    health_interval: f64,
    /// What each model has to say at its first probe (a file of --write-health-baseline): one that says something else, or has other
    /// files, is read from the disk once more and then not served
    #[arg(long, value_name = "F")]
    health_baseline: Option<PathBuf>,
    /// Load the models, note in F what they say on this machine beside what is there, and end
    #[arg(long, value_name = "F", conflicts_with = "health_baseline")]
    pub write_health_baseline: Option<PathBuf>,
    /// Send traces to this collector, by OTLP over gRPC (`http://host:4317` or `https://…`); headers of OTEL_EXPORTER_OTLP_HEADERS go
    /// with them
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// Accept only a collector with a certificate of these authorities (PEM) [default: those that the system trusts]
    #[arg(long, value_name = "F", env = "OTEL_EXPORTER_OTLP_CERTIFICATE", requires = "otlp_endpoint")]
    otlp_ca: Option<PathBuf>,
    /// Send all metrics to the collector as well, each time so many seconds have gone by [default: never]
    #[arg(long, value_name = "S", value_parser = parse_seconds, requires = "otlp_endpoint")]
    otlp_metrics_interval: Option<Duration>,
    /// Send the collector the prompts of all requests, too, as log records
    #[arg(long, requires = "otlp_endpoint")]
    keep_inputs: bool,
    /// Folder for what the collector cannot be sent now, encrypted: it is sent when the collector is back [default: it is lost]
    #[arg(long, value_name = "DIR", requires = "otlp_endpoint")]
    forward_dir: Option<PathBuf>,
    /// Size of what waits in --forward-dir; the oldest goes beyond it
    #[arg(long, value_name = "S", default_value = "64MiB", value_parser = parse_size, requires = "forward_dir")]
    forward_limit: u64,
    /// Seconds after which what waits is not sent any more
    #[arg(long, value_name = "S", default_value = "86400", value_parser = parse_seconds, requires = "forward_dir")]
    forward_age: Duration,
    /// Key of what waits: 64 hexadecimal digits in a file that only its owner can read; made where there is none [default: `key`
    /// in --forward-dir]
    #[arg(long, value_name = "F", requires = "forward_dir")]
    forward_key: Option<PathBuf>,
    /// Keep an audit log: one hash-chained record per request, in F and F.000000 … when it is full
    #[arg(long, value_name = "F")]
    audit_log: Option<PathBuf>,
    /// Sign the audit log's checkpoints with this key (`keys new --signing`)
    #[arg(long, value_name = "F", requires = "audit_log")]
    audit_key: Option<PathBuf>,
    /// Record prompts and answers too
    #[arg(long, requires = "audit_log")]
    audit_content: bool,
    /// While the audit log cannot be written, refuse requests, or answer them and count what was lost
    #[arg(long, value_name = "refuse|continue", default_value = "refuse", requires = "audit_log")]
    audit_on_failure: OnFailure,
    /// Force the audit log to the disk with every record, with checkpoints, or never
    #[arg(long, value_name = "record|checkpoint|never", default_value = "checkpoint", requires = "audit_log")]
    audit_fsync: Fsync,
    /// Begin a new audit file at this size
    #[arg(long, value_name = "S", default_value = "64MiB", value_parser = parse_size, requires = "audit_log")]
    audit_rotate: u64,
    /// Records between checkpoints of the audit log
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    audit_checkpoint_records: u64,
    /// Seconds after which records get a checkpoint
    #[arg(long, value_name = "S", default_value = "60", value_parser = parse_seconds)]
    audit_checkpoint_interval: Duration,
}

impl ObserveArgs {
    /// Logs, with a line per request.
    pub fn start_logging(&self, global: &Global) {
        output::start_logging(global, self.log_format, Some(edgelm_serve::ACCESS_LINES));
    }

    /// Adds to the server's settings what is asked for here.
    pub(super) fn apply(&self, mut config: ServerConfig, global: &Global) -> anyhow::Result<ServerConfig> {
        config.audit = self.audit(global)?;
        config.health_interval = Duration::try_from_secs_f64(self.health_interval).ok().filter(|time| !time.is_zero());
        config.health_baseline = self.health_baseline.as_deref().map(HealthBaseline::read).transpose()?.map(Arc::new);
        config.otlp = self.otlp()?;
        Ok(config)
    }

    fn otlp(&self) -> anyhow::Result<Option<OtlpConfig>> {
        let Some(endpoint) = self.otlp_endpoint.clone() else { return Ok(None) };
        let headers = match env::var("OTEL_EXPORTER_OTLP_HEADERS") {
            Ok(text) => otlp_headers(&text).map_err(Usage)?,
            Err(env::VarError::NotPresent) => Vec::new(),
            Err(error) => return Err(Usage(format!("OTEL_EXPORTER_OTLP_HEADERS: {error}")).into()),
        };
        let forward = self.forward_dir.clone().map(|folder| ForwardConfig {
            folder,
            limit_bytes: self.forward_limit,
            key: self.forward_key.clone(),
            max_age: self.forward_age,
        });
        Ok(Some(OtlpConfig {
            endpoint,
            ca: self.otlp_ca.clone(),
            headers,
            metrics_interval: self.otlp_metrics_interval,
            keep_inputs: self.keep_inputs,
            forward,
        }))
    }

    fn audit(&self, global: &Global) -> anyhow::Result<Option<AuditConfig>> {
        let Some(path) = &self.audit_log else { return Ok(None) };
        let key = self.audit_key.as_ref().map(|path| SigningKey::read(path).map(Arc::new)).transpose()?;
        if key.is_none() {
            global.note("without --audit-key, whoever can write the audit log can also compute it anew");
        }
        let log = LogConfig { path: path.clone(), key, rotate_bytes: self.audit_rotate, fsync: self.audit_fsync };
        Ok(Some(AuditConfig {
            log,
            checkpoint_records: self.audit_checkpoint_records,
            checkpoint_interval: self.audit_checkpoint_interval,
            on_failure: self.audit_on_failure,
            with_content: self.audit_content,
        }))
    }
}
