//! Shapes out of files: products that cannot overflow later.

use crate::fault::{Fault, malformed};

/// Number of values of a shape. Also guarantees that the product of *any* of its dimensions fits `usize`, which a zero
/// dimension could otherwise hide (`[2^40, 2^40, 0]` has no values but overflows when rows are counted).
pub(crate) fn elements(shape: &[usize]) -> Result<usize, Fault> {
    let nonzero = shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim.max(1)));
    match nonzero {
        Some(_) if shape.contains(&0) => Ok(0),
        Some(count) => Ok(count),
        None => malformed!("the product of shape {shape:?} overflows"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn overflow_is_found_behind_zeros() {
        assert_eq!(elements(&[]).unwrap(), 1);
        assert_eq!(elements(&[3, 0, 5]).unwrap(), 0);
        assert_eq!(elements(&[3, 4]).unwrap(), 12);
        assert!(elements(&[usize::MAX, 2]).is_err());
        assert!(elements(&[usize::MAX, 2, 0]).is_err());
        assert!(elements(&[0, usize::MAX, 2]).is_err());
    }
}
