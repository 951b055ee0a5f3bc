//! The settings of `--format int8`, `int4`, `int3`, `int2`, `w8a8`.

use clap::{Args, ValueEnum};
use edgelm_compress::{CalibratorName, Inputs as InputsOf, IntOptions, Per as PerOf};

#[derive(Args)]
pub struct IntArgs {
    /// Values that share a scale, for formats of folders [default: 128 for int4, int3 and int2, 64 for nf4 and fp4, or less
    /// where rows are shorter; a row for int8 and w8a8]
    #[arg(long, value_name = "N")]
    group_size: Option<usize>,
    /// Integers without a zero point, for int formats [default: true for int8, w8a8 and int4]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    symmetric: Option<bool>,
    /// What shares a scale, for int formats
    #[arg(long, value_enum)]
    per: Option<Per>,
    /// Inputs of w8a8: scales that follow the values, or fixed by calibration
    #[arg(long, value_enum)]
    activations: Option<Inputs>,
    /// How fixed scales are chosen [default: mse]
    #[arg(long, value_enum)]
    calibrator: Option<Calibrate>,
    /// Part of all values that `--calibrator percentile` keeps [default: 0.9999]
    #[arg(long, value_name = "P", requires = "calibrator")]
    percentile: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Per {
    Tensor,
    Channel,
    Group,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Inputs {
    Dynamic,
    Static,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Calibrate {
    Minmax,
    Percentile,
    Mse,
    Kl,
}

impl IntArgs {
    /// The settings as the library has them.
    pub fn options(&self) -> IntOptions {
        IntOptions {
            group_size: self.group_size,
            symmetric: self.symmetric,
            per: self.per.map(|per| match per {
                Per::Tensor => PerOf::Tensor,
                Per::Channel => PerOf::Channel,
                Per::Group => PerOf::Group,
            }),
            activations: self.activations.map(|inputs| match inputs {
                Inputs::Dynamic => InputsOf::Dynamic,
                Inputs::Static => InputsOf::Static,
            }),
            calibrator: self.calibrator.map(|calibrator| match calibrator {
                Calibrate::Minmax => CalibratorName::Minmax,
                Calibrate::Percentile => CalibratorName::Percentile,
                Calibrate::Mse => CalibratorName::Mse,
                Calibrate::Kl => CalibratorName::Kl,
            }),
            percentile: self.percentile,
            ..IntOptions::default()
        }
    }
}
