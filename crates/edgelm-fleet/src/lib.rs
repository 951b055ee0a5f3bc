//! Getting models to machines.
//!
//! Separate because it is the only part whose job is the network, and it needs nothing of what a model is: it moves
//! files and proves that they are the right ones. Must not depend on any other crate of the workspace.
//!
//! [`hub`] downloads from Hugging Face and whatever speaks its API; [`digest`] says what a file is.

pub mod digest;
pub mod hub;
