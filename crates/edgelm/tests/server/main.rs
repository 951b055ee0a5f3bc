//! `edgelm serve` as a process: what it answers, what its audit log survives, and the official clients.
#![allow(clippy::unwrap_used)]

mod answers;
#[cfg(unix)]
mod audit_log;
mod clients;
#[cfg(target_os = "linux")]
mod faults;
#[cfg(unix)]
mod forward;
#[cfg(unix)]
mod kv_store;
mod process;
