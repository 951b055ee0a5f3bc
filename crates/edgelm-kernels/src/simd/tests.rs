use super::*;
use crate::{Isa, reference};

fn cpus() -> Vec<Cpu> {
    Isa::available().into_iter().map(|isa| Cpu::new(Some(1), Some(isa)).expect("available")).collect()
}

/// Runs `exp` over a slice.
struct Exp<'a>(&'a [f32]);

impl Kernel for Exp<'_> {
    type Output = Vec<f32>;
    #[inline(always)]
    fn run<L: Lanes>(self) -> Vec<f32> {
        let mut out = vec![0.0; self.0.len()];
        for (x, out) in self.0.chunks(LANES).zip(out.chunks_mut(LANES)) {
            store_partial(exp(load_partial::<L>(x, 0.0)), out);
        }
        out
    }
}

/// Distance in units of the last place of `want` rounded to f32.
fn ulps(got: f32, want: f64) -> f64 {
    let rounded = want as f32;
    let ulp = f64::from(f32::from_bits(rounded.to_bits() + 1)) - f64::from(rounded);
    ((f64::from(got) - want) / ulp).abs()
}

#[test]
fn exp_is_within_one_ulp_over_its_range() {
    let grid: Vec<f32> = (0..1_500_000u32)
        .map(|i| -86.64 + i as f32 * (175.36 / 1_500_000.0))
        .chain((0..=2000).map(|i| (i as f32 - 1000.0) * 1e-6))
        .chain([1e-30, -1e-30, f32::MIN_POSITIVE, 1e-45, 88.722_83, -86.64])
        .collect();
    for cpu in cpus() {
        let worst = Exp(&grid).on(&cpu).iter().zip(&grid).fold((0.0, 0.0), |worst: (f64, f32), (&got, &x)| {
            let off = ulps(got, f64::from(x).exp());
            if off > worst.0 { (off, x) } else { worst }
        });
        println!("{}: {} ULP at {}", cpu.isa(), worst.0, worst.1);
        assert!(worst.0 <= 1.0, "{}: {} ULP at {}", cpu.isa(), worst.0, worst.1);
    }
}

/// Runs `exp2_negative` over a slice.
struct Exp2<'a>(&'a [f32]);

impl Kernel for Exp2<'_> {
    type Output = Vec<f32>;
    #[inline(always)]
    fn run<L: Lanes>(self) -> Vec<f32> {
        let mut out = vec![0.0; self.0.len()];
        for (x, out) in self.0.chunks(LANES).zip(out.chunks_mut(LANES)) {
            store_partial(exp2_negative(load_partial::<L>(x, 0.0)), out);
        }
        out
    }
}

#[test]
fn exp2_keeps_its_bound_and_its_special_values() {
    let grid: Vec<f32> = (0..1_000_000u32).map(|i| i as f32 * -1.25e-4).collect();
    for cpu in cpus() {
        for (&got, &x) in dispatch(&cpu, Exp2(&grid)).iter().zip(&grid) {
            let want = f64::from(x).exp2();
            assert!((f64::from(got) / want - 1.0).abs() < 7e-7, "{} 2^{x}: {got}", cpu.isa());
        }
        let got = dispatch(&cpu, Exp2(&[0.0, -0.0, f32::NEG_INFINITY, -1e30, f32::NAN]));
        let least = (-125.0f32).exp2();
        assert_eq!(got[..4], [1.0, 1.0, least, least], "{}", cpu.isa());
        assert!(got[4].is_nan(), "{}", cpu.isa());
    }
}

/// Runs `tanh`, `normal_tail` or `softplus` over a slice.
struct Tanh<'a>(&'a [f32]);
struct NormalTail<'a>(&'a [f32]);
struct Softplus<'a>(&'a [f32]);

impl Kernel for Tanh<'_> {
    type Output = Vec<f32>;
    #[inline(always)]
    fn run<L: Lanes>(self) -> Vec<f32> {
        let mut out = vec![0.0; self.0.len()];
        for (x, out) in self.0.chunks(LANES).zip(out.chunks_mut(LANES)) {
            store_partial(tanh(load_partial::<L>(x, 0.0)), out);
        }
        out
    }
}

impl Kernel for NormalTail<'_> {
    type Output = Vec<f32>;
    #[inline(always)]
    fn run<L: Lanes>(self) -> Vec<f32> {
        let mut out = vec![0.0; self.0.len()];
        for (x, out) in self.0.chunks(LANES).zip(out.chunks_mut(LANES)) {
            store_partial(normal_tail(load_partial::<L>(x, 0.0)), out);
        }
        out
    }
}

impl Kernel for Softplus<'_> {
    type Output = Vec<f32>;
    #[inline(always)]
    fn run<L: Lanes>(self) -> Vec<f32> {
        let mut out = vec![0.0; self.0.len()];
        for (x, out) in self.0.chunks(LANES).zip(out.chunks_mut(LANES)) {
            store_partial(softplus(load_partial::<L>(x, 0.0)), out);
        }
        out
    }
}

#[test]
fn softplus_keeps_its_bound_and_its_special_values() {
    let grid: Vec<f32> = (0..1_000_000u32).map(|i| -86.6 + i as f32 * 2e-4).chain([1e-30, -1e-30, 1e-4]).collect();
    for cpu in cpus() {
        let mut worst = 0.0f64;
        for (&got, &x) in dispatch(&cpu, Softplus(&grid)).iter().zip(&grid) {
            let exact = f64::from(x).max(0.0) + (-f64::from(x).abs()).exp().ln_1p();
            worst = worst.max((f64::from(got) / exact - 1.0).abs());
        }
        println!("{}: relative {worst:e}", cpu.isa());
        assert!(worst <= 3e-7, "{}: {worst:e}", cpu.isa());
        let got = dispatch(&cpu, Softplus(&[-100.0, f32::NEG_INFINITY, 1e30, f32::INFINITY, f32::NAN]));
        assert_eq!(got[..4], [0.0, 0.0, 1e30, f32::INFINITY], "{}", cpu.isa());
        assert!(got[4].is_nan(), "{}", cpu.isa());
    }
}

#[test]
fn tanh_keeps_its_bounds_and_has_the_same_bits_everywhere() {
    let grid: Vec<f32> = (0..1_000_000u32)
        .map(|i| i as f32 * 1.2e-5)
        .chain((0..1000).map(|i| 1e-30 * 1.1f32.powi(i)))
        .flat_map(|x| [x, -x])
        .collect();
    let want = Tanh(&grid).run::<scalar::Scalar>();
    let (mut absolute, mut relative) = (0.0f64, 0.0f64);
    for (&got, &x) in want.iter().zip(&grid) {
        let exact = f64::from(x).tanh();
        let off = (f64::from(got) - exact).abs();
        absolute = absolute.max(off);
        relative = relative.max(if x == 0.0 { off } else { off / exact.abs() });
    }
    println!("absolute {absolute:e}, relative {relative:e}");
    assert!(absolute <= 2e-7 && relative <= 3e-7, "absolute {absolute:e}, relative {relative:e}");
    for cpu in cpus() {
        for ((got, want), x) in dispatch(&cpu, Tanh(&grid)).iter().zip(&want).zip(&grid) {
            assert_eq!(got.to_bits(), want.to_bits(), "{} tanh {x}", cpu.isa());
        }
        let got = dispatch(&cpu, Tanh(&[f32::INFINITY, f32::NEG_INFINITY, 1e30, f32::NAN]));
        assert_eq!(got[..3], [1.0, -1.0, 1.0], "{}", cpu.isa());
        assert!(got[3].is_nan(), "{}", cpu.isa());
    }
}

#[test]
fn the_normal_tail_keeps_its_bounds() {
    let grid: Vec<f32> = (0..1_300_000u32).map(|i| i as f32 * 1e-5).collect();
    let exact: Vec<f64> = grid.iter().map(|&a| reference::normal_tail(f64::from(a))).collect();
    for cpu in cpus() {
        let (mut absolute, mut near, mut far) = (0.0f64, 0.0f64, 0.0f64);
        for ((&got, &want), &a) in dispatch(&cpu, NormalTail(&grid)).iter().zip(&exact).zip(&grid) {
            let off = (f64::from(got) - want).abs();
            absolute = absolute.max(off);
            let relative = if a <= 5.0 { &mut near } else { &mut far };
            *relative = relative.max(off / want);
        }
        println!("{}: absolute {absolute:e}, relative {near:e} up to 5, {far:e} up to 13", cpu.isa());
        assert!(absolute <= 3e-7 && near <= 1e-6 && far <= 5e-6, "{}: {absolute:e} {near:e} {far:e}", cpu.isa());
        let got = dispatch(&cpu, NormalTail(&[14.0, 1e30, f32::INFINITY, f32::NAN]));
        assert_eq!(got[..3], [0.0; 3], "{}", cpu.isa());
        assert!(got[3].is_nan(), "{}", cpu.isa());
    }
}

#[test]
fn exp_of_the_extremes() {
    for cpu in cpus() {
        let x = [0.0, -0.0, f32::NEG_INFINITY, f32::INFINITY, 88.8, 1e30, -87.0, -1e30, f32::NAN];
        let got = Exp(&x).on(&cpu);
        let inf = f32::INFINITY;
        assert_eq!(got[..8], [1.0, 1.0, 0.0, inf, inf, inf, 0.0, 0.0], "{}", cpu.isa());
        assert!(got[8].is_nan(), "{}", cpu.isa());
    }
}

impl Exp<'_> {
    fn on(self, cpu: &Cpu) -> Vec<f32> {
        dispatch(cpu, self)
    }
}

/// Every operation once, on one set of inputs.
struct Everything<'a>(&'a [f32; LANES], &'a [f32; LANES]);

impl Kernel for Everything<'_> {
    type Output = Vec<[u32; LANES]>;
    #[inline(always)]
    fn run<L: Lanes>(self) -> Self::Output {
        let (a, b) = (L::load(self.0), L::load(self.1));
        let words: [u32; LANES] = std::array::from_fn(|i| (i as i32 * 1_234_567 - 9_000_000) as u32);
        let clamped = a.max(L::splat(-126.0)).min(L::splat(127.0));
        let vectors = [
            L::splat(3.5),
            a.add(b),
            a.sub(b),
            a.mul(b),
            a.div(b),
            a.min(b),
            a.max(b),
            a.round(),
            clamped.round().exp2_integer(),
            L::splat(128.0).exp2_integer(),
            a.select_less(b, a, L::splat(7.0)),
            a.keep(3, 11, -1.0),
            a.keep(-5, 40, -1.0),
            a.keep(-64, -64, -1.0),
            a.keep(9, 9, -1.0),
            a.keep(16, 20, -1.0),
            L::load_i32(&words),
            clamped.scale_by_power(L::splat(-3.0)),
            exp2_negative(a.min(L::splat(0.0))),
            L::splat(a.sum()),
            L::splat(a.largest()),
            // Exact either way, so that fusing does not show.
            L::splat(3.0).mul_add(L::splat(0.5), L::splat(1.0)),
        ];
        let bits = |vector: L| {
            let mut lanes = [0.0; LANES];
            vector.store(&mut lanes);
            lanes.map(f32::to_bits)
        };
        let mut out = Vec::new();
        for vector in vectors {
            out.push(bits(vector));
        }
        let mut bytes = [0; LANES];
        clamped.mul(L::splat(2.0)).store_bytes(&mut bytes);
        out.push(bytes.map(u32::from));
        out
    }
}

#[test]
fn every_operation_agrees_with_scalar_bit_for_bit() {
    let sets: [[f32; LANES]; 4] = [
        std::array::from_fn(|i| i as f32 * 0.7 - 5.0),
        std::array::from_fn(|i| (i as f32 - 8.0) + 0.5),
        std::array::from_fn(|i| [0.0, -0.0, 1e-40, -1e38, 3e38, 1e-3, 126.4, -125.6][i % 8]),
        std::array::from_fn(|i| 1.0 / (i as f32 + 1.0)),
    ];
    for cpu in cpus() {
        for a in &sets {
            for b in &sets {
                let want = Everything(a, b).run::<scalar::Scalar>();
                let got = dispatch(&cpu, Everything(a, b));
                for (index, (got, want)) in got.iter().zip(&want).enumerate() {
                    for (&got, &want) in got.iter().zip(want) {
                        let (got, want) = (f32::from_bits(got), f32::from_bits(want));
                        let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
                        assert!(same || got == want, "{} operation {index}: {got} {want}", cpu.isa());
                    }
                }
            }
        }
    }
}

/// All of half precision.
struct Halves;

impl Kernel for Halves {
    type Output = Vec<f32>;
    #[inline(always)]
    fn run<L: Lanes>(self) -> Vec<f32> {
        let mut out = vec![0.0; 1 << 16];
        for (first, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            L::load_f16(&std::array::from_fn(|lane| (first * LANES + lane) as u16)).store(out);
        }
        out
    }
}

#[test]
fn every_half_is_widened_exactly() {
    for cpu in cpus() {
        for (bits, got) in dispatch(&cpu, Halves).into_iter().enumerate() {
            let want = half::f16::from_bits(bits as u16).to_f32();
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{} {bits:#x}: {got}", cpu.isa());
        }
    }
}
