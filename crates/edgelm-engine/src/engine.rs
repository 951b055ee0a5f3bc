//! Batches of tokens through all layers.

use crate::{
    Arithmetic, EngineError, LoadedAdapter,
    adapter::AdaptedRows,
    block::{Block, BlockScratch, Matrices, Rows, Slots, State},
    front::Front,
    head::Head,
    rope::Tables,
};
use edgelm_kernels::{Cpu, KvCache, KvDtype, KvPages, KvShape, Matrix};
use edgelm_model::{Checkpoint, LayerConfig, ModelConfig, Tensors};
use std::{ops::ControlFlow, sync::Arc};

/// Rows that go through a layer together. More rows amortize reading and unpacking the weights, fewer keep the activations
/// small: 512 rows of a 5,632-wide ffn are 11.5 MB.
const CHUNK_ROWS: usize = 512;

/// Prepared weights.
pub struct Engine {
    checkpoint: Arc<Checkpoint>,
    cpu: Arc<Cpu>,
    front: Arc<Front>,
    blocks: Arc<[Block]>,
    head: Arc<Head>,
    output: Arc<Matrix>,
    is_quantized: bool,
}

/// One conversation's state: the tokens seen, their keys and values, and the states of layers that are not attention.
/// Cloning is cheap (pages are shared) but for those states, which are copied.
#[derive(Clone)]
pub struct Sequence {
    cache: KvCache,
    states: Vec<State>,
    /// Positions that the states have seen.
    seen: usize,
    tokens: Vec<u32>,
    adapter: Option<Arc<LoadedAdapter>>,
}

impl Sequence {
    /// Tokens that are held.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets everything from position `len` on.
    ///
    /// A state cannot be rewound: a model that has them goes through the tokens before `len` again, with the next forward.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.cache.truncate(len);
    }

    /// Format of the cache.
    pub(crate) fn kv(&self) -> KvDtype {
        self.cache.dtype()
    }

    /// Goes through adapters.
    pub(crate) fn has_adapter(&self) -> bool {
        self.adapter.is_some()
    }

    /// Memory that the cache and the states hold now.
    pub fn kv_bytes(&self) -> usize {
        self.cache.bytes() + self.states.iter().map(State::bytes).sum::<usize>()
    }
}

/// What a sequence has of the past, to be put together again: pages, in order, with the tokens that count in each, and the
/// states after the last of them.
pub(crate) struct Past<'a> {
    pub(crate) pages: Vec<(&'a KvPages, &'a [u32])>,
    pub(crate) states: Option<&'a [State]>,
}

impl Sequence {
    /// The page of every layer that begins at position `index · PAGE_TOKENS`, shared.
    pub(crate) fn share_page(&self, index: usize) -> KvPages {
        self.cache.share_page(index)
    }

    /// The states after the last token; none for a model that has none, and where they would have to be computed again.
    pub(crate) fn states(&self) -> Option<&[State]> {
        (!self.states.is_empty() && self.seen == self.tokens.len()).then_some(self.states.as_slice())
    }

    /// Takes over `past`, and behind it what this sequence itself holds, whose beginning must be the same.
    pub(crate) fn share_beginning(&mut self, engine: &Engine, past: &Past<'_>) {
        let mut cache = KvCache::new(&engine.kv_shapes(), self.cache.dtype());
        let mut pages = 0;
        for (page, tokens) in &past.pages {
            cache.append_shared(page, tokens.len());
            pages += 1;
        }
        for index in pages..self.tokens.len().div_ceil(KvCache::PAGE_TOKENS) {
            let tokens = (self.tokens.len() - index * KvCache::PAGE_TOKENS).min(KvCache::PAGE_TOKENS);
            cache.append_shared(&self.cache.share_page(index), tokens);
        }
        self.cache = cache;
    }
}

/// Which positions' logits a step wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Want {
    None,
    Last,
    All,
    /// No logits: the normed states of all positions, see [`Workspace::states`].
    Hidden,
}

/// New tokens of one sequence in a batch.
pub struct Step<'a> {
    /// Where they are appended.
    pub sequence: &'a mut Sequence,
    /// At least one.
    pub tokens: &'a [u32],
    /// Logits to compute.
    pub want: Want,
}

/// Buffers reused between calls; one per thread of control.
#[derive(Default)]
pub struct Workspace {
    hidden: Vec<f32>,
    wanted: Vec<f32>,
    normed: Vec<f32>,
    block: BlockScratch,
    logits: Vec<f32>,
    states: Vec<f32>,
}

impl Workspace {
    /// Logits of the last `forward`, `[rows wanted, V]`, in batch order.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// What the output head would have seen at the positions of the last `forward` that want [`Want::Hidden`]: states
    /// after the last layer and the final norm, `[positions, D]`, in batch order.
    pub fn states(&self) -> &[f32] {
        &self.states
    }
}

/// A run of one step's tokens that goes through the layers in one chunk.
struct Piece {
    step: usize,
    offset: usize,
    len: usize,
}

impl Engine {
    /// Packs every weight of a checkpoint for this machine: [`Arithmetic::Fast`].
    pub fn load(checkpoint: Arc<Checkpoint>, cpu: Arc<Cpu>) -> Result<Self, EngineError> {
        Self::load_with(checkpoint, cpu, Arithmetic::Fast)
    }

    /// Prepares a checkpoint for this machine and an arithmetic.
    pub fn load_with(checkpoint: Arc<Checkpoint>, cpu: Arc<Cpu>, arithmetic: Arithmetic) -> Result<Self, EngineError> {
        let config = checkpoint.config();
        let (front, head) = (Front::load(&*checkpoint, &cpu)?, Head::load(&*checkpoint, &cpu)?);
        let layers = 0..config.layers.len();
        let ids: Vec<_> =
            layers.clone().flat_map(|index| Block::matrix_ids(config, index)).chain([head.tensor()]).collect();
        let mut matrices = match arithmetic.is_exact(&checkpoint, &ids)? {
            true => Matrices::load_exact(&checkpoint, &cpu, &ids)?,
            false => Matrices::load(&*checkpoint, &cpu, &ids)?,
        };
        let blocks = layers
            .map(|index| Block::assemble(&*checkpoint, &cpu, &mut matrices, index))
            .collect::<Result<Arc<[_]>, _>>()?;
        let output = Arc::new(matrices.take(head.tensor())?);
        let is_quantized = blocks.iter().any(Block::is_quantized) || output.dtype().is_quantized();
        let (front, head) = (Arc::new(front), Arc::new(head));
        Ok(Self { checkpoint, cpu, front, blocks, head, output, is_quantized })
    }

    /// The same weights, shared, on other threads of the same kind: for who must go on where a thread is stuck.
    ///
    /// # Errors
    /// Threads that the system refuses.
    pub fn on_new_threads(&self) -> Result<Self, EngineError> {
        Ok(Self {
            checkpoint: Arc::clone(&self.checkpoint),
            cpu: Arc::new(Cpu::new(Some(self.cpu.threads()), Some(self.cpu.isa()))?),
            front: Arc::clone(&self.front),
            blocks: Arc::clone(&self.blocks),
            head: Arc::clone(&self.head),
            output: Arc::clone(&self.output),
            is_quantized: self.is_quantized,
        })
    }

    /// The model's config.
    pub fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    /// The checkpoint the weights came from.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// The machine.
    pub fn cpu(&self) -> &Arc<Cpu> {
        &self.cpu
    }

    /// As precise as the weights: f32 for those that are not quantized (exact), f16 for those of 8 bits and more, int8 otherwise:
    /// half the bytes again, integer products, and a KL divergence 0.0001 higher (mica-40m, 24 windows of WikiText-2), which
    /// would be most of that of Q8_0. Latent attention keeps two kinds of numbers in one vector, which would share a scale of
    /// int8: f16 there.
    pub fn default_kv(&self) -> KvDtype {
        if !self.is_quantized {
            KvDtype::F32
        } else if self.weights_bytes() >= self.weights() || self.config().has_latent_attention() {
            KvDtype::F16
        } else {
            KvDtype::Q8
        }
    }

    /// Cache shapes, one per layer with attention.
    pub fn kv_shapes(&self) -> Vec<KvShape> {
        kv_shapes(self.config())
    }

    /// Bytes of packed weights.
    pub fn weights_bytes(&self) -> usize {
        self.output.bytes() + self.blocks.iter().map(Block::bytes).sum::<usize>()
    }

    /// Weights that are packed.
    fn weights(&self) -> usize {
        let of = |matrix: &Matrix| matrix.rows() * matrix.cols();
        of(&self.output) + self.blocks.iter().flat_map(Block::matrices).map(of).sum::<usize>()
    }

    /// Bytes of weights that one decoded token reads.
    pub fn bytes_per_token(&self) -> usize {
        self.output.bytes() + self.blocks.iter().map(Block::bytes_per_token).sum::<usize>()
    }

    /// Names of the matrix kernels in use, each once.
    pub fn kernels(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.blocks.iter().flat_map(Block::kernels).chain([self.output.kernel()]).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// An empty sequence.
    pub fn sequence(&self, kv: KvDtype) -> Sequence {
        let cache = KvCache::new(&self.kv_shapes(), kv);
        Sequence { cache, states: State::of_layers(self.config()), seen: 0, tokens: Vec::new(), adapter: None }
    }

    /// An empty sequence that goes through adapters of this engine's model.
    pub fn adapted_sequence(&self, kv: KvDtype, adapter: Option<Arc<LoadedAdapter>>) -> Sequence {
        Sequence { adapter, ..self.sequence(kv) }
    }

    /// A sequence that goes on from `past`; empty states where it has none of them.
    pub(crate) fn resume(&self, kv: KvDtype, adapter: Option<Arc<LoadedAdapter>>, past: &Past<'_>) -> Sequence {
        let mut sequence = self.adapted_sequence(kv, adapter);
        for (page, tokens) in &past.pages {
            sequence.cache.append_shared(page, tokens.len());
            sequence.tokens.extend_from_slice(tokens);
        }
        if let Some(states) = past.states {
            sequence.states = states.to_vec();
        }
        sequence.seen = if past.states.is_some() || sequence.states.is_empty() { sequence.tokens.len() } else { 0 };
        sequence
    }

    /// Appends each step's tokens to its sequence; the logits asked for are left in `workspace`.
    ///
    /// Long prompts are cut into chunks inside; neither the chunks nor the other steps change a row's numbers.
    /// Errors, before anything is changed, on empty steps, ids outside the vocabulary and an over-full context.
    pub fn forward(&self, batch: &mut [Step<'_>], workspace: &mut Workspace) -> Result<(), EngineError> {
        self.check(batch)?;
        for step in batch.iter_mut() {
            self.catch_up(step.sequence, workspace)?;
        }
        self.append(batch, workspace)
    }

    /// Goes again through tokens of a sequence that its states have not seen, or from the first on where they have seen
    /// others. They differ after a truncation, and after an error half way.
    fn catch_up(&self, sequence: &mut Sequence, workspace: &mut Workspace) -> Result<(), EngineError> {
        if sequence.states.is_empty() || sequence.seen == sequence.tokens.len() {
            return Ok(());
        }
        if sequence.seen > sequence.tokens.len() {
            sequence.states.iter_mut().for_each(State::reset);
            sequence.seen = 0;
        }
        let again = sequence.tokens.split_off(sequence.seen);
        let outcome = match again.is_empty() {
            true => Ok(()),
            false => self.append(&mut [Step { sequence: &mut *sequence, tokens: &again, want: Want::None }], workspace),
        };
        if outcome.is_err() {
            sequence.tokens.extend(again);
        }
        outcome
    }

    fn append(&self, batch: &mut [Step<'_>], workspace: &mut Workspace) -> Result<(), EngineError> {
        let _step = self.cpu.trace_step(batch.len(), batch.iter().map(|step| step.tokens.len()).sum());
        workspace.logits.clear();
        workspace.states.clear();
        let mut group = Vec::new();
        let mut rows = 0;
        for step in 0..batch.len() {
            let mut offset = 0;
            while offset < batch[step].tokens.len() {
                let len = (batch[step].tokens.len() - offset).min(CHUNK_ROWS - rows);
                group.push(Piece { step, offset, len });
                offset += len;
                rows += len;
                if rows == CHUNK_ROWS {
                    self.run_group(batch, &group, rows, workspace)?;
                    group.clear();
                    rows = 0;
                }
            }
        }
        if rows > 0 {
            self.run_group(batch, &group, rows, workspace)?;
        }
        for step in batch {
            step.sequence.tokens.extend_from_slice(step.tokens);
        }
        Ok(())
    }

    fn check(&self, batch: &[Step<'_>]) -> Result<(), EngineError> {
        let config = self.config();
        for step in batch {
            let (held, new) = (step.sequence.tokens.len(), step.tokens.len());
            if new == 0 {
                return Err(EngineError::EmptyPrompt);
            }
            if let Some(&id) = step.tokens.iter().find(|&&id| id as usize >= config.vocab_size) {
                return Err(EngineError::TokenId { id, vocab_size: config.vocab_size });
            }
            if held + new > config.context_length() {
                return Err(EngineError::ContextLength {
                    prompt: held + new,
                    max_new: 0,
                    context: config.context_length(),
                });
            }
        }
        Ok(())
    }

    fn run_group(
        &self,
        batch: &mut [Step<'_>],
        group: &[Piece],
        rows: usize,
        workspace: &mut Workspace,
    ) -> Result<(), EngineError> {
        let config = self.config();
        let d = config.hidden_size;
        workspace.hidden.resize(rows * d, 0.0);
        let mut tables =
            Tables::new(&config.rope, config.local_rope.as_ref(), config.layers.iter().map(|layer| layer.rope));
        let mut row = 0;
        for piece in group {
            let step = &batch[piece.step];
            let held = step.sequence.tokens.len();
            let start = held + piece.offset;
            let tokens = &step.tokens[piece.offset..piece.offset + piece.len];
            let hidden = &mut workspace.hidden[row * d..][..tokens.len() * d];
            self.front.embed(&*self.checkpoint, &self.cpu, tokens, start, hidden)?;
            row += tokens.len();
            tables.extend(start..start + piece.len, held + step.tokens.len());
        }

        let mut spans = Vec::with_capacity(group.len());
        let mut pieces = group.iter().peekable();
        for (index, step) in batch.iter_mut().enumerate() {
            if let Some(piece) = pieces.next_if(|piece| piece.step == index) {
                let start = step.sequence.tokens.len() + piece.offset;
                let Sequence { cache, states, seen, adapter, .. } = &mut *step.sequence;
                *seen = start + piece.len;
                spans.push(Rows { cache, states, start, rows: piece.len, adapter: adapter.as_deref() });
            }
        }
        let mut slots = Slots::default();
        for block in self.blocks.iter() {
            let _ = block.forward(
                &self.cpu,
                &mut workspace.hidden,
                slots,
                &mut spans,
                &tables,
                &mut workspace.block,
                &mut |_, _, _| ControlFlow::Continue(()),
            );
            slots = slots.after(block.mixer());
        }
        drop(spans);
        self.cpu.trace_layer(None);
        self.head(batch, group, workspace);
        Ok(())
    }

    /// Logits of the rows that were asked for, appended to `workspace.logits`.
    fn head(&self, batch: &[Step<'_>], group: &[Piece], workspace: &mut Workspace) {
        let (d, v) = (self.config().hidden_size, self.config().vocab_size);
        let Workspace { hidden, wanted, normed, block, logits, states } = workspace;
        wanted.clear();
        let mut row = 0;
        let mut adapters = Vec::new();
        for piece in group {
            let step = &batch[piece.step];
            let ends = piece.offset + piece.len == step.tokens.len();
            let first = match step.want {
                Want::All => 0,
                Want::Last if ends => piece.len - 1,
                Want::Last | Want::None | Want::Hidden => piece.len,
            };
            if step.want == Want::Hidden {
                self.head.norm(&self.cpu, &hidden[row * d..(row + piece.len) * d], normed);
                states.extend_from_slice(normed);
            }
            wanted.extend_from_slice(&hidden[(row + first) * d..(row + piece.len) * d]);
            adapters.push((piece.len - first, step.sequence.adapter.as_deref()));
            row += piece.len;
        }
        let rows = wanted.len() / d;
        if rows == 0 {
            return;
        }
        self.head.norm(&self.cpu, wanted, normed);
        let before = logits.len();
        logits.resize(before + rows * v, 0.0);
        let adapted = AdaptedRows::new(adapters.into_iter());
        self.head.adapted_logits(
            &self.cpu,
            &self.output,
            normed,
            rows,
            &adapted,
            &mut logits[before..],
            &mut block.matmul,
        );
    }
}

/// Cache shapes of a model, one per layer with attention.
pub fn kv_shapes(config: &ModelConfig) -> Vec<KvShape> {
    let shape =
        |layer: &LayerConfig| KvShape { num_key_value_heads: layer.num_key_value_heads, head_dim: layer.head_dim };
    config.layers.iter().filter(|layer| layer.mixer.has_attention()).map(shape).collect()
}

/// Bytes that a sequence keeps beside keys and values, however long it is.
pub fn state_bytes(config: &ModelConfig) -> usize {
    let sizes = config.layers.iter().filter_map(|layer| layer.mixer.state());
    sizes.map(|size| (size.conv + size.recurrent) * size_of::<f32>()).sum()
}

/// Hidden states `[T, D]` of a window of tokens before the first layer. For calibration.
pub fn embed_window(tensors: &dyn Tensors, cpu: &Cpu, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
    let mut hidden = vec![0.0; tokens.len() * tensors.config().hidden_size];
    Front::load(tensors, cpu)?.embed(tensors, cpu, tokens, 0, &mut hidden)?;
    Ok(hidden)
}
