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

    /// Adds one sub-block. PAIRED: `q` went through [`Lanes::pair_words`].
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
        let offset = Q::OFFSET + if matches!(Q::KIND, Kind::Signed) { L::SIGNED_OFFSET } else { 0 };
        let (words, sums) = (&x.words[block], &x.sums[block]);
        if Q::PER_16 {
            for half in 0..2 {
                let mut start = [0; R];
                for r in 0..R {
                    start[r] = -offset * i32::from(sums[r][half]);
                }
                let mut q_half = [[l.splat(0); 4]; T];
                for t in 0..T {
                    q_half[t].copy_from_slice(&q[t][4 * half..4 * half + 4]);
                }
                let mut x_half = [[0; R]; 4];
                x_half.copy_from_slice(&words[4 * half..4 * half + 4]);
                let dots = dot::<L, PAIRED, R, T, 4>(l, Q::KIND, start, &q_half, &x_half);
                self.add_dots(l, &dots, scales, half);
            }
        } else {
            let mut start = [0; R];
            for r in 0..R {
                start[r] = -offset * (i32::from(sums[r][0]) + i32::from(sums[r][1]));
            }
            let dots = dot::<L, PAIRED, R, T, 8>(l, Q::KIND, start, q, words);
            self.add_dots(l, &dots, scales, 0);
        }
        if Q::MINS {
            for r in 0..R {
                let x = if Q::PER_16 { sums[r] } else { [0, sums[r][0] + sums[r][1]] };
                for t in 0..T {
                    self.0[r][t] = l.dot_pairs(self.0[r][t], scales[t].mins, x);
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
    start: [i32; R],
    q: &[[L::U; W]; T],
    x: &[[u32; R]; W],
) -> [[L::U; T]; R] {
    if PAIRED { l.dot_paired(kind, start, q, x) } else { l.dot(kind, start, q, x) }
}
