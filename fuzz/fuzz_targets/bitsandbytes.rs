//! 4-bit and 8-bit weights of bitsandbytes: every matrix is opened and its first rows read.
#![no_main]

mod coded;

use coded::{check, config_and_file};
use edgelm_format::{
    Source,
    bitsandbytes::{Config, Int8Tensor, LookupTensor},
    safetensors::SafeTensors,
};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    // Seeds of 4 bits are files alone.
    let file = match config_and_file(bytes) {
        Some((config, file)) => {
            let _ = Config::from_json(&config, Path::new("config.json"));
            file
        }
        None => match SafeTensors::from_sources(vec![Source::owned("fuzz", bytes.to_vec())]) {
            Ok(file) => file,
            Err(_) => return,
        },
    };
    for weight in file.names() {
        if let Ok(Some(found)) = LookupTensor::open(&file, weight) {
            check(&found);
        }
        let Some(module) = weight.strip_suffix(".weight") else { continue };
        if let Ok(Some(found)) = Int8Tensor::open(&file, module) {
            check(&found);
        }
    }
});
