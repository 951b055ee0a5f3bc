//! From timed runs to the figures of a row, beside what the machine can do.

use super::case::{Case, Kind};
use edgelm_engine::Engine;
use edgelm_kernels::{ReadProbe, f32_peak, int8_peak};
use edgelm_model::{LayerTensor, TensorId};
use serde_json::json;

/// Limits as measured at the start, and the size of the model.
pub(super) struct Machine {
    probe: ReadProbe,
    /// Bytes per second read from memory.
    pub bandwidth: f64,
    /// Operations per second of the instructions that this model's products use.
    pub peak: f64,
    /// Weights of the decoder layers: each is multiplied and added once per token of a prompt. (The output head is not
    /// among them: it runs for the last position only.)
    layer_weights: u64,
    is_int8: bool,
}

impl Machine {
    pub fn measure(engine: &Engine) -> anyhow::Result<Self> {
        let checkpoint = engine.checkpoint();
        let (mut layer_weights, mut is_int8) = (0, false);
        for layer in 0..engine.config().layers.len() {
            let experts = engine.config().layers[layer].experts;
            for tensor in engine.config().layer_tensors(layer).into_iter().filter(|tensor| tensor.is_linear()) {
                let (dtype, shape) = checkpoint.describe(TensorId::Layer(layer, tensor))?;
                let weights = shape.iter().product::<usize>() as u64;
                layer_weights += match (tensor, experts) {
                    // Each token goes through some of them.
                    (LayerTensor::Expert(..), Some(experts)) => {
                        weights * experts.per_token as u64 / experts.count.max(1) as u64
                    }
                    _ => weights,
                };
                is_int8 |= dtype.is_quantized();
            }
        }
        let peak = if is_int8 { int8_peak(engine.cpu()) } else { f32_peak(engine.cpu()) };
        let probe = ReadProbe::new();
        let bandwidth = probe.bytes_per_second(engine.cpu().pool());
        Ok(Self { probe, bandwidth, peak, layer_weights, is_int8 })
    }

    /// `int8` or `f32`.
    pub fn arithmetic(&self) -> &'static str {
        if self.is_int8 { "int8" } else { "f32" }
    }
}

/// Rates of one test's repeats.
pub(super) struct Rates(Vec<f64>);

impl Rates {
    /// `rates` is not empty.
    pub fn new(mut rates: Vec<f64>) -> Self {
        rates.sort_by(f64::total_cmp);
        Self(rates)
    }

    /// The middle one; of an even number the mean of the middle two.
    pub fn median(&self) -> f64 {
        let n = self.0.len();
        (self.0[(n - 1) / 2] + self.0[n / 2]) / 2.0
    }

    /// Of the sample; 0 for a single run.
    pub fn standard_deviation(&self) -> f64 {
        let n = self.0.len() as f64;
        let mean = self.0.iter().sum::<f64>() / n;
        let squares: f64 = self.0.iter().map(|rate| (rate - mean).powi(2)).sum();
        (squares / (n - 1.0).max(1.0)).sqrt()
    }
}

/// Memory bandwidth around the runs of one test: other tenants of a machine change it from minute to minute.
#[derive(Default)]
pub(super) struct Bandwidth(Vec<f64>);

impl Bandwidth {
    pub fn sample(&mut self, machine: &Machine, engine: &Engine) {
        self.0.push(machine.probe.bytes_per_second(engine.cpu().pool()));
    }

    pub fn median(self) -> f64 {
        Rates::new(self.0).median()
    }
}

/// The keys of CONTRACT.md, and `tops` and `limit`. Decode reads the weights once per step, so its limit is the read
/// bandwidth (GB/s); prefill's is arithmetic (TOPS).
pub(super) fn row(
    engine: &Engine,
    case: &Case,
    rates: &Rates,
    machine: &Machine,
    bandwidth: Option<Bandwidth>,
) -> serde_json::Value {
    let rate = rates.median();
    let (mut gb_per_second, mut tops) = (None, None);
    let (achieved, limit) = match case.kind {
        Kind::Decode { batch, .. } => {
            let achieved = engine.bytes_per_token() as f64 * rate / batch as f64 / 1e9;
            gb_per_second = Some(achieved);
            (achieved, bandwidth.map(|bandwidth| bandwidth.median() / 1e9))
        }
        Kind::Prefill(_) => {
            let achieved = 2.0 * machine.layer_weights as f64 * rate / 1e12;
            tops = Some(achieved);
            (achieved, Some(machine.peak / 1e12))
        }
    };
    json!({
        "test": case.name,
        "tokens_per_second": rate,
        "stddev": rates.standard_deviation(),
        "gb_per_second": gb_per_second,
        "tops": tops,
        "limit": limit,
        "fraction_of_limit": limit.map(|limit| achieved / limit),
        "kernel": engine.kernels().join(", "),
        "threads": engine.cpu().threads(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_deviations() {
        assert_eq!(Rates::new(vec![3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Rates::new(vec![4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert_eq!(Rates::new(vec![7.0]).standard_deviation(), 0.0);
        assert_eq!(Rates::new(vec![1.0, 2.0, 3.0]).standard_deviation(), 1.0);
    }
}
