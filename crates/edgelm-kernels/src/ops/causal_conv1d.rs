//! The short convolution over positions of Mamba, gated delta networks and LFM2.

use super::activate::function;
use crate::disjoint::Disjoint;
use crate::simd::{Kernel, LANES, Lanes, dispatch, load_chunks, store_partial};
use crate::{Cpu, Work};
use edgelm_tensor::Activation;
use std::ops::Range;

/// Products per thread below which a second thread costs more than it saves.
const GRAIN: usize = 1 << 15;

/// out[t, c] = f(bias[c] + Σ_j weight[j, c] · x[t - (K-1) + j, c]) with j in 0..K: a convolution of each channel by itself,
/// whose last tap is the present. Positions before the first are those in `state`, the K-1 inputs before these, oldest
/// first; afterwards it holds the last K-1 inputs. Zeros stand for the time before the sequence.
///
/// Shapes: `x`, `out` [T, C]; `weight` [K, C], taps first (checkpoints have [C, 1, K]); `bias` [C]; `state` [K-1, C].
/// Numerics: bias first, then taps in index order, in f32; f as [`crate::activate`], nothing if `None`. Scalar differs from the
/// vector paths by fused multiply-add. However a sequence is cut into calls, it gives the same bits.
/// Panics if C is 0 or lengths disagree.
/// Source: Gu and Dao 2023, arXiv:2312.00752.
pub fn causal_conv1d(
    cpu: &Cpu,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    state: &mut [f32],
    activation: Option<Activation>,
    out: &mut [f32],
) {
    assert!(state.len() < weight.len(), "a channel and a tap, and one position less in the state than taps");
    let channels = weight.len() - state.len();
    assert!(weight.len().is_multiple_of(channels), "whole taps");
    assert!(bias.is_none_or(|bias| bias.len() == channels), "a bias per channel");
    assert!(x.len().is_multiple_of(channels), "whole rows");
    assert_eq!(x.len(), out.len());
    if x.is_empty() {
        return;
    }
    let (rows, taps) = (x.len() / channels, weight.len() / channels);
    let _operator =
        cpu.operator("causal_conv1d", || Work::elementwise(2 * x.len() + weight.len(), 2 * rows * weight.len()));
    let (past, results) = (&*state, Disjoint::new(out));
    let grain = (GRAIN / (rows * taps)).next_multiple_of(LANES).max(LANES);
    cpu.pool().split(channels, grain, &|part| {
        dispatch(cpu, Conv { x, weight, bias, past, activation, channels, part, out: &results });
    });
    let kept = state.len().saturating_sub(x.len());
    state.copy_within(state.len() - kept.., 0);
    let (_, new) = state.split_at_mut(kept);
    new.copy_from_slice(&x[x.len() - new.len()..]);
}

struct Conv<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    past: &'a [f32],
    activation: Option<Activation>,
    channels: usize,
    /// Channels to do.
    part: Range<usize>,
    out: &'a Disjoint<'a, f32>,
}

impl Kernel for Conv<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for row in 0..self.x.len() / self.channels {
            let first = row * self.channels;
            // SAFETY: every part of the channels is done by one worker, and rows do not overlap.
            #[allow(unsafe_code)]
            let out = unsafe { self.out.part(first + self.part.start..first + self.part.end) };
            let (whole, tail) = out.as_chunks_mut::<LANES>();
            let mut channel = self.part.start;
            for out in whole {
                self.chunk::<L, true>(row, channel..channel + LANES).store(out);
                channel += LANES;
            }
            if !tail.is_empty() {
                store_partial(self.chunk::<L, false>(row, channel..self.part.end), tail);
            }
        }
    }
}

impl Conv<'_> {
    /// Results of sixteen channels, or, without `WHOLE`, of fewer.
    #[inline(always)]
    fn chunk<L: Lanes, const WHOLE: bool>(&self, row: usize, part: Range<usize>) -> L {
        let Self { x, past, channels, .. } = *self;
        let mut sum = L::splat(0.0);
        if let Some(bias) = self.bias {
            [sum] = load_chunks::<L, 1, WHOLE>(&bias[part.clone()]);
        }
        for (tap, weight) in self.weight.chunks_exact(channels).enumerate() {
            let input = (row + tap) * channels;
            let input = if input < past.len() { &past[input..] } else { &x[input - past.len()..] };
            let [input] = load_chunks::<L, 1, WHOLE>(&input[part.clone()]);
            let [weight] = load_chunks::<L, 1, WHOLE>(&weight[part.clone()]);
            sum = weight.mul_add(input, sum);
        }
        match self.activation {
            Some(activation) => function(activation, sum),
            None => sum,
        }
    }
}
