//! Quality of a model: perplexity, KL divergence from a parent, task accuracy, ROUGE-L and BLEU-4, and reports of them.
//!
//! Separate because quality gates, the recipe runner and the command line all need the same figures, computed one way.
//! Must not print, choose files, or compute anything a model could compute itself.

mod bleu;
mod divergence;
mod generation;
mod html;
mod jsonl;
mod pairs;
mod perplexity;
mod progress;
mod report;
mod rouge;
mod rows;
mod softmax;
mod tasks;
mod windows;

pub use bleu::{Bleu, BleuStats, corpus_bleu, sentence_bleu, tokenize_13a};
pub use divergence::{Divergence, KlDivergence, divergence};
pub use generation::GenerationLimits;
pub use html::{ReportPage, parts as html_parts, render_html};
pub use jsonl::MAX_LINE_BYTES;
pub use pairs::{PairInput, PairLine, PairResult, PairScores, pairs, read_pairs};
pub use perplexity::{Foreign, Perplexity, perplexity, perplexity_of};
pub use progress::{OnProgress, Progress};
pub use report::{EvalReport, ModelFacts};
pub use rouge::{RougeScore, rouge_l, rouge_l_multi};
pub use tasks::{TaskLine, TaskResult, TaskScore, TaskScores, read_tasks, tasks};
pub use windows::{MAX_TEXT_BYTES, WindowOptions, read_text};

use std::path::PathBuf;

/// Why no figure came out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The model refused.
    #[error(transparent)]
    Engine(#[from] edgelm_engine::EngineError),
    /// The tokenizer or the chat template refused.
    #[error(transparent)]
    Model(#[from] edgelm_model::ModelError),
    /// A file that cannot be read.
    #[error("`{path}` cannot be read")]
    Io {
        /// File.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is not text.
    #[error("`{path}` is not UTF-8 text (first bad byte at offset {offset})")]
    NotUtf8 {
        /// File.
        path: PathBuf,
        /// Of the first byte that belongs to no character.
        offset: usize,
    },
    /// A file beyond the limit.
    #[error("`{path}` is larger than the limit of {limit_bytes} bytes")]
    FileTooLarge {
        /// File.
        path: PathBuf,
        /// Limit.
        limit_bytes: u64,
    },
    /// A line of a JSON Lines file that means nothing here.
    #[error("`{path}` line {line}: {what}")]
    Line {
        /// File.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A line that the model could not work through.
    #[error("`{path}` line {line}")]
    LineEngine {
        /// File.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Why.
        source: edgelm_engine::EngineError,
    },
    /// A file without a single line to evaluate.
    #[error("`{path}` holds nothing to evaluate")]
    Empty {
        /// File.
        path: PathBuf,
    },
    /// A text that does not fill one window.
    #[error("the text has {tokens} tokens and one window needs {context}")]
    TooShort {
        /// In the text.
        tokens: usize,
        /// C.
        context: usize,
    },
    /// An option out of range.
    #[error("`{option}`: {what}")]
    Option {
        /// Field name.
        option: &'static str,
        /// What is wrong.
        what: String,
    },
    /// A model with neither a bos nor an eos token: its windows have no first input.
    #[error("the model has neither a bos nor an eos token to begin a window with")]
    NoFirstToken,
    /// Two models that do not speak of the same tokens.
    #[error("the models cannot be compared: {what}")]
    Vocabulary {
        /// Where they differ.
        what: String,
    },
    /// NaN or infinity among the logits.
    #[error("`{model}` gave logits that are not finite at position {position} of window {window}")]
    NonFinite {
        /// Name of the model.
        model: String,
        /// From 0.
        window: usize,
        /// In the window, from 0.
        position: usize,
    },
}
