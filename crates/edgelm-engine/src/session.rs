//! A sequence as bytes, for a conversation that goes on in another process without being computed again.
//!
//! | bytes | |
//! | --- | --- |
//! | 0..8 | `EDGELMSE` |
//! | 8..40 | BLAKE3 of all that follows |
//! | 40..72 | BLAKE3 of what keys and values depend on besides tokens: the model, the kernel family, the format of the cache, the version |
//! | 72..80, 80..88 | bytes of the note; number of tokens |
//! | 88 | 1 if there are states |
//! | 96.. | the note, which is the caller's; ids of the tokens, 4 bytes each; pages of 64 tokens, all layers of each; states |
//!
//! Numbers are little-endian; pages and states are as in memory, which is the same on every machine we build for.

use crate::{EngineError, GenerateOptions, Model, Sequence, block::State, engine::Past};
use edgelm_kernels::{KvCache, KvDtype, KvPages};

const MAGIC: &[u8; 8] = b"EDGELMSE";
const HEAD: usize = 96;

/// Why bytes are not a sequence of this model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionFault {
    /// Not written by [`Model::sequence_to_bytes`].
    #[error("it is something else")]
    Foreign,
    /// The checksum does not fit, or lengths do not.
    #[error("it is damaged")]
    Damaged,
    /// What it depends on has changed.
    #[error("it belongs to another model, cache format, kernel family or version")]
    Other,
    /// Adapters of another process cannot be told from each other.
    #[error("sequences with an adapter cannot be saved")]
    Adapter,
}

impl Model {
    /// All that `sequence` holds, and a note. `identity` says which model this is: a digest of its weights.
    ///
    /// # Errors
    /// A sequence with an adapter.
    pub fn sequence_to_bytes(&self, sequence: &Sequence, identity: &str, note: &[u8]) -> Result<Vec<u8>, EngineError> {
        if sequence.has_adapter() {
            return Err(SessionFault::Adapter.into());
        }
        let (tokens, states) = (sequence.tokens(), sequence.states());
        let mut bytes = vec![0; HEAD];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[40..72].copy_from_slice(self.whose(identity, sequence.kv()).as_bytes());
        bytes[72..80].copy_from_slice(&(note.len() as u64).to_le_bytes());
        bytes[80..88].copy_from_slice(&(tokens.len() as u64).to_le_bytes());
        bytes[88] = states.is_some().into();
        bytes.extend_from_slice(note);
        tokens.iter().for_each(|token| bytes.extend_from_slice(&token.to_le_bytes()));
        for index in 0..tokens.len().div_ceil(KvCache::PAGE_TOKENS) {
            sequence.share_page(index).parts().for_each(|part| bytes.extend_from_slice(part));
        }
        states.into_iter().flatten().for_each(|state| state.write(&mut bytes));
        let sum = blake3::hash(&bytes[40..]);
        bytes[8..40].copy_from_slice(sum.as_bytes());
        Ok(bytes)
    }

    /// The sequence and the note of [`Model::sequence_to_bytes`].
    ///
    /// # Errors
    /// Bytes that are something else, changed, or of another model, cache format (`options.kv`), kernel family or version.
    pub fn sequence_from_bytes<'a>(
        &self,
        bytes: &'a [u8],
        identity: &str,
        options: &GenerateOptions,
    ) -> Result<(Sequence, &'a [u8]), EngineError> {
        if !bytes.starts_with(MAGIC) {
            return Err(SessionFault::Foreign.into());
        }
        if bytes.len() < HEAD || bytes[8..40] != *blake3::hash(&bytes[40..]).as_bytes() {
            return Err(SessionFault::Damaged.into());
        }
        let kv = options.kv.unwrap_or_else(|| self.engine().default_kv());
        if bytes[40..72] != *self.whose(identity, kv).as_bytes() {
            return Err(SessionFault::Other.into());
        }
        Ok(self.parsed(bytes, kv).ok_or(SessionFault::Damaged)?)
    }

    /// None where lengths do not fit.
    fn parsed<'a>(&self, bytes: &'a [u8], kv: KvDtype) -> Option<(Sequence, &'a [u8])> {
        let number = |at: usize| {
            let number = u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
            usize::try_from(number).ok()
        };
        let (note, rest) = bytes.get(HEAD..)?.split_at_checked(number(72)?)?;
        let (ids, mut rest) = rest.split_at_checked(number(80)?.checked_mul(4)?)?;
        let tokens: Vec<u32> = ids.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
        let shapes = self.engine().kv_shapes();
        let mut pages = Vec::new();
        for tokens in tokens.chunks(KvCache::PAGE_TOKENS) {
            let page;
            (page, rest) = rest.split_at_checked(KvCache::page_bytes(&shapes, kv))?;
            pages.push((KvPages::from_bytes(&shapes, kv, page)?, tokens));
        }
        let mut states = None;
        if bytes[88] == 1 {
            let mut read = State::of_layers(self.engine().config());
            for state in &mut read {
                rest = state.read(rest)?;
            }
            states = Some(read);
        }
        if !rest.is_empty() {
            return None;
        }
        let pages = pages.iter().map(|(page, tokens)| (page, *tokens)).collect();
        let past = Past { pages, states: states.as_deref() };
        Some((self.engine().resume(kv, None, &past), note))
    }

    /// What keys and values depend on besides tokens.
    fn whose(&self, identity: &str, kv: KvDtype) -> blake3::Hash {
        let engine = self.engine();
        let (isa, shapes) = (engine.cpu().isa().name(), engine.kv_shapes());
        let version = env!("CARGO_PKG_VERSION");
        blake3::hash(format!("{identity} {isa} {kv:?} {shapes:?} {} {version}", KvCache::PAGE_TOKENS).as_bytes())
    }
}
