//! Shapes out of files: products that cannot overflow, here or later.

use crate::fault::{Fault, malformed};

/// Bytes of a tensor whose rows are whole blocks of `block_values` values in `block_bits` bits.
///
/// Also guarantees that no product of any of its dimensions, in values or in bytes, overflows. A zero dimension could
/// hide that: `[2^40, 2^40, 0]` has no values, but counting its rows would overflow.
pub(crate) fn bytes(shape: &[usize], type_name: &str, block_values: usize, block_bits: usize) -> Result<usize, Fault> {
    let row_len = shape.last().copied().unwrap_or(1);
    if !row_len.is_multiple_of(block_values) {
        return malformed!("rows of {row_len} values are not whole {type_name} blocks of {block_values}");
    }
    let Some(nonzero_product) = product_of_nonzero(shape) else {
        return malformed!("the product of shape {shape:?} overflows");
    };
    // A usize times a small constant: in 128 bits, so that 32-bit systems can hold what fits them.
    let bits = (nonzero_product / block_values) as u128 * block_bits as u128;
    let Some(bytes) = usize::try_from(bits / 8).ok().filter(|&bytes| isize::try_from(bytes).is_ok()) else {
        return malformed!("the size of shape {shape:?} in {type_name} overflows");
    };
    if shape.contains(&0) {
        return Ok(0);
    }
    if !bits.is_multiple_of(8) {
        return malformed!("shape {shape:?} in {type_name} is not whole bytes");
    }
    Ok(bytes)
}

/// For types of unknown size: only that the dimensions' products do not overflow.
pub(crate) fn check(shape: &[usize]) -> Result<(), Fault> {
    match product_of_nonzero(shape) {
        Some(_) => Ok(()),
        None => malformed!("the product of shape {shape:?} overflows"),
    }
}

fn product_of_nonzero(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, &dimension| product.checked_mul(dimension.max(1)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes(&[], "F32", 1, 32).unwrap(), 4);
        assert_eq!(bytes(&[3, 4], "F16", 1, 16).unwrap(), 24);
        assert_eq!(bytes(&[3, 64], "Q8_0", 32, 272).unwrap(), 204);
        assert_eq!(bytes(&[3, 0, 5], "F32", 1, 32).unwrap(), 0);
        assert_eq!(bytes(&[4], "F4", 1, 4).unwrap(), 2);
        assert!(bytes(&[3], "F4", 1, 4).is_err());
        assert!(bytes(&[4, 16], "Q8_0", 32, 272).is_err());
    }

    #[test]
    fn overflow_is_found_behind_zeros() {
        for shape in [[usize::MAX, 2, 1], [usize::MAX, 2, 0], [0, usize::MAX, 2], [1, 0, usize::MAX / 2]] {
            assert!(bytes(&shape, "F32", 1, 32).is_err(), "{shape:?}");
        }
        assert!(check(&[usize::MAX, 2]).is_err());
        assert!(check(&[usize::MAX, 0]).is_ok());
    }
}
