"""Makes blocks.txt and quality.txt, the fixtures of edgelm-tensor's format tests.

Usage: python make.py LIBGGML
  LIBGGML  shared library of ggml (exports ggml_quantize_chunk)
Made with gguf-py 0.19.0, numpy 2.4 and ggml as vendored by llama-cpp-python 0.3.36. Seed: 7.

blocks.txt, one line per format: name, bytes of one block in hex, gguf-py's values of it as f32 in hex.
quality.txt, one line per format: name, error of ggml's encoder on `rows()` without importance (sum of squares), and
with it (sum of importance times squares).
"""

import ctypes
import pathlib
import sys

import gguf
import numpy as np
from gguf import quants

# Format: offsets of its f16 fields.
FORMATS = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
    "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0],
}
# Only read here, so that ggml's encoders are no measure. The exponents of MXFP4 are of ordinary size.
READ_ONLY = {"MXFP4": [], "TQ1_0": [52], "TQ2_0": [64]}
# ggml encodes these only with importance; "without" means that all values count the same.
NEED_IMPORTANCE = ["IQ2_XXS", "IQ2_XS"]
HERE = pathlib.Path(__file__).parent


def rows():
    """16 × 256 values that any language makes exactly: sums of four bytes of a linear congruential generator,
    cubed in every other row for heavy tails; and an importance for each."""
    state, values, importance = 7, [], []
    def byte():
        nonlocal state
        state = (state * 1664525 + 1013904223) % 2**32
        return state >> 24
    for row in range(16):
        for _ in range(256):
            sum4 = byte() + byte() + byte() + byte() - 510
            values.append(sum4 / 4096 if row % 2 == 0 else sum4**3 / 2**28)
            importance.append((1 + byte()) / 256)
    return np.array(values, np.float32).reshape(16, 256), np.array(importance, np.float32).reshape(16, 256)


def main():
    random = np.random.default_rng(7)
    lines = []
    for name, fields in (FORMATS | READ_ONLY).items():
        kind = gguf.GGMLQuantizationType[name]
        _, size = gguf.GGML_QUANT_SIZES[kind]
        block = random.integers(0, 256, size, dtype=np.uint8)
        for field in fields:
            block[field : field + 2] = np.array([random.uniform(-0.1, 0.1)], np.float16).view(np.uint8)
        if name == "MXFP4":
            block[0] = 122
        values = quants.dequantize(block.reshape(1, -1), kind).astype("<f4")
        lines.append(f"{name} {block.tobytes().hex()} {values.tobytes().hex()}\n")
    (HERE / "blocks.txt").write_text("".join(lines))

    ggml = ctypes.CDLL(sys.argv[1])
    pointer = ctypes.c_void_p
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, pointer]
    values, importance = rows()
    ones = np.ones(256, np.float32)
    lines = []
    for name in FORMATS:
        kind = gguf.GGMLQuantizationType[name]
        length, size = gguf.GGML_QUANT_SIZES[kind]
        errors = []
        for weighted in (False, True):
            out = np.zeros((16, 256 // length * size), np.uint8)
            for i in range(16):
                weights = importance[i].ctypes.data if weighted else ones.ctypes.data if name in NEED_IMPORTANCE else None
                ggml.ggml_quantize_chunk(int(kind), values[i].ctypes.data, out[i].ctypes.data, 0, 1, 256, weights)
            squares = (quants.dequantize(out, kind).astype(np.float64) - values) ** 2
            errors.append(np.sum(squares * importance if weighted else squares))
        lines.append(f"{name} {errors[0]:.9e} {errors[1]:.9e}\n")
    (HERE / "quality.txt").write_text("".join(lines))


main()
