//! `--samples`, `--seed`, `--select`: which calibration data is used; and reading it, or having the model write it.

use crate::{failure::Usage, interrupt::Work, options::Global, progress};
use clap::{Args, ValueEnum};
use edgelm_compress::{CalibrationOptions, CalibrationSet, CalibrationSource, CompressError, Select};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use std::sync::Arc;

#[derive(Args)]
pub struct CalibrationArgs {
    /// Calibration windows (of up to 512 tokens), shared equally between several --calibration
    #[arg(long, value_name = "N", default_value_t = CalibrationOptions::default().samples)]
    samples: usize,
    /// Which windows are taken, or written
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// random: all windows of the file are as likely; diverse: one per cluster of their embeddings
    #[arg(long, value_enum, default_value = "random")]
    select: SelectBy,
}

#[derive(Clone, Copy, ValueEnum)]
enum SelectBy {
    Random,
    Diverse,
}

impl CalibrationArgs {
    /// What everything random begins with.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The windows out of `sources`, with a progress bar while the model writes them; `held_out` further ones at most. None of
    /// none.
    pub fn load(
        &self,
        sources: &[CalibrationSource],
        held_out: usize,
        checkpoint: &Arc<Checkpoint>,
        cpu: &Arc<Cpu>,
        global: &Global,
    ) -> anyhow::Result<CalibrationSet> {
        if sources.is_empty() {
            return Ok(CalibrationSet::default());
        }
        if self.samples == 0 {
            return Err(Usage("--samples must be at least 1".into()).into());
        }
        let select = match self.select {
            SelectBy::Random => Select::Random,
            SelectBy::Diverse if sources.contains(&CalibrationSource::Own) => {
                let what =
                    "--select diverse has no use with --calibration self, which writes as many windows as needed";
                return Err(Usage(what.into()).into());
            }
            SelectBy::Diverse => Select::Diverse,
        };
        let default = CalibrationOptions::default();
        let options = CalibrationOptions { samples: self.samples, seed: self.seed, select, held_out, ..default };
        let bar = progress::bar(0, "write calibration text", global.quiet);
        let work = Work::begin();
        let set = CalibrationSet::load(sources, checkpoint, cpu, &options, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            if work.is_interrupted() { Err(CompressError::Cancelled) } else { Ok(()) }
        });
        bar.finish_and_clear();
        Ok(set?)
    }
}
