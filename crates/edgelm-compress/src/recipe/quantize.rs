//! `kind = "quantize"`: formats by name, or the best mixture for a size.

use super::{Gates, Job, PassReport, Settings};
use crate::{
    ActivationRounding, Calibrator, CalibratorName, Codes, CompressError, Equalize, FeedbackOptions, FolderScheme,
    Formats, Importance, Inputs, IntOptions, IntScheme, Keep, LayerStore, Layerwise, MatrixFormat, Method, OnTensor,
    Per, QuantizeOptions, Scheme, go_on, measure_importance,
    mixed::{Limit, Palette, ParetoFront, Target, choose_formats, quantize_within},
    parse_size, quantize,
};
use edgelm_format::write_file;
use edgelm_model::TensorId;
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

/// Its keys.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizePass {
    /// Format or mixture by name; in a folder, integers by name.
    pub format: Option<String>,
    /// Of integers: values that share a scale.
    pub group_size: Option<usize>,
    /// Of integers: without a zero point.
    pub symmetric: Option<bool>,
    /// Of integers: what shares a scale.
    pub per: Option<Per>,
    /// Of `w8a8`: where the scales of inputs come from.
    pub activations: Option<Inputs>,
    /// Of static inputs.
    pub calibrator: Option<CalibratorName>,
    /// Of static inputs.
    pub percentile: Option<f64>,
    /// The best mixture with so many bits per weight.
    pub target_bpw: Option<f64>,
    /// The best mixture for a file of this size.
    pub target_size: Option<Size>,
    /// The smallest mixture whose KL divergence from what this pass reads, measured on held-out calibration windows, is at
    /// most this.
    pub max_kl: Option<f64>,
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
    formats: BTreeMap<String, MatrixFormat>,
    front: ParetoFront,
}

impl QuantizePass {
    fn keep(&self) -> Result<Vec<Keep>, CompressError> {
        self.keep.iter().map(|text| text.parse()).collect()
    }

    /// Settings of integers.
    fn ints(&self) -> IntOptions {
        IntOptions {
            group_size: self.group_size,
            symmetric: self.symmetric,
            per: self.per,
            activations: self.activations,
            calibrator: self.calibrator,
            percentile: self.percentile,
            ..IntOptions::default()
        }
    }

    /// The name of an int format, if it is one.
    fn int_format(&self) -> Option<&str> {
        self.format.as_deref().filter(|format| IntOptions::is_int(format))
    }

    fn static_inputs(&self) -> Option<Calibrator> {
        self.ints().calibrator(self.int_format()?)
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
    ) -> Result<(HashMap<TensorId, MatrixFormat>, ParetoFront), CompressError> {
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
                formats.insert(*id, format);
            }
            return Ok((formats, stored.front));
        }
        let keep = self.keep()?;
        let target = (target, Palette::of(job.output));
        let (allocation, front) =
            choose_formats(job.checkpoint, job.cpu, &job.calibration.windows, &keep, target, &mut |done, total| {
                go_on(on_step(done, total, "measuring sensitivity"))
            })?;
        let of = |(name, id): (String, TensorId)| Some((name, *allocation.formats.get(&id)?));
        let stored = StoredMixture { formats: names.into_iter().filter_map(of).collect(), front };
        let bytes = serde_json::to_vec_pretty(&stored)
            .map_err(|error| CompressError::WorkDamaged { path: path.clone(), what: error.to_string() })?;
        write_file(&path, &bytes)?;
        Ok((allocation.formats, stored.front))
    }
}

impl Settings for QuantizePass {
    fn check(&self) -> Result<(), String> {
        let ways =
            [self.format.is_some(), self.target_bpw.is_some(), self.target_size.is_some(), self.max_kl.is_some()];
        if ways.iter().filter(|&&given| given).count() != 1 {
            return Err("needs one of `format`, `target_bpw`, `target_size` and `max_kl`".to_owned());
        }
        if let Some(max_kl) = self.max_kl
            && !(max_kl.is_finite() && max_kl > 0.0)
        {
            return Err(format!("`max_kl` is {max_kl}: must be more than 0"));
        }
        match (&self.format, self.int_format()) {
            (_, Some(name)) => self.ints().check(name).map_err(|what| format!("`format` {name}: {what}"))?,
            (name, None) => {
                if let Some(name) = name {
                    Scheme::from_name(name).map_err(|error| format!("`format`: {error}"))?;
                }
                if let Some(setting) = self.ints().given() {
                    let key = setting.replace('-', "_");
                    return Err(format!("`{key}` has a meaning with `format` int8, int4, int3, int2 and w8a8 only"));
                }
            }
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

    fn check_output(&self, is_folder: bool) -> Result<(), String> {
        match (&self.format, self.int_format()) {
            (_, Some(name)) if !is_folder => Err(format!("GGUF has no {name}; the output must be a folder")),
            (Some(name), None) if is_folder => {
                Err(format!("{name} has no place in a folder; int8, int4, int3, int2 and w8a8 have"))
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
            QuantizeMethod::Rtn if self.max_kl.is_some() => Some("max_kl"),
            QuantizeMethod::Rtn if self.static_inputs().is_some() => Some("activations"),
            QuantizeMethod::Rtn => None,
            _ => Some(self.method_name()),
        }
    }

    fn holds_out(&self) -> bool {
        self.max_kl.is_some()
    }

    fn title(&self) -> String {
        let what = match (&self.format, self.target_bpw, self.max_kl) {
            (Some(format), _, _) => format.clone(),
            (None, Some(bits), _) => format!("{bits} bits per weight"),
            (None, None, Some(max_kl)) => format!("KL {max_kl}"),
            (None, None, None) => format!("{} bytes", self.target_size.map_or(0, |size| size.0)),
        };
        format!("quantize to {what} ({})", self.method_name())
    }

    fn run(&self, job: &Job<'_>, on_step: &mut OnTensor<'_>) -> Result<PassReport, CompressError> {
        let keep = self.keep()?;
        let importance = match self.method {
            QuantizeMethod::Imatrix => {
                measure_importance(job.checkpoint, job.cpu, &job.calibration.windows, &mut |done, total| {
                    go_on(on_step(done, total, "measuring importance"))
                })?
            }
            _ => Importance::default(),
        };
        let defaults = FeedbackOptions::default();
        let feedback = Codes::Feedback(FeedbackOptions {
            damping: self.damping.unwrap_or(defaults.damping),
            activation_order: self.activation_order.unwrap_or(defaults.activation_order),
            ..defaults
        });
        let static_inputs = self.static_inputs();
        let layerwise = |equalize, codes| {
            let windows = &job.calibration.windows[..];
            Method::Layerwise(Layerwise { cpu: job.cpu, windows, equalize, codes, static_inputs })
        };
        let rounding = if static_inputs.is_some() { ActivationRounding::Tensor } else { ActivationRounding::ENGINE };
        let method = match self.method {
            QuantizeMethod::Rtn | QuantizeMethod::Imatrix if static_inputs.is_some() => {
                layerwise(None, Codes::Weighted)
            }
            QuantizeMethod::Rtn => Method::Rtn,
            QuantizeMethod::Imatrix => Method::Imatrix(&importance),
            QuantizeMethod::Gptq => layerwise(None, feedback),
            QuantizeMethod::Awq => layerwise(Some(Equalize::Awq), Codes::Weighted),
            QuantizeMethod::SmoothQuant => layerwise(Some(Equalize::SmoothQuant(rounding)), Codes::Weighted),
            QuantizeMethod::Best => layerwise(Some(Equalize::Best(rounding)), feedback),
        };
        if let Some(max_kl) = self.max_kl {
            let (windows, held_out) = (&job.calibration.windows[..], &job.calibration.held_out[..]);
            let limit = Limit { max_kl, held_out, windows, keep: &keep, method, work: Some(job.folder) };
            let within = quantize_within(job.checkpoint, job.cpu, job.output, &limit, on_step)?;
            return Ok(PassReport::of_limit(self.title(), job.checkpoint.parameters(), max_kl, within));
        }
        let mixture = match self.target() {
            Some(target) => Some(self.mixture(target, job, on_step)?),
            None => None,
        };
        let formats = match (&mixture, &self.format) {
            (Some((formats, _)), _) => Formats::Mixed(formats),
            (None, Some(name)) if self.int_format().is_some() => {
                Formats::Folder(FolderScheme::Ints(IntScheme::of_name(name, &self.ints(), job.checkpoint)?))
            }
            (None, name) => Formats::Scheme(Scheme::from_name(name.as_deref().unwrap_or_default())?),
        };
        let store = LayerStore::open(&job.folder.join("layers"))?;
        let store = Some(&store);
        let report =
            quantize(job.checkpoint, job.output, &QuantizeOptions { formats, keep: &keep, method, store }, on_step)?;
        let front = mixture.map(|(_, front)| front);
        Ok(PassReport::of_quantization(self.title(), job.checkpoint.parameters(), report, front))
    }
}
