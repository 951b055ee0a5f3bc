//! What the products of a group sum up to.

use crate::matmul::activations::QuantizedPanel;
use crate::matmul::format::{Rule, Scales};
use crate::matmul::lanes::{Kind, Lanes};

/// Σ (scale · (quant − OFFSET) + min) · quant of x over a group, for R rows of x and T tiles: `totals[row][tile]`.
pub(super) struct Totals<L: Lanes, const R: usize, const T: usize>([[L::U; T]; R]);

impl<L: Lanes, const R: usize, const T: usize> Totals<L, R, T> {
    #[inline(always)]
    pub(super) fn zero(l: L) -> Self {
        Self([[l.splat(0); T]; R])
    }

    /// Adds one sub-block, whose scales went through [`with_offset`]. PAIRED: `q` went through [`Lanes::pair_words`].
    ///
    /// Numerics: exact. A rule's products are below 2^15 · 127 each, of which a group has 128.
    #[inline(always)]
    pub(super) fn add<Q: Rule, const PAIRED: bool>(
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
                for t in 0..T {
                    q_half[t].copy_from_slice(&q[t][4 * half..4 * half + 4]);
                }
                let mut x_half = [[0; R]; 4];
                x_half.copy_from_slice(&words[4 * half..4 * half + 4]);
                let dots = dot::<L, PAIRED, R, T, 4>(l, Q::KIND, &q_half, &x_half);
                self.add_dots(l, &dots, scales, half);
            }
        } else {
            let dots = dot::<L, PAIRED, R, T, 8>(l, Q::KIND, q, words);
            self.add_dots(l, &dots, scales, 0);
        }
        if has_mins::<L, Q>() {
            for r in 0..R {
                for t in 0..T {
                    let (total, mins) = (self.0[r][t], scales[t].mins);
                    self.0[r][t] = if Q::PER_16 {
                        l.dot_pairs(total, mins, x.half_sums[block][r])
                    } else {
                        l.dot_high(total, mins, x.sums[block][r])
                    };
                }
            }
        }
    }

    #[inline(always)]
    fn add_dots(&mut self, l: L, dots: &[[L::U; T]; R], scales: &[Scales<L::U>; T], half: usize) {
        for r in 0..R {
            for t in 0..T {
                self.0[r][t] = l.mul_add(dots[r][t], scales[t].scale[half], self.0[r][t]);
            }
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

#[inline(always)]
fn dot<L: Lanes, const PAIRED: bool, const R: usize, const T: usize, const W: usize>(
    l: L,
    kind: Kind,
    q: &[[L::U; W]; T],
    x: &[[u32; R]; W],
) -> [[L::U; T]; R] {
    if PAIRED { l.dot_paired(kind, q, x) } else { l.dot(kind, q, x) }
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
