//! What the process takes and how the machine bears it: memory, temperatures, throttling, energy. Read when somebody asks.
//!
//! What a machine does not tell has a name and a description in `/metrics`, but no value: nothing is guessed.

mod energy;
mod memory;
mod sensors;

use energy::Energy;
use memory::Memory;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::{MetricType, counter::Counter},
};
use std::{
    fmt,
    path::{Path, PathBuf},
    time::Instant,
};

/// Reads the machine for `/metrics`.
#[derive(Debug)]
pub(crate) struct Machine {
    /// `/`, but for tests.
    root: PathBuf,
    started: Instant,
    energy: Energy,
    /// To set energy against.
    generated_tokens: Counter,
}

impl Machine {
    pub(crate) fn new(root: &Path, generated_tokens: Counter) -> Self {
        Self { root: root.into(), started: Instant::now(), energy: Energy::begin(root), generated_tokens }
    }
}

impl Collector for Machine {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Out(encoder);
        let memory = Memory::read(&self.root);
        let bytes = |n: Option<u64>| n.map(|n| n as f64);
        out.gauge("process_resident_bytes", "Memory of the process in RAM", bytes(memory.resident))?;
        out.gauge(
            "process_anonymous_bytes",
            "The part of it that no file backs: packed weights, caches, buffers",
            bytes(memory.anonymous),
        )?;
        out.gauge("process_peak_resident_bytes", "The most it was so far", bytes(memory.peak))?;
        out.gauge(
            "process_uptime_seconds",
            "Since the server was started",
            Some(self.started.elapsed().as_secs_f64()),
        )?;
        out.gauges("temperature_celsius", "Sensors of the machine", "sensor", &sensors::temperatures(&self.root))?;
        out.gauges("cpu_frequency_hertz", "What each core runs at", "cpu", &sensors::frequencies(&self.root))?;
        out.gauges("cpu_frequency_limit_hertz", "What each core may run at now", "cpu", &sensors::limits(&self.root))?;
        out.counters("cpu_throttles", "Times a core was slowed down for heat", "cpu", &sensors::throttles(&self.root))?;
        out.gauge("throttled", "1 while the machine says that it is slowed down", sensors::is_throttled(&self.root))?;
        out.gauges("power_watts", "Sensors of the machine", "sensor", &sensors::powers(&self.root))?;
        let joules = self.energy.since_start(&self.root);
        out.counters("energy_joules", "Energy since the server was started", "domain", &joules)?;
        let tokens = self.generated_tokens.get();
        let total = energy::of_packages(&joules).filter(|_| tokens > 0);
        out.gauge(
            "energy_per_token_joules",
            "Energy of the machine's packages since the start, idle time included, by generated token",
            total.map(|joules| joules / tokens as f64),
        )
    }
}

/// A sensor's name and value.
pub(super) type Reading = (String, f64);

/// Writes families, with as many values as there are.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: Option<f64>) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        value.map_or(Ok(()), |value| encoder.encode_gauge(&value))
    }

    fn gauges(&mut self, name: &str, help: &str, label: &str, readings: &[Reading]) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        readings.iter().try_for_each(|(of, value)| encoder.encode_family(&[(label, of.as_str())])?.encode_gauge(value))
    }

    fn counters(&mut self, name: &str, help: &str, label: &str, readings: &[Reading]) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        readings.iter().try_for_each(|(of, value)| {
            encoder.encode_family(&[(label, of.as_str())])?.encode_counter::<NoLabelSet, _, f64>(value, None)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::{encoding::text::encode, registry::Registry};
    use std::fs;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    fn text(root: &Path, tokens: &Counter) -> (Registry, String) {
        let mut registry = Registry::with_prefix("edgelm");
        registry.register_collector(Box::new(Machine::new(root, tokens.clone())));
        let mut text = String::new();
        encode(&mut text, &registry).expect("text");
        (registry, text)
    }

    #[test]
    fn a_machine_that_tells_everything() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        for (path, value) in [
            ("proc/self/status", "VmHWM:\t 30 kB\nVmRSS:\t 20 kB\nRssAnon:\t 10 kB\n"),
            ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
            ("sys/class/thermal/thermal_zone0/temp", "61250\n"),
            ("sys/class/hwmon/hwmon0/name", "ina3221\n"),
            ("sys/class/hwmon/hwmon0/power1_input", "2500000\n"),
            ("sys/class/hwmon/hwmon0/power1_label", "VDD_IN\n"),
            ("sys/class/hwmon/hwmon1/name", "ina3221\n"),
            ("sys/class/hwmon/hwmon1/power1_input", "1000000\n"),
            ("sys/class/hwmon/hwmon1/power1_label", "VDD_IN\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1500000\n"),
            ("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "4\n"),
            ("sys/devices/platform/soc/soc:firmware/get_throttled", "50004\n"),
            ("sys/class/powercap/intel-rapl:0/name", "package-0\n"),
            ("sys/class/powercap/intel-rapl:0/energy_uj", "9000000\n"),
            ("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "10000000\n"),
        ] {
            write(root, path, value);
        }
        let tokens = Counter::default();
        tokens.inc_by(5);
        let (registry, first) = text(root, &tokens);
        for line in [
            "edgelm_process_resident_bytes 20480.0",
            "edgelm_process_anonymous_bytes 10240.0",
            "edgelm_temperature_celsius{sensor=\"cpu-thermal (thermal_zone0)\"} 61.25",
            "edgelm_power_watts{sensor=\"ina3221 VDD_IN\"} 2.5",
            "edgelm_power_watts{sensor=\"ina3221 VDD_IN #2\"} 1.0",
            "edgelm_cpu_frequency_hertz{cpu=\"0\"} 1500000000.0",
            "edgelm_cpu_throttles_total{cpu=\"0\"} 4.0",
            "edgelm_throttled 1.0",
            "edgelm_energy_joules_total{domain=\"rapl package-0\"} 0.0",
        ] {
            assert!(first.contains(line), "{line}:\n{first}");
        }
        // The counter has begun anew: 9 J up to 10 J, then 4 J.
        write(root, "sys/class/powercap/intel-rapl:0/energy_uj", "4000000\n");
        let mut second = String::new();
        encode(&mut second, &registry).expect("text");
        assert!(second.contains("edgelm_energy_joules_total{domain=\"rapl package-0\"} 5.0"), "{second}");
        assert!(second.contains("edgelm_energy_per_token_joules 1.0"), "{second}");
    }

    #[test]
    fn a_machine_that_tells_nothing_has_names_and_no_values() {
        let folder = tempfile::tempdir().expect("a folder");
        let (_, text) = text(folder.path(), &Counter::default());
        assert!(text.contains("# TYPE edgelm_temperature_celsius gauge"));
        assert!(text.contains("# TYPE edgelm_energy_joules counter"));
        assert!(!text.contains("edgelm_temperature_celsius{") && !text.contains("\nedgelm_throttled "));
    }
}
