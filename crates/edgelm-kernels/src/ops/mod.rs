//! Elementwise and row-wise operations.
//!
//! All of them give the same bits on any number of threads; those whose documentation does not say otherwise give the
//! same bits on every instruction set too.

mod activate;
mod add_assign;
mod causal_conv1d;
mod clamp;
mod gated_delta;
mod layer_norm;
mod log_sum_exp;
mod map;
mod rms_norm;
mod rope;
mod scale;
mod selective_scan;
mod softcap;
#[cfg(test)]
mod tests;

pub use activate::{activate, activate_mul};
pub use add_assign::add_assign;
pub use causal_conv1d::causal_conv1d;
pub use clamp::clamp;
pub use gated_delta::{GatedDelta, gated_delta};
pub use layer_norm::layer_norm;
pub use log_sum_exp::{kl_divergence, log_sum_exp};
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use scale::scale;
pub use selective_scan::{SelectiveScan, selective_scan};
pub use softcap::softcap;
