//! Operations that carry a state from position to position, against their definitions in f64.

use super::*;

/// Ways to cut T positions into calls.
fn cuts(t: usize) -> Vec<Vec<usize>> {
    let odd = [1, 2, 5, 1, 3, 8, 1, 13];
    let mut left = t;
    let odd = odd.into_iter().cycle().map_while(|rows| {
        let rows = rows.min(left);
        left -= rows;
        (rows > 0).then_some(rows)
    });
    vec![vec![t], vec![1; t], odd.collect(), vec![0, t / 2, 0, t - t / 2]]
}

/// `got` is as near to `want` as f32 sums of a few hundred terms of `magnitude` can be.
fn assert_near(got: &[f32], want: &[f64], magnitude: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(got) - want).abs() <= 1e-6 * magnitude, "{what} [{index}]: {got} {want}");
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(1.0, |largest, x| largest.max(x.abs()))
}

struct Conv {
    channels: usize,
    x: Vec<f32>,
    /// `[K, C]`.
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    before: Vec<f32>,
    activation: Option<Activation>,
}

impl Conv {
    fn run(&self, cpu: &Cpu, cut: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let (mut state, mut out) = (self.before.clone(), vec![f32::NAN; self.x.len()]);
        let mut first = 0;
        for rows in cut {
            let part = first..first + rows * self.channels;
            let (x, bias) = (&self.x[part.clone()], self.bias.as_deref());
            causal_conv1d(cpu, x, &self.weight, bias, &mut state, self.activation, &mut out[part.clone()]);
            first = part.end;
        }
        (out, state)
    }

    fn reference(&self) -> Vec<f64> {
        let (channels, all) = (self.channels, [&self.before[..], &self.x].concat());
        let mut out = Vec::new();
        for (index, _) in self.x.iter().enumerate() {
            let channel = index % channels;
            let mut sum = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[channel]));
            for tap in 0..self.weight.len() / channels {
                sum += f64::from(self.weight[tap * channels + channel]) * f64::from(all[index + tap * channels]);
            }
            out.push(self.activation.map_or(sum, |name| activation(name, sum).0));
        }
        out
    }
}

#[test]
fn causal_conv1d_is_near_the_definition_however_it_is_cut() {
    for (channels, taps, t) in [(1, 1, 3), (1, 4, 1), (15, 4, 2), (16, 3, 9), (17, 4, 40), (100, 2, 7), (6000, 4, 5)] {
        for (has_bias, activation) in [(false, None), (true, Some(Activation::Silu)), (true, None)] {
            let conv = Conv {
                channels,
                x: numbers(21, t * channels),
                weight: numbers(22, taps * channels),
                bias: has_bias.then(|| numbers(23, channels)),
                before: numbers(24, (taps - 1) * channels),
                activation,
            };
            for isa in Isa::available() {
                let what = format!("{isa} {channels} x {taps} {t} {activation:?}");
                let (whole, state) = conv.run(&Cpu::new(Some(1), Some(isa)).expect("available"), &[t]);
                assert_near(&whole, &conv.reference(), 20.0, &what);
                let all = [&conv.before[..], &conv.x].concat();
                assert_eq!(bits(&state), bits(&all[all.len() - state.len()..]), "{what}: the last inputs");
                for threads in [1, 3] {
                    let cpu = Cpu::new(Some(threads), Some(isa)).expect("available");
                    for cut in cuts(t) {
                        let (out, last) = conv.run(&cpu, &cut);
                        assert_eq!((bits(&out), bits(&last)), (bits(&whole), bits(&state)), "{what} {cut:?} {threads}");
                    }
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "whole rows")]
fn a_row_that_ends_early_is_a_bug_of_the_caller() {
    let cpu = Cpu::new(Some(1), Some(Isa::Scalar)).expect("available");
    causal_conv1d(&cpu, &[0.0; 5], &[0.0; 6], None, &mut [0.0; 3], None, &mut [0.0; 5]);
}

/// T, H, G, and the sizes of a head's state.
const SHAPES: [(usize, usize, usize, usize, usize); 8] = [
    (1, 1, 1, 1, 1),
    (3, 2, 1, 4, 15),
    (20, 4, 2, 8, 16),
    (9, 3, 3, 5, 17),
    (30, 6, 2, 16, 33),
    (12, 8, 1, 64, 128),
    (5, 2, 2, 7, 64),
    (4, 5, 1, 3, 97),
];

struct Scan {
    shape: (usize, usize, usize, usize, usize),
    x: Vec<f32>,
    dt: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    a: Vec<f32>,
    d: Vec<f32>,
    dt_bias: Vec<f32>,
    before: Vec<f32>,
}

const DT_LIMIT: (f32, f32) = (0.05, 2.0);

impl Scan {
    fn new(shape: (usize, usize, usize, usize, usize)) -> Self {
        let (t, heads, groups, width, states) = shape;
        Self {
            shape,
            x: numbers(31, t * heads * width),
            dt: numbers(32, t * heads).iter().map(|x| 2.0 * x).collect(),
            b: numbers(33, t * groups * states),
            c: numbers(34, t * groups * states),
            a: numbers(35, heads).iter().map(|x| -x.exp()).collect(),
            d: numbers(36, heads),
            dt_bias: numbers(37, heads),
            before: numbers(38, heads * width * states),
        }
    }

    fn run(&self, cpu: &Cpu, cut: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let (_, heads, groups, width, states) = self.shape;
        let (mut state, mut out) = (self.before.clone(), vec![f32::NAN; self.x.len()]);
        let mut first = 0;
        for rows in cut {
            let part = |row: usize| first * row..(first + rows) * row;
            selective_scan(
                cpu,
                SelectiveScan {
                    x: &self.x[part(heads * width)],
                    dt: &self.dt[part(heads)],
                    b: &self.b[part(groups * states)],
                    c: &self.c[part(groups * states)],
                    groups,
                    a: &self.a,
                    d: &self.d,
                    dt_bias: &self.dt_bias,
                    dt_limit: DT_LIMIT,
                    state: &mut state,
                    out: &mut out[part(heads * width)],
                },
            );
            first += rows;
        }
        (out, state)
    }

    /// Results and the last state.
    fn reference(&self) -> (Vec<f64>, Vec<f64>) {
        let (t, heads, groups, width, states) = self.shape;
        let mut state: Vec<f64> = self.before.iter().map(|&x| f64::from(x)).collect();
        let mut out = Vec::new();
        for row in 0..t {
            for head in 0..heads {
                let dt = f64::from(self.dt[row * heads + head]) + f64::from(self.dt_bias[head]);
                let dt = dt.exp().ln_1p().clamp(f64::from(DT_LIMIT.0), f64::from(DT_LIMIT.1));
                let group = (row * groups + head / (heads / groups)) * states;
                for p in 0..width {
                    let x = f64::from(self.x[(row * heads + head) * width + p]);
                    let mut y = f64::from(self.d[head]) * x;
                    for n in 0..states {
                        let h = &mut state[(head * width + p) * states + n];
                        *h = (dt * f64::from(self.a[head])).exp() * *h + dt * x * f64::from(self.b[group + n]);
                        y += *h * f64::from(self.c[group + n]);
                    }
                    out.push(y);
                }
            }
        }
        (out, state)
    }
}

#[test]
fn selective_scan_is_near_the_definition_however_it_is_cut() {
    for shape in SHAPES {
        let scan = Scan::new(shape);
        let (want, last) = scan.reference();
        for isa in Isa::available() {
            let what = format!("{isa} {shape:?}");
            let (whole, state) = scan.run(&Cpu::new(Some(1), Some(isa)).expect("available"), &[shape.0]);
            assert_near(&whole, &want, 10.0 * largest(&want), &what);
            assert_near(&state, &last, 2.0 * largest(&last), &what);
            for threads in [1, 3] {
                let cpu = Cpu::new(Some(threads), Some(isa)).expect("available");
                for cut in cuts(shape.0) {
                    let got = scan.run(&cpu, &cut);
                    let what = format!("{what} {cut:?}, {threads} threads");
                    assert_eq!((bits(&got.0), bits(&got.1)), (bits(&whole), bits(&state)), "{what}");
                }
            }
        }
    }
}

struct Delta {
    shape: (usize, usize, usize, usize, usize),
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    g: Vec<f32>,
    beta: Vec<f32>,
    before: Vec<f32>,
}

impl Delta {
    fn new(shape: (usize, usize, usize, usize, usize)) -> Self {
        let (t, heads, groups, key_dim, value_dim) = shape;
        let unit = |seed: u64| -> Vec<f32> {
            let normalize = |key: &[f32]| {
                let norm = key.iter().map(|x| x * x).sum::<f32>().sqrt();
                key.iter().map(|x| x / norm).collect::<Vec<f32>>()
            };
            numbers(seed, t * groups * key_dim).chunks(key_dim).flat_map(normalize).collect()
        };
        Self {
            shape,
            q: unit(41),
            k: unit(42),
            v: numbers(43, t * heads * value_dim),
            g: numbers(44, t * heads).iter().map(|x| -x.abs()).collect(),
            beta: numbers(45, t * heads).iter().map(|x| x.abs() / 2.0).collect(),
            before: numbers(46, heads * key_dim * value_dim),
        }
    }

    fn run(&self, cpu: &Cpu, cut: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let (_, heads, groups, key_dim, value_dim) = self.shape;
        let (mut state, mut out) = (self.before.clone(), vec![f32::NAN; self.v.len()]);
        let mut first = 0;
        for rows in cut {
            let part = |row: usize| first * row..(first + rows) * row;
            gated_delta(
                cpu,
                GatedDelta {
                    q: &self.q[part(groups * key_dim)],
                    k: &self.k[part(groups * key_dim)],
                    groups,
                    v: &self.v[part(heads * value_dim)],
                    heads,
                    g: &self.g[part(heads)],
                    beta: &self.beta[part(heads)],
                    state: &mut state,
                    out: &mut out[part(heads * value_dim)],
                },
            );
            first += rows;
        }
        (out, state)
    }

    /// Results and the last state.
    fn reference(&self) -> (Vec<f64>, Vec<f64>) {
        let (t, heads, groups, key_dim, value_dim) = self.shape;
        let mut state: Vec<f64> = self.before.iter().map(|&x| f64::from(x)).collect();
        let mut out = Vec::new();
        for row in 0..t {
            for head in 0..heads {
                let at = row * heads + head;
                let key = (row * groups + head / (heads / groups)) * key_dim;
                let (q, k) = (&self.q[key..][..key_dim], &self.k[key..][..key_dim]);
                let state = &mut state[head * key_dim * value_dim..][..key_dim * value_dim];
                state.iter_mut().for_each(|x| *x *= f64::from(self.g[at]).exp());
                for column in 0..value_dim {
                    let dot = |state: &[f64], x: &[f32]| -> f64 {
                        x.iter().enumerate().map(|(i, &x)| f64::from(x) * state[i * value_dim + column]).sum()
                    };
                    let error = f64::from(self.v[at * value_dim + column]) - dot(state, k);
                    for (i, &k) in k.iter().enumerate() {
                        state[i * value_dim + column] += f64::from(k) * f64::from(self.beta[at]) * error;
                    }
                    out.push(dot(state, q));
                }
            }
        }
        (out, state)
    }
}

#[test]
fn gated_delta_is_near_the_definition_however_it_is_cut() {
    for shape in SHAPES {
        let delta = Delta::new(shape);
        let (want, last) = delta.reference();
        for isa in Isa::available() {
            let what = format!("{isa} {shape:?}");
            let (whole, state) = delta.run(&Cpu::new(Some(1), Some(isa)).expect("available"), &[shape.0]);
            assert_near(&whole, &want, 5.0 * largest(&want), &what);
            assert_near(&state, &last, 5.0 * largest(&last), &what);
            for threads in [1, 3] {
                let cpu = Cpu::new(Some(threads), Some(isa)).expect("available");
                for cut in cuts(shape.0) {
                    let got = delta.run(&cpu, &cut);
                    let what = format!("{what} {cut:?}, {threads} threads");
                    assert_eq!((bits(&got.0), bits(&got.1)), (bits(&whole), bits(&state)), "{what}");
                }
            }
        }
    }
}
