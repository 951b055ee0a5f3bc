//! ROUGE-L and BLEU-4 against rouge-score and sacrebleu (`testdata/eval/text_metrics.py`).
#![allow(clippy::unwrap_used, missing_docs)]

use edgelm_eval::{Bleu, corpus_bleu, rouge_l_multi, sentence_bleu, tokenize_13a};
use serde_json::Value;

const FIXTURE: &str = include_str!("../../../testdata/eval/text_metrics.json");

struct Case {
    hypothesis: String,
    references: Vec<String>,
    golden: Value,
}

fn cases(fixture: &Value) -> Vec<Case> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let cases = fixture["cases"].as_array().unwrap();
    cases
        .iter()
        .map(|case| Case {
            hypothesis: text(&case["hypothesis"]),
            references: case["references"].as_array().unwrap().iter().map(text).collect(),
            golden: case.clone(),
        })
        .collect()
}

fn assert_close(got: f64, want: &Value, what: &str) {
    let want = want.as_f64().unwrap();
    assert!((got - want).abs() < 1e-9, "{what}: {got}, expected {want}");
}

#[test]
fn every_case_agrees() {
    let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
    let cases = cases(&fixture);
    assert!(cases.len() >= 250);
    for (index, case) in cases.iter().enumerate() {
        let what = format!("case {index}: {:?} against {:?}", case.hypothesis, case.references);
        assert_eq!(tokenize_13a(&case.hypothesis).join(" "), case.golden["tokens"].as_str().unwrap(), "{what}");
        let rouge = rouge_l_multi(&case.hypothesis, &case.references);
        for (got, want) in [rouge.precision, rouge.recall, rouge.f_measure].into_iter().zip(0..) {
            assert_close(got, &case.golden["rouge_l"][want], &what);
        }
        assert_close(sentence_bleu(&case.hypothesis, &case.references).score, &case.golden["sentence_bleu"], &what);
    }
}

#[test]
fn every_corpus_agrees() {
    let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
    let cases = cases(&fixture);
    for corpus in fixture["corpora"].as_array().unwrap() {
        let bound = |key: &str| corpus[key].as_u64().unwrap() as usize;
        let part = &cases[bound("start")..bound("end")];
        let bleu: Bleu = corpus_bleu(part.iter().map(|case| (case.hypothesis.as_str(), case.references.as_slice())));
        let what = format!("cases {}..{}", bound("start"), bound("end"));
        assert_close(bleu.score, &corpus["bleu"], &what);
        assert_close(bleu.brevity_penalty, &corpus["brevity_penalty"], &what);
        for (n, precision) in bleu.precisions.into_iter().enumerate() {
            assert_close(precision, &corpus["precisions"][n], &what);
        }
        assert_eq!(bleu.hypothesis_tokens, corpus["hypothesis_tokens"].as_u64().unwrap(), "{what}");
        assert_eq!(bleu.reference_tokens, corpus["reference_tokens"].as_u64().unwrap(), "{what}");
    }
}
