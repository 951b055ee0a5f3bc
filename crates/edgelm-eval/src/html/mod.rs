//! A report as one HTML page: no scripts, no other files, nothing fetched. Every text from outside is escaped.

pub mod parts;

use crate::{EvalReport, ModelFacts, PairScores, TaskScores};
use parts::{Bar, Escaped, Grouped, Head};
use std::fmt::{self, Display};

/// Examples shown of each list; the figures are over all of them.
const EXAMPLES: usize = 50;

/// What a page shows.
#[derive(Debug, Clone, Copy)]
pub struct ReportPage<'a> {
    /// The model evaluated.
    pub model: &'a ModelFacts,
    /// What it was compared with.
    pub parent: Option<&'a ModelFacts>,
    /// The figures.
    pub report: &'a EvalReport,
    /// Line by line, where a task file was answered.
    pub tasks: Option<&'a TaskScores>,
    /// Line by line, where a pairs file was scored.
    pub pairs: Option<&'a PairScores>,
}

/// The whole page.
pub fn render_html(page: &ReportPage<'_>) -> String {
    Html(page).to_string()
}

struct Html<'a>(&'a ReportPage<'a>);

impl Display for Html<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let page = self.0;
        let name = &page.model.name;
        write!(
            f,
            "{}",
            Head { title: &format!("EdgeLM evaluation: {name}"), heading: &format!("Evaluation of {name}") }
        )?;
        write_facts(f, page)?;
        write_text_figures(f, page.report)?;
        write_tasks(f, page)?;
        write_pairs(f, page)?;
        f.write_str("</body>\n</html>\n")
    }
}

/// The model, and its parent beside it.
fn write_facts(f: &mut fmt::Formatter<'_>, page: &ReportPage<'_>) -> fmt::Result {
    let models: Vec<&ModelFacts> = std::iter::once(page.model).chain(page.parent).collect();
    f.write_str("<h2>Model</h2>\n<table>\n<tr><th></th><th>evaluated</th>")?;
    if page.parent.is_some() {
        f.write_str("<th>parent</th>")?;
    }
    f.write_str("</tr>\n")?;
    let mut row = |label: &str, value: &dyn Fn(&ModelFacts) -> String| {
        write!(f, "<tr><th>{label}</th>")?;
        for model in &models {
            write!(f, "<td>{}</td>", Escaped(&value(model)))?;
        }
        f.write_str("</tr>\n")
    };
    row("name", &|model| model.name.clone())?;
    row("architecture", &|model| model.architecture.clone())?;
    row("storage", &|model| model.storage.clone())?;
    row("parameters", &|model| Grouped(model.parameters).to_string())?;
    row("file size", &|model| format!("{} bytes", Grouped(model.file_bytes)))?;
    row("bits per weight", &|model| format!("{:.2}", model.bits_per_weight))?;
    row("weights in memory", &|model| format!("{} bytes", Grouped(model.weights_bytes as u64)))?;
    row("layers", &|model| model.layers.to_string())?;
    row("vocabulary", &|model| Grouped(model.vocab_size as u64).to_string())?;
    row("context", &|model| Grouped(model.max_position_embeddings as u64).to_string())?;
    row("kernels", &|model| model.isa.clone())?;
    f.write_str("</table>\n")
}

/// Perplexity and divergence.
fn write_text_figures(f: &mut fmt::Formatter<'_>, report: &EvalReport) -> fmt::Result {
    let Some(perplexity) = report.perplexity else { return Ok(()) };
    f.write_str("<h2>Text</h2>\n")?;
    if let (Some(tokens), Some(windows), Some(context)) = (report.tokens_scored, report.windows, report.context) {
        writeln!(
            f,
            "<p class=\"note\">{} tokens scored in {} windows of {}.</p>",
            Grouped(tokens as u64),
            Grouped(windows as u64),
            Grouped(context as u64)
        )?;
    }
    f.write_str("<table>\n")?;
    let error = |value: Option<f64>| value.map(|value| format!(" ± {value:.4}")).unwrap_or_default();
    let mut row = |label: &str, value: String, bar: Option<f64>| {
        write!(f, "<tr><th>{label}</th><td class=\"number\">{value}</td><td>")?;
        if let Some(share) = bar {
            write!(f, "{}", Bar(share))?;
        }
        f.write_str("</td></tr>\n")
    };
    let longest = perplexity.max(report.parent_perplexity.unwrap_or(perplexity));
    let standard_error = error(report.perplexity_standard_error);
    row("perplexity", format!("{perplexity:.4}{standard_error}"), Some(perplexity / longest))?;
    if let Some(parent) = report.parent_perplexity {
        row("perplexity of the parent", format!("{parent:.4}"), Some(parent / longest))?;
        row("change", format!("{:+.2} %", 100.0 * (perplexity / parent - 1.0)), None)?;
    }
    if let Some(kl) = report.kl_divergence {
        let error = report.kl_divergence_standard_error.map(|error| format!(" ± {error:.6}")).unwrap_or_default();
        row("KL divergence (mean)", format!("{kl:.6}{error}"), None)?;
    }
    for (label, value) in [
        ("KL divergence (median)", report.kl_divergence_median),
        ("KL divergence (99th percentile)", report.kl_divergence_p99),
        ("KL divergence (worst)", report.kl_divergence_max),
    ] {
        if let Some(value) = value {
            row(label, format!("{value:.6}"), None)?;
        }
    }
    if let Some(share) = report.top1_agreement {
        row("top-1 agreement", format!("{:.2} %", 100.0 * share), Some(share))?;
    }
    f.write_str("</table>\n")
}

/// Accuracies, and the answers that were wrong.
fn write_tasks(f: &mut fmt::Formatter<'_>, page: &ReportPage<'_>) -> fmt::Result {
    let Some(accuracies) = &page.report.tasks else { return Ok(()) };
    f.write_str(
        "<h2>Tasks</h2>\n<p class=\"note\">Exact match of the trimmed answer, greedy decoding.</p>\n<table>\n",
    )?;
    f.write_str("<tr><th>task</th><th class=\"number\">accuracy</th><th class=\"number\">lines</th><th></th></tr>\n")?;
    for (name, &accuracy) in accuracies {
        let lines = page.tasks.and_then(|tasks| tasks.tasks.get(name)).map(|score| score.total.to_string());
        writeln!(
            f,
            "<tr><td>{}</td><td class=\"number\">{:.1} %</td><td class=\"number\">{}</td><td>{}</td></tr>",
            Escaped(name),
            100.0 * accuracy,
            lines.unwrap_or_default(),
            Bar(accuracy)
        )?;
    }
    f.write_str("</table>\n")?;
    let wrong: Vec<_> =
        page.tasks.iter().flat_map(|tasks| &tasks.results).filter(|result| !result.is_correct).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    write_summary(f, "wrong answers", wrong.len())?;
    f.write_str("<tr><th>line</th><th>task</th><th>expected</th><th>written</th></tr>\n")?;
    for result in wrong.iter().take(EXAMPLES) {
        writeln!(
            f,
            "<tr><td>{}</td><td>{}</td><td class=\"text\">{}</td><td class=\"text wrong\">{}</td></tr>",
            result.line,
            Escaped(&result.task),
            Escaped(&result.answer),
            Escaped(&result.output)
        )?;
    }
    f.write_str("</table>\n</details>\n")
}

/// ROUGE-L and BLEU, and the texts they are of.
fn write_pairs(f: &mut fmt::Formatter<'_>, page: &ReportPage<'_>) -> fmt::Result {
    let (Some(rouge_l), Some(bleu4)) = (page.report.rouge_l, page.report.bleu4) else { return Ok(()) };
    write!(
        f,
        "<h2>Reference texts</h2>\n<table>\n\
         <tr><th>ROUGE-L (F-measure)</th><td class=\"number\">{rouge_l:.4}</td><td>{}</td></tr>\n\
         <tr><th>BLEU-4</th><td class=\"number\">{bleu4:.2}</td><td>{}</td></tr>\n</table>\n",
        Bar(rouge_l),
        Bar(bleu4 / 100.0)
    )?;
    let Some(pairs) = page.pairs.filter(|pairs| !pairs.results.is_empty()) else { return Ok(()) };
    write_summary(f, "texts", pairs.results.len())?;
    f.write_str(
        "<tr><th>line</th><th class=\"number\">ROUGE-L</th><th class=\"number\">BLEU</th><th>reference</th><th>text</th></tr>\n",
    )?;
    for result in pairs.results.iter().take(EXAMPLES) {
        writeln!(
            f,
            "<tr><td>{}</td><td class=\"number\">{:.3}</td><td class=\"number\">{:.1}</td>\
             <td class=\"text\">{}</td><td class=\"text\">{}</td></tr>",
            result.line,
            result.rouge_l,
            result.sentence_bleu,
            Escaped(&result.references.join("\n")),
            Escaped(&result.hypothesis)
        )?;
    }
    f.write_str("</table>\n</details>\n")
}

/// Opens a folded list and its table, and says when not all of it is shown.
fn write_summary(f: &mut fmt::Formatter<'_>, what: &str, count: usize) -> fmt::Result {
    write!(f, "<details>\n<summary>{} {what}", Grouped(count as u64))?;
    if count > EXAMPLES {
        write!(f, ", the first {EXAMPLES} shown")?;
    }
    f.write_str("</summary>\n<table>\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bleu, PairResult, TaskResult, TaskScore};
    use edgelm_engine::FinishReason;
    use std::collections::BTreeMap;

    const HOSTILE: &str = "<script>alert(\"x\")</script>&'\u{0}";

    fn facts() -> ModelFacts {
        ModelFacts {
            name: HOSTILE.to_owned(),
            architecture: "LlamaForCausalLM".to_owned(),
            storage: "gguf".to_owned(),
            parameters: 5_012_345,
            file_bytes: 1000,
            bits_per_weight: 4.5,
            weights_bytes: 999,
            layers: 3,
            vocab_size: 6144,
            max_position_embeddings: 1024,
            isa: "scalar".to_owned(),
        }
    }

    /// Every tag that is opened is closed, in order.
    fn assert_well_formed(html: &str) {
        let mut open = Vec::new();
        for part in html.split('<').skip(1) {
            let tag = part.split('>').next().expect("a tag");
            let name = tag.split([' ', '/']).find(|name| !name.is_empty()).expect("a name");
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "{html}");
            } else if !tag.ends_with('/') && !matches!(name, "!DOCTYPE" | "meta") {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn everything_from_outside_is_escaped() {
        let task = TaskResult {
            line: 1,
            task: HOSTILE.to_owned(),
            answer: HOSTILE.to_owned(),
            output: HOSTILE.to_owned(),
            is_correct: false,
            finish_reason: FinishReason::Stop,
            prompt_tokens: 1,
            completion_tokens: 1,
        };
        let tasks = TaskScores {
            tasks: BTreeMap::from([(HOSTILE.to_owned(), TaskScore { correct: 0, total: 60 })]),
            results: vec![task; 60],
        };
        let pair = PairResult {
            line: 1,
            hypothesis: HOSTILE.to_owned(),
            references: vec![HOSTILE.to_owned()],
            rouge_l: 0.5,
            sentence_bleu: 50.0,
        };
        let bleu = Bleu {
            score: 50.0,
            precisions: [50.0; 4],
            brevity_penalty: 1.0,
            hypothesis_tokens: 1,
            reference_tokens: 1,
        };
        let pairs = PairScores { rouge_l: 0.5, bleu, results: vec![pair] };
        let mut report = EvalReport {
            perplexity: Some(22.0),
            parent_perplexity: Some(20.0),
            tokens_scored: Some(1_048_576),
            windows: Some(1024),
            context: Some(1024),
            kl_divergence: Some(0.012),
            kl_divergence_standard_error: Some(0.0001),
            top1_agreement: Some(0.95),
            ..EvalReport::default()
        };
        report.add_tasks(&tasks);
        report.add_pairs(&pairs);
        let facts = facts();
        let page = ReportPage {
            model: &facts,
            parent: Some(&facts),
            report: &report,
            tasks: Some(&tasks),
            pairs: Some(&pairs),
        };
        let html = render_html(&page);
        assert_well_formed(&html);
        assert!(!html.contains("<script") && !html.contains('\0') && !html.contains("http"));
        assert!(html.contains("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&#39;\u{fffd}"));
        for part in
            ["5,012,345", "1,048,576 tokens", "+10.00 %", "0.012000 ± 0.000100", "60 wrong answers, the first 50"]
        {
            assert!(html.contains(part), "{part} is missing in {html}");
        }
    }

    #[test]
    fn an_empty_report_is_a_page() {
        let (facts, report) = (facts(), EvalReport::default());
        let html = render_html(&ReportPage { model: &facts, parent: None, report: &report, tasks: None, pairs: None });
        assert_well_formed(&html);
        assert!(!html.contains("<h2>Text</h2>") && !html.contains("<h2>Tasks</h2>"));
    }
}
