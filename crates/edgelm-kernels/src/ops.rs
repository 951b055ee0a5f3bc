//! Elementwise and row-wise operations.

use crate::Cpu;

/// Which two components of a head rotate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RopePairs {
    /// (i, i + R/2): Hugging Face's "rotate half", GGUF's NEOX.
    Halves,
    /// (2i, 2i + 1): GGUF's NORM, GPT-J.
    Interleaved,
}

/// out[t, i] = x[t, i] / sqrt(mean_i(x[t, i]²) + eps) · gain[i]. Shapes: `x`, `out` [T, D]; `gain` [D]; T = x.len()/D.
pub fn rms_norm(cpu: &Cpu, x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    let _ = (cpu, x, gain, eps, out);
    todo!()
}

/// Rotates the first R = 2 · cos.len()/T components of every head in place.
/// Shapes: `x` [T, H, E]; `cos`, `sin` [T, R/2] (already scaled by the attention factor of YaRN).
pub fn rope(cpu: &Cpu, x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], t: usize, pairs: RopePairs) {
    let _ = (cpu, x, head_dim, cos, sin, t, pairs);
    todo!()
}

/// gate[i] = silu(gate[i]) · up[i].
pub fn silu_mul(cpu: &Cpu, gate: &mut [f32], up: &[f32]) {
    let _ = (cpu, gate, up);
    todo!()
}

/// x[i] += y[i].
pub fn add_assign(cpu: &Cpu, x: &mut [f32], y: &[f32]) {
    let _ = (cpu, x, y);
    todo!()
}
