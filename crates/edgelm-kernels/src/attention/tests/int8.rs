//! Attention over Q8 and Q4 caches against its definition, written as plain loops.

use super::*;
use crate::kv::rotate;
use crate::simd::{Kernel, LANES, Lanes, dispatch, exp2_negative, tanh};

const PAGE: usize = 64;
const SEGMENT: usize = 8 * PAGE;

/// Whole numbers up to `steps`, and scale, of a row.
fn quantize(row: &[f32], steps: f32) -> (Vec<i32>, f32) {
    let largest = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let inverse = steps / largest;
    (row.iter().map(|x| (x * inverse).round_ties_even() as i32).collect(), largest / steps)
}

/// As a cache keeps it.
fn kept(dtype: KvDtype, row: &[f32]) -> (Vec<i32>, f32) {
    match dtype {
        KvDtype::Q4 => quantize(&turned(dtype, row), 7.0),
        _ => quantize(row, 127.0),
    }
}

fn turned(dtype: KvDtype, row: &[f32]) -> Vec<f32> {
    let mut row = row.to_vec();
    if dtype == KvDtype::Q4 {
        rotate(&mut row);
    }
    row
}

pub(super) fn rounded(row: &[f32]) -> Vec<f32> {
    let (bytes, scale) = quantize(row, 127.0);
    bytes.iter().map(|&byte| byte as f32 * scale).collect()
}

struct Exp2(f32);

impl Kernel for Exp2 {
    type Output = f32;
    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        let mut lanes = [0.0; LANES];
        exp2_negative(L::splat(self.0)).store(&mut lanes);
        lanes[0]
    }
}

struct Tanh(f32);

impl Kernel for Tanh {
    type Output = f32;
    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        let mut lanes = [0.0; LANES];
        tanh(L::splat(self.0)).store(&mut lanes);
        lanes[0]
    }
}

/// The online softmax of one row over some keys.
#[derive(Clone)]
struct State {
    max: f32,
    sum: [f32; LANES],
    out: Vec<f32>,
}

impl Sequence {
    /// What the module comment of `int8` says, one number after the other.
    fn plain(&self) -> Vec<f32> {
        let Case { len, heads, kv_heads, head_dim, window, extras, dtype } = self.case;
        let log2_e = std::f32::consts::LOG2_E;
        let bfloat16 = |x: f32| half::bf16::from_f32(x).to_f32();
        let scalar = cpu(1, Isa::Scalar);
        let exp2 = |x: f32| dispatch(&scalar, Exp2(x));
        let stored = |rows: &[f32]| rows.chunks(head_dim).map(|row| kept(dtype, row)).collect::<Vec<_>>();
        let (k, v) = (stored(&self.k), stored(&self.v));
        let mut result = Vec::new();
        for (row, q) in self.q.chunks(head_dim).enumerate() {
            let (position, head) = (row / heads, row % heads);
            let kv_head = head / (heads / kv_heads);
            let (q, scale) = quantize(&turned(dtype, q), 127.0);
            let factor = scale * self.scale() * log2_e;
            let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
            let empty = State { max: f32::NEG_INFINITY, sum: [0.0; LANES], out: vec![0.0; head_dim] };
            let mut total = empty.clone();
            if extras.sinks {
                (total.max, total.sum[0]) = (self.sinks[head] * log2_e, 1.0);
            }
            let slope = self.slopes[head];
            for segment in (first / SEGMENT * SEGMENT..=position).step_by(SEGMENT) {
                let mut state = empty.clone();
                for page in (segment..(segment + SEGMENT).min(position + 1)).step_by(PAGE) {
                    let tokens = page.max(first)..(page + PAGE).min(position + 1);
                    if tokens.is_empty() {
                        continue;
                    }
                    let at = |s: usize| s * kv_heads + kv_head;
                    let score = |s: usize| {
                        let (k, scale) = &k[at(s)];
                        let dot: i32 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                        let score = dot as f32 * scale * factor;
                        let score = extras.softcap.map_or(score, |cap| {
                            let cap = cap * log2_e;
                            dispatch(&scalar, Tanh(score / cap)) * cap
                        });
                        match extras.alibi {
                            None => score,
                            Some(false) => score + (s as f32 - position as f32) * (slope * log2_e),
                            Some(true) => {
                                score + bfloat16(bfloat16(slope) * bfloat16(s as f32)) * (self.scale() * log2_e)
                            }
                        }
                    };
                    let max = tokens.clone().map(score).fold(state.max, f32::max);
                    let rescale = exp2(state.max - max);
                    state.max = max;
                    let p: Vec<f32> = tokens.clone().map(|s| exp2(score(s) - max)).collect();
                    let mut sum = [0.0; LANES];
                    for (s, p) in tokens.clone().zip(&p) {
                        sum[s % LANES] += p;
                    }
                    for (to, sum) in state.sum.iter_mut().zip(sum) {
                        *to = *to * rescale + sum;
                    }
                    let w: Vec<f32> = tokens.clone().zip(&p).map(|(s, p)| p * v[at(s)].1).collect();
                    let largest = w.iter().copied().fold(0.0, f32::max);
                    let (inverse, unit) = (255.0 / largest, largest * (1.0 / 255.0));
                    for (e, out) in state.out.iter_mut().enumerate() {
                        let weight = |w: f32| (w * inverse).round_ties_even() as i32;
                        let dot: i32 = tokens.clone().zip(&w).map(|(s, &w)| weight(w) * v[at(s)].0[e]).sum();
                        *out = *out * rescale + dot as f32 * unit;
                    }
                }
                let max = total.max.max(state.max);
                let (early, late) = (exp2(total.max - max), exp2(state.max - max));
                total.max = max;
                for (to, from) in total.sum.iter_mut().zip(&state.sum) {
                    *to = *to * early + from * late;
                }
                for (to, from) in total.out.iter_mut().zip(&state.out) {
                    *to = *to * early + from * late;
                }
            }
            for width in [8, 4, 2, 1] {
                for lane in 0..width {
                    total.sum[lane] += total.sum[lane + width];
                }
            }
            let inverse = 1.0 / total.sum[0];
            let out: Vec<f32> = total.out.iter().map(|out| out * inverse + 0.0).collect();
            result.extend(turned(dtype, &out));
        }
        assert_eq!(result.len(), len * heads * head_dim);
        result
    }
}

#[test]
fn every_instruction_set_gives_the_bits_of_the_definition() {
    let long = [None, Some(520)].map(|window| Case { len: 1100, heads: 2, kv_heads: 1, head_dim: 8, window, ..BASE });
    for (seed, case) in cases().into_iter().chain(long).enumerate() {
        for dtype in [KvDtype::Q8, KvDtype::Q4] {
            let sequence = Sequence::new(Case { dtype, ..case }, seed as u64 + 1);
            let want = sequence.plain();
            for isa in Isa::available() {
                assert_same_bits(&sequence.run(&cpu(2, isa), [case.len]), &want, &format!("{isa} {dtype:?} {case:?}"));
            }
        }
    }
}

#[test]
fn rounding_of_queries_and_weights_stays_within_the_stated_bounds() {
    for (seed, case) in cases().into_iter().enumerate() {
        let sequence = Sequence::new(Case { dtype: KvDtype::Q8, ..case }, seed as u64 + 1).rounded();
        let off = largest_difference(&sequence.run(&cpu(1, Isa::available()[0]), [case.len]), &sequence.reference());
        // Keys are in -1..1 and queries in -4..4: a score is off by at most 4/254 · sqrt(E), a probability by its factor; and
        // a weight by 1/510 of the largest in its page. Errors of many tokens do not line up.
        let bound = 4.0 / 254.0 * (case.head_dim as f64).sqrt() + 1.0 / 510.0 * 8.0;
        assert!(off < bound, "{case:?}: {off} {bound}");
    }
}

#[test]
fn faults_stay_visible_and_where_they_are() {
    let case = Case { len: 90, heads: 2, kv_heads: 2, head_dim: 12, dtype: KvDtype::Q8, ..BASE };
    for isa in Isa::available() {
        for bad in [f32::NAN, f32::INFINITY] {
            for which in 0..3 {
                let mut sequence = Sequence::new(case, 51);
                let row = case.heads * case.head_dim;
                // Position 70, head 1, one component.
                [&mut sequence.q, &mut sequence.k, &mut sequence.v][which][70 * row + 15] = bad;
                for (index, x) in sequence.run(&cpu(1, isa), [90]).iter().enumerate() {
                    let (position, head) = (index / row, index % row / case.head_dim);
                    let faulty = head == 1 && if which == 0 { position == 70 } else { position >= 70 };
                    assert_eq!(x.is_nan(), faulty, "{isa} {which} {bad} position {position} head {head}");
                }
            }
        }
    }
}
