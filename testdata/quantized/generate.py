"""Matrices as GPTQ, AWQ, FP8, bitsandbytes (8 bits) and MXFP4 checkpoints store them, with what they mean in float32.

    python generate.py .        (numpy 2, safetensors 0.8; no other library: the layouts are written out here)

seeds/ has smaller ones for the fuzzer: a line with the config, then the file.

Each file has the parts of one or more matrices, `NAME.dequantized` of each, and in its metadata `quantization_config` and `runs_as`,
the block formats by name.
"""

import json, os, sys
import numpy as np
from safetensors.numpy import save

OUT = sys.argv[1]


def dense(numbers, bits):
    """Numbers along the last axis as 32-bit words, from the lowest bit up."""
    flat = (numbers[..., None].astype(np.uint64) >> np.arange(bits, dtype=np.uint64)) & 1
    flat = flat.reshape(*numbers.shape[:-1], -1, 32)
    return (flat << np.arange(32, dtype=np.uint64)).sum(-1).astype(np.uint32).view(np.int32)


def eight_by_eight(numbers):
    """Numbers of four bits along the last axis in the order of AWQ."""
    return dense(numbers.reshape(*numbers.shape[:-1], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].reshape(numbers.shape), 4)


def grouped(rng, k, n, bits, groups, g_idx, low, high):
    quant = rng.integers(0, 2**bits, (k, n))
    zero = rng.integers(low, high + 1, (groups, n))
    scale = rng.uniform(0.001, 0.02, (groups, n)).astype(np.float16)
    return quant, zero, scale, (scale.astype(np.float32)[g_idx] * (quant - zero[g_idx])).astype(np.float32).T


def write(name, config, tensors, runs_as, types={}):
    """`types`: what the header is to say where numpy has no name for it."""
    metadata = {"quantization_config": json.dumps(config), "runs_as": json.dumps(runs_as)}
    if name.startswith("seeds/"):
        tensors = {tensor: value for tensor, value in tensors.items() if not tensor.endswith("dequantized")}
    data = save({tensor: np.ascontiguousarray(value) for tensor, value in tensors.items()}, metadata)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    # In an order of its own each time.
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    for tensor, kind in types.items():
        header[tensor]["dtype"] = kind
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = len(text).to_bytes(8, "little") + text + data[8 + length :]
    if name.startswith("seeds/"):
        path, data = f"{OUT}/{name}", json.dumps(config).encode() + b"\n" + data
    else:
        path = f"{OUT}/{name}.safetensors"
    with open(path, "wb") as file:
        file.write(data)


def named(module, parts):
    return {f"{module}.{part}": value for part, value in parts.items()}


os.makedirs(f"{OUT}/seeds", exist_ok=True)


def gptq(name, bits, size, runs_as, desc_act=False, v2=False, centred=False, k=96, n=32, seed=1):
    rng = np.random.default_rng(seed)
    per = k if size == -1 else size
    groups = -(-k // per)
    g_idx = np.arange(k) // per
    if desc_act:
        g_idx = g_idx[rng.permutation(k)]
    middle, top = 2 ** (bits - 1), 2**bits - 1
    # What version 1 stores is one less: its zeros are 1 to 2^bits.
    low, high = (middle, middle) if centred else (0, top) if v2 else (1, top + 1)
    quant, zero, scale, values = grouped(rng, k, n, bits, groups, g_idx, low, high)
    config = dict(quant_method="gptq", bits=bits, group_size=size, desc_act=desc_act, sym=centred, lm_head=False,
                  damp_percent=0.01, checkpoint_format="gptq_v2" if v2 else "gptq")
    parts = dict(qweight=dense(quant.T, bits).T, qzeros=dense(zero if v2 else zero - 1, bits), scales=scale,
                 g_idx=g_idx.astype(np.int32), dequantized=values)
    write(name, config, named("m", parts), {"m": runs_as})


gptq("gptq-4", 4, 32, "Q4_0", centred=True)
gptq("gptq-4-zeros", 4, 32, "Q5_0")
gptq("gptq-4-zeros-v2", 4, 48, "F16", v2=True)
gptq("gptq-4-act-order", 4, 32, "F16", desc_act=True)
gptq("gptq-2-zeros", 2, 32, "Q4_0")
gptq("gptq-3-zeros-v2", 3, -1, "Q4_0", v2=True)
gptq("gptq-3-act-order", 3, 32, "F16", desc_act=True, centred=True)
gptq("gptq-8", 8, 32, "Q8_0", centred=True, v2=True)
gptq("gptq-8-zeros", 8, 64, "F16")

gptq("seeds/gptq-4", 4, 32, "Q4_0", centred=True, k=32, n=8)
gptq("seeds/gptq-3-act-order", 3, 32, "F16", desc_act=True, k=64, n=32)


def awq(name, k, n):
    rng = np.random.default_rng(2)
    quant, zero, scale, values = grouped(rng, k, n, 4, k // 32, np.arange(k) // 32, 0, 15)
    config = dict(quant_method="awq", bits=4, group_size=32, zero_point=True, version="gemm", modules_to_not_convert=None)
    parts = dict(qweight=eight_by_eight(quant), qzeros=eight_by_eight(zero), scales=scale, dequantized=values)
    write(name, config, named("m", parts), {"m": "Q5_0"})


awq("awq", 64, 72)
awq("seeds/awq", 32, 8)

# e4m3: no infinities; 0x7f and 0xff are no numbers, and left out.
codes = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
exponent, mantissa = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float32)
magnitude = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
E4M3 = np.zeros(256, np.float32)
E4M3[codes] = np.where(codes < 128, magnitude, -magnitude)


def fp8(name, n, k, block, scales, of_value, suffix, strategy=None):
    rng = np.random.default_rng(3)
    code = rng.choice(codes, (n, k))
    scale = scales(rng).astype(np.float32)
    config = dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=block)
    if strategy:  # of compressed-tensors
        weights = dict(num_bits=8, type="float", symmetric=True, strategy=strategy, block_structure=block, dynamic=False)
        inputs = dict(num_bits=8, type="float", symmetric=True, strategy="token", dynamic=True)
        group = dict(targets=["Linear"], weights=weights, input_activations=inputs, output_activations=None)
        config = dict(quant_method="compressed-tensors", format="float-quantized", config_groups=dict(group_0=group),
                      ignore=["lm_head"], kv_cache_scheme=None)
    parts = {"weight": code, suffix: scale, "dequantized": E4M3[code] * of_value(scale)}
    write(name, config, named("m", parts), {"m": "F16"}, {"m.weight": "F8_E4M3"})


uniform = lambda *shape: lambda rng: rng.uniform(1e-4, 1e-3, shape)
fp8("fp8-blocks", 40, 72, [16, 32], uniform(3, 3), lambda s: s.repeat(16, 0).repeat(32, 1)[:40, :72], "weight_scale_inv")
fp8("fp8-tensor", 8, 48, None, uniform(), lambda s: s, "weight_scale_inv")
fp8("fp8-rows", 8, 48, None, uniform(8, 1), lambda s: s, "weight_scale")

fp8("fp8-channel", 8, 48, None, uniform(8, 1), lambda s: s, "weight_scale", "channel")
fp8("fp8-block", 8, 48, [4, 16], uniform(2, 3), lambda s: s.repeat(4, 0).repeat(16, 1), "weight_scale", "block")
fp8("seeds/fp8-blocks", 3, 5, [2, 2], uniform(2, 3), lambda s: s.repeat(2, 0).repeat(2, 1)[:3, :5], "weight_scale_inv")


def bnb(name, n, widths):
    rng = np.random.default_rng(4)
    tensors, runs_as = {}, {}
    for module, k in widths.items():
        code, peak = rng.integers(-127, 128, (n, k)).astype(np.int8), rng.uniform(0.1, 0.5, n).astype(np.float32)
        # uint8 0: in rows.
        parts = dict(weight=code, SCB=peak, weight_format=np.zeros((), np.uint8),
                     dequantized=code.astype(np.float32) * (peak / np.float32(127))[:, None])
        tensors.update(named(module, parts))
        runs_as[module] = "F16" if k % 32 else "Q8_0"
    write(name, dict(quant_method="bitsandbytes", load_in_8bit=True, load_in_4bit=False), tensors, runs_as)


bnb("bnb-8", 12, {"m": 64, "odd": 40})
bnb("seeds/bnb-8", 2, {"m": 32})

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP4 = np.concatenate([FP4, -FP4])


def mxfp4(name, experts, n, k):
    rng = np.random.default_rng(5)
    code, exponent = rng.integers(0, 16, (experts, n, k)), rng.integers(118, 128, (experts, n, k // 32))
    values = FP4[code] * np.exp2(exponent.astype(np.float32) - 127).repeat(32, 2)
    blocks = (code[..., 0::2] | code[..., 1::2] << 4).reshape(experts, n, k // 32, 16).astype(np.uint8)
    tensors = {"e_blocks": blocks, "e_scales": exponent.astype(np.uint8), "e.dequantized": values.astype(np.float32)}
    write(name, dict(quant_method="mxfp4"), tensors, {"e": "MXFP4"})


mxfp4("mxfp4", 3, 4, 64)
mxfp4("seeds/mxfp4", 1, 2, 32)
