//! Texts against reference texts: ROUGE-L and BLEU-4 of a file of pairs.

use crate::{
    Bleu, BleuStats, EvalError, GenerationLimits, OnProgress, Progress,
    generation::answer,
    jsonl::{Record, Records, kind, take_messages, take_string},
    rouge_l_multi, sentence_bleu,
};
use edgelm_engine::{EngineError, Model};
use edgelm_model::Message;
use serde_json::{Map, Value};
use std::{
    io::BufRead,
    path::{Path, PathBuf},
};

const REFERENCE_KEYS: [&str; 3] = ["reference", "references", "answer"];
const HYPOTHESIS_KEYS: [&str; 3] = ["prediction", "hypothesis", "candidate"];

/// Where the text to judge comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum PairInput {
    /// It is in the file: `prediction`, `hypothesis` or `candidate`.
    Hypothesis(String),
    /// The model continues this raw text: `prompt`.
    Prompt(String),
    /// The model answers this chat: `messages`.
    Messages(Vec<Message>),
}

/// One line of a pairs file.
#[derive(Debug, Clone, PartialEq)]
pub struct PairLine {
    /// From 1.
    pub line: usize,
    /// What to judge.
    pub input: PairInput,
    /// What it is judged by, at least one: `reference`, `references` or `answer`.
    pub references: Vec<String>,
}

/// One line's outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct PairResult {
    /// From 1.
    pub line: usize,
    /// From the file or the model.
    pub hypothesis: String,
    /// As in the file.
    pub references: Vec<String>,
    /// F-measure, 0 to 1.
    pub rouge_l: f64,
    /// 0 to 100.
    pub sentence_bleu: f64,
}

/// Outcome of a pairs file.
#[derive(Debug, Clone, PartialEq)]
pub struct PairScores {
    /// Mean over lines of the F-measure, 0 to 1.
    pub rouge_l: f64,
    /// Of the whole file as one corpus, 0 to 100.
    pub bleu: Bleu,
    /// Line by line.
    pub results: Vec<PairResult>,
}

/// The one key of several that a line has, if any; two are ambiguous.
fn one_of(object: &Map<String, Value>, keys: [&'static str; 3]) -> Result<Option<&'static str>, String> {
    let mut present = keys.into_iter().filter(|&key| object.contains_key(key));
    match (present.next(), present.next()) {
        (Some(first), Some(second)) => Err(format!("both `{first}` and `{second}` are given")),
        (first, _) => Ok(first),
    }
}

fn take_references(object: &mut Map<String, Value>) -> Result<Vec<String>, String> {
    let key = one_of(object, REFERENCE_KEYS)?
        .ok_or_else(|| format!("no reference: one of `{}` is needed", REFERENCE_KEYS.join("`, `")))?;
    match object.remove(key) {
        Some(Value::String(text)) => Ok(vec![text]),
        Some(Value::Array(items)) if items.is_empty() => Err(format!("`{key}` is empty")),
        Some(Value::Array(items)) => items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(text),
                other => Err(format!("`{key}` holds {}, expected strings", kind(&other))),
            })
            .collect(),
        other => {
            Err(format!("`{key}` is {}, expected a string or a list of strings", kind(&other.unwrap_or_default())))
        }
    }
}

fn parse(record: Record) -> Result<PairLine, String> {
    let Record { line, mut object } = record;
    let references = take_references(&mut object)?;
    let input = if let Some(key) = one_of(&object, HYPOTHESIS_KEYS)? {
        PairInput::Hypothesis(take_string(&mut object, key)?)
    } else {
        match (object.contains_key("prompt"), object.contains_key("messages")) {
            (true, true) => return Err("both `prompt` and `messages` are given".to_owned()),
            (true, false) => PairInput::Prompt(take_string(&mut object, "prompt")?),
            (false, true) => PairInput::Messages(take_messages(&mut object)?),
            (false, false) => {
                let keys = HYPOTHESIS_KEYS.join("`, `");
                return Err(format!("nothing to judge: one of `{keys}`, `prompt`, `messages` is needed"));
            }
        }
    };
    Ok(PairLine { line, input, references })
}

/// Lines of a pairs file, read as they are asked for; `path` is for messages. A finished hypothesis goes before a prompt
/// on the same line. Ends after the first error.
pub fn read_pairs<R: BufRead>(reader: R, path: &Path) -> impl Iterator<Item = Result<PairLine, EvalError>> {
    pair_lines(Records::new(reader, path), path.to_owned())
}

fn pair_lines<R: BufRead>(records: Records<R>, path: PathBuf) -> impl Iterator<Item = Result<PairLine, EvalError>> {
    records.map(move |record| {
        let record = record?;
        let line = record.line;
        parse(record).map_err(|what| EvalError::Line { path: path.clone(), line, what })
    })
}

/// Text to judge by way of the model.
fn generate(model: &Model, input: PairInput, limits: &GenerationLimits) -> Result<String, EngineError> {
    let prompt = match input {
        PairInput::Hypothesis(text) => return Ok(text),
        PairInput::Prompt(text) => model.tokenizer()?.encode_prompt(&text)?,
        PairInput::Messages(messages) => model.chat_prompt(&messages)?,
    };
    answer(model, &prompt, limits).map(|generation| generation.text)
}

/// ROUGE-L and BLEU-4 of a file of pairs.
/// ROUGE-L: F-measure against the best reference of each line, plain mean over lines. BLEU: of all lines as one corpus.
///
/// Lines without a finished hypothesis are generated greedily, at most `limits.max_new_tokens` each; only they need
/// `model`. Errors: bad lines and lines that the model cannot answer (both name file and line), a file without lines.
pub fn pairs(
    model: Option<&Model>,
    path: &Path,
    limits: &GenerationLimits,
    on_progress: &mut OnProgress<'_>,
) -> Result<PairScores, EvalError> {
    let mut results = Vec::new();
    let mut stats = BleuStats::default();
    for pair in pair_lines(Records::open(path)?, path.to_owned()).take(limits.lines.unwrap_or(usize::MAX)) {
        let PairLine { line, input, references } = pair?;
        let hypothesis = match (input, model) {
            (PairInput::Hypothesis(text), _) => text,
            (input, Some(model)) => generate(model, input, limits).map_err(|source| EvalError::LineEngine {
                path: path.to_owned(),
                line,
                source,
            })?,
            (_, None) => {
                let what = "a model is needed to write the hypothesis".to_owned();
                return Err(EvalError::Line { path: path.to_owned(), line, what });
            }
        };
        stats.add(&hypothesis, &references);
        results.push(PairResult {
            line,
            rouge_l: rouge_l_multi(&hypothesis, &references).f_measure,
            sentence_bleu: sentence_bleu(&hypothesis, &references).score,
            hypothesis,
            references,
        });
        on_progress(Progress::Pair { done: results.len() });
    }
    if results.is_empty() {
        return Err(EvalError::Empty { path: path.to_owned() });
    }
    let rouge_l = results.iter().map(|result| result.rouge_l).sum::<f64>() / results.len() as f64;
    Ok(PairScores { rouge_l, bleu: stats.score(false), results })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<PairLine, String> {
        read_pairs(text.as_bytes(), Path::new("p.jsonl")).next().expect("a line").map_err(|error| error.to_string())
    }

    #[test]
    fn every_shape_is_understood() {
        let hypothesis = |text: &str| PairInput::Hypothesis(text.to_owned());
        let message = serde_json::json!({"role": "user", "content": "q"});
        for (text, input, references) in [
            (r#"{"reference":"r","prediction":"h"}"#, hypothesis("h"), &["r"][..]),
            (r#"{"references":["r","s"],"hypothesis":"","id":1}"#, hypothesis(""), &["r", "s"]),
            (r#"{"answer":"","candidate":"h","prompt":"p"}"#, hypothesis("h"), &[""]),
            (r#"{"reference":["r"],"prompt":"p"}"#, PairInput::Prompt("p".to_owned()), &["r"]),
            (
                r#"{"task":"t","answer":"r","messages":[{"role":"user","content":"q"}]}"#,
                PairInput::Messages(vec![message]),
                &["r"],
            ),
        ] {
            let got = read(text).expect(text);
            assert_eq!(got, PairLine { line: 1, input, references: references.iter().map(|&r| r.into()).collect() });
        }
    }

    #[test]
    fn unknown_shapes_name_file_and_line() {
        for (text, what) in [
            (r#"{"prediction":"h"}"#, "no reference"),
            (r#"{"reference":"r"}"#, "nothing to judge"),
            (r#"{"reference":"r","answer":"r","prediction":"h"}"#, "both `reference` and `answer`"),
            (r#"{"reference":"r","prediction":"h","candidate":"h"}"#, "both `prediction` and `candidate`"),
            (r#"{"reference":"r","prompt":"p","messages":[]}"#, "both `prompt` and `messages`"),
            (r#"{"reference":[],"prediction":"h"}"#, "`reference` is empty"),
            (r#"{"reference":[1],"prediction":"h"}"#, "`reference` holds a number"),
            (r#"{"reference":null,"prediction":"h"}"#, "`reference` is null"),
            (r#"{"reference":"r","prediction":["h"]}"#, "`prediction` is a list"),
            (r#"{"reference":"r","prompt":3}"#, "`prompt` is a number"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.starts_with("`p.jsonl` line 1: ") && error.contains(what), "{error}");
        }
    }

    #[test]
    fn a_file_is_scored_without_a_model() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("pairs.jsonl");
        let text = "{\"reference\":\"the cat sat on the mat\",\"prediction\":\"the cat sat on the mat\"}\n\
                    {\"references\":[\"x\",\"a dog\"],\"prediction\":\"a b\"}\n{\"reference\":\"r\",\"prompt\":\"p\"}\n";
        std::fs::write(&path, text).expect("write");
        let mut seen = 0;
        let limits = GenerationLimits { lines: Some(2), ..GenerationLimits::default() };
        let got = pairs(None, &path, &limits, &mut |_| seen += 1).expect("scores");
        assert_eq!((seen, got.results.len()), (2, 2));
        assert_eq!(got.rouge_l, 0.75);
        let error = pairs(None, &path, &GenerationLimits::default(), &mut |_| ()).expect_err("needs a model");
        assert!(error.to_string().contains("line 3"), "{error}");
        std::fs::write(&path, "\n").expect("write");
        assert!(matches!(pairs(None, &path, &limits, &mut |_| ()), Err(EvalError::Empty { .. })));
    }

    proptest! {
        #[test]
        fn any_text_is_scored_without_panic(hypothesis in any::<String>(), reference in any::<String>()) {
            let rouge = rouge_l_multi(&hypothesis, &[&reference]).f_measure;
            let bleu = sentence_bleu(&hypothesis, &[&reference]).score;
            prop_assert!((0.0..=1.0).contains(&rouge) && (0.0..=100.1).contains(&bleu));
        }
    }
}
