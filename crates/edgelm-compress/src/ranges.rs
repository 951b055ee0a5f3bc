//! How large the values of an activation are, and the one scale with which int8 holds them best.
//!
//! Pure. A histogram over magnitudes with 128 bins to an octave, so that one pass over the data is enough: a bin is the upper
//! half of an f32.

/// Largest quant of int8 activations.
const HIGH: f64 = 127.0;

/// Bins: every upper half of a non-negative f32.
const BINS: usize = 1 << 15;

/// How the scale of static activations is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Calibrator {
    /// The largest magnitude that was seen is the largest that can be held.
    MinMax,
    /// This part of all values (0.999, say) can be held.
    Percentile(f64),
    /// The least mean square of what rounding and clamping change.
    Mse,
    /// The least divergence of the distribution of the rounded magnitudes from that of the magnitudes.
    /// Source: 8-bit inference with TensorRT (Migacz, 2017), with all bins above the range counted in the last.
    Kl,
}

/// Counts of magnitudes.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    largest: f32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BINS], largest: 0.0 }
    }
}

impl Histogram {
    /// Counts `values`. What is not a number counts as infinite.
    pub fn add(&mut self, values: &[f32]) {
        for value in values {
            let magnitude = if value.is_nan() { f32::INFINITY } else { value.abs() };
            self.largest = self.largest.max(magnitude);
            self.counts[(magnitude.to_bits() >> 16) as usize] += 1;
        }
    }

    /// The largest magnitude.
    pub fn largest(&self) -> f32 {
        self.largest
    }

    /// The scale of int8 values. `None` where nothing but zeros was counted, or something that is not finite.
    pub fn scale(&self, calibrator: Calibrator) -> Option<f32> {
        if self.largest == 0.0 || !self.largest.is_finite() {
            return None;
        }
        let bound = match calibrator {
            Calibrator::MinMax => f64::from(self.largest),
            Calibrator::Percentile(part) => self.percentile(part),
            Calibrator::Mse => self.least(|bound| self.squared_error(bound)),
            Calibrator::Kl => self.least(|bound| self.divergence(bound)),
        };
        Some((bound / HIGH) as f32)
    }

    /// Bins with something in them: (middle of the bin, count), smallest first.
    fn filled(&self) -> impl DoubleEndedIterator<Item = (f64, u64)> {
        let middle = |bin: usize| {
            let low = f64::from(f32::from_bits((bin as u32) << 16));
            let high = f64::from(f32::from_bits(((bin as u32) << 16) | 0xffff));
            ((low + high) / 2.0).min(f64::from(self.largest))
        };
        self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(move |(bin, &count)| (middle(bin), count))
    }

    /// The magnitude below which this part of all values lies.
    fn percentile(&self, part: f64) -> f64 {
        let total: u64 = self.counts.iter().sum();
        let mut above = ((1.0 - part.clamp(0.0, 1.0)) * total as f64) as u64;
        for (value, count) in self.filled().rev() {
            if count > above {
                return value;
            }
            above -= count;
        }
        f64::from(self.largest)
    }

    /// The bound of least `cost` among those from the largest magnitude down to a 64th of it.
    fn least(&self, cost: impl Fn(f64) -> f64) -> f64 {
        // A 16th of an octave apart.
        let bounds = (0..=6 * 16).map(|step| f64::from(self.largest) * (-f64::from(step) / 16.0).exp2());
        bounds.min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(f64::from(self.largest))
    }

    /// Σ count · (value − held)², with rounding errors as they are on average.
    fn squared_error(&self, bound: f64) -> f64 {
        let step = bound / HIGH;
        let error = |value: f64| match value {
            value if value > bound => (value - bound).powi(2),
            value if value < step / 2.0 => value * value,
            _ => step * step / 12.0,
        };
        self.filled().map(|(value, count)| count as f64 * error(value)).sum()
    }

    /// KL(P || Q) over the bins up to `bound`: P has all that lies above in its last bin; Q is what is left of P when the
    /// bins of each of the 128 steps share its counts.
    fn divergence(&self, bound: f64) -> f64 {
        let step = bound / HIGH;
        let mut p: Vec<(usize, f64)> = Vec::new();
        let (mut above, mut total) = (0.0, 0.0);
        for (value, count) in self.filled() {
            total += count as f64;
            if value <= bound {
                p.push(((value / step).round() as usize, count as f64));
            } else {
                above += count as f64;
            }
        }
        let mut sums = [(0.0, 0.0); HIGH as usize + 1];
        for &(quant, count) in &p {
            let sum = &mut sums[quant.min(HIGH as usize)];
            (sum.0, sum.1) = (sum.0 + count, sum.1 + 1.0);
        }
        let inside = (total - above).max(1.0);
        if let Some(last) = p.last_mut() {
            last.1 += above;
        }
        let term = |&(quant, count): &(usize, f64)| {
            let (sum, bins) = sums[quant.min(HIGH as usize)];
            let (p, q) = (count / total, sum / bins / inside);
            p * (p / q).ln()
        };
        p.iter().map(term).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Uniform in (−1, 1), with a few values of 50.
    fn histogram(outliers: usize) -> Histogram {
        let mut histogram = Histogram::default();
        let values: Vec<f32> = (0..20_000).map(|i| (i * 7919 % 20_011) as f32 / 10_005.5 - 1.0).collect();
        histogram.add(&values);
        histogram.add(&vec![-50.0; outliers]);
        histogram
    }

    #[test]
    fn calibrators_weigh_outliers_differently() {
        let scale = |outliers, calibrator| f64::from(histogram(outliers).scale(calibrator).unwrap()) * HIGH;
        for calibrator in [Calibrator::MinMax, Calibrator::Mse, Calibrator::Percentile(1.0)] {
            assert!((scale(0, calibrator) - 1.0).abs() < 0.02, "{calibrator:?} {}", scale(0, calibrator));
        }
        assert!((scale(4, Calibrator::MinMax) - 50.0).abs() < 1e-4);
        assert!((scale(4, Calibrator::Percentile(0.999)) - 1.0).abs() < 0.02);
        assert!((scale(0, Calibrator::Percentile(0.5)) - 0.5).abs() < 0.02);
        // Clamping four values of 50 to b costs 4 · (50 − b)², holding them 20,000 · (b / 127)² / 12: b = 49 or so.
        assert!((scale(4, Calibrator::Mse) - 49.0).abs() < 2.0, "{}", scale(4, Calibrator::Mse));
        assert!(scale(4, Calibrator::Kl) < 5.0, "{}", scale(4, Calibrator::Kl));
        assert!(scale(0, Calibrator::Kl) > 0.5, "{}", scale(0, Calibrator::Kl));
    }

    #[test]
    fn nothing_and_nonsense_have_no_scale() {
        assert_eq!(Histogram::default().scale(Calibrator::Mse), None);
        let mut broken = Histogram::default();
        broken.add(&[1.0, f32::NAN]);
        assert_eq!(broken.scale(Calibrator::MinMax), None);
    }
}
