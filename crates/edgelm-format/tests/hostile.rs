//! Truncated and altered files: an error or a smaller truth, never a panic, never memory out of proportion.
//! The allocator counts; counting is per thread, so tests may run side by side.
#![allow(clippy::unwrap_used, unsafe_code)]

mod raw;

use edgelm_format::{Source, gguf::GgufFile, safetensors::SafeTensors};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    LIVE.set(LIVE.get() + bytes);
    PEAK.set(PEAK.get().max(LIVE.get()));
}

// SAFETY: every call is passed on to the system allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Parsing may take a multiple of the file plus a little: far less than any count in the file could ask for.
const FIXED_BYTES: isize = 256 << 10;
const BYTES_PER_FILE_BYTE: isize = 16;

/// Peak of what `run` allocates, checked against the bound.
fn bounded<T>(file_bytes: usize, run: impl FnOnce() -> T) -> T {
    let before = LIVE.get();
    PEAK.set(before);
    let result = run();
    let peak = PEAK.get() - before;
    let bound = FIXED_BYTES + BYTES_PER_FILE_BYTE * file_bytes as isize;
    assert!(peak <= bound, "{peak} bytes allocated for a file of {file_bytes}");
    result
}

fn read_gguf(bytes: &[u8]) -> bool {
    let source = Source::owned("model.gguf", bytes.to_vec());
    bounded(bytes.len(), || match GgufFile::from_source(source) {
        Ok(file) => {
            for name in file.names() {
                let view = file.get(name).ok().flatten();
                view.inspect(|view| assert_eq!(view.rows() * view.row_len(), view.elements()));
            }
            file.names().count() == 2 && file.metadata().len() == 6
        }
        Err(error) => error.to_string().is_empty(),
    })
}

fn read_safetensors(bytes: &[u8]) -> bool {
    let source = Source::owned("model.safetensors", bytes.to_vec());
    bounded(bytes.len(), || match SafeTensors::from_sources(vec![source]) {
        Ok(file) => {
            for name in file.names() {
                let view = file.get(name).ok().flatten();
                view.inspect(|view| assert_eq!(view.rows() * view.row_len(), view.elements()));
            }
            file.names().count() == 3
        }
        Err(error) => error.to_string().is_empty(),
    })
}

#[test]
fn truncation() {
    let gguf = raw::small_gguf();
    // The last tensor ends before the padding of the data section does.
    let needed = gguf.len() - 96 + 66;
    for length in 0..=gguf.len() {
        assert_eq!(read_gguf(&gguf[..length]), length >= needed, "at {length}");
    }
    let safetensors = raw::small_safetensors();
    for length in 0..=safetensors.len() {
        assert_eq!(read_safetensors(&safetensors[..length]), length == safetensors.len(), "at {length}");
    }
}

#[test]
fn altered_bytes() {
    for (valid, read) in
        [(raw::small_gguf(), read_gguf as fn(&[u8]) -> bool), (raw::small_safetensors(), read_safetensors)]
    {
        assert!(read(&valid));
        for position in 0..valid.len() {
            for altered in [0x00, 0xff, 0x7f, 0x80, !valid[position], valid[position] ^ 1] {
                let mut bytes = valid.clone();
                bytes[position] = altered;
                read(&bytes);
                // Lengths and counts are little-endian words: fill a whole one too.
                let end = (position + 8).min(bytes.len());
                bytes[position..end].fill(altered);
                read(&bytes);
            }
        }
    }
}

/// The densest content: what takes the fewest bytes in a file for the most memory.
#[test]
fn memory_is_in_proportion() {
    let array = |element: u32, count: u64, one: &[u8]| {
        let mut bytes = element.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(one.repeat(count as usize));
        raw::Gguf::new().key("k", 9, &bytes).build()
    };
    read_gguf(&array(8, 100_000, &[0; 8]));
    read_gguf(&array(9, 100_000, &[0; 12]));
    read_gguf(&array(7, 1_000_000, &[1]));
    let keys = (0..20_000).fold(raw::Gguf::new(), |file, index| file.key(&format!("{index:x}"), 0, &[1]));
    read_gguf(&keys.build());
    let tensors = (0..20_000).fold(raw::Gguf::new(), |file, index| file.tensor(&format!("{index:x}"), &[], 99, 0));
    read_gguf(&tensors.build());

    let dimensions: Vec<String> = (0..2_000)
        .map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0{}],"data_offsets":[0,0]}}"#, ",0".repeat(63)))
        .collect();
    read_safetensors(&raw::safetensors(&format!("{{{}}}", dimensions.join(",")), 0));
    let scalars: Vec<String> =
        (0..20_000).map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#)).collect();
    read_safetensors(&raw::safetensors(&format!("{{{}}}", scalars.join(",")), 0));
    read_safetensors(&raw::safetensors(&format!(r#"{{"a":[{}"#, "0,".repeat(1_000_000)), 0));
}
