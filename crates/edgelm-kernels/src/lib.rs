//! Everything that runs per weight or per value: CPU probing, the thread pool, matrix products over packed weights,
//! attention over the KV cache, norms, rotary embeddings, activations.
//!
//! Separate because it is the home of `unsafe` and of instruction sets; nothing above knows which CPU it runs on.
//! Must not depend on files, models, tokenizers or async code.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod bench;
mod cpu;
mod disjoint;
mod heap;
mod isa;
mod kv;
mod limits;
mod matmul;
mod ops;
mod pool;
#[cfg(test)]
mod reference;
mod simd;
mod trace;

pub use attention::{Alibi, Attention, Scores, Span};
pub use bench::{KernelBench, bench_kernels};
pub use cpu::Cpu;
pub use edgelm_tensor::{Activation, RopePairs};
pub use heap::keep_heap_small;
pub use isa::Isa;
pub use kv::{KvCache, KvDtype, KvPages, KvShape};
pub use limits::{ReadProbe, available_memory, f32_peak, int8_peak, read_bandwidth};
pub use matmul::{Linear, Matrix, RowSource, Scratch, Weights};
pub use ops::{
    GatedDelta, SelectiveScan, activate, activate_mul, add_assign, causal_conv1d, clamp, gated_delta, kl_divergence,
    layer_norm, log_sum_exp, rms_norm, rope, scale, selective_scan, softcap,
};
pub use pool::Pool;
pub use trace::{Interval, Limits, Operator, OperatorRecord, Recorder, Records, StepRecord, StepSpan, Work};

/// What can go wrong before any arithmetic starts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A forced instruction set is absent.
    #[error("this CPU cannot run `{isa}` kernels; available: {available}")]
    IsaAbsent {
        /// Asked for.
        isa: Isa,
        /// Comma-separated names.
        available: String,
    },
    /// A name that is no instruction set.
    #[error("unknown instruction set `{0}`; known: scalar, avx2, avxvnni, avx512, amx, neon, dotprod, i8mm")]
    UnknownIsa(String),
    /// A thread count outside 1..=1024.
    #[error("{0} threads asked for; 1 to 1024 are possible")]
    Threads(usize),
    /// Weight bytes that do not fit their declared format and shape.
    #[error(transparent)]
    Weights(#[from] edgelm_tensor::TensorError),
}
