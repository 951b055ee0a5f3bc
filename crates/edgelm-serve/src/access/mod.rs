//! Who may ask, and for what: API keys, certificates, and no web pages of other origins.

mod guard;
mod key;
mod keys;
mod origin;
mod rate;
mod revocation;
mod scope;

pub use key::NewKey;
pub use keys::ApiKeys;
pub use origin::Origin;
pub use rate::RateLimits;
pub use scope::Scope;

pub(crate) use guard::{Guard, Identity, require};
pub(crate) use origin::refuse_cross_origin;
pub(crate) use rate::Meter;
