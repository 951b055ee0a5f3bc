mod recurrent;

use super::*;
use crate::reference::normal_tail;
use crate::{Cpu, Isa};
use edgelm_tensor::{Activation, RopePairs};

/// Every family on one thread and on three, so that a parallel split shows.
fn cpus() -> Vec<Cpu> {
    let new = |isa, threads| Cpu::new(Some(threads), Some(isa)).expect("available");
    Isa::available().into_iter().flat_map(|isa| [new(isa, 1), new(isa, 3)]).collect()
}

fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    };
    (0..count).map(|_| next()).collect()
}

const LENGTHS: [usize; 11] = [0, 1, 15, 16, 17, 31, 33, 97, 1009, 40_009, 100_003];

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// `got` differs from `want` by at most `tolerance` of it, and of the smallest normal number.
fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len());
    for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(got) - want).abs();
        assert!(off <= tolerance * want.abs() + 1.2e-38, "{what} [{index}]: {got} {want}");
    }
}

#[test]
fn add_assign_is_the_sum_everywhere() {
    for cpu in cpus() {
        for len in LENGTHS {
            let (x, y) = (numbers(1, len), numbers(2, len));
            let mut got = x.clone();
            add_assign(&cpu, &mut got, &y);
            let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
            assert_eq!(bits(&got), bits(&want), "{} {len}", cpu.isa());
        }
    }
}

const ACTIVATIONS: [Activation; 6] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Relu,
    Activation::Relu2,
];

/// f(x), and by how much f32 may be off.
fn activation(activation: Activation, x: f64) -> (f64, f64) {
    let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
    match activation {
        Activation::Silu => (x * sigmoid(x), 4e-7 * (x * sigmoid(x)).abs()),
        Activation::Gelu => {
            let tail = normal_tail(x.abs());
            (x * if x < 0.0 { tail } else { 1.0 - tail }, 4e-7 * x.abs())
        }
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            (x / 2.0 * (1.0 + u.tanh()), 4e-7 * x.abs())
        }
        Activation::QuickGelu => {
            let y = x * sigmoid(1.702 * x);
            (y, (4e-7 + 2e-7 * x.abs()) * y.abs())
        }
        Activation::Relu => (x.max(0.0), 0.0),
        Activation::Relu2 => (x.max(0.0).powi(2), 6e-8 * x.max(0.0).powi(2)),
    }
}

#[test]
fn activations_are_near_their_definitions() {
    for cpu in cpus() {
        for name in ACTIVATIONS {
            for len in LENGTHS {
                let what = format!("{} {name:?} {len}", cpu.isa());
                let x: Vec<f32> = numbers(3, len).iter().map(|x| x * 20.0).collect();
                let up = numbers(4, len);
                let mut got = x.clone();
                activate(&cpu, name, &mut got);
                for (&got, &x) in got.iter().zip(&x) {
                    let (want, tolerance) = activation(name, f64::from(x));
                    let off = (f64::from(got) - want).abs();
                    assert!(off <= tolerance + 1.2e-38, "{what}: f({x}) = {got}, not {want}");
                }
                let mut product = x.clone();
                activate_mul(&cpu, name, &mut product, &up);
                let want: Vec<f32> = got.iter().zip(&up).map(|(f, up)| f * up).collect();
                assert_eq!(bits(&product), bits(&want), "{what}");
            }
            let mut extremes = [0.0, 100.0, -100.0, 1e18, -1e18, f32::INFINITY, f32::NAN];
            activate(&cpu, name, &mut extremes);
            let square = |x: f32| if name == Activation::Relu2 { x * x } else { x };
            let want = [0.0, square(100.0), 0.0, square(1e18), 0.0, f32::INFINITY];
            assert_eq!(extremes[..6], want, "{} {name:?}", cpu.isa());
            assert!(extremes[6].is_nan(), "{} {name:?}", cpu.isa());
        }
    }
}

#[test]
fn layer_norm_is_near_the_definition_and_independent_of_threads() {
    for isa in Isa::available() {
        for width in [1, 15, 16, 17, 31, 33, 192, 1009] {
            for rows in [0, 1, 2, 7, 40] {
                // A mean far from zero, which one pass over the squares would not survive.
                let x: Vec<f32> = numbers(5, rows * width).iter().map(|x| x + 100.0).collect();
                let gain = numbers(6, width);
                let bias = numbers(7, width);
                for bias in [None, Some(&bias[..])] {
                    let mut got: Vec<Vec<f32>> = Vec::new();
                    for threads in [1, 3] {
                        let cpu = Cpu::new(Some(threads), Some(isa)).expect("available");
                        let mut out = vec![f32::NAN; x.len()];
                        layer_norm(&cpu, &x, &gain, bias, 1e-5, &mut out);
                        got.push(out);
                    }
                    assert_eq!(bits(&got[0]), bits(&got[1]), "{isa} {rows} x {width}");
                    for (x, got) in x.chunks(width).zip(got[0].chunks(width)) {
                        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / width as f64;
                        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / width as f64;
                        let inverse = 1.0 / (variance + f64::from(1e-5f32)).sqrt();
                        for i in 0..width {
                            let want = (f64::from(x[i]) - mean) * inverse * f64::from(gain[i]);
                            let want = want + bias.map_or(0.0, |bias| f64::from(bias[i]));
                            // The mean of numbers near 100 is off by a few of their last places.
                            let off = (f64::from(got[i]) - want).abs();
                            assert!(off <= 1e-4, "{isa} {rows} x {width}: {} {want}", got[i]);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn layer_norm_of_centred_rows_is_close() {
    for cpu in cpus() {
        for width in [15, 16, 100, 1009] {
            let (x, gain, bias) = (numbers(8, 3 * width), numbers(9, width), numbers(10, width));
            let mut got = vec![f32::NAN; x.len()];
            layer_norm(&cpu, &x, &gain, Some(&bias), 1e-5, &mut got);
            for (x, got) in x.chunks(width).zip(got.chunks(width)) {
                let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / width as f64;
                let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / width as f64;
                let inverse = 1.0 / (variance + f64::from(1e-5f32)).sqrt();
                for i in 0..width {
                    let want = (f64::from(x[i]) - mean) * inverse * f64::from(gain[i]) + f64::from(bias[i]);
                    assert!((f64::from(got[i]) - want).abs() < 2e-6, "{} {width}: {} {want}", cpu.isa(), got[i]);
                }
            }
        }
    }
}

#[test]
fn scale_clamp_and_softcap_are_what_they_say() {
    for cpu in cpus() {
        for len in LENGTHS {
            let what = format!("{} {len}", cpu.isa());
            let x: Vec<f32> = numbers(11, len).iter().map(|x| x * 60.0).collect();
            let mut got = x.clone();
            scale(&cpu, &mut got, 0.3);
            let want: Vec<f32> = x.iter().map(|x| x * 0.3).collect();
            assert_eq!(bits(&got), bits(&want), "{what}");

            let mut got = x.clone();
            clamp(&cpu, &mut got, 7.5);
            let want: Vec<f32> = x.iter().map(|x| x.clamp(-7.5, 7.5)).collect();
            assert_eq!(bits(&got), bits(&want), "{what}");

            let mut got = x.clone();
            softcap(&cpu, &mut got, 30.0);
            let want: Vec<f64> = x.iter().map(|&x| 30.0 * (f64::from(x) / 30.0).tanh()).collect();
            assert_close(&got, &want, 4e-7, &what);
        }
        let mut extremes = [f32::NAN, f32::INFINITY, -1e30];
        clamp(&cpu, &mut extremes, 2.0);
        assert!(extremes[0].is_nan() && extremes[1..] == [2.0, -2.0], "{}", cpu.isa());
        softcap(&cpu, &mut extremes, 1.0);
        assert!(extremes[0].is_nan(), "{}", cpu.isa());
    }
}

#[test]
fn rms_norm_is_near_the_definition_and_independent_of_threads() {
    for isa in Isa::available() {
        for width in [1, 15, 16, 17, 31, 33, 192, 1009] {
            for rows in [0, 1, 2, 7, 40] {
                let (x, gain) = (numbers(5, rows * width), numbers(6, width));
                let mut got: Vec<Vec<f32>> = Vec::new();
                for threads in [1, 3] {
                    let cpu = Cpu::new(Some(threads), Some(isa)).expect("available");
                    let mut out = vec![f32::NAN; x.len()];
                    rms_norm(&cpu, &x, &gain, 1e-5, &mut out);
                    got.push(out);
                }
                assert_eq!(bits(&got[0]), bits(&got[1]), "{isa} {rows} x {width}");
                let mut want = Vec::new();
                for row in x.chunks(width) {
                    let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width as f64;
                    let inverse = 1.0 / (mean + f64::from(1e-5f32)).sqrt();
                    want.extend(row.iter().zip(&gain).map(|(&x, &g)| f64::from(x) * inverse * f64::from(g)));
                }
                assert_close(&got[0], &want, 1e-6, &format!("{isa} {rows} x {width}"));
            }
        }
        let cpu = Cpu::new(Some(1), Some(isa)).expect("available");
        let mut out = [1.0; 3];
        rms_norm(&cpu, &[0.0; 3], &[2.0; 3], 1e-6, &mut out);
        assert_eq!(out, [0.0; 3], "a row of zeros stays zero");
    }
}

#[test]
fn rope_rotates_the_named_pairs_and_nothing_else() {
    for cpu in cpus() {
        for pairs in [RopePairs::Halves, RopePairs::Interleaved] {
            for (t, heads, head_dim, angles) in [
                (0, 2, 8, 4),
                (1, 1, 2, 1),
                (3, 2, 12, 6),
                (2, 3, 64, 32),
                (5, 2, 80, 10),
                (4, 1, 7, 0),
                (300, 3, 34, 17),
            ] {
                let x = numbers(7, t * heads * head_dim);
                let phase = numbers(8, t * angles);
                let cos: Vec<f32> = phase.iter().map(|a| a.cos()).collect();
                let sin: Vec<f32> = phase.iter().map(|a| a.sin()).collect();
                let mut got = x.clone();
                rope(&cpu, &mut got, head_dim, &cos, &sin, t, pairs);
                let mut want = x.clone();
                for row in 0..t {
                    for head in 0..heads {
                        for i in 0..angles {
                            let first = (row * heads + head) * head_dim;
                            let (a, b) = match pairs {
                                RopePairs::Halves => (first + i, first + i + angles),
                                RopePairs::Interleaved => (first + 2 * i, first + 2 * i + 1),
                            };
                            let (cos, sin) = (cos[row * angles + i], sin[row * angles + i]);
                            want[a] = x[a] * cos - x[b] * sin;
                            want[b] = x[b] * cos + x[a] * sin;
                        }
                    }
                }
                assert_eq!(bits(&got), bits(&want), "{} {pairs:?} {t} x {heads} x {head_dim}, {angles}", cpu.isa());
            }
        }
    }
}

#[test]
fn log_sum_exp_and_divergence_are_near_the_definition() {
    let exact = |x: &[f32]| {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        f64::from(max) + x.iter().map(|&x| f64::from(x - max).exp()).sum::<f64>().ln()
    };
    for cpu in cpus() {
        for len in LENGTHS {
            for spread in [0.0, 1.0, 8.0] {
                let p: Vec<f32> = numbers(9, len).iter().map(|x| x * spread + 20.0).collect();
                let q: Vec<f32> = numbers(10, len).iter().zip(&p).map(|(x, p)| p + 0.3 * x).collect();
                let what = format!("{} {len} {spread}", cpu.isa());
                let (lp, lq) = (exact(&p), exact(&q));
                if len == 0 {
                    assert_eq!(log_sum_exp(&cpu, &p), f64::NEG_INFINITY);
                    assert_eq!(kl_divergence(&cpu, &p, &q), 0.0);
                    continue;
                }
                assert!((log_sum_exp(&cpu, &p) - lp).abs() < 3e-7, "{what}: {} {lp}", log_sum_exp(&cpu, &p));
                let term = |(&a, &b): (&f32, &f32)| {
                    let (a, b) = (f64::from(a) - lp, f64::from(b) - lq);
                    a.exp() * (a - b)
                };
                let want: f64 = p.iter().zip(&q).map(term).sum();
                let got = kl_divergence(&cpu, &p, &q);
                assert!((got - want).abs() < 1e-6, "{what}: {got} {want}");
                assert!(kl_divergence(&cpu, &p, &p).abs() < 1e-6, "{what}");
            }
        }
        assert_eq!(log_sum_exp(&cpu, &[f32::NEG_INFINITY; 3]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&cpu, &[f32::NEG_INFINITY, 5.0]), 5.0);
        assert!(log_sum_exp(&cpu, &[1.0, f32::NAN, 2.0]).is_nan());
    }
}
