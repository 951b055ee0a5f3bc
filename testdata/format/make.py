"""Writes the fixtures of this folder with independent software: gguf-py 0.19.0 (the copy in llama-cpp-python 0.3.36),
safetensors, numpy; see VERSIONS for what was used. Run: `PYTHONPATH=…/gguf-py python make.py` in this folder.

No randomness: values are counted up, so that the Rust test can state them.
"""
import sys
import numpy as np
import gguf
import safetensors
from gguf import GGMLQuantizationType as Q, GGUFEndian, GGUFValueType as V, GGUFWriter
from safetensors.numpy import save_file


def count(*shape, dtype=np.float32):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def raw(rows, row_bytes):
    return (np.arange(rows * row_bytes) % 251).astype(np.uint8).reshape(rows, row_bytes)


def metadata(writer):
    for kind, value in [(V.UINT8, 200), (V.INT8, -100), (V.UINT16, 60000), (V.INT16, -30000), (V.UINT32, 4000000000),
                        (V.INT32, -2000000000), (V.FLOAT32, 0.5), (V.BOOL, True), (V.STRING, "héllo"),
                        (V.UINT64, 2**63), (V.INT64, -2**62), (V.FLOAT64, 0.1)]:
        writer.add_key_value(f"test.{kind.name.lower()}", value, kind)
    writer.add_array("test.strings", ["a", "", "日本"])
    writer.add_array("test.i32s", [1, -2, 3])
    writer.add_array("test.f32s", [0.25, -1.5])
    writer.add_array("test.bools", [True, False])
    writer.add_array("test.nested", [[1, 2], [3]])


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


writer = GGUFWriter("all-values.gguf", "llama")
metadata(writer)
writer.add_tensor("f32", count(2, 3))
writer.add_tensor("f16", count(2, 1, 4).astype(np.float16))
writer.add_tensor("bf16", raw(2, 10), raw_dtype=Q.BF16)
writer.add_tensor("q8_0", raw(3, 34), raw_dtype=Q.Q8_0)
writer.add_tensor("q4_K", raw(1, 144), raw_dtype=Q.Q4_K)
writer.add_tensor("i32", count(5, dtype=np.int32))
writer.add_tensor("iq3_s", raw(1, 110), raw_dtype=Q.IQ3_S)
close(writer)

writer = GGUFWriter("aligned-64.gguf", "llama")
writer.add_custom_alignment(64)
writer.add_tensor("a", count(3))
writer.add_tensor("b", count(1, 2))
close(writer)

writer = GGUFWriter("big-endian.gguf", "llama", endianess=GGUFEndian.BIG)
writer.add_tensor("a", count(3))
close(writer)

writer = GGUFWriter("split.gguf", "llama", split_max_tensors=1)
for name in ["a", "b", "c"]:
    writer.add_tensor(name, count(4))
close(writer)

save_file({"f32": count(2, 3), "f16": count(4).astype(np.float16), "i64": count(2, dtype=np.int64),
           "empty": count(0, 3), "scalar": np.array(2.5, dtype=np.float32)},
          "numpy.safetensors", metadata={"format": "np", "note": "é \"quoted\""})

with open("VERSIONS", "w") as file:
    print(f"python {sys.version.split()[0]}\nnumpy {np.__version__}\nsafetensors {safetensors.__version__}", file=file)
    print("gguf-py of llama-cpp-python 0.3.36", file=file)
