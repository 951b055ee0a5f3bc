//! What the products of a group sum up to.

use crate::matmul::activations::QuantizedPanel;
use crate::matmul::format::{Rule, Scales};
use crate::matmul::lanes::{Kind, Lanes, Line};

/// Σ (scale · (quant − OFFSET) + min) · quant of x over a group, for R rows of x and T tiles: `totals[row][tile]`.
pub(super) struct Totals<L: Lanes, const R: usize, const T: usize>([[L::U; T]; R]);

impl<L: Lanes, const R: usize, const T: usize> Totals<L, R, T> {
    #[inline(always)]
    pub(super) fn zero(l: L) -> Self {
        Self([[l.splat(0); T]; R])
    }

    /// Adds one sub-block from registers, whose scales went through [`with_offset`].
    ///
    /// Numerics: exact. A rule's products are below 2^15 · 127 each, of which a group has 128.
    ///
    /// Development builds for Arm call it, as they do what unpacks a sub-block: a copy of the crate then takes the compiler about 5
    /// minutes of processor time there instead of 7.
    #[cfg_attr(all(target_arch = "aarch64", debug_assertions), inline(never))]
    #[cfg_attr(not(all(target_arch = "aarch64", debug_assertions)), inline(always))]
    pub(super) fn add<Q: Rule>(
        &mut self,
        l: L,
        q: &[[L::U; 8]; T],
        scales: &[Scales<L::U>; T],
        x: &QuantizedPanel<'_, R>,
        block: usize,
    ) {
        let words = &x.words[block];
        if Q::PER_16 {
            for half in 0..2 {
                let mut q_half = [[l.splat(0); 4]; T];
                let mut scale = [l.splat(0); T];
                for t in 0..T {
                    q_half[t].copy_from_slice(&q[t][4 * half..4 * half + 4]);
                    scale[t] = scales[t].scale[half];
                }
                let mut x_half = [[0; R]; 4];
                x_half.copy_from_slice(&words[4 * half..4 * half + 4]);
                l.add_products(Q::KIND, &q_half, scale, &x_half, &mut self.0);
            }
        } else {
            let mut scale = [l.splat(0); T];
            for t in 0..T {
                scale[t] = scales[t].scale[0];
            }
            l.add_products(Q::KIND, q, scale, words, &mut self.0);
        }
        if has_mins::<L, Q>() {
            for t in 0..T {
                self.add_mins::<Q>(l, t, scales[t].mins, x, block);
            }
        }
    }

    /// Adds one sub-block of every tile: eight lines of quants, scales and, if [`has_mins`], mins.
    #[inline(always)]
    pub(super) fn add_stored<Q: Rule>(&mut self, l: L, stored: [&[Line]; T], x: &QuantizedPanel<'_, R>, block: usize) {
        let words = &x.words[block];
        if Q::PER_16 {
            for half in 0..2 {
                let mut q = [&[Line::ZERO; 4]; T];
                let mut scale = [l.splat(0); T];
                for t in 0..T {
                    q[t] = stored[t][4 * half..].first_chunk().expect("eight lines");
                    scale[t] = l.load(&stored[t][8 + half]);
                }
                let words = words[4 * half..].first_chunk().expect("eight words");
                l.add_stored::<R, T, 4>(Q::KIND, q, scale, words, &mut self.0);
            }
        } else {
            let mut q = [&[Line::ZERO; 8]; T];
            let mut scale = [l.splat(0); T];
            for t in 0..T {
                q[t] = stored[t].first_chunk().expect("eight lines");
                scale[t] = l.load(&stored[t][8]);
            }
            l.add_stored::<R, T, 8>(Q::KIND, q, scale, words, &mut self.0);
        }
        if has_mins::<L, Q>() {
            let at = if Q::PER_16 { 10 } else { 9 };
            for t in 0..T {
                self.add_mins::<Q>(l, t, l.load(&stored[t][at]), x, block);
            }
        }
    }

    #[inline(always)]
    fn add_mins<Q: Rule>(&mut self, l: L, t: usize, mins: L::U, x: &QuantizedPanel<'_, R>, block: usize) {
        for r in 0..R {
            self.0[r][t] = if Q::PER_16 {
                l.dot_pairs(self.0[r][t], mins, x.half_sums[block][r])
            } else {
                l.dot_high(self.0[r][t], mins, x.sums[block][r])
            };
        }
    }

    /// acc[r][t] += unit of a tile · scale of x · total.
    #[inline(always)]
    pub(super) fn flush(&self, l: L, units: &[L::F; T], x_scales: &[f32; R], acc: &mut [[L::F; T]; R]) {
        for r in 0..R {
            for t in 0..T {
                acc[r][t] = add_group(l, self.0[r][t], units[t], x_scales[r], acc[r][t]);
            }
        }
    }
}

/// acc + x_scale · (unit · total), the first product and the sum rounded, and the second fused into the latter.
#[inline(always)]
pub(super) fn add_group<L: Lanes>(l: L, total: L::U, unit: L::F, x_scale: f32, acc: L::F) -> L::F {
    l.fma(l.mul(l.to_f32(total), unit), l.splat_f32(x_scale), acc)
}

/// What quants have too much as bytes of these lanes.
#[inline(always)]
fn offset<L: Lanes, Q: Rule>() -> i32 {
    Q::OFFSET + if matches!(Q::KIND, Kind::Signed) { L::SIGNED_OFFSET } else { 0 }
}

/// Whether the mins of [`with_offset`] are anything.
#[inline(always)]
pub(super) fn has_mins<L: Lanes, Q: Rule>() -> bool {
    Q::MINS || offset::<L, Q>() != 0
}

/// Takes offset · scale from the mins: scale · (quant − offset) + min = scale · quant + (min − offset · scale).
#[inline(always)]
pub(super) fn with_offset<L: Lanes, Q: Rule>(l: L, scales: Scales<L::U>) -> Scales<L::U> {
    let offset = offset::<L, Q>();
    if offset == 0 {
        return scales;
    }
    // No rule has both.
    let mut mins = l.mul_add(scales.scale[usize::from(Q::PER_16)], l.splat((-offset << 16) as u32), l.splat(0));
    if Q::PER_16 {
        let low = l.mul_add(scales.scale[0], l.splat(-offset as u32), l.splat(0));
        mins = l.or(mins, l.and(low, l.splat(0xffff)));
    }
    Scales { mins, ..scales }
}
