//! Bodies of requests, by every route that takes one: they are read or refused, never a panic.
#![no_main]

mod model;

use edgelm_serve::check_request;
use libfuzzer_sys::fuzz_target;

const PATHS: [&str; 14] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
    "/generate",
    "/tokenize",
    "/detokenize",
];

fuzz_target!(|data: &[u8]| {
    let Some((&first, body)) = data.split_first() else { return };
    let path = PATHS[usize::from(first) % PATHS.len()];
    if let Err(error) = check_request(path, body, &*model::BACKEND) {
        assert!(error["error"]["code"].is_string() && error["error"]["message"].is_string());
    }
});
