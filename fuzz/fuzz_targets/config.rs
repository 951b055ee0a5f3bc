//! config.json: parse; whatever is accepted implies shapes, frequencies and GGUF metadata without overflow.
#![no_main]

use edgelm_model::ModelConfig;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = ModelConfig::from_hf(bytes, Path::new("config.json")) else { return };
    let mut values = 0_u64;
    for id in config.tensor_ids() {
        let shape = config.tensor_shape(id).expect("a listed tensor has a shape");
        let product = shape.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim as u64));
        values = product.and_then(|product| values.checked_add(product)).expect("parameter counts fit");
    }
    for length in [1, config.context_length()] {
        let (frequencies, factor) = config.rope.frequencies(length);
        assert_eq!(frequencies.len(), config.rope.rotary_dim / 2);
        assert!(frequencies.iter().chain([&factor]).all(|value| value.is_finite()), "{:?}", config.rope);
    }
    // An architecture that GGUF cannot hold is an error, not a panic.
    if config.gguf_metadata().is_ok() {
        config.gguf_extra_tensors();
        config.gguf_notes();
    }
});
