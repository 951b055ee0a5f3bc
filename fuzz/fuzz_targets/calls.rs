//! Messages of gRPC calls, by method: they are read or refused, never a panic.
#![no_main]

mod model;

use edgelm_serve::check_call;
use libfuzzer_sys::fuzz_target;

const METHODS: [&str; 5] = ["Generate", "Chat", "Embed", "Tokenize", "Detokenize"];

fuzz_target!(|data: &[u8]| {
    let Some((&first, message)) = data.split_first() else { return };
    let method = METHODS[usize::from(first) % METHODS.len()];
    if let Err(error) = check_call(method, message, &*model::BACKEND) {
        assert!(error["error"]["code"].is_string() && error["error"]["message"].is_string());
    }
});
