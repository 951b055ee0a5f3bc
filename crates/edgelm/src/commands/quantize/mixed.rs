//! `--target-bpw` and `--target-size`: measures what each format costs each tensor, and picks the best mixture.

use super::QuantizeArgs;
use crate::{failure::Usage, interrupt::Work, options::Global, progress};
use edgelm_compress::{
    CompressError, Keep, matrix_budget, matrix_budget_of_bits,
    mixed::{Allocation, ProbeOptions, allocate_formats, measure_sensitivity},
};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use edgelm_tensor::DType;

/// Formats that can have a place in a mixture, by their bits over its mean. Of mica-40m's tensors at 3.1 to 6 bits none was
/// given one beyond 0.65 to 2.1; and encoding for trial in the low-bit formats is what takes the time.
const BITS_AROUND_MEAN: std::ops::RangeInclusive<f64> = 0.6..=2.8;

/// The formats of least expected divergence for the size asked for.
pub fn allocation(
    checkpoint: &Checkpoint,
    cpu: &Cpu,
    windows: &[Vec<u32>],
    keep: &[Keep],
    args: &QuantizeArgs,
    global: &Global,
) -> anyhow::Result<Allocation> {
    let budget = match (args.target_bpw, args.target_size) {
        (Some(bits), _) if !(bits.is_finite() && bits > 0.0) => {
            return Err(Usage(format!("--target-bpw {bits}: must be more than 0")).into());
        }
        (Some(bits), _) => matrix_budget_of_bits(checkpoint, bits)?,
        (None, size) => matrix_budget(checkpoint, size.unwrap_or_default())?,
    };
    let mean = budget as f64 * 8.0 / checkpoint.parameters().max(1) as f64;
    let candidates: Vec<DType> = DType::all()
        .filter(|dtype| dtype.is_quantized() && BITS_AROUND_MEAN.contains(&(dtype.bits_per_weight() / mean)))
        .chain(keep.iter().map(Keep::dtype))
        .collect();
    let bar = progress::bar(0, "measure sensitivity", global.quiet);
    let work = Work::begin();
    let measured =
        measure_sensitivity(checkpoint, cpu, windows, &candidates, &ProbeOptions::default(), &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            if work.is_interrupted() { Err(CompressError::Cancelled) } else { Ok(()) }
        });
    bar.finish_and_clear();
    let mut measured = measured?;
    for tensor in &mut measured {
        let name = checkpoint.config().arch.gguf_tensor_name(tensor.id);
        if let Some(keep) = keep.iter().rev().find(|keep| keep.matches(&name)) {
            tensor.formats.retain(|format| format.dtype == keep.dtype());
        }
    }
    Ok(allocate_formats(&measured, budget)?)
}
