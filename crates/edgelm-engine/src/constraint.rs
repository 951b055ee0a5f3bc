//! Constrained output: tokens that would leave a grammar cannot be picked.
//!
//! A [`Constraint`] says what an answer must be, [`Grammars`] compiles it for the vocabulary of one model, and a
//! [`Guide`] follows one generation. It fails closed: what cannot be enforced (a keyword without an implementation, a
//! grammar that takes too much work) is an error, never an answer that was not checked. Compiling and masking are
//! `llguidance`'s: an Earley parser over lexemes that are regular expressions with derivatives.

mod endless;
mod schema;

use crate::EngineError;
use edgelm_model::{ModelConfig, TokenBytes, Tokenizer};
use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    earley::SlicedBiasComputer,
    toktrie::{InferenceCapabilities, TokRxInfo, TokTrie, TokenId, TokenizerEnv},
};
pub use schema::schema_with_options;
use serde_json::{Value, json};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// What an answer must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Constraint {
    /// JSON that validates against a schema.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of a context-free grammar in the Lark-like syntax of `llguidance`, from its rule `start`.
    Lark(String),
}

impl Constraint {
    fn grammar(&self) -> Result<TopLevelGrammar, EngineError> {
        Ok(match self {
            Self::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema_with_options(schema)?),
            Self::JsonObject => TopLevelGrammar::from_json_schema(schema_with_options(&json!({"type": "object"}))?),
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Choice(texts) if texts.is_empty() => {
                return Err(EngineError::Constraint("there is nothing to choose from".into()));
            }
            Self::Choice(texts) => {
                // Lark strings are JSON strings.
                let quoted: Vec<String> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", quoted.join(" | ")))
            }
            Self::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        })
    }
}

/// Compiles constraints for one model.
pub struct Grammars(ParserFactory);

impl Grammars {
    /// Learns the vocabulary: a trie of the bytes of all tokens, and how they split into classes that grammars often ask for.
    ///
    /// # Errors
    /// A tokenizer whose tokens have no bytes of their own.
    pub fn new(tokenizer: &Tokenizer, config: &ModelConfig) -> Result<Self, EngineError> {
        let words: Vec<Vec<u8>> = tokenizer
            .token_bytes(config.vocab_size)?
            .into_iter()
            .map(|token| match token {
                TokenBytes::None => Vec::new(),
                TokenBytes::Text(bytes) => bytes,
                // A byte that no text has keeps control tokens apart from texts that look like them.
                TokenBytes::Special(name) => [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat(),
            })
            .collect();
        let vocab_size = u32::try_from(words.len()).unwrap_or(u32::MAX);
        let ends: Vec<TokenId> = config.eos_token_ids.iter().copied().filter(|&id| id < vocab_size).collect();
        let no_end = llguidance::toktrie::INVALID_TOKEN;
        let mut trie = TokTrie::from(&TokRxInfo::new(vocab_size, ends.first().copied().unwrap_or(no_end)), &words);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(&ends);
        }
        let environment: llguidance::toktrie::TokEnv = Arc::new(Vocabulary(trie));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&environment, InferenceCapabilities::default(), &slices).map_err(constraint_error)?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self(factory))
    }

    /// Compiles a constraint.
    ///
    /// # Errors
    /// [`EngineError::Constraint`], naming what cannot be enforced.
    pub fn compile(&self, constraint: &Constraint) -> Result<Grammar, EngineError> {
        let mut matcher = Matcher::new(self.0.create_parser(constraint.grammar()?));
        if let Some(error) = matcher.get_error() {
            return Err(constraint_error(error));
        }
        // What the library only warns about, it does not enforce.
        if let Some(warning) = matcher.grammar_warnings().into_iter().next() {
            return Err(constraint_error(warning));
        }
        // A grammar that no text can satisfy, or whose first step is too much work, shows here and not half way.
        matcher.deep_clone().compute_mask_or_eos().map_err(constraint_error)?;
        Ok(Grammar(Arc::new(Mutex::new(matcher))))
    }
}

/// The trie as an environment. Tokens are never forced: text that a grammar determines may be split as the model likes,
/// so that no assumption about how a tokenizer would split it can be wrong.
struct Vocabulary(TokTrie);

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(text)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

/// A compiled constraint; cheap to clone, good for any number of generations.
#[derive(Clone)]
pub struct Grammar(Arc<Mutex<Matcher>>);

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grammar")
    }
}

impl Grammar {
    /// Begins a generation.
    pub fn guide(&self) -> Guide {
        // Nothing that panics ever holds the lock with the matcher half changed: it is only cloned.
        Guide(self.0.lock().unwrap_or_else(PoisonError::into_inner).deep_clone())
    }
}

/// Where one generation is in its grammar.
pub struct Guide(Matcher);

impl Guide {
    /// Makes the tokens that may not come next impossible: their logits become -∞. Ends of sequence may come only where
    /// the text is complete.
    ///
    /// # Errors
    /// [`EngineError::Constraint`] where the work for this step goes beyond the limits.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), EngineError> {
        let allowed = self.0.compute_mask_or_eos().map_err(constraint_error)?;
        for (token, logit) in (0u32..).zip(logits) {
            if !allowed.is_allowed(token) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Takes the token that was picked. True where nothing can follow: the text is complete.
    ///
    /// # Errors
    /// [`EngineError::Constraint`] for a token that `mask` had excluded.
    pub fn accept(&mut self, token: u32) -> Result<bool, EngineError> {
        self.0.consume_token(token).map_err(constraint_error)?;
        Ok(self.0.is_stopped())
    }
}

/// The library's reason, in one line: where it has caught a panic of its own, a backtrace follows.
fn constraint_error(error: impl fmt::Display) -> EngineError {
    let text = error.to_string();
    let reason = text.split_once("<backtrace>").map_or(text.as_str(), |(reason, _)| reason);
    EngineError::Constraint(reason.split_whitespace().collect::<Vec<_>>().join(" "))
}
