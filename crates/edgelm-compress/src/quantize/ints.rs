//! What `int8`, `int4`, `int3`, `int2` and `w8a8` mean for a model.

use super::IntScheme;
use crate::{CompressError, IntSettings, Strategy, int_groups::Activations, ranges::Calibrator};
use edgelm_model::{Checkpoint, TensorId};
use edgelm_tensor::IntFormat;
use serde::{Deserialize, Serialize};

/// Settings beside the name. What is not given follows from it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct IntOptions {
    /// Values that share a scale.
    pub group_size: Option<usize>,
    /// Without a zero point.
    pub symmetric: Option<bool>,
    /// What shares a scale.
    pub per: Option<Per>,
    /// Inputs of `w8a8`.
    pub activations: Option<Inputs>,
    /// How the scales of static inputs are chosen.
    pub calibrator: Option<CalibratorName>,
    /// Part of all values that `percentile` keeps.
    pub percentile: Option<f64>,
    /// Two of every four weights of linear layers, which must have been pruned so.
    pub two_of_four: bool,
}

/// What shares a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Per {
    Tensor,
    Channel,
    Group,
}

/// Where the scales of inputs come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inputs {
    /// They follow the values.
    Dynamic,
    /// Calibration fixes them.
    Static,
}

/// A [`Calibrator`] without its setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum CalibratorName {
    Minmax,
    Percentile,
    Mse,
    Kl,
}

/// Group sizes that are tried where none is given.
const GROUP_SIZES: [usize; 3] = [128, 64, 32];

/// Part of all values that `percentile` keeps unless told.
const PERCENTILE: f64 = 0.9999;

/// A name and its settings, checked; what depends on the model is still open.
struct Checked {
    format: IntFormat,
    /// Of linear layers.
    linear: IntFormat,
    /// `None`: groups of the largest usual size that fits.
    strategy: Option<Strategy>,
    activations: Activations,
    calibrator: Option<Calibrator>,
}

impl IntOptions {
    /// True if `format` is one of these names.
    pub fn is_int(format: &str) -> bool {
        bits(format).is_some()
    }

    /// The first setting that is given, as flags call it.
    pub fn given(&self) -> Option<&'static str> {
        let given = [
            ("group-size", self.group_size.is_some()),
            ("symmetric", self.symmetric.is_some()),
            ("per", self.per.is_some()),
            ("activations", self.activations.is_some()),
            ("calibrator", self.calibrator.is_some()),
            ("percentile", self.percentile.is_some()),
            ("sparse", self.two_of_four),
        ];
        given.into_iter().find(|setting| setting.1).map(|setting| setting.0)
    }

    /// What needs no model to be wrong; names the setting.
    pub fn check(&self, format: &str) -> Result<(), String> {
        self.checked(format).map(|_| ())
    }

    /// How the scales of static inputs are chosen; `None` where there are none.
    pub fn calibrator(&self, format: &str) -> Option<Calibrator> {
        self.checked(format).ok()?.calibrator
    }

    fn checked(&self, name: &str) -> Result<Checked, String> {
        let bits = bits(name).ok_or_else(|| format!("`{name}` is not an int format"))?;
        let (activations, calibrator) = match (name.eq_ignore_ascii_case("w8a8"), self.activations) {
            (true, Some(Inputs::Static)) => (Activations::Static, Some(self.named_calibrator()?)),
            (true, _) => (Activations::Dynamic, None),
            (false, None) => (Activations::Any, None),
            (false, Some(_)) => return Err("`activations` has a meaning with w8a8 only".to_owned()),
        };
        if calibrator.is_none() && (self.calibrator.is_some() || self.percentile.is_some()) {
            return Err("`calibrator` and `percentile` have a meaning with static `activations` only".to_owned());
        }
        let symmetric = self.symmetric.unwrap_or(bits >= 4);
        let Some(format) = IntFormat::new(bits, symmetric) else {
            return Err(format!("{name} weights are symmetric; int4, int3 and int2 can be asymmetric"));
        };
        let linear = match (self.two_of_four, format.sparse()) {
            (false, _) => format,
            (true, Some(sparse)) => sparse,
            (true, None) => return Err("2:4 weights are integers without a zero point (`symmetric`)".to_owned()),
        };
        let strategy = match (self.per, self.group_size) {
            (Some(Per::Tensor | Per::Channel), Some(_)) => {
                return Err("a group size has a meaning with `per` group only".to_owned());
            }
            (Some(Per::Tensor), None) => Some(Strategy::Tensor),
            (Some(Per::Channel), None) => Some(Strategy::Channel),
            (_, Some(size)) if size == 0 || !size.is_multiple_of(32) => {
                return Err(format!("the group size is {size}: must be a multiple of 32"));
            }
            (_, Some(size)) => Some(Strategy::Group(size)),
            (None, None) if bits == 8 => Some(Strategy::Channel),
            (_, None) => None,
        };
        Ok(Checked { format, linear, strategy, activations, calibrator })
    }

    fn named_calibrator(&self) -> Result<Calibrator, String> {
        if self.percentile.is_some() && self.calibrator != Some(CalibratorName::Percentile) {
            return Err("`percentile` has a meaning with `calibrator` percentile only".to_owned());
        }
        Ok(match self.calibrator {
            Some(CalibratorName::Minmax) => Calibrator::MinMax,
            Some(CalibratorName::Percentile) => match self.percentile.unwrap_or(PERCENTILE) {
                part if part > 0.0 && part <= 1.0 => Calibrator::Percentile(part),
                part => return Err(format!("`percentile` is {part}: must be above 0 and at most 1")),
            },
            Some(CalibratorName::Mse) | None => Calibrator::Mse,
            Some(CalibratorName::Kl) => Calibrator::Kl,
        })
    }
}

impl IntScheme {
    /// What the name and its settings mean for this model.
    pub fn of_name(name: &str, options: &IntOptions, checkpoint: &Checkpoint) -> Result<Self, CompressError> {
        let bad = |problem| CompressError::Setting { what: "format", value: name.to_owned(), problem };
        let Checked { format, linear, strategy, activations, .. } = options.checked(name).map_err(bad)?;
        let strategy = strategy.unwrap_or_else(|| Strategy::Group(largest_group(&GROUP_SIZES, checkpoint)));
        // Eight bits per row cost the tables nothing that could be measured.
        let table = IntSettings { format: IntFormat::new(8, true).unwrap_or(format), strategy: Strategy::Channel };
        Ok(Self { linear: IntSettings { format: linear, strategy }, table, activations })
    }
}

/// The first of `sizes` that divides the rows of all linear layers, else the last.
pub fn largest_group(sizes: &[usize], checkpoint: &Checkpoint) -> usize {
    let linear = |id: &&TensorId| id.is_matrix() && matches!(id, TensorId::Layer(..));
    let rows = checkpoint.tensor_ids().iter().filter(linear).filter_map(|&id| checkpoint.describe(id).ok());
    let rows: Vec<usize> = rows.filter_map(|(_, shape)| shape.last().copied()).collect();
    let fits = |size: &&usize| rows.iter().all(|row| row.is_multiple_of(**size));
    sizes.iter().find(fits).or(sizes.last()).copied().unwrap_or(32)
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
