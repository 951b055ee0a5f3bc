//! `--format int8`, `int4`, `int3`, `int2`, `w8a8` and their settings.

use crate::failure::Usage;
use clap::{Args, ValueEnum};
use edgelm_compress::{Activations, Calibrator, IntScheme, IntSettings, Strategy};
use edgelm_model::{Checkpoint, TensorId};
use edgelm_tensor::IntFormat;

#[derive(Args)]
pub struct IntArgs {
    /// Values that share a scale, for int formats [default: 128, or less where rows are shorter; a row for int8 and w8a8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    group_size: Option<u32>,
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
    /// Part of all values that `--calibrator percentile` keeps
    #[arg(long, value_name = "P", default_value_t = 0.9999, requires = "calibrator")]
    percentile: f64,
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

/// Group sizes that are tried where none is given.
const GROUP_SIZES: [usize; 3] = [128, 64, 32];

impl IntArgs {
    /// True if `--format` is one of these.
    pub fn is_int(format: &str) -> bool {
        bits(format).is_some()
    }

    /// Errors where a setting of int formats was given for another format.
    pub fn refuse(&self) -> Result<(), Usage> {
        let given = [
            ("--group-size", self.group_size.is_some()),
            ("--symmetric", self.symmetric.is_some()),
            ("--per", self.per.is_some()),
            ("--activations", self.activations.is_some()),
            ("--calibrator", self.calibrator.is_some()),
        ];
        match given.into_iter().find(|flag| flag.1) {
            Some((flag, _)) => {
                Err(Usage(format!("{flag} has a meaning with --format int8, int4, int3, int2 and w8a8 only")))
            }
            None => Ok(()),
        }
    }

    /// True if calibration data is needed for the inputs.
    pub fn has_static_inputs(&self) -> bool {
        self.activations == Some(Inputs::Static)
    }

    /// How the scales of static inputs are chosen.
    pub fn calibrator(&self) -> Result<Option<Calibrator>, Usage> {
        if !self.has_static_inputs() {
            return match self.calibrator {
                Some(_) => Err(Usage("--calibrator has a meaning with --activations static only".into())),
                None => Ok(None),
            };
        }
        Ok(Some(match self.calibrator {
            Some(Calibrate::Minmax) => Calibrator::MinMax,
            Some(Calibrate::Percentile) if !(self.percentile > 0.0 && self.percentile <= 1.0) => {
                return Err(Usage(format!("--percentile {}: must be above 0 and at most 1", self.percentile)));
            }
            Some(Calibrate::Percentile) => Calibrator::Percentile(self.percentile),
            Some(Calibrate::Mse) | None => Calibrator::Mse,
            Some(Calibrate::Kl) => Calibrator::Kl,
        }))
    }

    /// What `format` means for this model.
    pub fn scheme(&self, format: &str, checkpoint: &Checkpoint) -> anyhow::Result<IntScheme> {
        let Some(bits) = bits(format) else { return Err(Usage(format!("`{format}` is not an int format")).into()) };
        let has_inputs = format.eq_ignore_ascii_case("w8a8");
        let activations = match (has_inputs, self.activations) {
            (true, Some(Inputs::Static)) => Activations::Static,
            (true, _) => Activations::Dynamic,
            (false, None) => Activations::Any,
            (false, Some(_)) => return Err(Usage("--activations has a meaning with --format w8a8 only".into()).into()),
        };
        let symmetric = self.symmetric.unwrap_or(bits >= 4);
        let Some(int) = IntFormat::new(bits, symmetric) else {
            return Err(Usage(format!("{format} weights are symmetric; int4, int3 and int2 can be asymmetric")).into());
        };
        let strategy = match (self.per, self.group_size) {
            (Some(Per::Tensor | Per::Channel), Some(_)) => {
                return Err(Usage("--group-size has a meaning with --per group only".into()).into());
            }
            (Some(Per::Tensor), None) => Strategy::Tensor,
            (Some(Per::Channel), None) => Strategy::Channel,
            (_, Some(size)) if !size.is_multiple_of(32) => {
                return Err(Usage(format!("--group-size {size}: must be a multiple of 32")).into());
            }
            (_, Some(size)) => Strategy::Group(size as usize),
            (None, None) if bits == 8 => Strategy::Channel,
            (_, None) => Strategy::Group(self.largest_group(int, checkpoint)),
        };
        // Eight bits per row cost the tables nothing that could be measured.
        let table = IntSettings { format: IntFormat::new(8, true).unwrap_or(int), strategy: Strategy::Channel };
        Ok(IntScheme { linear: IntSettings { format: int, strategy }, table, activations })
    }

    /// The largest usual size that divides the rows of all linear layers.
    fn largest_group(&self, format: IntFormat, checkpoint: &Checkpoint) -> usize {
        let linear = |id: &&TensorId| id.is_matrix() && matches!(id, TensorId::Layer(..));
        let rows = checkpoint.tensor_ids().iter().filter(linear).filter_map(|&id| checkpoint.describe(id).ok());
        let rows: Vec<usize> = rows.filter_map(|(_, shape)| shape.last().copied()).collect();
        let fits = |size: &usize| {
            let settings = IntSettings { format, strategy: Strategy::Group(*size) };
            rows.iter().all(|&row| settings.fits(row))
        };
        GROUP_SIZES.into_iter().find(fits).unwrap_or(32)
    }
}

fn bits(format: &str) -> Option<u32> {
    match format.to_ascii_lowercase().as_str() {
        "int8" | "w8a8" => Some(8),
        "int4" => Some(4),
        "int3" => Some(3),
        "int2" => Some(2),
        _ => None,
    }
}
