//! The whole server: a fake model behind real sockets, and small real ones.
#![allow(clippy::unwrap_used)]

mod api;
mod audit;
mod dashboard;
mod door;
mod fake;
mod forward;
mod grpc;
mod life;
mod live;
mod models;
mod observe;
mod overflow;
mod schedule;
