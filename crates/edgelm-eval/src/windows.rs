//! A text cut into windows, as perplexity and KL divergence use it.

use crate::EvalError;
use edgelm_engine::{Engine, EngineError, Model};
use edgelm_kernels::KvDtype;
use edgelm_model::Tokenizer;
use std::{fs::File, io::Read, path::Path};

/// Limit for [`read_text`]: a gibibyte. The tokens of a text are held in memory.
pub const MAX_TEXT_BYTES: u64 = 1 << 30;

/// Logits held at a time, in values: 64 MiB of f32.
const LOGITS_BUDGET: usize = 1 << 24;

/// How a text is worked through. The default is the protocol that published figures use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowOptions {
    /// C, tokens per window: 1024.
    pub context: usize,
    /// Only the first so many windows; `None` = all.
    pub windows: Option<usize>,
    /// Cache format; `None` = the engine's default.
    pub kv: Option<KvDtype>,
}

impl Default for WindowOptions {
    fn default() -> Self {
        Self { context: 1024, windows: None, kv: None }
    }
}

/// Reads a text file whole. Errors that name the file: unreadable, not UTF-8, larger than [`MAX_TEXT_BYTES`].
pub fn read_text(path: &Path) -> Result<String, EvalError> {
    let io = |source| EvalError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_TEXT_BYTES {
        return Err(EvalError::FileTooLarge { path: path.to_owned(), limit_bytes: MAX_TEXT_BYTES });
    }
    String::from_utf8(bytes)
        .map_err(|error| EvalError::NotUtf8 { path: path.to_owned(), offset: error.utf8_error().valid_up_to() })
}

/// What of a model decides how a text is cut.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    /// Beside those of the tokenizer.
    pub(crate) bos_token_id: Option<u32>,
    pub(crate) eos_token_ids: &'a [u32],
    pub(crate) vocab_size: usize,
    pub(crate) context_length: usize,
}

/// Windows of equal length, and the token each begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Windows {
    /// Fed before the first token of each window: bos, or what stands for it.
    pub(crate) first: u32,
    tokens: Vec<u32>,
    context: usize,
}

impl Windows {
    /// Tokenizes the whole text without special tokens and cuts it.
    pub(crate) fn new(model: &Model, text: &str, options: &WindowOptions) -> Result<Self, EvalError> {
        let config = model.engine().config();
        let reader = Reader {
            tokenizer: model.tokenizer()?,
            bos_token_id: config.bos_token_id,
            eos_token_ids: &config.eos_token_ids,
            vocab_size: config.vocab_size,
            context_length: config.context_length(),
        };
        Self::read(&reader, text, options)
    }

    /// The same for a model of any engine.
    pub(crate) fn read(reader: &Reader<'_>, text: &str, options: &WindowOptions) -> Result<Self, EvalError> {
        if options.context > reader.context_length {
            let what = format!(
                "windows of {} tokens were asked for, but the model's context holds {}",
                options.context, reader.context_length
            );
            return Err(EvalError::Option { option: "context", what });
        }
        let tokenizer = reader.tokenizer;
        // Qwen's tokenizer has no bos of its own, its config names `<|endoftext|>`: the token that begins documents.
        let first = tokenizer
            .bos()
            .or(reader.bos_token_id)
            .or(tokenizer.eos())
            .or(reader.eos_token_ids.first().copied())
            .ok_or(EvalError::NoFirstToken)?;
        Self::cut(first, tokenizer.encode(text, false)?, reader.vocab_size, options)
    }

    /// Checks the tokens and drops those that no window will score.
    fn cut(first: u32, mut tokens: Vec<u32>, vocab_size: usize, options: &WindowOptions) -> Result<Self, EvalError> {
        let context = options.context;
        if context == 0 {
            return Err(EvalError::Option { option: "context", what: "a window has at least one token".to_owned() });
        }
        if options.windows == Some(0) {
            return Err(EvalError::Option { option: "windows", what: "at least one window is needed".to_owned() });
        }
        let count = (tokens.len() / context).min(options.windows.unwrap_or(usize::MAX));
        if count == 0 {
            return Err(EvalError::TooShort { tokens: tokens.len(), context });
        }
        tokens.truncate(count * context);
        // The last token of a window is scored but never fed, so the engine would not see that it is out of range.
        if let Some(&id) = tokens.iter().chain([&first]).find(|&&id| id as usize >= vocab_size) {
            return Err(EngineError::TokenId { id, vocab_size }.into());
        }
        Ok(Self { first, tokens, context })
    }

    #[cfg(test)]
    pub(crate) fn for_test(first: u32, tokens: &[u32], context: usize) -> Self {
        Self { first, tokens: tokens.to_vec(), context }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.tokens.len() / self.context
    }

    /// C.
    pub(crate) fn context(&self) -> usize {
        self.context
    }

    /// Every token that is scored, window after window.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Each window as (what is fed, what is scored), both of C tokens.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Vec<u32>, &[u32])> {
        self.tokens.chunks_exact(self.context).map(|targets| {
            let mut inputs = Vec::with_capacity(targets.len());
            inputs.push(self.first);
            inputs.extend_from_slice(&targets[..targets.len() - 1]);
            (inputs, targets)
        })
    }
}

/// Positions fed per step, so that their logits stay within the budget.
pub(crate) fn chunk_tokens(engine: &Engine, context: usize) -> usize {
    let config = engine.config();
    if config.rope.depends_on_length() {
        // The rotation of early positions depends on how many follow: the window goes in as one piece.
        return context;
    }
    chunk_of(config.vocab_size)
}

/// The same where no position depends on those that follow.
pub(crate) fn chunk_of(vocab_size: usize) -> usize {
    (LOGITS_BUDGET / vocab_size.max(1)).clamp(32, 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(context: usize, windows: Option<usize>) -> WindowOptions {
        WindowOptions { context, windows, kv: None }
    }

    #[test]
    fn inputs_are_shifted_by_one_and_the_short_tail_is_dropped() {
        let windows = Windows::cut(0, (1..=11).collect(), 100, &options(4, None)).expect("valid");
        let got: Vec<_> = windows.iter().map(|(inputs, targets)| (inputs, targets.to_vec())).collect();
        assert_eq!(got, [(vec![0, 1, 2, 3], vec![1, 2, 3, 4]), (vec![0, 5, 6, 7], vec![5, 6, 7, 8])]);
        assert_eq!(windows.count(), 2);
    }

    #[test]
    fn limits_are_checked() {
        let one = Windows::cut(0, (1..=11).collect(), 100, &options(4, Some(1))).expect("valid");
        assert_eq!((one.count(), one.tokens()), (1, &[1, 2, 3, 4][..]));
        let cut = |tokens, vocab_size, options| Windows::cut(0, tokens, vocab_size, &options);
        assert!(matches!(cut(vec![1; 3], 9, options(4, None)), Err(EvalError::TooShort { tokens: 3, context: 4 })));
        assert!(matches!(cut(vec![], 9, options(1, None)), Err(EvalError::TooShort { .. })));
        assert!(matches!(cut(vec![1; 3], 9, options(0, None)), Err(EvalError::Option { option: "context", .. })));
        assert!(matches!(cut(vec![1; 3], 9, options(1, Some(0))), Err(EvalError::Option { option: "windows", .. })));
        let error = cut(vec![1, 9], 9, options(2, None)).expect_err("outside the vocabulary");
        assert!(error.to_string().contains("token id 9"), "{error}");
    }

    #[test]
    fn bad_files_are_named() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("latin1.txt");
        std::fs::write(&path, b"caf\xe9 au lait").expect("write");
        let error = read_text(&path).expect_err("not UTF-8");
        assert!(matches!(&error, EvalError::NotUtf8 { offset: 3, .. }), "{error}");
        assert!(error.to_string().contains("latin1.txt"));
        assert!(matches!(read_text(folder.path()), Err(EvalError::Io { .. })));
        assert!(matches!(read_text(&folder.path().join("absent")), Err(EvalError::Io { .. })));
    }
}
