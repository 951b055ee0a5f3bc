"""Folders of 4-bit weights as bitsandbytes quantizes and stores them, with what torch computes from them.

    python generate.py .        (bitsandbytes 0.50.2, torch 2.15, transformers 5.23)

Logits are those of the dequantized weights in float32. Rows of down_proj have 96 values: scales of 64 cross them. Of each dequantized
matrix the first and the last four rows are kept.
"""

import json, os, sys
import torch
from bitsandbytes.functional import quantize_4bit
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

OUT = sys.argv[1]
IDS = [(7 * i * i + 3 * i + 1) % 96 for i in range(24)]


def dequantized(stored, name):
    """codes, the high half of a byte first -> table · absmax, as the README of the format has it."""
    state = json.loads(bytes(next(v for k, v in stored.items() if k.startswith(name + ".quant_state.")).tolist()))
    packed, absmax = stored[name].flatten(), stored[name + ".absmax"]
    if name + ".nested_absmax" in stored:
        outer = stored[name + ".nested_absmax"].repeat_interleave(state["nested_blocksize"])
        absmax = stored[name + ".nested_quant_map"][absmax.long()] * outer[: absmax.numel()] + state["nested_offset"]
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten().long()
    scale = absmax.float().repeat_interleave(state["blocksize"])[: codes.numel()]
    return (stored[name + ".quant_map"][codes] * scale).reshape(state["shape"])


def case(folder, kind, nested, blocksize):
    torch.manual_seed(11)
    config = LlamaConfig(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=16, max_position_embeddings=128, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).float().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 0, 0.12) if p.dim() > 1 else torch.nn.init.uniform_(p, 0.5, 1.5)
    stored, plain = {}, {}
    for name, value in model.state_dict().items():
        if not name.endswith("proj.weight"):
            value.copy_(value.half().float())
            stored[name] = value.half()
            continue
        packed, state = quantize_4bit(value.half(), blocksize=blocksize, compress_statistics=nested, quant_type=kind)
        stored[name] = packed
        stored.update({f"{name}.{key}": part for key, part in state.as_dict(packed=True).items()})
        value.copy_(dequantized(stored, name))
        plain[name] = torch.cat([value[:4], value[-4:]])
    path = os.path.join(OUT, folder)
    os.makedirs(path, exist_ok=True)
    text = json.loads(config.to_json_string())
    text.update(architectures=["LlamaForCausalLM"], dtype="float16", quantization_config=dict(
        _load_in_4bit=True, _load_in_8bit=False, bnb_4bit_compute_dtype="float32", bnb_4bit_quant_storage="uint8",
        bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=nested, llm_int8_enable_fp32_cpu_offload=False,
        llm_int8_has_fp16_weight=False, llm_int8_skip_modules=None, llm_int8_threshold=6.0, load_in_4bit=True,
        load_in_8bit=False, quant_method="bitsandbytes"))
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump(text, f, indent=1, sort_keys=True)
    save_file({k: v.contiguous() for k, v in stored.items()}, os.path.join(path, "model.safetensors"), {"format": "pt"})
    save_file(plain, os.path.join(path, "dequantized.safetensors"))
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0]
    with open(os.path.join(path, "expected.json"), "w") as f:
        json.dump(dict(ids=IDS, logits=[[float(f"{v:.6g}") for v in row] for row in logits.tolist()]), f)


case("nf4", "nf4", False, 64)
case("nf4-double", "nf4", True, 64)
case("fp4", "fp4", False, 128)

# For the fuzzer: as small as such files are.
os.makedirs(os.path.join(OUT, "seeds"), exist_ok=True)
for kind, nested in [("nf4", False), ("nf4", True), ("fp4", False)]:
    torch.manual_seed(3)
    packed, state = quantize_4bit(torch.randn(4, 64).half(), blocksize=32, compress_statistics=nested, quant_type=kind)
    parts = {"w": packed, **{f"w.{key}": part for key, part in state.as_dict(packed=True).items()}}
    save_file(parts, os.path.join(OUT, "seeds", f"{kind}{'-double' if nested else ''}.safetensors"))
