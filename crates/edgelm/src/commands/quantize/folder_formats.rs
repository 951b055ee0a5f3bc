//! Formats of folders, `int8`, `int4`, `int3`, `int2`, `w8a8`, `nf4`, `fp4` and 2:4 floats, and their settings.

use super::ints::IntArgs;
use crate::failure::Usage;
use clap::{Args, ValueEnum};
use edgelm_compress::{Calibrator, FolderScheme, IntOptions, IntScheme, LookupSettings, largest_group};
use edgelm_model::Checkpoint;
use edgelm_tensor::{DType, LookupFormat};

#[derive(Args)]
pub struct FolderArgs {
    #[command(flatten)]
    ints: IntArgs,
    /// Store two of every four weights of linear layers, for int formats, F16 and BF16 in a folder: the model must have been
    /// pruned by `prune --pattern 2:4`
    #[arg(long, value_enum, value_name = "PATTERN")]
    sparse: Option<Sparse>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sparse {
    #[value(name = "2:4")]
    TwoOfFour,
}

/// Group sizes of codes of a table that are tried where none is given, and the ones that bitsandbytes reads.
const LOOKUP_GROUP_SIZES: [usize; 2] = [64, 32];
const LOOKUP_GROUP_SIZES_READ: std::ops::RangeInclusive<usize> = 32..=4096;

impl FolderArgs {
    /// True if `--format` is one of these, or stored like them.
    pub fn has(&self, format: &str) -> bool {
        IntOptions::is_int(format) || LookupFormat::from_name(format).is_some() || self.sparse_floats(format).is_some()
    }

    /// True if two of every four weights are to be stored.
    pub fn is_sparse(&self) -> bool {
        self.sparse.is_some()
    }

    /// The type of floats of which only two of four are stored.
    fn sparse_floats(&self, format: &str) -> Option<DType> {
        let named = [DType::F16, DType::BF16].into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(format));
        named.filter(|_| self.is_sparse())
    }

    fn int_options(&self) -> IntOptions {
        IntOptions { two_of_four: self.is_sparse(), ..self.ints.options() }
    }

    /// Errors where a setting was given that means nothing to `format`; to a mixture none does.
    pub fn check(&self, format: &str, is_mixture: bool) -> Result<(), Usage> {
        let ints = self.int_options();
        if IntOptions::is_int(format) && !is_mixture {
            return ints.check(format).map_err(|what| Usage(format!("--format {format}: {what}")));
        }
        let is_lookup = LookupFormat::from_name(format).is_some() && !is_mixture;
        let is_sparse = self.sparse_floats(format).is_some() && !is_mixture;
        let rest = IntOptions {
            group_size: ints.group_size.filter(|_| !is_lookup),
            two_of_four: ints.two_of_four && !is_sparse,
            ..ints
        };
        let formats = match rest.given() {
            None => return Ok(()),
            Some("group-size") => "int8, int4, int3, int2, w8a8, nf4 and fp4",
            Some("sparse") => "int8, int4, int3, int2, w8a8, F16 and BF16",
            Some(_) => "int8, int4, int3, int2 and w8a8",
        };
        let setting = rest.given().unwrap_or_default();
        Err(Usage(format!("--{setting} has a meaning with --format {formats} only")))
    }

    /// How the scales of static inputs are chosen; `None` where there are none.
    pub fn calibrator(&self, format: &str) -> Option<Calibrator> {
        self.int_options().calibrator(format)
    }

    /// What `format` means for this model.
    pub fn scheme(&self, format: &str, checkpoint: &Checkpoint) -> anyhow::Result<FolderScheme> {
        if let Some(dtype) = self.sparse_floats(format) {
            return Ok(FolderScheme::TwoOfFour(dtype));
        }
        Ok(match LookupFormat::from_name(format) {
            Some(format) => FolderScheme::Lookup(self.lookup(format, checkpoint)?),
            None => FolderScheme::Ints(IntScheme::of_name(format, &self.int_options(), checkpoint)?),
        })
    }

    fn lookup(&self, format: LookupFormat, checkpoint: &Checkpoint) -> Result<LookupSettings, Usage> {
        let group_size = match self.ints.options().group_size {
            Some(size) if !size.is_power_of_two() || !LOOKUP_GROUP_SIZES_READ.contains(&size) => {
                let name = format.name();
                return Err(Usage(format!("--group-size {size}: {name} has groups of 32, 64, 128 … 4096")));
            }
            Some(size) => size,
            None => largest_group(&LOOKUP_GROUP_SIZES, checkpoint),
        };
        Ok(LookupSettings { format, group_size })
    }
}
