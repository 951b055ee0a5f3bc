#![allow(clippy::unwrap_used)]

use super::*;

/// Any number in -2..2 that a counter can name.
fn value(seed: u64) -> f32 {
    let mixed = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40) as f32 / (1u64 << 22) as f32 - 2.0
}

/// K and V of one token and head, decoded.
fn read(cache: &KvCache, layer: usize, position: usize, head: usize) -> (Vec<f32>, Vec<f32>) {
    let head_dim = cache.shape(layer).head_dim;
    let (rows, chunks) = (component_rows(head_dim), value_chunks(head_dim));
    let token = position % PAGE_TOKENS;
    let (group, lane) = (token / GROUP_TOKENS, token % GROUP_TOKENS);
    let half = |bits: u16| half::f16::from_bits(bits).to_f32();
    let page = cache.head_page(layer, position / PAGE_TOKENS, head);
    let key = |e: usize| match page {
        HeadPage::F32 { k, .. } => k[group * rows + e][lane],
        HeadPage::F16 { k, .. } => half(k[group * rows + e][lane]),
        HeadPage::Q8 { k, k_scales, .. } => {
            f32::from(k[group * rows / 4 + e / 4].0[lane].to_le_bytes()[e % 4] as i8) * k_scales[group][lane]
        }
        HeadPage::Q4 { k, k_scales, .. } => {
            let byte = k[group * rows.div_ceil(8) + e / 8].0[lane].to_le_bytes()[e % 4];
            nibble(byte, e % 8 / 4) * k_scales[group][lane]
        }
    };
    let value = |e: usize| match page {
        HeadPage::F32 { v, .. } => v[token * chunks + e / 16][e % 16],
        HeadPage::F16 { v, .. } => half(v[token * chunks + e / 16][e % 16]),
        HeadPage::Q8 { v, v_scales, .. } => {
            f32::from(v[token / 4 * chunks + e / 16].0[e % 16].to_le_bytes()[token % 4] as i8) * v_scales[group][lane]
        }
        HeadPage::Q4 { v, v_scales, .. } => {
            let byte = v[token / 8 * chunks + e / 16].0[e % 16].to_le_bytes()[token % 4];
            nibble(byte, token % 8 / 4) * v_scales[group][lane]
        }
    };
    let padding = (head_dim..rows).map(key).chain((head_dim..chunks * 16).map(value));
    assert!(padding.into_iter().all(|x| x == 0.0 || x.is_nan()), "padding stays zero, times a scale that may be NaN");
    let (mut k, mut v): (Vec<f32>, Vec<f32>) = ((0..head_dim).map(key).collect(), (0..head_dim).map(value).collect());
    if cache.dtype() == KvDtype::Q4 {
        rotate(&mut k);
        rotate(&mut v);
    }
    (k, v)
}

/// Half of a byte, two's complement.
fn nibble(byte: u8, half: usize) -> f32 {
    f32::from((byte << (4 - 4 * half)) as i8 >> 4)
}

/// What the format may do to a row.
fn assert_stored(dtype: KvDtype, got: &[f32], want_row: &[f32]) {
    let largest = want_row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    for (got, &want) in got.iter().zip(want_row) {
        match dtype {
            KvDtype::F32 => assert_eq!(got.to_bits(), want.to_bits()),
            KvDtype::F16 => assert_eq!(*got, half::f16::from_f32(want).to_f32()),
            KvDtype::Q8 => assert!((got - want).abs() <= largest / 127.0 * 0.5001, "{got} {want}"),
            KvDtype::Q4 => {
                // No component of the rotated row is larger than the row, and errors of n components may add up to √n of one.
                let (norm, n) = (row_norm(want_row), want_row.len() as f32);
                assert!((got - want).abs() <= norm / 14.0 * n.sqrt() * 1.001, "{got} {want}");
            }
        }
    }
}

fn row_norm(row: &[f32]) -> f32 {
    row.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// The cache as one would write it without a thought: per layer, rows of `[G, E]`.
#[derive(Clone)]
struct Naive {
    layers: Vec<Vec<(Vec<f32>, Vec<f32>)>>,
}

fn check(cache: &KvCache, naive: &Naive, shapes: &[KvShape]) {
    assert_eq!(cache.len(), naive.layers.iter().map(Vec::len).min().unwrap());
    let mut bytes = 0;
    for (layer, rows) in naive.layers.iter().enumerate() {
        let KvShape { num_key_value_heads: heads, head_dim } = shapes[layer];
        assert_eq!(cache.layer_len(layer), rows.len());
        let per_token = KvCache::bytes_per_token(&shapes[layer..=layer], cache.dtype());
        bytes += rows.len().div_ceil(PAGE_TOKENS) * PAGE_TOKENS * per_token;
        for (position, (k, v)) in rows.iter().enumerate() {
            for head in 0..heads {
                let (got_k, got_v) = read(cache, layer, position, head);
                let part = head * head_dim..(head + 1) * head_dim;
                assert_stored(cache.dtype(), &got_k, &k[part.clone()]);
                assert_stored(cache.dtype(), &got_v, &v[part]);
            }
        }
    }
    assert_eq!(cache.bytes(), bytes, "pages held are those that the tokens need");
}

#[test]
fn random_writes_truncations_and_clones_agree_with_a_naive_cache() {
    for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Q8, KvDtype::Q4] {
        let shapes = [
            KvShape { num_key_value_heads: 2, head_dim: 12 },
            KvShape { num_key_value_heads: 1, head_dim: 7 },
            KvShape { num_key_value_heads: 3, head_dim: 32 },
        ];
        let empty = Naive { layers: vec![Vec::new(); shapes.len()] };
        let mut held = vec![(KvCache::new(&shapes, dtype), empty)];
        let mut state = 7u64;
        let mut below = move |n: usize| {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            (state >> 33) as usize % n
        };
        let mut counter = 0;
        for _ in 0..120 {
            let which = below(held.len());
            match below(8) {
                0 if held.len() < 5 => {
                    let copy = held[which].clone();
                    held.push(copy);
                }
                1 if held.len() > 1 => drop(held.swap_remove(which)),
                2 => {
                    let (cache, naive) = &mut held[which];
                    let len = below(cache.len() + 20);
                    cache.truncate(len);
                    naive.layers.iter_mut().for_each(|rows| rows.truncate(len));
                }
                _ => {
                    let (cache, naive) = &mut held[which];
                    let layer = below(shapes.len());
                    let row = shapes[layer].num_key_value_heads * shapes[layer].head_dim;
                    let start = if below(2) == 0 { cache.layer_len(layer) } else { below(cache.layer_len(layer) + 1) };
                    let tokens = [0, 1, 1, 2, 15, 16, 17, 33, 64, 65, 97][below(11)];
                    let mut fresh = || -> Vec<f32> {
                        counter += 1;
                        (0..tokens * row).map(|i| value(counter << 32 | i as u64)).collect()
                    };
                    let (k, v) = (fresh(), fresh());
                    cache.write(layer, start, &k, &v);
                    let rows = &mut naive.layers[layer];
                    rows.truncate(start);
                    rows.extend(k.chunks(row).zip(v.chunks(row)).map(|(k, v)| (k.to_vec(), v.to_vec())));
                }
            }
            for (cache, naive) in &held {
                check(cache, naive, &shapes);
            }
        }
    }
}

#[test]
fn a_clone_shares_pages_until_one_side_writes() {
    let shape = [KvShape { num_key_value_heads: 1, head_dim: 8 }];
    let mut cache = KvCache::new(&shape, KvDtype::F32);
    assert!(cache.is_empty());
    let rows: Vec<f32> = (0..3 * PAGE_TOKENS as u64 * 8).map(value).collect();
    cache.write(0, 0, &rows, &rows);
    let mut beam = cache.clone();
    let shared = |a: &KvCache, b: &KvCache| {
        a.layers[0].pages.iter().zip(&b.layers[0].pages).map(|(a, b)| Arc::ptr_eq(a, b)).collect::<Vec<_>>()
    };
    assert_eq!(shared(&cache, &beam), [true, true, true]);
    beam.write(0, 2 * PAGE_TOKENS + 5, &rows[..8], &rows[8..16]);
    assert_eq!(shared(&cache, &beam), [true, true, false]);
    assert_eq!(read(&cache, 0, 2 * PAGE_TOKENS + 5, 0).0, rows[(2 * PAGE_TOKENS + 5) * 8..][..8]);
    assert_eq!(read(&beam, 0, 2 * PAGE_TOKENS + 5, 0).0, rows[..8]);
}

#[test]
fn extremes_survive_or_stay_visible() {
    let shape = [KvShape { num_key_value_heads: 1, head_dim: 4 }];
    let store = |dtype, row: [f32; 4]| {
        let mut cache = KvCache::new(&shape, dtype);
        cache.write(0, 0, &row, &row);
        read(&cache, 0, 0, 0)
    };
    let (k, v) = store(KvDtype::F16, [1e30, -1e30, 65520.0, 1e-10]);
    assert_eq!(k, [65504.0, -65504.0, 65504.0, 0.0]);
    assert_eq!(k, v);
    assert!(store(KvDtype::F16, [f32::NAN, 0.0, 0.0, 0.0]).0[0].is_nan());
    for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Q8, KvDtype::Q4] {
        assert_eq!(store(dtype, [0.0; 4]).0, [0.0; 4]);
    }
    let (k, _) = store(KvDtype::Q8, [1e38, -1e38, 0.0, 1.0]);
    assert!((k[0] / 1e38 - 1.0).abs() < 1e-6 && (k[1] / 1e38 + 1.0).abs() < 1e-6 && k[2..] == [0.0, 0.0]);
    for bad in [f32::INFINITY, f32::NAN] {
        assert!(store(KvDtype::Q4, [bad, 1.0, 0.0, 0.0]).0.iter().all(|x| x.is_nan()));
    }
    assert_eq!(store(KvDtype::Q8, [1e-40, -1e-40, 0.0, 0.0]).0, [0.0; 4]);
    assert!(store(KvDtype::Q8, [f32::INFINITY, 1.0, 0.0, 0.0]).0.iter().all(|x| x.is_nan()));
    assert!(store(KvDtype::Q8, [1.0, f32::NAN, 0.0, 0.0]).0.iter().all(|x| x.is_nan()));
}

#[test]
#[should_panic(expected = "a gap")]
fn a_gap_is_a_bug_of_the_caller() {
    let mut cache = KvCache::new(&[KvShape { num_key_value_heads: 1, head_dim: 2 }], KvDtype::F32);
    cache.write(0, 1, &[0.0; 2], &[0.0; 2]);
}

#[test]
fn shared_pages_are_the_same_and_stay_so() {
    let shapes = [KvShape { num_key_value_heads: 2, head_dim: 5 }, KvShape { num_key_value_heads: 1, head_dim: 16 }];
    for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Q8, KvDtype::Q4] {
        let rows = |layer: usize, positions: std::ops::Range<usize>, salt: u64| -> Vec<f32> {
            let width = shapes[layer].num_key_value_heads * shapes[layer].head_dim;
            (positions.start * width..positions.end * width).map(|i| value(i as u64 + salt)).collect()
        };
        let write = |cache: &mut KvCache, positions: std::ops::Range<usize>, salt: u64| {
            for layer in 0..shapes.len() {
                let (k, v) = (rows(layer, positions.clone(), salt), rows(layer, positions.clone(), salt + 1000));
                cache.write(layer, positions.start, &k, &v);
            }
        };
        let all = |cache: &KvCache| -> Vec<_> {
            let bits = |(k, v): (Vec<f32>, Vec<f32>)| -> Vec<u32> { k.iter().chain(&v).map(|x| x.to_bits()).collect() };
            let layers = shapes.iter().enumerate();
            layers
                .flat_map(|(layer, shape)| (0..shape.num_key_value_heads).map(move |head| (layer, head)))
                .flat_map(|(layer, head)| (0..cache.len()).map(move |position| (layer, position, head)))
                .map(|(layer, position, head)| bits(read(cache, layer, position, head)))
                .collect()
        };
        let mut first = KvCache::new(&shapes, dtype);
        write(&mut first, 0..PAGE_TOKENS + 9, 0);
        let (whole, part) = (first.share_page(0), first.share_page(1));
        assert!(whole.is_shared() && part.is_shared());
        let before = all(&first);

        let mut second = KvCache::new(&shapes, dtype);
        second.append_shared(&whole, PAGE_TOKENS);
        second.append_shared(&part, 7);
        assert_eq!(second.len(), PAGE_TOKENS + 7);
        let mut shorter = first.clone();
        shorter.truncate(PAGE_TOKENS + 7);
        assert_eq!(all(&second), all(&shorter));

        // As bytes and back.
        let mut third = KvCache::new(&shapes, dtype);
        for (pages, tokens) in [(&whole, PAGE_TOKENS), (&part, 7)] {
            let bytes: Vec<u8> = pages.parts().flatten().copied().collect();
            assert_eq!(bytes.len(), KvCache::page_bytes(&shapes, dtype));
            third.append_shared(&KvPages::from_bytes(&shapes, dtype, &bytes).expect("the same layers"), tokens);
            assert!(KvPages::from_bytes(&shapes, dtype, &bytes[1..]).is_none());
            assert!(KvPages::from_bytes(&shapes, dtype, &[&bytes[..], &[0]].concat()).is_none());
        }
        assert_eq!(all(&third), all(&second));

        // Either goes its own way behind what they share.
        write(&mut first, PAGE_TOKENS + 9..PAGE_TOKENS + 20, 0);
        write(&mut second, PAGE_TOKENS + 7..PAGE_TOKENS + 30, 77);
        shorter.truncate(0);
        shorter.append_shared(&whole, PAGE_TOKENS);
        shorter.append_shared(&part, 9);
        assert_eq!(all(&shorter), before);

        drop((first, second, shorter));
        assert!(!whole.is_shared() && !part.is_shared());
        let bytes = KvCache::page_bytes(&shapes, dtype);
        assert_eq!(bytes, PAGE_TOKENS * KvCache::bytes_per_token(&shapes, dtype));
    }
}

#[test]
#[should_panic(expected = "inside a page")]
fn pages_are_appended_at_a_page_boundary() {
    let shapes = [KvShape { num_key_value_heads: 1, head_dim: 4 }];
    let mut cache = KvCache::new(&shapes, KvDtype::F32);
    cache.write(0, 0, &[0.0; 12], &[0.0; 12]);
    let page = cache.share_page(0);
    cache.append_shared(&page, 3);
}
