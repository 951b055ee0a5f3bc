//! A document longer than the context, in overlapping windows: one answer per window.

use super::{Frame, stream, summary, with_model_limit};
use crate::{failure::Usage, options::Global, output};
use edgelm_engine::GenerateOptions;
use serde_json::json;

/// Asks `question` of every window of `window` document tokens, `stride` apart.
#[allow(clippy::too_many_arguments)]
pub(super) fn run(
    frame: &Frame<'_>,
    question: &str,
    document: &str,
    window: usize,
    stride: usize,
    options: &GenerateOptions,
    load_ms: f64,
    global: &Global,
) -> anyhow::Result<()> {
    if stride > window {
        return Err(Usage(format!("--stride {stride} leaves gaps between windows of {window}")).into());
    }
    let tokenizer = frame.model.tokenizer()?;
    let tokens = tokenizer.encode(document, false)?;
    let spans = spans(tokens.len(), window, stride);
    let mut answers = Vec::new();
    for (index, span) in spans.iter().enumerate() {
        // A window may begin or end inside a character: that part belongs to its neighbour.
        let text = tokenizer.decode(&tokens[span.clone()], false)?;
        let text = text.trim_matches('\u{fffd}');
        let text = if question.is_empty() { text.to_owned() } else { format!("{question}\n\n{text}") };
        let prompt = frame.prompt(&text)?;
        if crate::interrupt::is_requested() {
            break;
        }
        if !global.json {
            global.note(format!("window {} of {}: tokens {} to {}", index + 1, spans.len(), span.start, span.end));
        }
        let options = with_model_limit(frame.model, prompt.len(), options);
        let generation = stream(frame.model, &prompt, &options, !global.json)?;
        if global.json {
            let mut answer = summary(&generation, load_ms);
            answer["window"] = json!([span.start, span.end]);
            answers.push(answer);
        } else {
            output::line("")?;
        }
    }
    if global.json {
        let texts: Vec<&str> = answers.iter().filter_map(|answer| answer["text"].as_str()).collect();
        let sum = |key: &str| answers.iter().filter_map(|answer| answer[key].as_u64()).sum::<u64>();
        return output::json(&json!({
            "text": texts.join("\n"),
            "document_tokens": tokens.len(),
            "prompt_tokens": sum("prompt_tokens"),
            "completion_tokens": sum("completion_tokens"),
            "load_ms": load_ms,
            "peak_rss_bytes": crate::machine::peak_rss_bytes(),
            "windows": answers,
        }));
    }
    Ok(())
}

/// Windows that cover `0..len`, each `window` long but the last, which ends with the document.
fn spans(len: usize, window: usize, stride: usize) -> Vec<std::ops::Range<usize>> {
    let mut spans = Vec::new();
    let mut start = 0;
    while start < len {
        let end = (start + window).min(len);
        spans.push(start..end);
        if end == len {
            break;
        }
        start += stride;
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::spans;

    #[test]
    fn windows_overlap_and_cover_everything() {
        assert_eq!(spans(10, 4, 3), [0..4, 3..7, 6..10]);
        assert_eq!(spans(11, 4, 3), [0..4, 3..7, 6..10, 9..11]);
        assert_eq!(spans(3, 4, 3), vec![0..3; 1]);
        assert_eq!(spans(4, 4, 4), vec![0..4; 1]);
        assert!(spans(0, 4, 3).is_empty());
    }
}
