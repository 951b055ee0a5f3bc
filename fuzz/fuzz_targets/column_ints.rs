//! GPTQ and AWQ, as `quant_method` says: every matrix is opened and its first rows read.
#![no_main]

mod coded;

use coded::{check, config_and_file, modules};
use edgelm_format::{awq::AwqConfig, gptq::GptqConfig};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let Some((config, file)) = config_and_file(bytes) else { return };
    let path = Path::new("config.json");
    for module in modules(&file, '.') {
        let found = if config["quant_method"] == "awq" {
            AwqConfig::from_json(&config, path).and_then(|config| config.open(&file, &module))
        } else {
            GptqConfig::from_json(&config, path).and_then(|config| config.open(&file, &module))
        };
        if let Ok(Some(found)) = found {
            check(&found);
        }
    }
});
