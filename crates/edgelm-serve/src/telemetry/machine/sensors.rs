//! Sensors under Linux's `/sys`: thermal zones, hwmon, cpufreq, and who says that the machine is throttled.

use super::Reading;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Degrees Celsius of thermal zones and of hwmon chips.
pub(super) fn temperatures(root: &Path) -> Vec<Reading> {
    let mut readings = Vec::new();
    for zone in folders(&root.join("sys/class/thermal"), "thermal_zone") {
        if let (Some(kind), Some(value)) = (word(&zone.join("type")), number(&zone.join("temp"))) {
            readings.push((format!("{kind} ({})", name(&zone)), value / 1e3));
        }
    }
    readings.extend(hwmon(root, "temp", 1e-3));
    distinct(readings)
}

/// Watts, where a chip measures them: boards such as Jetsons do.
pub(super) fn powers(root: &Path) -> Vec<Reading> {
    distinct(hwmon(root, "power", 1e-6))
}

/// Joules since something, where a chip counts them.
pub(super) fn energies(root: &Path) -> Vec<Reading> {
    distinct(hwmon(root, "energy", 1e-6))
}

/// Inputs of one kind of all hwmon chips, as `chip label`.
fn hwmon(root: &Path, kind: &str, scale: f64) -> Vec<Reading> {
    let mut readings = Vec::new();
    for chip in folders(&root.join("sys/class/hwmon"), "hwmon") {
        let chip_name = word(&chip.join("name")).unwrap_or_else(|| name(&chip));
        for input in folders(&chip, kind) {
            let file = name(&input);
            let Some(sensor) = file.strip_suffix("_input") else { continue };
            let label = word(&chip.join(format!("{sensor}_label"))).unwrap_or_else(|| sensor.to_owned());
            if let Some(value) = number(&input) {
                readings.push((format!("{chip_name} {label}"), value * scale));
            }
        }
    }
    readings
}

/// Hertz that each core runs at.
pub(super) fn frequencies(root: &Path) -> Vec<Reading> {
    of_cores(root, "cpufreq/scaling_cur_freq", 1e3)
}

/// Hertz that each core may run at now; heat and supply lower it.
pub(super) fn limits(root: &Path) -> Vec<Reading> {
    of_cores(root, "cpufreq/scaling_max_freq", 1e3)
}

/// How often each core was slowed down for heat (Intel counts it).
pub(super) fn throttles(root: &Path) -> Vec<Reading> {
    of_cores(root, "thermal_throttle/core_throttle_count", 1.0)
}

fn of_cores(root: &Path, file: &str, scale: f64) -> Vec<Reading> {
    let cores = folders(&root.join("sys/devices/system/cpu"), "cpu").into_iter().filter_map(|core| {
        let number_of = name(&core).strip_prefix("cpu")?.parse::<u32>().ok()?;
        Some((number_of.to_string(), number(&core.join(file))? * scale))
    });
    cores.collect()
}

/// Whether the firmware of a Raspberry Pi slows the machine down now: for low voltage, its cap on the frequency, heat.
pub(super) fn is_throttled(root: &Path) -> Option<f64> {
    const NOW: u32 = 0b1111;
    let text = word(&root.join("sys/devices/platform/soc/soc:firmware/get_throttled"))?;
    let bits = u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()?;
    Some(if bits & NOW == 0 { 0.0 } else { 1.0 })
}

/// Entries whose names begin so, in the order of their names.
pub(super) fn folders(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| name(path).starts_with(prefix)).collect();
    found.sort();
    found
}

pub(super) fn word(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

pub(super) fn number(path: &Path) -> Option<f64> {
    word(path)?.parse().ok().filter(|value: &f64| value.is_finite())
}

pub(super) fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Two chips may have one name: each series must be one of its kind.
pub(super) fn distinct(readings: Vec<Reading>) -> Vec<Reading> {
    let mut all: Vec<Reading> = Vec::with_capacity(readings.len());
    for (name, value) in readings {
        let same = all.iter().filter(|(other, _)| *other == name || other.starts_with(&format!("{name} #"))).count();
        all.push((if same == 0 { name } else { format!("{name} #{}", same + 1) }, value));
    }
    all
}
