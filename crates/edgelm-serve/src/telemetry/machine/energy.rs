//! Energy counters: RAPL's through powercap, and those of hwmon chips.

use super::{
    Reading,
    sensors::{distinct, energies, folders, name, number, word},
};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Mutex, PoisonError},
};

/// In front of the names of RAPL's domains.
const RAPL: &str = "rapl ";

/// Counts from when it was made.
#[derive(Debug)]
pub(super) struct Energy {
    counters: Mutex<HashMap<String, Counted>>,
}

#[derive(Debug)]
struct Counted {
    last: f64,
    joules: f64,
}

/// A counter as it is read.
struct Raw {
    name: String,
    joules: f64,
    /// It begins anew there.
    range: Option<f64>,
}

impl Energy {
    pub(super) fn begin(root: &Path) -> Self {
        let energy = Self { counters: Mutex::default() };
        let _ = energy.since_start(root);
        energy
    }

    /// Joules by domain. A counter that has begun anew has done so once since the last call: RAPL's take many minutes for that.
    pub(super) fn since_start(&self, root: &Path) -> Vec<Reading> {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let mut readings = Vec::new();
        for raw in read(root) {
            let counted = counters.entry(raw.name.clone()).or_insert(Counted { last: raw.joules, joules: 0.0 });
            let step = raw.joules - counted.last;
            counted.joules += if step < 0.0 { raw.range.map_or(0.0, |range| (step + range).max(0.0)) } else { step };
            counted.last = raw.joules;
            readings.push((raw.name, counted.joules));
        }
        readings
    }
}

/// The sum over RAPL's packages, which contain its other domains.
pub(super) fn of_packages(readings: &[Reading]) -> Option<f64> {
    let packages =
        readings.iter().filter(|(name, _)| name.strip_prefix(RAPL).is_some_and(|it| it.starts_with("package")));
    packages.map(|(_, joules)| *joules).reduce(|sum, joules| sum + joules)
}

fn read(root: &Path) -> Vec<Raw> {
    let mut all = Vec::new();
    for domain in folders(&root.join("sys/class/powercap"), "intel-rapl:") {
        // Often only for the superuser: then there is none.
        if let Some(joules) = number(&domain.join("energy_uj")) {
            let of = word(&domain.join("name")).unwrap_or_else(|| name(&domain));
            let range = number(&domain.join("max_energy_range_uj")).map(|range| range / 1e6);
            all.push((format!("{RAPL}{of}"), joules / 1e6, range));
        }
    }
    all.extend(energies(root).into_iter().map(|(name, joules)| (name, joules, None)));
    let names = distinct(all.iter().map(|(name, joules, _)| (name.clone(), *joules)).collect());
    names.into_iter().zip(all).map(|((name, joules), (_, _, range))| Raw { name, joules, range }).collect()
}
