//! Elementwise and row-wise operations.
//!
//! All of them give the same bits on any number of threads; those whose documentation does not say otherwise give the
//! same bits on every instruction set too.

mod add_assign;
mod log_sum_exp;
mod rms_norm;
mod rope;
mod silu_mul;
#[cfg(test)]
mod tests;

pub use add_assign::add_assign;
pub use log_sum_exp::{kl_divergence, log_sum_exp};
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use silu_mul::silu_mul;
