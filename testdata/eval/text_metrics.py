"""Writes text_metrics.json: ROUGE-L of rouge-score and BLEU-4 of sacrebleu on varied strings.

Made with Python 3.11, rouge-score 0.1.2, sacrebleu 2.6.0, seed 7. Run it in this folder:
    pip install rouge-score==0.1.2 sacrebleu==2.6.0 && python text_metrics.py
"""

import json
import random
from importlib.metadata import version

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

random.seed(7)
scorer = RougeScorer(["rougeL"], use_stemmer=False)
tokenize = Tokenizer13a()

WORDS = (
    "the The a cat dog sat on mat pump-4 turbine-9 exceeds vibration 14.5 mm/s 3,000 1.5e-3 85 C 10% $9.99 "
    "U.S. e.g. don't it's state-of-the-art 12-13 1-2-3 -5 --verbose x=1 {\"a\": [1,2]} foo_bar a.b.c ... ?! (paren) "
    "<skipped> &quot;q&quot; &amp; &lt;tag&gt; &amp;lt; & &unknown; ~ ` ^ | \\ / @home #1 * + ; : "
    "na\u00efve \u00c9t\u00e9 \u00df \u0130stanbul \u212a \u4f60\u597d \u4e16\u754c\u3002 \u0410\u0411\u0412 \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2 "
    "\U0001f600 \u20ac5 \u201cquoted\u201d \u2014 \u2026 1\u00a0000 \u0663.\u0664 \u00b2 caf\u00e9, 7.,8 9., .5 5. ,5 5, 1,000.00"
).split(" ")
SEPARATORS = [" "] * 12 + ["", "  ", "\n", "-\n", "\t", "\u00a0", "\u2028", "\u3000", "\x1c", "\x1f", "\x85", "\r\n", "\x0b", "\u200b"]


def sentence(longest):
    return "".join(random.choice(WORDS) + random.choice(SEPARATORS) for _ in range(random.randint(0, longest)))


def variation(text):
    """The text with some words dropped, swapped or replaced: overlaps of every degree."""
    words = text.split(" ")
    out = []
    for word in words:
        roll = random.random()
        if roll < 0.12:
            continue
        out.append(random.choice(WORDS) if roll < 0.25 else word)
    if len(out) > 2 and random.random() < 0.3:
        i = random.randrange(len(out) - 1)
        out[i], out[i + 1] = out[i + 1], out[i]
    return " ".join(out)


FIXED = [
    ("", [""]),
    ("", ["a b c"]),
    ("a b c", [""]),
    (" \n\t ", ["a"]),
    ("...", ["..."]),
    ("\u4f60\u597d", ["\u4f60\u597d"]),
    ("the cat sat on the mat", ["the cat sat on the mat"]),
    ("the", ["the"]),
    ("the cat", ["the cat"]),
    ("the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"]),
    ("a b c d e", ["a b c d e f g", "a b c"]),
    ("a b c d e", ["a b c", "a b c d e f g"]),
    ("a b c d", ["", "a b c d e", ""]),
    ("line one\nline two", ["line one line two"]),
    ("hyphen-\nated word", ["hyphenated word"]),
    ("<skipped> text", ["text"]),
    ("<skip<skipped>ped>", ["<skipped>"]),
    ("&amp;quot; &amp;amp;", ["&quot; &amp;"]),
    ("1.5 , 1,5 1. 5 a.5 5.a .. ,, ., 1.,2", ["1.5 , 1,5 1. 5 a.5 5.a .. ,, ., 1.,2"]),
    ("1--2 3-a a-3 4-", ["1--2 3-a a-3 4-"]),
    ("trailing period .", ["trailing period."]),
    ("Case Matters Here Too", ["case matters here too"]),
    ("e.g., i.e., U.S.A., etc.", ["e.g., i.e., U.S.A., etc."]),
]

pairs = list(FIXED)
while len(pairs) < 260:
    base = sentence(14)
    references = [variation(base) if random.random() < 0.85 else sentence(10) for _ in range(random.choice([1, 1, 1, 2, 3]))]
    if random.random() < 0.5:
        base, references[0] = references[0], base
    pairs.append((base, references))

cases = []
for hypothesis, references in pairs:
    rouge = scorer.score_multi(references, hypothesis)["rougeL"]
    bleu = sacrebleu.sentence_bleu(hypothesis, references)
    cases.append(
        {
            "hypothesis": hypothesis,
            "references": references,
            "tokens": tokenize(hypothesis.rstrip()),
            "rouge_l": [float(rouge.precision), float(rouge.recall), float(rouge.fmeasure)],
            "sentence_bleu": bleu.score,
        }
    )


def corpus(start, end):
    part = pairs[start:end]
    most = max(len(references) for _, references in part)
    streams = [[references[i] if i < len(references) else None for _, references in part] for i in range(most)]
    bleu = BLEU().corpus_score([hypothesis for hypothesis, _ in part], streams)
    return {
        "start": start,
        "end": end,
        "bleu": bleu.score,
        "precisions": bleu.precisions,
        "brevity_penalty": bleu.bp,
        "hypothesis_tokens": bleu.sys_len,
        "reference_tokens": bleu.ref_len,
    }


corpora = [corpus(0, len(pairs)), corpus(0, 23), corpus(0, 1), corpus(1, 4), corpus(6, 9), corpus(9, 13), corpus(23, 140), corpus(140, 260)]

document = {
    "made_with": {name: version(name) for name in ("rouge-score", "sacrebleu")} | {"script": "text_metrics.py", "seed": 7},
    "cases": cases,
    "corpora": corpora,
}
with open("text_metrics.json", "w", encoding="utf-8") as file:
    json.dump(document, file, ensure_ascii=False, separators=(",", ":"))
    file.write("\n")
