//! Task accuracy: chats with exact answers.

use crate::{
    EvalError, GenerationLimits, OnProgress, Progress,
    generation::answer,
    jsonl::{Records, take_messages, take_string},
};
use edgelm_engine::{FinishReason, Model};
use edgelm_model::Message;
use std::{
    collections::BTreeMap,
    io::BufRead,
    path::{Path, PathBuf},
};

/// One line of a task file: `{"task", "messages", "answer"}`.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskLine {
    /// From 1.
    pub line: usize,
    /// Name under which it counts.
    pub task: String,
    /// The chat so far.
    pub messages: Vec<Message>,
    /// The one right continuation.
    pub answer: String,
}

/// One line's outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskResult {
    /// From 1.
    pub line: usize,
    /// Name of its task.
    pub task: String,
    /// As in the file.
    pub answer: String,
    /// What the model wrote, untrimmed.
    pub output: String,
    /// The two are equal, white space at both ends aside.
    pub is_correct: bool,
    /// Why the output ends.
    pub finish_reason: FinishReason,
    /// Tokens read.
    pub prompt_tokens: usize,
    /// Tokens written.
    pub completion_tokens: usize,
}

/// Right answers of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TaskScore {
    /// Answered exactly.
    pub correct: usize,
    /// Lines.
    pub total: usize,
}

impl TaskScore {
    /// correct / total.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.total as f64
    }
}

/// Outcome of a task file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TaskScores {
    /// By name.
    pub tasks: BTreeMap<String, TaskScore>,
    /// Line by line.
    pub results: Vec<TaskResult>,
}

impl TaskScores {
    /// Mean of the tasks' accuracies, each task counting the same.
    pub fn mean_accuracy(&self) -> f64 {
        self.tasks.values().map(TaskScore::accuracy).sum::<f64>() / self.tasks.len() as f64
    }
}

/// Lines of a task file, read as they are asked for; `path` is for messages. Other keys than the three are ignored,
/// but those that would change the prompt (`tools` …) are errors. Ends after the first error.
pub fn read_tasks<R: BufRead>(reader: R, path: &Path) -> impl Iterator<Item = Result<TaskLine, EvalError>> {
    task_lines(Records::new(reader, path), path.to_owned())
}

fn task_lines<R: BufRead>(records: Records<R>, path: PathBuf) -> impl Iterator<Item = Result<TaskLine, EvalError>> {
    records.map(move |record| {
        let mut record = record?;
        let mut parse = || -> Result<TaskLine, String> {
            Ok(TaskLine {
                line: record.line,
                task: take_string(&mut record.object, "task")?,
                messages: take_messages(&mut record.object)?,
                answer: take_string(&mut record.object, "answer")?,
            })
        };
        parse().map_err(|what| EvalError::Line { path: path.clone(), line: record.line, what })
    })
}

/// Accuracy of `model` on every task of a file.
/// accuracy = lines whose trimmed output equals the trimmed answer / lines
///
/// Each chat is rendered with the model's template and generation prompt and continued greedily until eos or
/// `limits.max_new_tokens`. `limits.lines` counts per task.
/// Errors: bad lines and lines that do not fit the context (both name file and line), a file without lines, a model
/// without a chat template.
pub fn tasks(
    model: &Model,
    path: &Path,
    limits: &GenerationLimits,
    on_progress: &mut OnProgress<'_>,
) -> Result<TaskScores, EvalError> {
    let mut scores = TaskScores::default();
    let mut correct = 0;
    for line in task_lines(Records::open(path)?, path.to_owned()) {
        let TaskLine { line, task, messages, answer: expected } = line?;
        let score = scores.tasks.entry(task.clone()).or_default();
        if limits.lines.is_some_and(|limit| score.total >= limit) {
            continue;
        }
        let generation = model
            .chat_prompt(&messages)
            .and_then(|prompt| answer(model, &prompt, limits))
            .map_err(|source| EvalError::LineEngine { path: path.to_owned(), line, source })?;
        let is_correct = generation.text.trim() == expected.trim();
        score.total += 1;
        score.correct += usize::from(is_correct);
        correct += usize::from(is_correct);
        on_progress(Progress::Task { task: &task, done: scores.results.len() + 1, correct });
        scores.results.push(TaskResult {
            line,
            task,
            answer: expected,
            output: generation.text,
            is_correct,
            finish_reason: generation.finish_reason,
            prompt_tokens: generation.prompt_tokens,
            completion_tokens: generation.tokens.len(),
        });
    }
    if scores.results.is_empty() {
        return Err(EvalError::Empty { path: path.to_owned() });
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<Result<TaskLine, String>> {
        read_tasks(text.as_bytes(), Path::new("t.jsonl")).map(|line| line.map_err(|error| error.to_string())).collect()
    }

    #[test]
    fn lines_are_parsed_in_order() {
        let got = read(concat!(
            r#"{"task":"intent","messages":[{"role":"user","content":"on"}],"answer":"{}","id":7}"#,
            "\n\n",
            r#"{"task":"intent","messages":[],"answer":""}"#,
        ));
        let first = got[0].as_ref().expect("valid");
        assert_eq!((first.line, first.task.as_str(), first.answer.as_str()), (1, "intent", "{}"));
        assert_eq!(got[1], Err("`t.jsonl` line 3: `messages` is empty".to_owned()));
    }

    #[test]
    fn missing_and_mistyped_keys_are_named() {
        for (text, key) in [
            (r#"{"messages":[{"role":"user"}],"answer":"a"}"#, "`task` is missing"),
            (r#"{"task":"t","answer":"a"}"#, "`messages` is missing"),
            (r#"{"task":"t","messages":[{"role":"user"}],"answer":3}"#, "`answer` is a number"),
        ] {
            let got = read(text);
            assert!(got[0].as_ref().expect_err("invalid").contains(key), "{got:?}");
        }
    }

    #[test]
    fn accuracy_is_averaged_over_tasks() {
        let tasks =
            [("a", 1, 2), ("b", 3, 3)].map(|(name, correct, total)| (name.to_owned(), TaskScore { correct, total }));
        let scores = TaskScores { tasks: BTreeMap::from(tasks), results: Vec::new() };
        assert_eq!(scores.mean_accuracy(), 0.75);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for line in read_tasks(bytes.as_slice(), Path::new("t")) {
                let _ = line;
            }
        }
    }
}
