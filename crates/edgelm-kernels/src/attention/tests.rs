use super::*;
use crate::{Isa, KvDtype, KvShape};

mod int8;

fn cpu(threads: usize, isa: Isa) -> Cpu {
    Cpu::new(Some(threads), Some(isa)).expect("available")
}

/// Numbers in -1..1 that only depend on the seed and the index.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A sequence of `len` positions: H query heads over G KV heads of E components.
#[derive(Clone, Copy, Debug)]
struct Case {
    len: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    dtype: KvDtype,
    extras: Extras,
}

/// What scores are besides scaled products.
#[derive(Clone, Copy, Debug)]
struct Extras {
    softcap: Option<f32>,
    /// Rounded to bfloat16 or not.
    alibi: Option<bool>,
    sinks: bool,
}

const PLAIN: Extras = Extras { softcap: None, alibi: None, sinks: false };
/// Gemma 2, BLOOM, Falcon, GPT-OSS, and everything at once.
const EXTRAS: [Extras; 5] = [
    Extras { softcap: Some(3.0), ..PLAIN },
    Extras { alibi: Some(false), ..PLAIN },
    Extras { alibi: Some(true), ..PLAIN },
    Extras { sinks: true, ..PLAIN },
    Extras { softcap: Some(5.0), alibi: Some(false), sinks: true },
];

struct Sequence {
    case: Case,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Per query head.
    slopes: Vec<f32>,
    sinks: Vec<f32>,
}

impl Sequence {
    fn new(case: Case, seed: u64) -> Self {
        let kv = case.len * case.kv_heads * case.head_dim;
        // Queries of this size make some rows sharp and some flat.
        let q = numbers(seed, case.len * case.heads * case.head_dim).iter().map(|x| x * 4.0).collect();
        // From steep to flat, not powers of two.
        let slopes = (0..case.heads).map(|head| 0.83 / (1.0 + 3.0 * head as f32)).collect();
        let sinks = numbers(seed + 3, case.heads).iter().map(|x| x * 6.0).collect();
        Self { case, q, k: numbers(seed + 1, kv), v: numbers(seed + 2, kv), slopes, sinks }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.case.head_dim as f32).sqrt()
    }

    fn scores(&self) -> Scores<'_> {
        let Extras { softcap, alibi, sinks } = self.case.extras;
        Scores {
            scale: self.scale(),
            softcap,
            alibi: alibi.map(|bfloat16| Alibi { slopes: &self.slopes, bfloat16 }),
            sinks: sinks.then_some(&self.sinks),
        }
    }

    fn cache(&self) -> KvCache {
        let shape = KvShape { num_key_value_heads: self.case.kv_heads, head_dim: self.case.head_dim };
        // The layer under test is the second; the first has another shape.
        KvCache::new(&[KvShape { num_key_value_heads: 1, head_dim: 3 }, shape], self.case.dtype)
    }

    /// The sequence in chunks, as an engine would run it.
    fn run(&self, cpu: &Cpu, chunks: impl IntoIterator<Item = usize>) -> Vec<f32> {
        let (q_row, kv_row) = (self.case.heads * self.case.head_dim, self.case.kv_heads * self.case.head_dim);
        let mut cache = self.cache();
        let mut out = vec![f32::NAN; self.q.len()];
        let mut start = 0;
        for rows in chunks {
            let rows = rows.min(self.case.len - start);
            let end = start + rows;
            cache.write(1, start, &self.k[start * kv_row..end * kv_row], &self.v[start * kv_row..end * kv_row]);
            cpu.attention(Attention {
                spans: &[Span { cache: &cache, start, rows }],
                layer: 1,
                num_attention_heads: self.case.heads,
                q: &self.q[start * q_row..end * q_row],
                scores: self.scores(),
                window: self.case.window,
                out: &mut out[start * q_row..end * q_row],
            });
            start = end;
        }
        assert_eq!(start, self.case.len);
        out
    }

    /// Keys and values as a Q8 cache holds them.
    fn rounded(&self) -> Self {
        let round = |rows: &[f32]| rows.chunks(self.case.head_dim).flat_map(int8::rounded).collect();
        let (slopes, sinks) = (self.slopes.clone(), self.sinks.clone());
        Self { case: self.case, q: self.q.clone(), k: round(&self.k), v: round(&self.v), slopes, sinks }
    }

    /// The definition: two passes in f64, straight from the formula.
    fn reference(&self) -> Vec<f64> {
        let Case { len, heads, kv_heads, head_dim, window, extras, .. } = self.case;
        let bfloat16 = |x: f64| half::bf16::from_f64(x).to_f64();
        let mut out = vec![0.0; self.q.len()];
        for position in 0..len {
            let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
            for head in 0..heads {
                let at = |s: usize| (s * kv_heads + head / (heads / kv_heads)) * head_dim;
                let row = (position * heads + head) * head_dim;
                let q = &self.q[row..][..head_dim];
                let (scale, slope) = (f64::from(self.scale()), f64::from(self.slopes[head]));
                let score = |s: usize| -> f64 {
                    let k = &self.k[at(s)..][..head_dim];
                    let score = q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>() * scale;
                    let score = extras.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
                    match extras.alibi {
                        None => score,
                        Some(false) => score + slope * (s as f64 - position as f64),
                        Some(true) => score + scale * bfloat16(bfloat16(slope) * bfloat16(s as f64)),
                    }
                };
                let scores: Vec<f64> = (first..=position).map(score).collect();
                let sink = if extras.sinks { f64::from(self.sinks[head]) } else { f64::NEG_INFINITY };
                let max = scores.iter().copied().fold(sink, f64::max);
                let total: f64 = (sink - max).exp() + scores.iter().map(|score| (score - max).exp()).sum::<f64>();
                for (s, score) in (first..=position).zip(&scores) {
                    let weight = (score - max).exp() / total;
                    for (out, &v) in out[row..][..head_dim].iter_mut().zip(&self.v[at(s)..]) {
                        *out += weight * f64::from(v);
                    }
                }
            }
        }
        out
    }
}

fn largest_difference(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().all(|x| x.is_finite()), "every row is written");
    got.iter().zip(want).map(|(&got, want)| (f64::from(got) - want).abs()).fold(0.0, f64::max)
}

fn assert_same_bits(got: &[f32], want: &[f32], what: &str) {
    let differ = got.iter().zip(want).position(|(got, want)| got.to_bits() != want.to_bits());
    assert!(differ.is_none() && got.len() == want.len(), "{what}: differ at {differ:?}");
}

const BASE: Case =
    Case { len: 0, heads: 1, kv_heads: 1, head_dim: 16, window: None, dtype: KvDtype::F32, extras: PLAIN };

/// Lengths around groups and pages, head sizes with and without padding, every head sharing, windows, everything that scores
/// may go through.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for len in [0, 1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 131] {
        cases.push(Case { len, heads: 2, kv_heads: 2, head_dim: 24, ..BASE });
    }
    for head_dim in [1, 4, 7, 8, 12, 16, 24, 33, 64, 66, 80, 96, 100, 128, 250, 256] {
        cases.push(Case { len: 37, heads: 2, head_dim, ..BASE });
    }
    for (heads, kv_heads) in [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 3), (7, 1), (8, 2), (14, 2), (9, 3), (71, 1)]
    {
        cases.push(Case { len: 70, heads, kv_heads, head_dim: 12, ..BASE });
    }
    for window in [1, 2, 5, 16, 32, 63, 64, 65, 1000] {
        cases.push(Case { len: 150, heads: 4, kv_heads: 2, head_dim: 20, window: Some(window), ..BASE });
    }
    for extras in EXTRAS {
        for (len, heads, kv_heads, window) in
            [(1, 2, 1, None), (150, 6, 2, None), (150, 3, 3, Some(70)), (40, 20, 1, Some(3))]
        {
            cases.push(Case { len, heads, kv_heads, head_dim: 20, window, extras, ..BASE });
        }
    }
    cases
}

#[test]
fn agrees_with_the_two_pass_definition() {
    for isa in Isa::available() {
        let cpu = cpu(2, isa);
        for (seed, case) in cases().into_iter().enumerate() {
            let sequence = Sequence::new(case, seed as u64 + 1);
            let want = sequence.reference();
            let off = largest_difference(&sequence.run(&cpu, [case.len]), &want);
            // A bias of a hundred has its last place there.
            let tolerance = if case.extras.alibi.is_some() { 8e-6 } else { 2e-6 };
            assert!(off < tolerance, "{isa} {case:?}: {off}");
        }
    }
}

#[test]
fn compressed_caches_stay_near_the_definition() {
    // Half precision keeps 11 bits of keys and values in -1..1; a byte keeps 8 with the row's largest, half a byte 4.
    for (dtype, tolerance) in [(KvDtype::F16, 2e-3), (KvDtype::Q8, 3e-2), (KvDtype::Q4, 0.5)] {
        for isa in Isa::available() {
            let cpu = cpu(1, isa);
            for (seed, case) in cases().into_iter().enumerate() {
                let sequence = Sequence::new(Case { dtype, ..case }, seed as u64 + 1);
                let off = largest_difference(&sequence.run(&cpu, [case.len]), &sequence.reference());
                assert!(off < tolerance, "{isa} {case:?} {dtype:?}: {off}");
            }
        }
    }
}

#[test]
fn chunks_of_a_prompt_do_not_show() {
    for isa in Isa::available() {
        let cpu = cpu(1, isa);
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Q8, KvDtype::Q4] {
            for window in [None, Some(1), Some(5), Some(32), Some(70)] {
                for (heads, kv_heads) in [(4, 4), (7, 1), (6, 3), (8, 2)] {
                    let case = Case { len: 200, heads, kv_heads, head_dim: 20, window, dtype, extras: PLAIN };
                    let sequence = Sequence::new(case, 11);
                    let whole = sequence.run(&cpu, [200]);
                    let halves = sequence.run(&cpu, [64, 36, 100]);
                    assert_same_bits(&halves, &whole, &format!("{isa} {case:?} three chunks"));
                    let odd = sequence.run(&cpu, [1, 2, 17, 5, 40, 3, 61, 7, 64]);
                    assert_same_bits(&odd, &whole, &format!("{isa} {case:?} odd chunks"));
                    let decode = sequence.run(&cpu, vec![1; 200]);
                    assert_same_bits(&decode, &whole, &format!("{isa} {case:?} token by token"));
                }
            }
        }
    }
}

#[test]
fn chunks_and_threads_do_not_show_whatever_scores_go_through() {
    for isa in Isa::available() {
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Q8, KvDtype::Q4] {
            for extras in EXTRAS {
                for window in [None, Some(70)] {
                    let case = Case { len: 700, heads: 6, kv_heads: 2, head_dim: 20, window, dtype, extras };
                    let sequence = Sequence::new(case, 12);
                    let whole = sequence.run(&cpu(1, isa), [700]);
                    for threads in [1, 5] {
                        let cpu = cpu(threads, isa);
                        let odd = sequence.run(&cpu, [1, 2, 17, 5, 40, 3, 61, 7, 64, 500]);
                        assert_same_bits(&odd, &whole, &format!("{isa} {case:?} odd chunks, {threads} threads"));
                        let decode = sequence.run(&cpu, std::iter::once(660).chain(std::iter::repeat_n(1, 40)));
                        assert_same_bits(&decode, &whole, &format!("{isa} {case:?} token by token, {threads} threads"));
                    }
                }
            }
        }
    }
}

#[test]
fn a_sink_takes_its_share_however_large() {
    for isa in Isa::available() {
        for dtype in [KvDtype::F32, KvDtype::Q8, KvDtype::Q4] {
            let extras = Extras { sinks: true, ..PLAIN };
            let case = Case { len: 70, heads: 4, kv_heads: 2, head_dim: 8, dtype, extras, ..BASE };
            let mut sequence = Sequence::new(case, 14);
            let without = Sequence { case: Case { extras: PLAIN, ..case }, ..Sequence::new(case, 14) };
            sequence.sinks = vec![-1e4, 1e4, -200.0, 200.0];
            let (got, plain) = (sequence.run(&cpu(1, isa), [70]), without.run(&cpu(1, isa), [70]));
            for (row, (got, plain)) in got.chunks(8).zip(plain.chunks(8)).enumerate() {
                for (got, plain) in got.iter().zip(plain) {
                    let want = if row % 2 == 0 { *plain } else { 0.0 };
                    assert!((got - want).abs() < 1e-6, "{isa} {dtype:?} row {row}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn threads_do_not_show() {
    for isa in Isa::available() {
        for dtype in [KvDtype::F32, KvDtype::Q8, KvDtype::Q4] {
            let case = Case { len: 300, heads: 6, kv_heads: 2, head_dim: 32, dtype, ..BASE };
            let sequence = Sequence::new(case, 5);
            let one = sequence.run(&cpu(1, isa), [300]);
            for threads in [2, 3, 5] {
                let many = sequence.run(&cpu(threads, isa), [300]);
                assert_same_bits(&many, &one, &format!("{isa} {dtype:?}, {threads} threads"));
            }
        }
    }
}

#[test]
fn avx2_and_avx512_agree_bit_for_bit() {
    let vector: Vec<Isa> = Isa::available().into_iter().filter(|isa| *isa != Isa::Scalar).collect();
    for case in cases() {
        let sequence = Sequence::new(case, 3);
        let results: Vec<_> = vector.iter().map(|isa| sequence.run(&cpu(1, *isa), [case.len])).collect();
        for (isa, result) in vector.iter().zip(&results) {
            assert_same_bits(result, &results[0], &format!("{isa} {case:?}"));
        }
    }
}

#[test]
fn segments_of_a_long_sequence_do_not_show() {
    // Fewer KV heads than threads, so that one row's keys are cut; in the window, rows see one, two or three segments.
    for isa in Isa::available() {
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Q8, KvDtype::Q4] {
            for (kv_heads, window) in [(1, None), (3, None), (1, Some(600)), (1, Some(1100))] {
                let case = Case { len: 1700, heads: 3, kv_heads, head_dim: 12, window, dtype, extras: PLAIN };
                let sequence = Sequence::new(case, 31);
                let whole = sequence.run(&cpu(1, isa), [1700]);
                for threads in [2, 4, 7] {
                    let what = format!("{isa} {case:?} {threads} threads");
                    let cpu = cpu(threads, isa);
                    assert_same_bits(&sequence.run(&cpu, [1700]), &whole, &what);
                    let decode = sequence.run(&cpu, std::iter::once(1650).chain(std::iter::repeat_n(1, 50)));
                    assert_same_bits(&decode, &whole, &format!("{what}, token by token"));
                }
            }
        }
    }
}

#[test]
fn sequences_that_share_pages_give_what_they_give_alone() {
    for isa in Isa::available() {
        let cpu = cpu(2, isa);
        let case = Case { len: 100, heads: 4, kv_heads: 2, head_dim: 20, dtype: KvDtype::Q8, ..BASE };
        let (one, mut other) = (Sequence::new(case, 41), Sequence::new(case, 42));
        let row = case.kv_heads * case.head_dim;
        // The first 70 positions are the same: one whole page, and a part of the next.
        other.k[..70 * row].copy_from_slice(&one.k[..70 * row]);
        other.v[..70 * row].copy_from_slice(&one.v[..70 * row]);
        let mut shared = one.cache();
        shared.write(1, 0, &one.k[..70 * row], &one.v[..70 * row]);
        for sequence in [&one, &other] {
            let mut cache = shared.clone();
            cache.write(1, 70, &sequence.k[70 * row..], &sequence.v[70 * row..]);
            let q_row = case.heads * case.head_dim;
            let mut out = vec![0.0; 30 * q_row];
            cpu.attention(Attention {
                spans: &[Span { cache: &cache, start: 70, rows: 30 }],
                layer: 1,
                num_attention_heads: case.heads,
                q: &sequence.q[70 * q_row..],
                scores: sequence.scores(),
                window: None,
                out: &mut out,
            });
            assert_same_bits(&out, &sequence.run(&cpu, [100])[70 * q_row..], &format!("{isa}"));
        }
    }
}

#[test]
fn the_batch_around_a_sequence_does_not_show() {
    for isa in Isa::available() {
        let cpu = cpu(3, isa);
        for dtype in [KvDtype::F32, KvDtype::Q8, KvDtype::Q4] {
            let case = Case { len: 0, heads: 6, kv_heads: 2, head_dim: 24, window: Some(50), dtype, ..BASE };
            // (positions before the batch, rows in it); no rows at all is allowed.
            let spans = [(0, 3), (77, 1), (0, 0), (130, 5), (10, 90), (64, 1), (63, 1)];
            let sequences: Vec<Sequence> = (spans.iter().zip(20..))
                .map(|((before, rows), seed)| Sequence::new(Case { len: before + rows, ..case }, seed))
                .collect();
            let row = case.heads * case.head_dim;
            let (mut caches, mut q, mut alone) = (Vec::new(), Vec::new(), Vec::new());
            for (sequence, (before, _)) in sequences.iter().zip(spans) {
                let mut cache = sequence.cache();
                cache.write(1, 0, &sequence.k, &sequence.v);
                caches.push(cache);
                q.extend_from_slice(&sequence.q[before * row..]);
                alone.extend_from_slice(&sequence.run(&cpu, [sequence.case.len])[before * row..]);
            }
            let spans: Vec<Span<'_>> =
                spans.iter().zip(&caches).map(|(&(start, rows), cache)| Span { cache, start, rows }).collect();
            let mut out = vec![f32::NAN; q.len()];
            cpu.attention(Attention {
                spans: &spans,
                layer: 1,
                num_attention_heads: case.heads,
                q: &q,
                scores: sequences[0].scores(),
                window: case.window,
                out: &mut out,
            });
            assert_same_bits(&out, &alone, &format!("{isa} {dtype:?}"));
        }
    }
}

#[test]
fn what_lies_beyond_the_last_position_is_never_read() {
    for isa in Isa::available() {
        let cpu = cpu(1, isa);
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Q8, KvDtype::Q4] {
            let case = Case { len: 75, heads: 4, kv_heads: 2, head_dim: 12, dtype, ..BASE };
            let sequence = Sequence::new(case, 9);
            let row = case.kv_heads * case.head_dim;
            let mut cache = sequence.cache();
            cache.write(1, 0, &vec![f32::NAN; 120 * row], &vec![f32::NAN; 120 * row]);
            cache.write(1, 0, &sequence.k, &sequence.v);
            let mut out = vec![0.0; sequence.q.len()];
            cpu.attention(Attention {
                spans: &[Span { cache: &cache, start: 0, rows: 75 }],
                layer: 1,
                num_attention_heads: case.heads,
                q: &sequence.q,
                scores: sequence.scores(),
                window: None,
                out: &mut out,
            });
            assert_same_bits(&out, &sequence.run(&cpu, [75]), &format!("{isa} {dtype:?}"));
        }
    }
}

#[test]
fn large_scores_neither_overflow_nor_vanish() {
    for isa in Isa::available() {
        for (dtype, scale) in [(KvDtype::F32, 1e4), (KvDtype::Q8, 1e8)] {
            let case = Case { len: 130, heads: 2, kv_heads: 1, head_dim: 8, dtype, ..BASE };
            let mut sequence = Sequence::new(case, 13);
            sequence.q.iter_mut().for_each(|q| *q *= scale);
            // Scores differ by thousands: the softmax picks one value, up to ties that do not occur here.
            if dtype == KvDtype::Q8 {
                // A rounding error times 1e8 would decide which.
                sequence = sequence.rounded();
                sequence.q = sequence.q.chunks(case.head_dim).flat_map(int8::rounded).collect();
            }
            let want = sequence.reference();
            let off = largest_difference(&sequence.run(&cpu(1, isa), [130]), &want);
            assert!(off < 1e-2, "{isa} {dtype:?}: {off}");
        }
    }
}

#[test]
#[should_panic(expected = "the cache lacks these positions")]
fn positions_that_are_not_there_are_a_bug_of_the_caller() {
    let shape = KvShape { num_key_value_heads: 1, head_dim: 2 };
    let cache = KvCache::new(&[shape], KvDtype::F32);
    cpu(1, Isa::Scalar).attention(Attention {
        spans: &[Span { cache: &cache, start: 0, rows: 1 }],
        layer: 0,
        num_attention_heads: 1,
        q: &[1.0, 2.0],
        scores: Scores::scaled(1.0),
        window: None,
        out: &mut [0.0, 0.0],
    });
}
