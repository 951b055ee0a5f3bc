//! The APIs in front of a real model: forms of answers, functions, embeddings, tokens.

use crate::fake::{client, read};
use edgelm_engine::{BatchOptions, Model};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use edgelm_serve::{Backend, ModelBackend, ServerConfig, serve};
use serde_json::{Value, json};
use std::{net::SocketAddr, path::Path, sync::Arc};
use tokio::sync::oneshot;

const MICA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../edgelm/assets/mica-5m");

/// A server that runs as long as the test.
struct Server(SocketAddr, reqwest::Client);

impl Server {
    async fn start() -> Self {
        let checkpoint = Checkpoint::open(Path::new(MICA)).unwrap();
        let model = Model::load(Arc::new(checkpoint), Arc::new(Cpu::new(Some(1), None).unwrap())).unwrap();
        let backend =
            ModelBackend::new(Arc::new(model), Some("mica".to_owned()), Vec::new(), BatchOptions::default()).unwrap();
        let backend: Arc<dyn Backend> = Arc::new(backend);
        let (ready, address) = oneshot::channel();
        let config = ServerConfig { port: 0, ..ServerConfig::default() };
        tokio::spawn(serve(config, backend, std::future::pending(), |address| ready.send(address).unwrap()));
        Self(address.await.unwrap(), client())
    }

    fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.1.post(format!("http://{}{path}", self.0)).json(body)
    }

    /// The answer to a request that must succeed.
    async fn ask(&self, path: &str, body: Value) -> Value {
        let (status, answer) = read(self.post(path, &body)).await;
        assert_eq!(status, 200, "{path} {body}: {answer}");
        answer
    }

    async fn refused(&self, path: &str, body: Value) -> Value {
        let (status, answer) = read(self.post(path, &body)).await;
        assert_eq!(status, 400, "{path} {body}: {answer}");
        answer
    }

    /// The text of a stream's answer.
    async fn stream(&self, path: &str, body: Value) -> String {
        let response = self.post(path, &body).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path} {body}");
        response.text().await.unwrap()
    }
}

/// Names and data of a stream's events.
fn events(text: &str) -> Vec<(String, Value)> {
    let mut events = Vec::new();
    let mut name = String::new();
    for line in text.lines() {
        if let Some(event) = line.strip_prefix("event: ") {
            name = event.to_owned();
        } else if let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") {
            events.push((std::mem::take(&mut name), serde_json::from_str(data).unwrap()));
        }
    }
    events
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

fn weather() -> Value {
    json!({
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": false,
    })
}

fn is_weather(arguments: &Value) -> bool {
    ["Oslo", "Rome"].iter().any(|city| arguments["city"] == *city)
        && arguments["days"].as_i64().is_some_and(|days| (1..=9).contains(&days))
        && arguments.as_object().unwrap().len() == 2
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_the_form_that_is_asked_for() {
    let server = Server::start().await;
    let schema = weather();
    let format = json!({"type": "json_schema", "json_schema": {"name": "w", "strict": true, "schema": schema}});
    for seed in 0..3 {
        let body = json!({"model": "mica", "messages": user("Weather?"), "response_format": format, "seed": seed,
            "temperature": 1, "n": 2});
        for choice in server.ask("/v1/chat/completions", body).await["choices"].as_array().unwrap() {
            let text = choice["message"]["content"].as_str().unwrap();
            assert!(is_weather(&serde_json::from_str(text).unwrap()), "{text}");
            assert_eq!(choice["finish_reason"], "stop");
        }
    }
    let chat = server
        .ask("/api/chat", json!({"model": "mica:latest", "messages": user("W?"), "format": schema, "stream": false}))
        .await;
    assert!(is_weather(&serde_json::from_str(chat["message"]["content"].as_str().unwrap()).unwrap()));
    let text = json!({"format": {"type": "json_schema", "name": "w", "schema": schema}});
    let response = server.ask("/v1/responses", json!({"model": "mica", "input": "W?", "text": text})).await;
    let text = response["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(is_weather(&serde_json::from_str(text).unwrap()));
    let choice = json!({"model": "mica", "prompt": "Pick:", "guided_choice": ["red", "blue"]});
    let picked = server.ask("/v1/completions", choice).await["choices"][0]["text"].clone();
    assert!(picked == "red" || picked == "blue");
    let cut = json!({"model": "mica", "prompt": "x", "max_tokens": 3, "guided_regex": "[a-z]{40}"});
    let cut = server.ask("/v1/completions", cut).await;
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    for (name, value, param) in [
        ("guided_json", json!({"not": {}}), "guided_json"),
        ("guided_regex", json!("("), "guided_regex"),
        ("guided_grammar", json!("start: x"), "guided_grammar"),
    ] {
        let refused = server.refused("/generate", json!({"prompt": "x", name: value})).await;
        assert_eq!((&refused["error"]["param"], &refused["error"]["code"]), (&json!(param), &json!("invalid_value")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_are_called_as_required() {
    let server = Server::start().await;
    let function = |name: &str| json!({"name": name, "description": "d", "parameters": weather()});
    let tool = |name: &str| json!({"type": "function", "function": function(name)});
    let body = |extra: Value| {
        let mut body = json!({"model": "mica", "messages": user("Weather?"), "tools": [tool("weather"), tool("storm")],
            "temperature": 1, "seed": 3, "max_tokens": 300});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let arguments =
        |call: &Value| -> Value { serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap() };
    let answer = server
        .ask("/v1/chat/completions", body(json!({"tool_choice": "required", "parallel_tool_calls": false})))
        .await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null));
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert!(calls.len() == 1 && is_weather(&arguments(&calls[0])), "{calls:?}");

    let named = json!({"tool_choice": {"type": "function", "function": {"name": "storm"}}, "stream": true});
    let stream = server.stream("/v1/chat/completions", body(named)).await;
    let (mut name, mut text) = (String::new(), String::new());
    for (_, chunk) in events(&stream) {
        let call = &chunk["choices"][0]["delta"]["tool_calls"][0]["function"];
        name.push_str(call["name"].as_str().unwrap_or_default());
        text.push_str(call["arguments"].as_str().unwrap_or_default());
    }
    assert!(name == "storm" && is_weather(&serde_json::from_str(&text).unwrap()), "{stream}");

    // Calls and results of earlier turns reach a model whose template has no place for them.
    let mut messages = user("Weather?");
    messages.as_array_mut().unwrap().extend([
        json!({"role": "assistant", "content": null, "tool_calls": calls}),
        json!({"role": "tool", "tool_call_id": calls[0]["id"], "content": "sunny"}),
    ]);
    let strict = json!({"messages": messages, "max_tokens": 8});
    server.ask("/v1/chat/completions", body(strict)).await;

    // Anthropic's and OpenAI's newer form.
    let tools = json!([{"name": "weather", "input_schema": weather()}]);
    let ask = json!({"model": "mica", "max_tokens": 200, "messages": user("W?"), "tools": tools,
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true}});
    let answer = server.ask("/v1/messages", ask.clone()).await;
    assert_eq!((&answer["stop_reason"], &answer["content"][0]["type"]), (&json!("tool_use"), &json!("tool_use")));
    assert!(is_weather(&answer["content"][0]["input"]));
    let mut streamed = ask;
    streamed["stream"] = json!(true);
    let names: Vec<String> =
        events(&server.stream("/v1/messages", streamed).await).into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let mut flat = function("weather");
    flat["type"] = json!("function");
    let ask = json!({"model": "mica", "input": "W?", "tools": [flat], "tool_choice": "required",
        "parallel_tool_calls": false, "max_output_tokens": 200, "stream": true});
    let events = events(&server.stream("/v1/responses", ask).await);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed"
        ]
    );
    assert_eq!(events[6].1["response"]["output"][0]["name"], "weather");

    for (extra, param) in [
        (json!({"tool_choice": {"type": "function", "function": {"name": "rain"}}}), "tool_choice"),
        (json!({"tools": [tool("a"), tool("a")]}), "tools"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}), "tools[0].function.name"),
        (
            json!({"tool_choice": "required", "tools": [{"type": "function",
                "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}}]}),
            "tools",
        ),
    ] {
        let refused = server.refused("/v1/chat/completions", body(extra)).await;
        assert_eq!(refused["error"]["param"], param, "{refused}");
    }
}

/// Free text and calls in one answer: what stands between the marks must be a valid call of a strict function.
#[tokio::test(flavor = "multi_thread")]
async fn strict_functions_are_called_rightly_or_not_at_all() {
    let server = Server::start().await;
    let tool = json!({"type": "function", "function": {"name": "weather", "strict": true, "parameters": weather()}});
    let mut calls_seen = 0;
    for seed in 0..3 {
        let server = &server;
        let token = |text: &'static str| async move {
            server.ask("/tokenize", json!({"content": text})).await["tokens"][0].clone()
        };
        // The first token of the mark, made likely, begins many calls.
        let bias = json!({token("<tool").await.to_string(): 8, token("<").await.to_string(): 8});
        let body = json!({"model": "mica", "messages": user("Weather?"), "tools": [tool.clone()], "temperature": 1.2,
            "seed": seed, "max_tokens": 120, "logit_bias": bias});
        let answer = server.ask("/v1/chat/completions", body).await;
        let message = &answer["choices"][0]["message"];
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            calls_seen += 1;
            let arguments = call["function"]["arguments"].as_str().unwrap();
            assert!(is_weather(&serde_json::from_str(arguments).unwrap()), "{arguments}");
        }
        if answer["choices"][0]["finish_reason"] != "length" {
            assert!(!message["content"].as_str().unwrap_or_default().contains("<tool_call>"), "{message}");
        }
    }
    println!("{calls_seen} calls");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_have_their_events_in_order() {
    let server = Server::start().await;
    let ask = json!({"model": "mica", "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
        "max_output_tokens": 3, "stream": true, "instructions": "Be brief."});
    let events_of = events(&server.stream("/v1/responses", ask).await);
    let mut names: Vec<&str> = events_of.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete"
        ]
    );
    let numbers: Vec<u64> = events_of.iter().map(|(_, data)| data["sequence_number"].as_u64().unwrap()).collect();
    assert!(numbers.iter().zip(0..).all(|(&number, want)| number == want));
    let (_, last) = events_of.last().unwrap();
    assert_eq!(last["response"]["incomplete_details"]["reason"], "max_output_tokens");

    let lines = server
        .stream("/api/generate", json!({"model": "mica", "prompt": "Hi", "options": {"num_predict": 4, "seed": 1}}))
        .await;
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, rest) = lines.split_last().unwrap();
    assert!(rest.iter().all(|line| line["done"] == false && line["response"].is_string()));
    assert_eq!((&last["done_reason"], &last["eval_count"]), (&json!("length"), &json!(4)));
    let whole = json!({"model": "mica", "prompt": "Hi", "stream": false, "options": {"num_predict": 4, "seed": 1}});
    let text: String = rest.iter().map(|line| line["response"].as_str().unwrap()).collect();
    assert_eq!(server.ask("/api/generate", whole).await["response"], text);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_sequences_are_named() {
    let server = Server::start().await;
    let ask = |extra: Value| {
        let mut body =
            json!({"model": "mica", "max_tokens": 40, "temperature": 0, "messages": user("Tell me a story.")});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let plain = server.ask("/v1/messages", ask(json!({}))).await;
    let text = plain["content"][0]["text"].as_str().unwrap().to_owned();
    let characters: Vec<char> = text.chars().collect();
    let stop: String = characters[4..8].iter().collect();
    let answer = server.ask("/v1/messages", ask(json!({"stop_sequences": ["never seen", stop]}))).await;
    assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    let at = text.find(&stop).unwrap();
    assert_eq!(answer["content"][0]["text"].as_str().unwrap_or_default(), &text[..at]);
    let counted = json!({"model": "mica", "messages": user("Tell me a story.")});
    let counted = server.ask("/v1/messages/count_tokens", counted).await;
    assert_eq!(counted["input_tokens"], plain["usage"]["input_tokens"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_agree_between_apis() {
    let server = Server::start().await;
    let openai = server.ask("/v1/embeddings", json!({"model": "mica", "input": ["a cat", "a dog"]})).await;
    let ollama = server.ask("/api/embed", json!({"model": "mica", "input": ["a cat", "a dog"]})).await;
    assert_eq!(openai["data"][1]["embedding"], ollama["embeddings"][1]);
    assert_eq!(openai["usage"]["prompt_tokens"], ollama["prompt_eval_count"]);
    let old = server.ask("/api/embeddings", json!({"model": "mica", "prompt": "a cat"})).await;
    assert_eq!(old["embedding"], openai["data"][0]["embedding"]);
    let short = server.ask("/v1/embeddings", json!({"model": "mica", "input": "a cat", "dimensions": 8})).await;
    let values: Vec<f64> =
        short["data"][0]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    assert!(values.len() == 8 && (values.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    let text = json!({"model": "mica", "input": "a cat", "encoding_format": "base64"});
    let text = server.ask("/v1/embeddings", text).await["data"][0]["embedding"].as_str().unwrap().len();
    assert_eq!(text, (256usize * 4).div_ceil(3) * 4);
    let mean = json!({"model": "mica", "input": "a cat", "pooling": "mean"});
    assert_ne!(server.ask("/v1/embeddings", mean).await["data"][0]["embedding"], openai["data"][0]["embedding"]);
    let long = "x ".repeat(3000);
    let refused = server.refused("/v1/embeddings", json!({"model": "mica", "input": long})).await;
    assert_eq!(refused["error"]["code"], "context_length_exceeded");
    server.ask("/api/embed", json!({"model": "mica", "input": long, "truncate": true})).await;
    let refused = server.refused("/v1/embeddings", json!({"model": "mica", "input": "a", "dimensions": 257})).await;
    assert_eq!(refused["error"]["param"], "dimensions");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_go_both_ways() {
    let server = Server::start().await;
    let text = "Hello, wörld!";
    let vllm = server.ask("/tokenize", json!({"prompt": text, "add_special_tokens": false})).await;
    let llama = server.ask("/tokenize", json!({"content": text, "with_pieces": true})).await;
    let ids: Vec<Value> = llama["tokens"].as_array().unwrap().iter().map(|token| token["id"].clone()).collect();
    assert_eq!(vllm["tokens"], json!(ids));
    assert_eq!(vllm["count"], ids.len());
    let back = server.ask("/detokenize", json!({"tokens": ids})).await;
    assert_eq!((&back["prompt"], &back["content"]), (&json!(text), &json!(text)));
    let with = server.ask("/tokenize", json!({"prompt": text})).await;
    assert_eq!(with["count"], ids.len() + 1, "this model begins prompts with a token of its own");
    let chat = server.ask("/tokenize", json!({"messages": user("Hi")})).await;
    let asked =
        server.ask("/v1/chat/completions", json!({"model": "mica", "messages": user("Hi"), "max_tokens": 1})).await;
    assert_eq!(chat["count"], asked["usage"]["prompt_tokens"]);
    server.refused("/detokenize", json!({"tokens": [99_999_999]})).await;
    server.refused("/tokenize", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_and_errors_have_their_apis_shape() {
    let server = Server::start().await;
    let get = |path: &'static str| read(server.1.get(format!("http://{}{path}", server.0)));
    let (_, tags) = get("/api/tags").await;
    assert_eq!(
        (&tags["models"][0]["model"], &tags["models"][0]["details"]["family"]),
        (&json!("mica"), &json!("llama"))
    );
    assert_eq!(get("/api/ps").await.1["models"][0]["context_length"], 2048);
    let show = server.ask("/api/show", json!({"model": "mica"})).await;
    assert!(show["template"].as_str().unwrap().contains("<|im_start|>"));
    assert_eq!(show["model_info"]["llama.embedding_length"], 256);
    assert!(get("/api/version").await.1["version"].is_string());
    let (_, document) = get("/openapi.json").await;
    assert!(document["paths"]["/v1/chat/completions"]["post"]["requestBody"].is_object());
    let load = server.ask("/api/chat", json!({"model": "mica"})).await;
    assert_eq!((&load["done"], &load["done_reason"]), (&json!(true), &json!("load")));

    let (status, error) = read(server.post("/api/chat", &json!({"model": "gpt"}))).await;
    assert!(status == 404 && error["error"].as_str().unwrap().contains("gpt"));
    let refused = server.refused("/api/generate", json!({"model": "mica", "prompt": "x", "suffix": "y"})).await;
    assert!(refused["error"].as_str().unwrap().contains("`suffix`"));
    let refused = server.refused("/api/chat", json!({"model": "mica", "options": {"mirostat": 2}})).await;
    assert!(refused["error"].as_str().unwrap().contains("`options.mirostat`"));
    let thinking = json!({"model": "mica", "max_tokens": 9, "messages": user("x"),
        "thinking": {"type": "enabled", "budget_tokens": 1024}});
    let refused = server.refused("/v1/messages", thinking).await;
    assert_eq!((&refused["type"], &refused["error"]["type"]), (&json!("error"), &json!("invalid_request_error")));
    let stored = server.refused("/v1/responses", json!({"model": "mica", "input": "x", "store": true})).await;
    assert_eq!(stored["error"]["param"], "store");
    let earlier = json!({"model": "mica", "input": "x", "previous_response_id": "resp_1"});
    assert_eq!(server.refused("/v1/responses", earlier).await["error"]["param"], "previous_response_id");
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_are_echoed_and_biases_bite() {
    let server = Server::start().await;
    let echo = json!({"model": "mica", "prompt": "Once upon", "echo": true, "max_tokens": 2});
    let text = server.ask("/v1/completions", echo).await["choices"][0]["text"].clone();
    assert!(text.as_str().unwrap().starts_with("Once upon"));
    let id = server.ask("/tokenize", json!({"content": " cat"})).await["tokens"][0].clone();
    let forced = json!({"model": "mica", "prompt": "The", "max_tokens": 3, "logit_bias": {id.to_string(): 100}});
    assert_eq!(server.ask("/v1/completions", forced).await["choices"][0]["text"], " cat cat cat");
}
