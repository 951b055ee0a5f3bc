"""Writes mica_tasks.jsonl and mica.json: what transformers (f32, CPU) gives for the built-in model mica-5m.

Made with Python 3.11; versions are in mica.json. Run it in this folder, with the folder of shared data as argument:
    python mica.py SHARED

The comparison is with a coarser copy of the model: the low four bits of every bf16 weight cleared.
"""

import json
import math
import sys
from importlib.metadata import version
from pathlib import Path

import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

shared = Path(sys.argv[1])
model_folder = Path("../../crates/edgelm/assets/mica-5m")
BOS, EOS, CONTEXT, NEW_TOKENS = 0, 2, 128, 128

torch.manual_seed(0)
raw = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
chat = AutoTokenizer.from_pretrained(model_folder)
parent = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
coarse = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
with torch.no_grad():
    for parameter in coarse.parameters():
        bits = parameter.data.to(torch.bfloat16).view(torch.int16)
        parameter.data.copy_((bits & ~0xF).view(torch.bfloat16).float())

chosen, seen = [], {}
for line in (shared / "data/tasks-eval.jsonl").read_text().splitlines():
    task = json.loads(line)["task"]
    if seen.setdefault(task, 0) < 4:
        seen[task] += 1
        chosen.append(line)
Path("mica_tasks.jsonl").write_text("\n".join(chosen) + "\n")
tasks = [json.loads(line) for line in chosen]


@torch.no_grad()
def log_probabilities(model, window):
    return model(torch.tensor([[BOS] + window[:-1]])).logits[0].double().log_softmax(-1)


def score(text, context, limit=None):
    ids = raw.encode(text, add_special_tokens=False).ids
    windows = [ids[i : i + context] for i in range(0, len(ids) - context + 1, context)][:limit]
    nll, coarse_nll, kl, same = [], [], [], []
    for window in windows:
        p, q = log_probabilities(parent, window), log_probabilities(coarse, window)
        target = torch.tensor(window)[:, None]
        nll.append(-p.gather(1, target).flatten())
        coarse_nll.append(-q.gather(1, target).flatten())
        kl.append((p.exp() * (p - q)).sum(-1))
        same.append((p.argmax(-1) == q.argmax(-1)).double())
    nll, coarse_nll, kl, same = (torch.cat(values) for values in (nll, coarse_nll, kl, same))
    n = len(nll)
    return {
        "tokens": len(ids),
        "tokens_scored": n,
        "context": context,
        "perplexity": math.exp(nll.mean()),
        "coarse_perplexity": math.exp(coarse_nll.mean()),
        "kl_divergence": float(kl.mean()),
        "kl_standard_error": float(kl.std() / math.sqrt(n)),
        "kl_max": float(kl.max()),
        "top1_agreement": float(same.mean()),
    }


@torch.no_grad()
def generate(messages):
    text = chat.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = [BOS] + raw.encode(text, add_special_tokens=False).ids
    prompt, margin = len(ids), math.inf
    while len(ids) - prompt < NEW_TOKENS:
        best = parent(torch.tensor([ids])).logits[0, -1].topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        token = int(best.indices[0])
        if token == EOS:
            break
        ids.append(token)
    return raw.decode(ids[prompt:], skip_special_tokens=True), margin


# The text of the tasks file: every message and answer, each followed by a line break.
text = "".join(part + "\n" for task in tasks for part in [m["content"] for m in task["messages"]] + [task["answer"]])
outputs = [generate(task["messages"]) for task in tasks]
rouge = RougeScorer(["rougeL"], use_stemmer=False)
answers = [task["answer"] for task in tasks]
document = {
    "made_with": {name: version(name) for name in ("torch", "transformers", "tokenizers", "rouge-score", "sacrebleu")},
    "text": score(text, CONTEXT),
    "wikitext2_test_2_windows": score((shared / "data/wikitext2-test.txt").read_text(encoding="utf-8"), 1024, 2),
    "outputs": [{"text": text, "correct": text.strip() == answer.strip(), "min_margin": round(margin, 4)} for (text, margin), answer in zip(outputs, answers)],
    "rouge_l": sum(float(rouge.score(a, o)["rougeL"].fmeasure) for a, (o, _) in zip(answers, outputs)) / len(answers),
    "bleu4": sacrebleu.corpus_bleu([o for o, _ in outputs], [answers]).score,
}
Path("mica.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
