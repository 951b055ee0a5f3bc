//! Quality gates: limits, and whether what was measured keeps them.

use serde::{Deserialize, Deserializer, Serialize, de};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// `[gates]`: limits, and what they are measured on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gates {
    /// Perplexity over that of the model before the first pass, less one.
    pub max_perplexity_increase: Option<Fraction>,
    /// Mean KL divergence from the model before the first pass, in nats per token.
    pub max_kl: Option<f64>,
    /// Mean over the tasks of the share of exact answers.
    pub min_task_accuracy: Option<Fraction>,
    /// Text file for perplexity and divergence.
    pub text: Option<PathBuf>,
    /// Only its first windows (of 1,024 tokens).
    pub windows: Option<usize>,
    /// Task file.
    pub tasks: Option<PathBuf>,
    /// Only the first lines of each task.
    pub samples: Option<usize>,
}

/// A part of one, written `0.01` or `"1%"`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize)]
pub struct Fraction(pub f64);

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} %", 100.0 * self.0)
    }
}

impl<'de> Deserialize<'de> for Fraction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Fraction;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number such as 0.01, or a percentage such as \"1%\"")
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Fraction, E> {
                Ok(Fraction(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Fraction, E> {
                Ok(Fraction(value as f64))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Fraction, E> {
                Ok(Fraction(value as f64))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Fraction, E> {
                let percent = text.trim().strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
                percent
                    .map(|percent| Fraction(percent / 100.0))
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// What the caller found out about a model; what no gate asks for may be missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Perplexity / that of the model before the first pass − 1.
    pub perplexity_increase: Option<f64>,
    /// Mean KL divergence from it.
    pub kl: Option<f64>,
    /// Mean over the tasks.
    pub task_accuracy: Option<f64>,
}

/// A gate and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateReport {
    /// Key in the recipe.
    pub gate: String,
    /// The pass it stands after.
    pub after: String,
    /// The most, or the least, that passes.
    pub limit: f64,
    /// What there was.
    pub measured: f64,
    /// Within the limit.
    pub passed: bool,
}

impl fmt::Display for GateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |value: f64| match self.gate.as_str() {
            "max_kl" => format!("{value:.6}"),
            _ => Fraction(value).to_string(),
        };
        write!(f, "{} after {}: {} (limit {})", self.gate, self.after, value(self.measured), value(self.limit))
    }
}

impl Gates {
    /// What needs no model to be wrong; names the key. `is_of_pass`: without a limit it has no use there.
    pub(super) fn check(&self, is_of_pass: bool) -> Result<(), String> {
        let at_least_zero = |key: &str, value: Option<f64>| match value {
            Some(value) if !(value >= 0.0 && value.is_finite()) => {
                Err(format!("`{key}` is {value}: must be 0 or more"))
            }
            _ => Ok(()),
        };
        at_least_zero("max_perplexity_increase", self.max_perplexity_increase.map(|limit| limit.0))?;
        at_least_zero("max_kl", self.max_kl)?;
        if let Some(Fraction(limit)) = self.min_task_accuracy
            && !(0.0..=1.0).contains(&limit)
        {
            return Err(format!("`min_task_accuracy` is {limit}: must be from 0 to 1"));
        }
        for (key, value) in [("windows", self.windows), ("samples", self.samples)] {
            if value == Some(0) {
                return Err(format!("`{key}` is 0: must be at least 1"));
            }
        }
        if is_of_pass && !self.has_limit() {
            return Err("no limit among them".to_owned());
        }
        Ok(())
    }

    pub(super) fn relative_to(&mut self, folder: &Path) {
        [&mut self.text, &mut self.tasks].into_iter().flatten().for_each(|file| *file = folder.join(&*file));
    }

    /// These limits, measured on what `other` says where these are silent.
    pub(super) fn over(&self, other: &Gates) -> Gates {
        Gates {
            text: self.text.clone().or_else(|| other.text.clone()),
            windows: self.windows.or(other.windows),
            tasks: self.tasks.clone().or_else(|| other.tasks.clone()),
            samples: self.samples.or(other.samples),
            ..self.clone()
        }
    }

    /// There is something to measure.
    pub fn has_limit(&self) -> bool {
        self.needs_text() || self.needs_tasks()
    }

    /// A limit on perplexity or divergence.
    pub fn needs_text(&self) -> bool {
        self.max_perplexity_increase.is_some() || self.max_kl.is_some()
    }

    /// A limit on accuracy.
    pub fn needs_tasks(&self) -> bool {
        self.min_task_accuracy.is_some()
    }

    /// One report per limit. What was not measured, or is not a number, does not pass.
    pub(super) fn judge(&self, after: &str, measured: &Measured) -> Vec<GateReport> {
        let at_most = |measured: f64, limit: f64| measured <= limit;
        let at_least = |measured: f64, limit: f64| measured >= limit;
        type Keeps = fn(f64, f64) -> bool;
        let limits: [(&str, Option<f64>, Option<f64>, Keeps); 3] = [
            (
                "max_perplexity_increase",
                self.max_perplexity_increase.map(|limit| limit.0),
                measured.perplexity_increase,
                at_most,
            ),
            ("max_kl", self.max_kl, measured.kl, at_most),
            ("min_task_accuracy", self.min_task_accuracy.map(|limit| limit.0), measured.task_accuracy, at_least),
        ];
        let report = |(gate, limit, measured, keeps): (&str, Option<f64>, Option<f64>, Keeps)| {
            let (limit, measured) = (limit?, measured.unwrap_or(f64::NAN));
            let passed = keeps(measured, limit);
            Some(GateReport { gate: gate.to_owned(), after: after.to_owned(), limit, measured, passed })
        };
        limits.into_iter().filter_map(report).collect()
    }
}
