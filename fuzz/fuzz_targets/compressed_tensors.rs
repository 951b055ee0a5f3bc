//! Integers in safetensors: a line of JSON (`quantization_config`), then a file; every matrix is opened and its first rows read.
#![no_main]

use edgelm_format::{
    Source,
    compressed_tensors::{IntQuantization, IntTensor},
    safetensors::SafeTensors,
};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let Ok(config) = serde_json::from_slice(&bytes[..end]) else { return };
    let Ok(config) = IntQuantization::from_json(&config, Path::new("config.json")) else { return };
    let Ok(file) = SafeTensors::from_sources(vec![Source::owned("fuzz", bytes[end + 1..].to_vec())]) else { return };
    let modules: Vec<String> = file.names().filter_map(|name| Some(name.rsplit_once('.')?.0.to_owned())).collect();
    for module in modules {
        let Some(group) = config.group_of(&module, "Linear") else { continue };
        if let Ok(Some(found)) = IntTensor::open(&file, &module, group) {
            let rows = found.shape()[0].min(3);
            let row_bytes = found.dtype().row_bytes(found.shape()[1]).expect("rows are whole blocks");
            assert_eq!(found.blocks(0..rows).len(), rows * row_bytes);
        }
    }
});
