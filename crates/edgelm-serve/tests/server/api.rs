//! The OpenAI API as a client sees it.

use crate::fake::{Fake, Running, events, read};
use edgelm_model::GenerationConfig;
use edgelm_serve::ServerConfig;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn chat(extra: Value) -> Value {
    with(json!({"model": "org/fake-1", "messages": [{"role": "user", "content": "one two three"}]}), extra)
}

fn completion(extra: Value) -> Value {
    with(json!({"model": "org/fake-1", "prompt": "one two"}), extra)
}

fn with(mut body: Value, extra: Value) -> Value {
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// Of a prompt that the fake finds kept, all but its last token.
fn usage(prompt: usize, completion: usize) -> Value {
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": prompt - 1},
    })
}

fn code(answer: &(u16, Value)) -> (u16, &str) {
    let error = &answer.1["error"];
    for field in ["message", "type", "param", "code"] {
        assert!(error.get(field).is_some(), "`{field}` is missing in {}", answer.1);
    }
    (answer.0, error["code"].as_str().unwrap())
}

#[tokio::test]
async fn models() {
    let server = Running::start(Fake::default()).await;
    let (status, list) = server.get("/v1/models").await;
    assert_eq!((status, &list["object"], &list["data"][0]["id"]), (200, &json!("list"), &json!("org/fake-1")));
    let plain = server.get("/v1/models/org/fake-1").await;
    assert_eq!(plain, (200, list["data"][0].clone()));
    // How openai-python writes an id with a slash.
    assert_eq!(server.get("/v1/models/org%2Ffake-1").await, plain);
    assert_eq!(code(&server.get("/v1/models/other").await), (404, "model_not_found"));
}

#[tokio::test]
async fn operations() {
    let server = Running::start(Fake::default()).await;
    let (status, health) = server.get("/health").await;
    assert_eq!((status, &health["status"]), (200, &json!("ok")));
    let page = |accept: &'static str| server.client.get(server.url("/")).header("accept", accept).send();
    assert_eq!(page("*/*").await.unwrap().text().await.unwrap(), "Ollama is running");
    assert!(page("text/html").await.unwrap().text().await.unwrap().contains("<title>EdgeLM</title>"));
    server.ask(CHAT, chat(json!({}))).await;
    server.ask(CHAT, chat(json!({"n": 0}))).await;
    server.get("/nonsense/1").await;
    let metrics = server.metrics().await;
    for line in [
        "edgelm_http_requests_total{method=\"POST\",route=\"/v1/chat/completions\",status=\"200\"} 1",
        "edgelm_http_requests_total{method=\"POST\",route=\"/v1/chat/completions\",status=\"400\"} 1",
        "edgelm_http_requests_total{method=\"GET\",route=\"other\",status=\"404\"} 1",
        "edgelm_prompt_tokens_total 3",
        "edgelm_generation_tokens_total 5",
        "edgelm_time_to_first_token_seconds_count 1",
        "edgelm_inter_token_latency_seconds_count 4",
        "edgelm_num_requests_waiting 0",
    ] {
        assert!(metrics.contains(line), "no `{line}` in\n{metrics}");
    }
}

#[tokio::test]
async fn wrong_routes_and_methods() {
    let server = Running::start(Fake::default()).await;
    assert_eq!(code(&server.get("/v1/nothing").await), (404, "unknown_url"));
    assert_eq!(code(&server.get(CHAT).await), (405, "method_not_allowed"));
    assert_eq!(code(&server.ask("/v1/models", json!({})).await), (405, "method_not_allowed"));
}

#[tokio::test]
async fn chat_answer() {
    let server = Running::start(Fake::default()).await;
    let (status, answer) = server.ask(CHAT, chat(json!({}))).await;
    assert_eq!(status, 200);
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("org/fake-1")));
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(
        answer["choices"],
        json!([{
            "index": 0,
            "message": {"role": "assistant", "content": "w0 w1 w2 w3 w4 ", "refusal": null},
            "logprobs": null,
            "finish_reason": "stop",
        }])
    );
    assert_eq!(answer["usage"], usage(3, 5));
    let (_, answer) = server.ask(CHAT, chat(json!({"max_completion_tokens": 2}))).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "w0 w1 ");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let (_, answer) = server.ask(CHAT, chat(json!({"stop": ["w3"]}))).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "w0 w1 w2 ");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn chat_stream() {
    let server = Running::start(Fake::default()).await;
    let body = chat(json!({"stream": true, "max_tokens": 2, "stream_options": {"include_usage": true}}));
    let events = events(server.post(CHAT, &body)).await;
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    let choices: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"]).collect();
    let choice =
        |delta: Value, reason: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]);
    assert_eq!(choices[0], &choice(json!({"role": "assistant", "content": ""}), Value::Null));
    assert_eq!(choices[1], &choice(json!({"content": "w0 "}), Value::Null));
    assert_eq!(choices[2], &choice(json!({"content": "w1 "}), Value::Null));
    assert_eq!(choices[3], &choice(json!({}), json!("length")));
    assert_eq!(choices[4], &json!([]));
    assert_eq!(chunks.len(), 5);
    assert_eq!(chunks[4]["usage"], usage(3, 2));
    for chunk in &chunks {
        assert_eq!((&chunk["id"], &chunk["object"]), (&chunks[0]["id"], &json!("chat.completion.chunk")));
        assert!(chunk.get("usage").is_some());
    }
}

#[tokio::test]
async fn streams_without_usage_do_not_mention_it() {
    let server = Running::start(Fake::default()).await;
    let events = events(server.post(COMPLETIONS, &completion(json!({"stream": true, "n": 2, "max_tokens": 1})))).await;
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none() && chunk["object"] == "text_completion"));
    let seen: Vec<(&Value, &Value)> =
        chunks.iter().map(|c| (&c["choices"][0]["index"], &c["choices"][0]["finish_reason"])).collect();
    let (zero, one, null, length) = (json!(0), json!(1), Value::Null, json!("length"));
    assert_eq!(seen, [(&zero, &null), (&zero, &length), (&one, &null), (&one, &length)]);
}

#[tokio::test]
async fn completion_answer() {
    let server = Running::start(Fake { eos_after: 30, ..Fake::default() }).await;
    let (status, answer) = server.ask(COMPLETIONS, completion(json!({}))).await;
    assert_eq!((status, &answer["object"]), (200, &json!("text_completion")));
    assert_eq!(answer["usage"]["completion_tokens"], 16, "OpenAI's default");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    for prompt in [json!(["one two"]), json!([3, 3]), json!([[3, 3]])] {
        let (_, answer) = server.ask(COMPLETIONS, completion(json!({"prompt": prompt, "max_tokens": 1}))).await;
        assert_eq!(answer["choices"][0]["text"], "w0 ");
        assert_eq!(server.fake.calls.lock().unwrap().last().unwrap().0, [3, 3]);
    }
    let refused = server.ask(COMPLETIONS, completion(json!({"prompt": [100]}))).await;
    assert_eq!(code(&refused), (400, "invalid_value"));
    let refused = server.ask(COMPLETIONS, completion(json!({"prompt": ""}))).await;
    assert_eq!(code(&refused), (400, "invalid_value"));
    let refused = server.ask(COMPLETIONS, completion(json!({"prompt": ["a", "b"]}))).await;
    assert_eq!((code(&refused), &refused.1["error"]["param"]), ((400, "unsupported_parameter"), &json!("prompt")));
}

#[tokio::test]
async fn what_was_asked_for_reaches_the_engine() {
    let defaults = GenerationConfig { temperature: Some(0.3), top_k: Some(7), ..GenerationConfig::default() };
    let server = Running::start(Fake { defaults, ..Fake::default() }).await;
    let body = chat(json!({
        "n": 2, "seed": 41, "top_p": 0.5, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1,
        "repetition_penalty": 1.5, "stop": "END", "max_tokens": 3,
    }));
    let (_, answer) = server.ask(CHAT, body).await;
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    assert_eq!(answer["usage"], usage(3, 6));
    let calls = server.fake.calls.lock().unwrap();
    let sampling = &calls[0].1.sampling;
    assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p), (0.3, 7, 0.5, 0.1));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty, sampling.repeat_penalty), (1.0, -1.0, 1.5));
    assert_eq!((sampling.seed, calls[1].1.sampling.seed), (41, 42));
    assert_eq!((calls[0].1.max_tokens, calls[0].1.stop.as_slice()), (Some(3), &["END".to_owned()][..]));
}

#[tokio::test]
async fn absent_seeds_differ() {
    let server = Running::start(Fake::default()).await;
    for _ in 0..2 {
        server.ask(CHAT, chat(json!({}))).await;
    }
    let calls = server.fake.calls.lock().unwrap();
    assert_ne!(calls[0].1.sampling.seed, calls[1].1.sampling.seed);
}

#[tokio::test]
async fn log_probabilities() {
    let server = Running::start(Fake::default()).await;
    let (_, answer) = server.ask(CHAT, chat(json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 2}))).await;
    let entry = |token: &str| json!({"token": token, "logprob": -0.5, "bytes": token.as_bytes()});
    let mut first = entry("w0 ");
    first["top_logprobs"] = json!([entry("w0 "), entry("w1 ")]);
    assert_eq!(answer["choices"][0]["logprobs"]["content"][0], first);
    assert_eq!(answer["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 2);
    let (_, answer) = server.ask(COMPLETIONS, completion(json!({"logprobs": 1, "max_tokens": 2}))).await;
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({
            "tokens": ["w0 ", "w1 "],
            "token_logprobs": [-0.5, -0.5],
            "top_logprobs": [{"w0 ": -0.5}, {"w1 ": -0.5}],
            "text_offset": [0, 3],
        })
    );
    let refused = server.ask(CHAT, chat(json!({"top_logprobs": 2}))).await;
    assert_eq!((code(&refused), &refused.1["error"]["param"]), ((400, "invalid_value"), &json!("top_logprobs")));
    for (path, body) in
        [(CHAT, chat(json!({"top_logprobs": 21, "logprobs": true}))), (COMPLETIONS, completion(json!({"logprobs": 6})))]
    {
        assert_eq!(code(&server.ask(path, body).await), (400, "invalid_value"));
    }
}

#[tokio::test]
async fn the_context_is_a_hard_limit() {
    let server = Running::start(Fake { context: 8, eos_after: 100, ..Fake::default() }).await;
    let words = |count: usize| json!([{"role": "user", "content": vec!["x"; count].join(" ")}]);
    for stream in [false, true] {
        let refused = server.ask(CHAT, chat(json!({"messages": words(8), "stream": stream}))).await;
        assert_eq!(
            (code(&refused), &refused.1["error"]["param"]),
            ((400, "context_length_exceeded"), &json!("messages"))
        );
    }
    let refused = server.ask(CHAT, chat(json!({"messages": words(5), "max_tokens": 4}))).await;
    assert_eq!(code(&refused), (400, "context_length_exceeded"));
    let (_, answer) = server.ask(CHAT, chat(json!({"messages": words(5), "max_tokens": 3}))).await;
    assert_eq!(answer["usage"]["total_tokens"], 8);
    let (_, answer) = server.ask(CHAT, chat(json!({"messages": words(7)}))).await;
    assert_eq!(
        (&answer["usage"]["completion_tokens"], &answer["choices"][0]["finish_reason"]),
        (&json!(1), &json!("length"))
    );
    let (_, answer) = server.ask(COMPLETIONS, completion(json!({"prompt": "x x x"}))).await;
    assert_eq!(answer["usage"]["total_tokens"], 8, "a default is cut to what fits");
    let refused = server.ask(CHAT, chat(json!({"max_tokens": u64::MAX}))).await;
    assert_eq!(code(&refused).0, 400);
    let refused = server.ask(CHAT, chat(json!({"max_tokens": i64::MAX}))).await;
    assert_eq!(code(&refused), (400, "context_length_exceeded"));
}

#[tokio::test]
async fn bad_requests() {
    let server =
        Running::start_with(Fake::default(), ServerConfig { body_limit_bytes: 1000, ..ServerConfig::default() }).await;
    let raw = |body: &'static str| read(server.client.post(server.url(CHAT)).body(body));
    for body in ["", "{", "[]", "\"x\"", "{\"model\": \"\u{0}\"}"] {
        assert_eq!(code(&raw(body).await), (400, "malformed_body"), "{body}");
    }
    assert_eq!(code(&raw("{}").await), (400, "missing_required_parameter"));
    let cases = [
        (chat(json!({"model": "gpt-4"})), 404, "model_not_found", "model"),
        (chat(json!({"messages": null})), 400, "missing_required_parameter", "messages"),
        (chat(json!({"tools": [{"type": "function"}]})), 400, "missing_required_parameter", "tools[0].function"),
        (chat(json!({"response_format": {"type": "xml"}})), 400, "invalid_value", "response_format.type"),
        (chat(json!({"response_format": {"type": "json_object"}})), 400, "invalid_value", "response_format"),
        (chat(json!({"tempratur": 1})), 400, "unknown_parameter", "tempratur"),
        (chat(json!({"temperature": 3})), 400, "invalid_value", "temperature"),
        (chat(json!({"messages": [{"role": "user", "content": "refuse"}]})), 400, "invalid_value", "messages"),
    ];
    for (body, status, kind, param) in cases {
        let refused = server.ask(CHAT, body).await;
        assert_eq!((code(&refused), refused.1["error"]["param"].as_str()), ((status, kind), Some(param)));
    }
    let big = chat(json!({"user": "x".repeat(1000)}));
    assert_eq!(code(&server.ask(CHAT, big).await), (413, "body_too_large"));
}

#[tokio::test]
async fn keys_guard_everything_but_health() {
    let config = ServerConfig { api_keys: ["k-1", "k-2"].into_iter().collect(), ..ServerConfig::default() };
    let server = Running::start_with(Fake::default(), config).await;
    assert_eq!(server.get("/health").await.0, 200);
    for path in ["/v1/models", "/metrics"] {
        assert_eq!(code(&server.get(path).await), (401, "invalid_api_key"));
    }
    assert_eq!(code(&server.ask(CHAT, chat(json!({}))).await), (401, "invalid_api_key"));
    let wrong = read(server.post(CHAT, &chat(json!({}))).bearer_auth("k-3")).await;
    assert_eq!(code(&wrong), (401, "invalid_api_key"));
    assert!(!wrong.1.to_string().contains("k-3"));
    assert_eq!(read(server.post(CHAT, &chat(json!({}))).bearer_auth("k-2")).await.0, 200);
}

#[tokio::test]
async fn pages_of_other_origins_are_refused() {
    let server = Running::start(Fake::default()).await;
    let refused = read(server.post(CHAT, &chat(json!({}))).header("origin", "https://example.org")).await;
    assert_eq!(code(&refused), (403, "cross_origin"));
    let response = server.post(CHAT, &chat(json!({}))).header("origin", server.url("")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.headers().get("access-control-allow-origin").is_none());
}
