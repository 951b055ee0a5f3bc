//! The rotation that makes rows fit for four bits: what is large in one component is spread over all.

/// x ← H x / √n, in blocks of n components, n the largest power of two that divides the row, H Hadamard's matrix in Sylvester's
/// order. It is its own inverse, and keeps products of rows: q·k is that of rotated q and k, and a sum of rotated values is the
/// rotated sum.
///
/// Numerics: n log₂ n additions in f32 in a fixed order, and one product per component: the same bits on every CPU. A NaN or an
/// infinity spreads over its block.
/// Source: Ashkboos et al. 2024, arXiv:2404.00456 (QuaRot), for caches.
pub(crate) fn rotate(row: &mut [f32]) {
    let block = 1 << row.len().trailing_zeros().min(usize::BITS - 2);
    let factor = 1.0 / (block as f32).sqrt();
    for block in row.chunks_exact_mut(block) {
        let mut half = 1;
        while half < block.len() {
            for pair in block.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        block.iter_mut().for_each(|x| *x *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_kept_and_twice_is_not_at_all() {
        for len in [1, 2, 7, 12, 64, 80, 96, 128] {
            let row =
                |seed: usize| -> Vec<f32> { (0..len).map(|i| ((i * 37 + seed * 11) % 23) as f32 - 9.5).collect() };
            let (a, b) = (row(1), row(2));
            let dot = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
            let (mut x, mut y) = (a.clone(), b.clone());
            rotate(&mut x);
            rotate(&mut y);
            let norm = (dot(&a, &a) * dot(&b, &b)).sqrt();
            assert!((dot(&x, &y) - dot(&a, &b)).abs() <= 1e-5 * norm, "{len}");
            rotate(&mut x);
            assert!(x.iter().zip(&a).all(|(x, a)| (x - a).abs() <= 1e-4), "{len}");
        }
        // One large component becomes many small ones.
        let mut spike = vec![0.0; 64];
        spike[5] = 8.0;
        rotate(&mut spike);
        assert!(spike.iter().all(|x| x.abs() == 1.0));
    }
}
