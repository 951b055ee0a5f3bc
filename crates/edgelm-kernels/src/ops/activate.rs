//! The nonlinearities of feed-forward networks, alone and as the gate of a product.

use super::map::{Map, map_in_place};
use crate::disjoint::Disjoint;
use crate::simd::{Kernel, LANES, Lanes, dispatch, exp, load_partial, normal_tail, store_partial};
use crate::{Cpu, Work};
use edgelm_tensor::Activation;

/// Values per thread below which a second thread costs more than it saves.
const GRAIN: usize = 1 << 13;

/// x[i] ← f(x[i]) with the function that [`Activation`] names.
///
/// Numerics: SiLU within 4 ULP; QuickGELU off by at most 4e-7 + 2e-7 · |x| of its value, both GELUs by at most 4e-7 · |x|;
/// ReLU exact, its square rounded once. -0 where x is so far below zero that an exponential overflows; NaN stays NaN.
/// Scalar differs from the vector paths by fused multiply-add.
pub fn activate(cpu: &Cpu, activation: Activation, x: &mut [f32]) {
    map_in_place(cpu, x, Function(activation));
}

/// gate[i] ← f(gate[i]) · up[i]: the gate of SwiGLU, GeGLU and their kin. Numerics: as [`activate`], and one product.
/// Panics if lengths disagree.
/// Source: Shazeer 2020, arXiv:2002.05202.
pub fn activate_mul(cpu: &Cpu, activation: Activation, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    let len = gate.len();
    // An exponential counts as one operation.
    let _operator = cpu.operator("activate_mul", || Work::elementwise(3 * len, 5 * len));
    let gate = Disjoint::new(gate);
    cpu.pool().split(len, GRAIN, &|range| {
        // SAFETY: `split` hands out ranges that do not overlap.
        #[allow(unsafe_code)]
        let gate = unsafe { gate.part(range.clone()) };
        dispatch(cpu, ActivateMul { activation, gate, up: &up[range] });
    });
}

#[derive(Clone, Copy)]
struct Function(Activation);

impl Map for Function {
    const NAME: &'static str = "activate";
    const OPERATIONS: usize = 4;
    const GRAIN: usize = GRAIN;

    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        function(self.0, x)
    }
}

struct ActivateMul<'a> {
    activation: Activation,
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for ActivateMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (gate, gate_tail) = self.gate.as_chunks_mut::<LANES>();
        let (up, up_tail) = self.up.as_chunks::<LANES>();
        for (gate, up) in gate.iter_mut().zip(up) {
            function(self.activation, L::load(gate)).mul(L::load(up)).store(gate);
        }
        if !gate_tail.is_empty() {
            let product = function(self.activation, load_partial::<L>(gate_tail, 0.0)).mul(load_partial(up_tail, 0.0));
            store_partial(product, gate_tail);
        }
    }
}

/// f(x).
#[inline(always)]
pub(super) fn function<L: Lanes>(activation: Activation, x: L) -> L {
    match activation {
        Activation::Silu => times_sigmoid(x, L::splat(0.0).sub(x)),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_tanh(x),
        Activation::QuickGelu => times_sigmoid(x, x.mul(L::splat(-1.702))),
        Activation::Relu => relu(x),
        Activation::Relu2 => relu(x).mul(relu(x)),
    }
}

/// x · sigmoid(z), given -z.
#[inline(always)]
fn times_sigmoid<L: Lanes>(x: L, minus_z: L) -> L {
    x.div(L::splat(1.0).add(exp(minus_z)))
}

/// x Φ(x) = max(x, 0) - |x| Φ(-|x|), which cancels nowhere.
#[inline(always)]
fn gelu<L: Lanes>(x: L) -> L {
    // Nothing is left of the tail at 14; without the bound infinity would meet that zero.
    let magnitude = L::splat(14.0).min(L::splat(0.0).sub(x).max(x));
    L::splat(0.0).sub(magnitude).mul_add(normal_tail(magnitude), relu(x))
}

/// x/2 · (1 + tanh u) = x · sigmoid(2u) with u = √(2/π) · (x + 0.044715 x³).
#[inline(always)]
fn gelu_tanh<L: Lanes>(x: L) -> L {
    const LINEAR: f32 = -1.595_769_2;
    const CUBIC: f32 = -0.071_354_814;
    times_sigmoid(x, x.mul(x).mul_add(L::splat(CUBIC), L::splat(LINEAR)).mul(x))
}

/// The constant goes first: `max` gives its second operand when one is NaN.
#[inline(always)]
fn relu<L: Lanes>(x: L) -> L {
    L::splat(0.0).max(x)
}
