//! Integers in safetensors: every matrix is opened and its first rows read.
#![no_main]

mod coded;

use coded::{check, config_and_file, modules};
use edgelm_format::compressed_tensors::{IntQuantization, IntTensor};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let Some((config, file)) = config_and_file(bytes) else { return };
    let Ok(config) = IntQuantization::from_json(&config, Path::new("config.json")) else { return };
    for module in modules(&file, '.') {
        let Some(group) = config.group_of(&module, "Linear") else { continue };
        if let Ok(Some(found)) = IntTensor::open(&file, &module, group) {
            check(&found);
        }
    }
});
