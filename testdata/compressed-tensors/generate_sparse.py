"""A folder of 2:4 sparse weights as compressed-tensors stored them up to 0.12: int8 in attention, floats in the FFN.

    python generate_sparse.py .     (compressed-tensors 0.10.2 for the bitmasks, torch 2.15, transformers 5.23)

Logits are those of the dequantized weights in float32; of each dequantized matrix the first and the last four rows are kept.
"""

import json, os, sys
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask import Sparse24BitMaskTensor, get_24_bytemasks

OUT = sys.argv[1]
IDS = [(7 * i * i + 3 * i + 1) % 96 for i in range(24)]

torch.manual_seed(21)
config = LlamaConfig(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=16, max_position_embeddings=128, tie_word_embeddings=False)
model = LlamaForCausalLM(config).float().eval()
for p in model.parameters():
    torch.nn.init.normal_(p, 0, 0.12) if p.dim() > 1 else torch.nn.init.uniform_(p, 0.5, 1.5)
stored, plain = {}, {}
for name, value in model.state_dict().items():
    value.copy_(value.half().float())
    if not name.endswith("proj.weight"):
        stored[name] = value.half()
        continue
    value.mul_(get_24_bytemasks(value))
    module = name.removesuffix(".weight")
    values = value.half()
    if "self_attn" in name:
        scale = (value.abs().amax(1, keepdim=True) / 127).half()
        values = (value / scale.float()).round().clamp(-128, 127).to(torch.int8)
        value.copy_(values.float() * scale.float())
        stored[module + ".weight_scale"] = scale
    stored.update(Sparse24BitMaskTensor.from_dense(values).dict(name_prefix=module))
    plain[name] = torch.cat([value[:4], value[-4:]])
weights = dict(num_bits=8, type="int", symmetric=True, group_size=None, strategy="channel", block_structure=None,
               dynamic=False, actorder=None, observer="minmax", observer_kwargs={})
attention = [n.removesuffix(".weight") for n in plain if "self_attn" in n]
path = os.path.join(OUT, "sparse-24")
os.makedirs(path, exist_ok=True)
text = json.loads(config.to_json_string())
text.update(architectures=["LlamaForCausalLM"], dtype="float16", quantization_config=dict(
    quant_method="compressed-tensors", format="int-quantized", quantization_status="compressed", ignore=["lm_head"],
    kv_cache_scheme=None, global_compression_ratio=1.9, version="0.10.2",
    sparsity_config=dict(format="sparse-24-bitmask", global_sparsity=0.41, ignore=["lm_head"], targets=["Linear"],
                         registry_requires_subclass=False, sparsity_structure="2:4"),
    config_groups=dict(group_0=dict(targets=attention, weights=weights, input_activations=None,
                                    output_activations=None))))
with open(os.path.join(path, "config.json"), "w") as f:
    json.dump(text, f, indent=1, sort_keys=True)
save_file({k: v.contiguous() for k, v in stored.items()}, os.path.join(path, "model.safetensors"), {"format": "pt"})
save_file(plain, os.path.join(path, "dequantized.safetensors"))
with torch.no_grad():
    logits = model(torch.tensor([IDS])).logits[0]
with open(os.path.join(path, "expected.json"), "w") as f:
    json.dump(dict(ids=IDS, logits=[[float(f"{v:.6g}") for v in row] for row in logits.tolist()]), f)
