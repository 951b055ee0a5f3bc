//! What a squared error counts: the importance of each value of a block, or a default.

use half::f16;

/// Below this magnitude zero is the nearest value every format has: half of f16's smallest step.
const ZERO_BELOW: f32 = 1.0 / (1u32 << 25) as f32;

/// The default weighting of a format: the weight of a value `x` in a block of mean square `m`.
///
/// Large weights of a model carry more of its function than their squared error says, because the same error
/// feedback that made them large multiplies them with large activations; so a little of the magnitude goes in.
pub(super) type Default = fn(x: f32, rms: f32) -> f32;

/// Every error counts the same.
pub(super) fn uniform(_x: f32, _rms: f32) -> f32 {
    1.0
}

/// rms + |x|: errors of large values count more.
pub(super) fn magnitude(x: f32, rms: f32) -> f32 {
    rms + x.abs()
}

/// Values and weights of a block, ready for a search: values no larger than `limit`, weights within [0, 1] and
/// at least one of them 1. `None` where the block is zero, or so small that zero is its best encoding.
pub(super) fn prepare<const N: usize>(
    values: &[f32],
    importance: Option<&[f32]>,
    limit: f32,
    default: Default,
) -> Option<([f32; N], [f32; N])> {
    assert_eq!(values.len(), N);
    let x: [f32; N] = std::array::from_fn(|i| values[i].clamp(-limit, limit));
    let peak = x.iter().fold(0.0f32, |peak, value| peak.max(value.abs()));
    if peak < ZERO_BELOW {
        return None;
    }
    if let Some(importance) = importance {
        assert_eq!(importance.len(), N);
        // `max` and `min` drop a NaN.
        let mut w: [f32; N] = std::array::from_fn(|i| importance[i].max(0.0).min(f32::MAX));
        if normalize(&mut w) {
            return Some((x, w));
        }
    }
    let mean_square = x.iter().map(|value| (value / peak).powi(2)).sum::<f32>() / N as f32;
    let rms = mean_square.sqrt();
    let mut w: [f32; N] = std::array::from_fn(|i| default(x[i] / peak, rms));
    normalize(&mut w);
    Some((x, w))
}

/// Divides by the largest weight; false if there is none above zero.
fn normalize<const N: usize>(w: &mut [f32; N]) -> bool {
    let largest = w.iter().fold(0.0f32, |largest, weight| largest.max(*weight));
    if largest > 0.0 {
        w.iter_mut().for_each(|weight| *weight /= largest);
    }
    largest > 0.0
}

/// The nearest f16, clamped to the finite ones.
pub(super) fn finite_f16(value: f32) -> f16 {
    f16::from_f32(value.clamp(f16::MIN.to_f32_const(), f16::MAX.to_f32_const()))
}

/// An f16 and its two neighbours, as far as they are finite.
pub(super) fn with_neighbours(value: f16) -> [f16; 3] {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff;
    let sign = bits & 0x8000;
    [
        value,
        f16::from_bits(sign | magnitude.saturating_sub(1)),
        f16::from_bits(sign | (magnitude + 1).min(f16::MAX.to_bits())),
    ]
}
