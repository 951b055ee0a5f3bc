//! Products of many rows through matrix registers: the sums of `quantized::accumulate`, bit for bit, sixteen rows of x
//! and a tile of weights at a time.
//!
//! A register sum covers only what shares a scale, 32 values or 16, and leaves by way of memory. So three steps run side
//! by side: sum i is computed, sum i - 1 is written, and sum i - 2 is scaled and added to f32 sums, which stay in vector
//! registers.

use super::activations::{BLOCK, QuantizedPanel};
use super::format::Rule;
use super::lanes::{Lanes, Line, ROWS};
use super::quantized::record_lines;

/// The last sums, as they come out of matrix registers: `[sum mod 4][row of x]`.
pub(super) struct Ring([[Line; ROWS]; 4]);

impl Default for Ring {
    fn default() -> Self {
        Self([[Line::ZERO; ROWS]; 4])
    }
}

/// Bytes of x that one sum covers.
pub(super) const fn k_bytes<Q: Rule>() -> usize {
    if Q::PER_16 { BLOCK / 2 } else { BLOCK }
}

/// Adds the products of 16 rows with the unpacked sub-blocks of T tiles to `sums[row][tile]`.
///
/// Numerics: as `quantized::accumulate`; the quants are signed here, so that no offset is left to subtract.
#[inline(always)]
pub(super) fn multiply<L: Lanes, Q: Rule, const T: usize>(
    l: L,
    unpacked: &[Line],
    x: QuantizedPanel<'_, ROWS>,
    first_sub: usize,
    sums: &mut [[[f32; ROWS]; T]],
    ring: &mut Ring,
) {
    let record = record_lines::<Q>();
    let halves = if Q::PER_16 { 2 } else { 1 };
    let count = unpacked.len() / (T * record) * halves;
    for t in 0..T {
        let mut acc = [l.splat_f32(0.0); ROWS];
        for r in 0..ROWS {
            acc[r] = l.load_f32(&sums[r][t]);
        }
        for index in 0..count + 2 {
            if index < count {
                let (sub, half) = (index / halves, index % halves);
                let x = x.words[first_sub + sub].as_flattened().as_ptr().cast::<u8>();
                let lines = &unpacked[(sub * T + t) * record..][..8];
                // SAFETY: `ManyRows` began with this rule's size. A block of x is 16 rows of 32 bytes, from which a sum
                // takes `k_bytes` each from its half on, and as many lines, of 4 bytes per weight row.
                unsafe { l.matrix_dot(index, x.add(half * k_bytes::<Q>()), lines[half * 4..].as_ptr()) };
            }
            if index >= 2 {
                let (sub, half) = ((index - 2) / halves, (index - 2) % halves);
                let scales = &unpacked[(sub * T + t) * record + 8..][..record - 8];
                add::<L, Q>(l, &ring.0[(index - 2) % 4], scales, half, &x, first_sub + sub, &mut acc);
            }
            if index >= 1 && index <= count {
                // SAFETY: begun, see above; sum `index - 1` is the last but one that was started, or the last.
                unsafe { l.matrix_store(index - 1, &mut ring.0[(index - 1) % 4]) };
            }
        }
        for r in 0..ROWS {
            l.store_f32(acc[r], &mut sums[r][t]);
        }
    }
}

/// acc[r] += dots[r] · scale · scale of x − min · scaled sum of x.
#[inline(always)]
fn add<L: Lanes, Q: Rule>(
    l: L,
    dots: &[Line; ROWS],
    scales: &[Line],
    half: usize,
    x: &QuantizedPanel<'_, ROWS>,
    block: usize,
    acc: &mut [L::F; ROWS],
) {
    let each = if Q::PER_16 { 2 } else { 1 };
    let scale = l.load_f32(bytemuck::cast_ref(&scales[half].0));
    let min = if Q::MINS { l.load_f32(bytemuck::cast_ref(&scales[each + half].0)) } else { scale };
    let (x_scales, sums, scaled_sums) = (&x.scales[block], &x.sums[block], &x.scaled_sums[block]);
    for r in 0..ROWS {
        let both = l.mul(scale, l.splat_f32(x_scales[r]));
        acc[r] = l.fma(l.to_f32(l.load(&dots[r])), both, acc[r]);
        if Q::MINS {
            let sum = if Q::PER_16 { x_scales[r] * f32::from(sums[r][half]) } else { scaled_sums[r] };
            acc[r] = l.fnma(min, l.splat_f32(sum), acc[r]);
        }
    }
}
