//! A model on disk, as the server loads it.

use crate::{adapters, commands::speculation::SpeculationArgs, machine, options::Global, output, resolve};
use edgelm_engine::{Arithmetic, BatchOptions, KvStore, LoadedAdapter, Model, kv_shapes, state_bytes};
use edgelm_kernels::{KvCache, KvDtype};
use edgelm_model::{Checkpoint, ModelConfig};
use edgelm_serve::{
    About, Artifact, Backend, BoxError, Limits, MemoryPlan, ModelBackend, Need, PlanError, Room, describe,
};
use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
};

/// What all models of a server are loaded with.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) global: Global,
    pub(super) context: Option<usize>,
    pub(super) kv: Option<KvDtype>,
    pub(super) kv_budget: Option<u64>,
    pub(super) store: Option<StoreSettings>,
    pub(super) parallel: usize,
    pub(super) models: usize,
    pub(super) speculation: Option<SpeculationArgs>,
}

/// Where kept beginnings go.
#[derive(Clone)]
pub(super) struct StoreSettings {
    pub(super) folder: PathBuf,
    pub(super) limit_bytes: u64,
}

/// One path.
pub(super) struct OnDisk {
    id: String,
    path: String,
    lora: Vec<(String, PathBuf)>,
    settings: Settings,
    /// With the stamp of the files, so that files that were replaced are read again.
    digest: Mutex<Option<(u64, String)>>,
    /// The last load's, with the digest of the model: a thread that does not come back may still have it open.
    store: Mutex<(String, Weak<KvStore>)>,
}

impl OnDisk {
    pub(super) fn new(id: String, path: String, lora: Vec<(String, PathBuf)>, settings: Settings) -> Self {
        Self { id, path, lora, settings, digest: Mutex::default(), store: Mutex::default() }
    }

    fn open(&self) -> Result<Arc<Checkpoint>, BoxError> {
        Ok(resolve::checkpoint(&self.path, &self.settings.global)?)
    }

    /// What it is. Reads the header, not the weights; refuses adapters that are not for it.
    pub(super) fn about(&self) -> Result<Found, BoxError> {
        let checkpoint = self.open()?;
        for (_, path) in &self.lora {
            adapters::open(std::slice::from_ref(path), &checkpoint)?;
        }
        let about = About {
            description: describe(&checkpoint)?,
            context: self.settings.context.unwrap_or(checkpoint.config().context_length()),
            modified: resolve::modified(&self.path, &self.settings.global),
        };
        Ok(Found { name: checkpoint.name().to_owned(), about })
    }

    /// The file for what the model keeps, named by the model's id.
    fn store(&self, model: &Model) -> Result<Option<Arc<KvStore>>, BoxError> {
        let Some(StoreSettings { folder, limit_bytes }) = &self.settings.store else { return Ok(None) };
        let digest = self.digest()?;
        let mut last = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if let (true, Some(store)) = (last.0 == digest, last.1.upgrade()) {
            return Ok(Some(store));
        }
        fs::create_dir_all(folder)
            .map_err(|error| format!("cannot make the folder `{}`: {error}", folder.display()))?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name: String = self.id.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
        // Ids that differ in other characters have other files.
        let path = folder.join(format!("{name}-{}.kv", &edgelm_fleet::digest::sha256(self.id.as_bytes())[..8]));
        let store = Arc::new(KvStore::open(&path, *limit_bytes, model, self.settings.kv, &digest)?);
        *last = (digest, Arc::downgrade(&store));
        Ok(Some(store))
    }

    /// What it takes.
    fn need(&self) -> Result<Need, BoxError> {
        let checkpoint = self.open()?;
        let config = checkpoint.config();
        let Weights { bytes, default_kv } = weights(&checkpoint)?;
        let kv = self.settings.kv.unwrap_or(default_kv);
        let draft = match self.settings.speculation.as_ref().and_then(SpeculationArgs::draft) {
            Some(path) => {
                let checkpoint = resolve::checkpoint(path, &self.settings.global)?;
                weights(&checkpoint)?.bytes
            }
            None => 0,
        };
        Ok(Need {
            weights_bytes: bytes + draft,
            work_bytes: work_bytes(config, self.settings.parallel),
            mapped_bytes: checkpoint.file_bytes(),
            page_bytes: KvCache::page_bytes(&kv_shapes(config), kv) as u64,
            page_tokens: KvCache::PAGE_TOKENS as u64,
            state_bytes: state_bytes(config) as u64,
            context: self.settings.context.unwrap_or(config.context_length()) as u64,
            parallel: self.settings.parallel,
            kv_bytes: self.settings.kv_budget,
            models: self.settings.models as u64,
        })
    }
}

/// A model that could be read.
pub(super) struct Found {
    /// Its own name.
    pub(super) name: String,
    pub(super) about: About,
}

/// Of a checkpoint as it will be run.
struct Weights {
    bytes: u64,
    /// As the engine chooses it.
    default_kv: KvDtype,
}

fn weights(checkpoint: &Checkpoint) -> Result<Weights, BoxError> {
    let (mut bytes, mut matrix_bytes, mut matrix_weights, mut is_quantized) = (0, 0, 0, false);
    for &id in checkpoint.tensor_ids() {
        let (dtype, shape) = (checkpoint.run_dtype(id)?, checkpoint.describe(id)?.1);
        let (row_len, rows) = match shape.split_last() {
            Some((&row_len, outer)) => (row_len, outer.iter().product::<usize>()),
            None => (1, 1),
        };
        let size = dtype.row_bytes(row_len)?.saturating_mul(rows) as u64;
        bytes += size;
        if shape.len() > 1 {
            is_quantized |= dtype.is_quantized();
            matrix_bytes += size;
            matrix_weights += (row_len * rows) as u64;
        }
    }
    let default_kv = match is_quantized {
        false => KvDtype::F32,
        true if matrix_bytes >= matrix_weights || checkpoint.config().has_latent_attention() => KvDtype::F16,
        true => KvDtype::Q8,
    };
    // Rows are padded to tiles, and some formats carry their scales apart.
    Ok(Weights { bytes: bytes + bytes / 16, default_kv })
}

/// Activations of a chunk of 512 rows, logits of all generations, the tokenizer's tables and what programs take anyway.
fn work_bytes(config: &ModelConfig, parallel: usize) -> u64 {
    const CHUNK_ROWS: usize = 512;
    const PER_TOKEN_OF_VOCABULARY: usize = 400;
    const PROGRAM: usize = 24 << 20;
    let widest = config.layers.iter().map(|layer| {
        let heads = (layer.num_attention_heads + 2 * layer.num_key_value_heads) * layer.head_dim;
        3 * layer.intermediate_size + 2 * heads
    });
    let row = 6 * config.hidden_size + widest.max().unwrap_or(0);
    let rows = CHUNK_ROWS.saturating_mul(row).saturating_mul(size_of::<f32>());
    let logits = (2 * parallel + 2).saturating_mul(config.vocab_size).saturating_mul(size_of::<f32>());
    let tokenizer = config.vocab_size.saturating_mul(PER_TOKEN_OF_VOCABULARY);
    rows.saturating_add(logits).saturating_add(tokenizer).saturating_add(PROGRAM) as u64
}

impl Artifact for OnDisk {
    fn name(&self) -> &str {
        &self.path
    }

    fn plan(&self, room: &Room) -> Result<MemoryPlan, PlanError> {
        self.need().map_err(PlanError::Artifact)?.plan(room, &Limits::now())
    }

    fn load(&self, plan: &MemoryPlan) -> Result<Arc<dyn Backend>, BoxError> {
        let settings = &self.settings;
        let checkpoint = self.open()?;
        let mut opened = Vec::new();
        for (id, path) in &self.lora {
            opened.push((id, adapters::open(std::slice::from_ref(path), &checkpoint)?));
        }
        // A pool of its own: a pass that hangs holds only its model's threads.
        let cpu = machine::cpu(&settings.global)?;
        let speculation = match &settings.speculation {
            Some(wanted) => wanted.load(Arithmetic::Auto, &cpu, &settings.global)?,
            None => None,
        };
        let model = Arc::new(Model::load_with(checkpoint, cpu, Arithmetic::Auto)?);
        let mut adapters = Vec::new();
        for (id, adapter) in opened {
            adapters.push((id.clone(), Arc::new(LoadedAdapter::load(model.engine(), &adapter)?)));
        }
        let options = BatchOptions {
            context: settings.context,
            kv: settings.kv,
            kv_budget: Some(plan.kv_bytes),
            store: self.store(&model)?,
            speculation,
        };
        let backend = ModelBackend::new(model, Some(self.id.clone()), adapters, options)?;
        let tokens = backend.kv_limit().map_or(0, |limit| limit.tokens);
        let kv = output::bytes(plan.kv_bytes as u64);
        settings.global.note(format!("`{}`: {kv} for caches: {tokens} tokens", self.id));
        Ok(Arc::new(backend))
    }

    fn digest(&self) -> Result<String, BoxError> {
        let stamp = resolve::stamp(&self.path, &self.settings.global);
        let known = self.digest.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((known, digest)) if *known == stamp => Ok(digest.clone()),
            _ => {
                drop(known);
                self.digest_anew()
            }
        }
    }

    fn digest_anew(&self) -> Result<String, BoxError> {
        let stamp = resolve::stamp(&self.path, &self.settings.global);
        let digest = resolve::digest(&self.path, &self.settings.global)?;
        *self.digest.lock().unwrap_or_else(PoisonError::into_inner) = Some((stamp, digest.clone()));
        Ok(digest)
    }
}
