//! MXFP4 as GPT-OSS stores it: every matrix is opened and its first rows read.
#![no_main]

mod coded;

use coded::{check, config_and_file, modules};
use edgelm_format::mxfp4::{Mxfp4Tensor, check_config};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let Some((config, file)) = config_and_file(bytes) else { return };
    let _ = check_config(&config, Path::new("config.json"));
    for tensor in modules(&file, '_') {
        if let Ok(Some(found)) = Mxfp4Tensor::open(&file, &tensor) {
            check(&found);
        }
    }
});
