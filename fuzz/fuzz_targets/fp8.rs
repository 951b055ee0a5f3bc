//! Weights of eight-bit floats: every matrix is opened and its first rows read.
#![no_main]

mod coded;

use coded::{check, config_and_file};
use edgelm_format::fp8::{Fp8Config, Fp8Tensor};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let Some((config, file)) = config_and_file(bytes) else { return };
    let Ok(config) = Fp8Config::from_json(&config, Path::new("config.json")) else { return };
    for weight in file.names() {
        if let Ok(Some(found)) = Fp8Tensor::open(&file, weight, &config) {
            check(&found);
        }
    }
});
