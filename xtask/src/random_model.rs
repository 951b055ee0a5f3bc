//! `cargo xtask random-model`: a GGUF file with the shape of a known model and random weights, for speed measurements
//! that need no download. It has no tokenizer; llama-bench and `edgelm bench` need none.

use anyhow::{Context, bail};
use edgelm_format::gguf::{Metadata, Value, Writer};
use edgelm_tensor::{DType, block::encode_row};
use std::{
    collections::{HashMap, hash_map::Entry},
    path::Path,
};

/// What decides how fast a model runs.
pub struct Shape {
    pub name: &'static str,
    layers: usize,
    hidden: usize,
    ffn: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
}

const SHAPES: [Shape; 4] = [
    Shape { name: "tiny", layers: 2, hidden: 512, ffn: 1536, heads: 8, kv_heads: 4, vocab: 4096 },
    Shape { name: "tinyllama", layers: 22, hidden: 2048, ffn: 5632, heads: 32, kv_heads: 4, vocab: 32_000 },
    Shape { name: "llama2-7b", layers: 32, hidden: 4096, ffn: 11_008, heads: 32, kv_heads: 32, vocab: 32_000 },
    Shape { name: "llama3-8b", layers: 32, hidden: 4096, ffn: 14_336, heads: 32, kv_heads: 8, vocab: 128_256 },
];

/// Room for the deepest test whatever the model was trained for.
const CONTEXT: u32 = 8192;

/// Distinct encoded rows per format and length, from which matrices are drawn: encoding each of a billion weights would
/// take minutes, and neither speed nor caches can tell.
const POOL_ROWS: usize = 64;

/// Rows given to the writer at a time.
const WRITE_ROWS: usize = 256;

impl Shape {
    pub fn from_name(name: &str) -> anyhow::Result<&'static Self> {
        let known = SHAPES.iter().map(|shape| shape.name).collect::<Vec<_>>().join(", ");
        SHAPES
            .iter()
            .find(|shape| shape.name == name)
            .with_context(|| format!("unknown shape `{name}`; known: {known}"))
    }

    fn kv_width(&self) -> usize {
        self.hidden / self.heads * self.kv_heads
    }

    /// Weights of the decoder layers.
    pub fn layer_weights(&self) -> usize {
        self.layers * self.hidden * (2 * self.hidden + 2 * self.kv_width() + 3 * self.ffn)
    }

    /// Weights of the output head.
    pub fn head_weights(&self) -> usize {
        self.vocab * self.hidden
    }

    /// Name, format and shape of every tensor, mixed as `edgelm quantize` mixes.
    fn tensors(&self, format: &str) -> anyhow::Result<Vec<(String, DType, Vec<usize>)>> {
        let (base, value, down) = match format {
            "Q4_K_M" => (DType::Q4_K, DType::Q6_K, DType::Q5_K),
            "Q5_K_M" => (DType::Q5_K, DType::Q6_K, DType::Q6_K),
            name => DType::from_name(name).map(|dtype| (dtype, dtype, dtype))?,
        };
        let head = if base.bits_per_weight() < DType::Q6_K.bits_per_weight() { DType::Q6_K } else { base };
        let (d, f, kv) = (self.hidden, self.ffn, self.kv_width());
        let mut tensors = vec![
            ("token_embd.weight".to_owned(), base, vec![self.vocab, d]),
            ("output_norm.weight".to_owned(), DType::F32, vec![d]),
            ("output.weight".to_owned(), head, vec![self.vocab, d]),
        ];
        for layer in 0..self.layers {
            for (name, dtype, shape) in [
                ("attn_norm", DType::F32, vec![d]),
                ("attn_q", base, vec![d, d]),
                ("attn_k", base, vec![kv, d]),
                ("attn_v", value, vec![kv, d]),
                ("attn_output", base, vec![d, d]),
                ("ffn_norm", DType::F32, vec![d]),
                ("ffn_gate", base, vec![f, d]),
                ("ffn_up", base, vec![f, d]),
                ("ffn_down", down, vec![d, f]),
            ] {
                tensors.push((format!("blk.{layer}.{name}.weight"), dtype, shape));
            }
        }
        Ok(tensors)
    }

    fn metadata(&self) -> Metadata {
        let text = |value: &str| Value::String(value.to_owned());
        let count = |value: usize| Value::U32(value as u32);
        let pairs = [
            ("general.architecture", text("llama")),
            ("general.name", text(self.name)),
            ("llama.block_count", count(self.layers)),
            ("llama.context_length", Value::U32(CONTEXT)),
            ("llama.embedding_length", count(self.hidden)),
            ("llama.feed_forward_length", count(self.ffn)),
            ("llama.attention.head_count", count(self.heads)),
            ("llama.attention.head_count_kv", count(self.kv_heads)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.vocab_size", count(self.vocab)),
            ("llama.rope.dimension_count", count(self.hidden / self.heads)),
            ("llama.rope.freq_base", Value::F32(10_000.0)),
            // llama.cpp's name for a model without vocabulary.
            ("tokenizer.ggml.model", text("no_vocab")),
            ("general.quantization_version", Value::U32(2)),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value)).into()
    }
}

/// Arguments: --shape NAME -o FILE --format NAME.
pub fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let ["--shape", shape, "-o", out, "--format", format] = arguments else {
        bail!("usage: cargo xtask random-model --shape NAME -o FILE.gguf --format NAME");
    };
    let bytes = write(Shape::from_name(shape)?, format, Path::new(out))?;
    eprintln!("{out}: {bytes} bytes");
    Ok(())
}

/// Writes the file, the same bytes every time; returns its size.
pub fn write(shape: &Shape, format: &str, path: &Path) -> anyhow::Result<u64> {
    let tensors = shape.tensors(format)?;
    let mut out = Writer::create(path, &shape.metadata(), &tensors)?;
    let mut random = Random(0x5eed);
    let mut pools = HashMap::new();
    for (_, dtype, shape) in &tensors {
        if let [len] = shape[..] {
            // Norms: a gain of 1 keeps the values of a deep random model finite.
            out.write(&1_f32.to_le_bytes().repeat(len))?;
            continue;
        }
        let (rows, len) = (shape[0], shape[1]);
        let row_bytes = dtype.row_bytes(len)?;
        let pool = match pools.entry((dtype.name(), len)) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => place.insert(pool(*dtype, len, &mut random)?),
        };
        let mut buffer = Vec::with_capacity(WRITE_ROWS * row_bytes);
        for row in 0..rows {
            let index = random.next() as usize % POOL_ROWS;
            buffer.extend_from_slice(&pool[index * row_bytes..][..row_bytes]);
            if buffer.len() == WRITE_ROWS * row_bytes || row + 1 == rows {
                out.write(&buffer)?;
                buffer.clear();
            }
        }
    }
    Ok(out.finish()?)
}

/// Encoded rows of weights spread evenly with the deviation 1/sqrt(len), so that products keep the size of their input.
fn pool(dtype: DType, len: usize, random: &mut Random) -> anyhow::Result<Vec<u8>> {
    let row_bytes = dtype.row_bytes(len)?;
    let mut pool = vec![0; POOL_ROWS * row_bytes];
    let width = (12.0 / len as f32).sqrt();
    let mut row = vec![0.0; len];
    for encoded in pool.chunks_exact_mut(row_bytes) {
        row.fill_with(|| ((random.next() >> 40) as f32 / (1 << 24) as f32 - 0.5) * width);
        encode_row(dtype, &row, None, encoded)?;
    }
    Ok(pool)
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_every_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let shape = Shape::from_name("tiny").expect("known");
        for format in ["Q4_0", "Q4_K_M", "F16"] {
            let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
            let size = write(shape, format, &a).expect("written");
            assert_eq!(size, write(shape, format, &b).expect("written"));
            assert!(std::fs::read(&a).expect("a") == std::fs::read(&b).expect("b"), "{format}");
        }
        assert!(Shape::from_name("huge").is_err() && write(shape, "Q9", &folder.path().join("c")).is_err());
    }
}
