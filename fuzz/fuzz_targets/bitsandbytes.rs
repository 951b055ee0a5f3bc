//! 4-bit weights in safetensors: every matrix is opened and its first rows read.
#![no_main]

use edgelm_format::{Source, bitsandbytes::LookupTensor, safetensors::SafeTensors};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = SafeTensors::from_sources(vec![Source::owned("fuzz", bytes.to_vec())]) else { return };
    for weight in file.names() {
        if let Ok(Some(found)) = LookupTensor::open(&file, weight) {
            let rows = found.shape()[0].min(3);
            let row_bytes = found.dtype().row_bytes(found.shape()[1]).expect("rows are whole blocks");
            assert_eq!(found.blocks(0..rows).len(), rows * row_bytes);
        }
    }
});
