//! GGUF v2 and v3: metadata, tensor directory, data. Reading is mapped and lazy; writing streams.
//!
//! The one thing a reader would get wrong: the file lists dimensions innermost first; every shape in this crate is
//! row-major, outermost first.
//! Source: the GGUF specification in the ggml repository, `docs/gguf.md`.

mod cursor;
mod part;
mod read;
mod split;
mod stored_type;
mod value;
mod write;

pub use read::GgufFile;
pub use value::{Array, Metadata, Value};
pub use write::{Writer, header_bytes};

const MAGIC: [u8; 4] = *b"GGUF";
/// Version written.
const VERSION: u32 = 3;
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u32 = 32;
/// Far above what files use (32, seldom 64); bounds the padding a file can ask for.
const MAX_ALIGNMENT: u32 = 1 << 20;
/// ggml's limit.
const MAX_DIMENSIONS: u32 = 4;
/// The specification's limit.
const MAX_KEY_BYTES: usize = 65535;
/// Arrays may hold arrays; no file in the wild nests deeper than two.
const MAX_ARRAY_DEPTH: usize = 4;

/// The alignment a file's metadata asks for.
fn alignment(metadata: &Metadata) -> Result<u32, crate::fault::Fault> {
    match metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY).map(|(_, value)| value) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(alignment)) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => Ok(alignment),
        Some(other) => crate::fault::malformed!(
            "key `{ALIGNMENT_KEY}`: {} is not a u32 power of two up to {MAX_ALIGNMENT}",
            other.summary()
        ),
    }
}
