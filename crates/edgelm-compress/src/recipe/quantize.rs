//! `kind = "quantize"`: formats by name, or the best mixture for a size.

use super::{Gates, Job, PassReport, Settings};
use crate::{
    ActivationRounding, Codes, CompressError, Equalize, FeedbackOptions, Formats, Importance, Keep, LayerStore,
    Layerwise, Method, OnTensor, QuantizeOptions, Scheme, go_on, measure_importance,
    mixed::{ParetoFront, Target, choose_formats},
    parse_size, quantize_to_gguf,
};
use edgelm_format::write_file;
use edgelm_model::TensorId;
use edgelm_tensor::DType;
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

/// Its keys.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizePass {
    /// Format or mixture by name.
    pub format: Option<String>,
    /// The best mixture with so many bits per weight.
    pub target_bpw: Option<f64>,
    /// The best mixture for a file of this size.
    pub target_size: Option<Size>,
    /// How codes are chosen.
    #[serde(default)]
    pub method: QuantizeMethod,
    /// Other formats for tensors by name.
    #[serde(default)]
    pub keep: Vec<String>,
    /// Of `gptq` and `best`.
    pub damping: Option<f32>,
    /// Of `gptq` and `best`.
    pub activation_order: Option<bool>,
    /// After this pass. Not part of what it does.
    #[serde(skip_serializing)]
    pub gates: Option<Gates>,
}

/// How codes are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantizeMethod {
    /// Each to the nearest.
    #[default]
    Rtn,
    /// Errors weighed by calibration activations.
    Imatrix,
    /// Later codes make up for the errors of earlier ones.
    Gptq,
    /// Columns with large inputs are scaled up before rounding.
    Awq,
    /// Columns are scaled such that activations are easier to round.
    SmoothQuant,
    /// Per group of matrices, the scaling that leaves the least error after `gptq`.
    Best,
}

/// Bytes, written `1200` or `"500MB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes, or a size such as \"500MB\"")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Size, E> {
                Ok(Size(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Size, E> {
                let size = u64::try_from(value).map(Size);
                size.map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                parse_size(text).map(Size).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A mixture as it lies in the work folder: measuring it again would take as long as it did.
#[derive(Serialize, Deserialize)]
struct StoredMixture {
    formats: BTreeMap<String, String>,
    front: ParetoFront,
}

impl QuantizePass {
    fn keep(&self) -> Result<Vec<Keep>, CompressError> {
        self.keep.iter().map(|text| text.parse()).collect()
    }

    fn target(&self) -> Option<Target> {
        self.target_bpw.map(Target::BitsPerWeight).or(self.target_size.map(|size| Target::FileBytes(size.0)))
    }

    fn method_name(&self) -> &'static str {
        match self.method {
            QuantizeMethod::Rtn => "rtn",
            QuantizeMethod::Imatrix => "imatrix",
            QuantizeMethod::Gptq => "gptq",
            QuantizeMethod::Awq => "awq",
            QuantizeMethod::SmoothQuant => "smoothquant",
            QuantizeMethod::Best => "best",
        }
    }

    /// The mixture, from the work folder if it was chosen before.
    fn mixture(
        &self,
        target: Target,
        job: &Job<'_>,
        on_step: &mut OnTensor<'_>,
    ) -> Result<(HashMap<TensorId, DType>, ParetoFront), CompressError> {
        let path = job.folder.join("formats.json");
        let names: HashMap<String, TensorId> = {
            let arch = job.checkpoint.config().arch;
            job.checkpoint.tensor_ids().iter().map(|&id| (arch.gguf_tensor_name(id), id)).collect()
        };
        if let Ok(bytes) = std::fs::read(&path) {
            let damaged = |what: String| CompressError::WorkDamaged { path: path.clone(), what };
            let stored: StoredMixture = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
            let mut formats = HashMap::new();
            for (name, format) in stored.formats {
                let id = names.get(&name).ok_or_else(|| damaged(format!("no tensor `{name}`")))?;
                let dtype = DType::from_name(&format).map_err(|error| damaged(error.to_string()))?;
                formats.insert(*id, dtype);
            }
            return Ok((formats, stored.front));
        }
        let keep = self.keep()?;
        let (allocation, front) =
            choose_formats(job.checkpoint, job.cpu, job.windows, &keep, target, &mut |done, total| {
                go_on(on_step(done, total, "measuring sensitivity"))
            })?;
        let of = |(name, id): (String, TensorId)| Some((name, allocation.formats.get(&id)?.name().to_owned()));
        let stored = StoredMixture { formats: names.into_iter().filter_map(of).collect(), front };
        let bytes = serde_json::to_vec_pretty(&stored)
            .map_err(|error| CompressError::WorkDamaged { path: path.clone(), what: error.to_string() })?;
        write_file(&path, &bytes)?;
        Ok((allocation.formats, stored.front))
    }
}

impl Settings for QuantizePass {
    fn check(&self) -> Result<(), String> {
        let ways = [self.format.is_some(), self.target_bpw.is_some(), self.target_size.is_some()];
        if ways.iter().filter(|&&given| given).count() != 1 {
            return Err("needs one of `format`, `target_bpw` and `target_size`".to_owned());
        }
        if let Some(name) = &self.format {
            Scheme::from_name(name).map_err(|error| format!("`format`: {error}"))?;
        }
        if let Some(bits) = self.target_bpw
            && !(bits.is_finite() && bits > 0.0)
        {
            return Err(format!("`target_bpw` is {bits}: must be more than 0"));
        }
        self.keep().map_err(|error| format!("`keep`: {error}"))?;
        if let Some(damping) = self.damping
            && !(damping.is_finite() && damping >= 0.0)
        {
            return Err(format!("`damping` is {damping}: must be 0 or more"));
        }
        let feeds_back = matches!(self.method, QuantizeMethod::Gptq | QuantizeMethod::Best);
        let of_feedback = [("damping", self.damping.is_some()), ("activation_order", self.activation_order.is_some())];
        match of_feedback.into_iter().find(|key| key.1) {
            Some((key, _)) if !feeds_back => {
                Err(format!("`{key}` has a meaning with `method = \"gptq\"` and `\"best\"` only"))
            }
            _ => Ok(()),
        }
    }

    fn gates(&self) -> Option<&Gates> {
        self.gates.as_ref()
    }

    fn gates_mut(&mut self) -> Option<&mut Gates> {
        self.gates.as_mut()
    }

    fn calibration_for(&self) -> Option<&'static str> {
        match self.method {
            QuantizeMethod::Rtn if self.target_bpw.is_some() => Some("target_bpw"),
            QuantizeMethod::Rtn if self.target_size.is_some() => Some("target_size"),
            QuantizeMethod::Rtn => None,
            _ => Some(self.method_name()),
        }
    }

    fn title(&self) -> String {
        let what = match (&self.format, self.target_bpw, self.target_size) {
            (Some(format), _, _) => format.clone(),
            (None, Some(bits), _) => format!("{bits} bits per weight"),
            (None, None, size) => format!("{} bytes", size.map_or(0, |size| size.0)),
        };
        format!("quantize to {what} ({})", self.method_name())
    }

    fn run(&self, job: &Job<'_>, on_step: &mut OnTensor<'_>) -> Result<PassReport, CompressError> {
        let keep = self.keep()?;
        let mixture = match self.target() {
            Some(target) => Some(self.mixture(target, job, on_step)?),
            None => None,
        };
        let formats = match (&mixture, &self.format) {
            (Some((formats, _)), _) => Formats::Mixed(formats),
            (None, name) => Formats::Scheme(Scheme::from_name(name.as_deref().unwrap_or_default())?),
        };
        let importance = match self.method {
            QuantizeMethod::Imatrix => measure_importance(job.checkpoint, job.cpu, job.windows, &mut |done, total| {
                go_on(on_step(done, total, "measuring importance"))
            })?,
            _ => Importance::default(),
        };
        let defaults = FeedbackOptions::default();
        let feedback = Codes::Feedback(FeedbackOptions {
            damping: self.damping.unwrap_or(defaults.damping),
            activation_order: self.activation_order.unwrap_or(defaults.activation_order),
            ..defaults
        });
        let layerwise =
            |equalize, codes| Method::Layerwise(Layerwise { cpu: job.cpu, windows: job.windows, equalize, codes });
        let rounding = ActivationRounding::ENGINE;
        let method = match self.method {
            QuantizeMethod::Rtn => Method::Rtn,
            QuantizeMethod::Imatrix => Method::Imatrix(&importance),
            QuantizeMethod::Gptq => layerwise(None, feedback),
            QuantizeMethod::Awq => layerwise(Some(Equalize::Awq), Codes::Weighted),
            QuantizeMethod::SmoothQuant => layerwise(Some(Equalize::SmoothQuant(rounding)), Codes::Weighted),
            QuantizeMethod::Best => layerwise(Some(Equalize::Best(rounding)), feedback),
        };
        let store = LayerStore::open(&job.folder.join("layers"))?;
        let store = Some(&store);
        let report = quantize_to_gguf(
            job.checkpoint,
            job.output,
            &QuantizeOptions { formats, keep: &keep, method, store },
            on_step,
        )?;
        let front = mixture.map(|(_, front)| front);
        Ok(PassReport::of_quantization(self.title(), job.checkpoint.parameters(), report, front))
    }
}
