//! Formats of folders, `int8`, `int4`, `int3`, `int2`, `w8a8`, `nf4` and `fp4`, and their settings.

use crate::failure::Usage;
use clap::{Args, ValueEnum};
use edgelm_compress::{Activations, Calibrator, FolderScheme, IntScheme, IntSettings, LookupSettings, Strategy};
use edgelm_model::{Checkpoint, TensorId};
use edgelm_tensor::{DType, IntFormat, LookupFormat};

#[derive(Args)]
pub struct FolderArgs {
    /// Values that share a scale, for formats of folders [default: 128 for int4, int3 and int2, 64 for nf4 and fp4, or less
    /// where rows are shorter; a row for int8 and w8a8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    group_size: Option<u32>,
    /// Integers without a zero point, for int formats [default: true for int8, w8a8 and int4]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    symmetric: Option<bool>,
    /// What shares a scale, for int formats
    #[arg(long, value_enum)]
    per: Option<Per>,
    /// Store two of every four weights of linear layers, for int formats, F16 and BF16 in a folder: the model must have been
    /// pruned by `prune --pattern 2:4`
    #[arg(long, value_enum, value_name = "PATTERN")]
    sparse: Option<Sparse>,
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
enum Sparse {
    #[value(name = "2:4")]
    TwoOfFour,
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

/// Group sizes of integers that are tried where none is given.
const GROUP_SIZES: [usize; 3] = [128, 64, 32];

/// The same for codes of a table, and the ones that bitsandbytes reads.
const LOOKUP_GROUP_SIZES: [usize; 2] = [64, 32];
const LOOKUP_GROUP_SIZES_READ: std::ops::RangeInclusive<usize> = 32..=4096;

impl FolderArgs {
    /// True if `--format` is one of these, or stored like them.
    pub fn has(&self, format: &str) -> bool {
        bits(format).is_some() || LookupFormat::from_name(format).is_some() || self.sparse_floats(format).is_some()
    }

    /// True if two of every four weights are to be stored.
    pub fn is_sparse(&self) -> bool {
        self.sparse.is_some()
    }

    /// The type of floats of which only two of four are stored.
    fn sparse_floats(&self, format: &str) -> Option<DType> {
        let named = [DType::F16, DType::BF16].into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(format));
        named.filter(|_| self.sparse.is_some())
    }

    /// Errors where a setting was given for a format that it means nothing to.
    pub fn check(&self, format: &str) -> Result<(), Usage> {
        let ints = "int8, int4, int3, int2 and w8a8";
        let folders = "int8, int4, int3, int2, w8a8, nf4 and fp4";
        let has_groups = bits(format).is_some() || LookupFormat::from_name(format).is_some();
        let is_sparse = bits(format).is_some() || self.sparse_floats(format).is_some();
        let sparse = "int8, int4, int3, int2, w8a8, F16 and BF16";
        let given = [
            ("--group-size", self.group_size.is_some() && !has_groups, folders),
            ("--symmetric", self.symmetric.is_some() && bits(format).is_none(), ints),
            ("--per", self.per.is_some() && bits(format).is_none(), ints),
            ("--sparse", self.sparse.is_some() && !is_sparse, sparse),
            ("--activations", self.activations.is_some() && bits(format).is_none(), ints),
            ("--calibrator", self.calibrator.is_some() && bits(format).is_none(), ints),
        ];
        match given.into_iter().find(|flag| flag.1) {
            Some((flag, _, formats)) => Err(Usage(format!("{flag} has a meaning with --format {formats} only"))),
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
    pub fn scheme(&self, format: &str, checkpoint: &Checkpoint) -> anyhow::Result<FolderScheme> {
        if let Some(dtype) = self.sparse_floats(format) {
            return Ok(FolderScheme::TwoOfFour(dtype));
        }
        match LookupFormat::from_name(format) {
            Some(format) => Ok(FolderScheme::Lookup(self.lookup(format, checkpoint)?)),
            None => Ok(FolderScheme::Ints(self.ints(format, checkpoint)?)),
        }
    }

    fn lookup(&self, format: LookupFormat, checkpoint: &Checkpoint) -> Result<LookupSettings, Usage> {
        let group_size = match self.group_size.map(|size| size as usize) {
            Some(size) if !size.is_power_of_two() || !LOOKUP_GROUP_SIZES_READ.contains(&size) => {
                let name = format.name();
                return Err(Usage(format!("--group-size {size}: {name} has groups of 32, 64, 128 … 4096")));
            }
            Some(size) => size,
            None => largest_group(&LOOKUP_GROUP_SIZES, checkpoint),
        };
        Ok(LookupSettings { format, group_size })
    }

    fn ints(&self, format: &str, checkpoint: &Checkpoint) -> anyhow::Result<IntScheme> {
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
            (_, None) => Strategy::Group(largest_group(&GROUP_SIZES, checkpoint)),
        };
        let linear = match (self.sparse, int.sparse()) {
            (None, _) => int,
            (Some(_), Some(sparse)) => sparse,
            (Some(_), None) => {
                return Err(Usage("--sparse 2:4: integers without a zero point only (--symmetric true)".into()).into());
            }
        };
        // Eight bits per row cost the tables nothing that could be measured.
        let table = IntSettings { format: IntFormat::new(8, true).unwrap_or(int), strategy: Strategy::Channel };
        Ok(IntScheme { linear: IntSettings { format: linear, strategy }, table, activations })
    }
}

/// The first of `sizes` that divides the rows of all linear layers, else the last.
fn largest_group(sizes: &[usize], checkpoint: &Checkpoint) -> usize {
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
