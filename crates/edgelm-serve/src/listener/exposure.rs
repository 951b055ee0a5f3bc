//! No open door by oversight.

use crate::ServeError;
use std::net::SocketAddr;

/// An error for addresses that others than this machine's users can reach.
pub(super) fn check(name: &str, addresses: &[SocketAddr]) -> Result<(), ServeError> {
    match addresses.iter().all(|address| address.ip().to_canonical().is_loopback()) {
        true => Ok(()),
        false => Err(ServeError::Exposed { address: name.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_this_machine() {
        let is_fine = |address: &str| check("x", &[address.parse().expect("an address")]).is_ok();
        assert!(is_fine("127.0.0.1:1") && is_fine("127.9.9.9:1") && is_fine("[::1]:1"));
        assert!(!is_fine("0.0.0.0:1") && !is_fine("[::]:1") && !is_fine("192.168.0.1:1") && !is_fine("[fe80::1]:1"));
    }
}
