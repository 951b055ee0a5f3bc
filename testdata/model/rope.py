#!/usr/bin/env python3
"""Rotary frequencies as transformers computes them, for several configs.

    python rope.py > rope.json

Made with transformers 5.23.0 and torch 2.15. Nothing is random. Each case: the keys that differ from the base config
below, the length of the whole input, the inverse frequencies and the factor on cos and sin.
"""

import json

import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

BASE = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 10,
    "max_position_embeddings": 4096,
}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES = [
    ({"rope_theta": 10000.0}, 1),
    ({"rope_theta": 1000000.0, "head_dim": 128}, 1),
    ({"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.5}}, 1),
    ({"rope_theta": 10000.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 100),
    ({"rope_theta": 10000.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 4097),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 500.0}, "head_dim": 10}, 30000),
    ({"rope_theta": 500000.0, "head_dim": 64, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192}}, 1),
    ({"rope_theta": 500000.0, "head_dim": 128, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 512}}, 1),
    ({"rope_theta": 500.0, "head_dim": 22, "rope_scaling": LLAMA3}, 1),
    ({"rope_theta": 1000000.0, "head_dim": 128,
      "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, 1),
    ({"rope_theta": 10000.0, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 1),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0,
      "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096}, "head_dim": 64}, 1),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "mscale": 0.707,
      "mscale_all_dim": 1.0, "beta_fast": 16, "beta_slow": 2, "original_max_position_embeddings": 100}}, 1),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "mscale": 1.0,
      "mscale_all_dim": 0.0, "beta_fast": 0, "original_max_position_embeddings": 100}}, 1),
    ({"rope_theta": 10000.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.8}}, 1),
    ({"rope_theta": 3.0, "head_dim": 6, "rope_scaling":
      {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 7}}, 1),
    ({"rope_theta": 10000.0, "rope_scaling": {"type": "yarn", "factor": 0.5}}, 1),
]


def main():
    out = []
    for keys, total_len in CASES:
        config = LlamaConfig(**json.loads(json.dumps(BASE | keys)))
        rope_type = config.rope_parameters["rope_type"]
        if rope_type == "default":
            freq, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        else:
            freq, factor = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), seq_len=total_len)
        out.append({"config": BASE | keys, "total_len": total_len, "inv_freq": freq.tolist(), "attention_factor": factor})
    print("[\n" + ",\n".join(json.dumps(case) for case in out) + "\n]")


main()
