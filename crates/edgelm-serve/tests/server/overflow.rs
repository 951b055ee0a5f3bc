//! Prompts that are longer than the context.

use crate::fake::{Fake, Running};
use edgelm_serve::{
    Overflow, ServerConfig,
    proto::v1::{Chunk, GenerateRequest, Parameters, chunk::Event, generate_request::Input},
};
use futures::TryStreamExt;
use serde_json::{Value, json};

const PATH: &str = "/v1/chat/completions";

/// A system message of two tokens, turns of eight, and a question of one.
fn chat(turns: usize, extra: Value) -> Value {
    let mut messages = vec![json!({"role": "system", "content": "s s"})];
    for _ in 0..turns {
        messages.push(json!({"role": "user", "content": "aa aa aa aa"}));
        messages.push(json!({"role": "assistant", "content": "bbb bbb bbb bbb"}));
    }
    messages.push(json!({"role": "user", "content": "cccc"}));
    let mut body = json!({"model": "org/fake-1", "messages": messages, "max_tokens": 10});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// Status, the header, and the body.
async fn ask(server: &Running, path: &str, body: &Value) -> (u16, Option<String>, Value) {
    let response = server.post(path, body).send().await.unwrap();
    let header = response.headers().get("x-edgelm-context-dropped").map(|value| value.to_str().unwrap().to_owned());
    let status = response.status().as_u16();
    (status, header, serde_json::from_str(&response.text().await.unwrap()).unwrap())
}

fn prompts(server: &Running) -> Vec<Vec<u32>> {
    server.fake.calls.lock().unwrap().iter().map(|(prompt, _)| prompt.clone()).collect()
}

#[tokio::test]
async fn the_oldest_turns_go_and_the_client_is_told() {
    let server = Running::start(Fake::default()).await;
    let (status, header, answer) = ask(&server, PATH, &chat(10, json!({}))).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
    assert_eq!(header, None);
    let (status, header, answer) = ask(&server, PATH, &chat(10, json!({"overflow": "slide"}))).await;
    assert_eq!((status, header.as_deref()), (200, Some("turns=4 tokens=32 summary_tokens=0")));
    assert_eq!(answer["usage"]["prompt_tokens"], 51);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["dropped_tokens"], 32);
    let prompt = &prompts(&server)[0];
    assert_eq!((prompt.len(), &prompt[..4], prompt.last()), (51, &[1, 1, 2, 2][..], Some(&4)));
    // What fits stays as it is.
    let (status, header, answer) = ask(&server, PATH, &chat(6, json!({"overflow": "slide"}))).await;
    assert_eq!((status, header, &answer["usage"]["prompt_tokens"]), (200, None, &json!(51)));
}

#[tokio::test]
async fn plain_prompts_lose_their_oldest_tokens() {
    let config = ServerConfig { overflow: Overflow::Slide, ..ServerConfig::default() };
    let server = Running::start_with(Fake::default(), config).await;
    let words: Vec<String> = (0..100).map(|at| "x".repeat(1 + at % 9)).collect();
    let body = json!({"model": "org/fake-1", "prompt": words.join(" "), "max_tokens": 10});
    let (status, header, _) = ask(&server, "/v1/completions", &body).await;
    assert_eq!((status, header.as_deref()), (200, Some("turns=0 tokens=46 summary_tokens=0")));
    let expected: Vec<u32> = words[46..].iter().map(|word| u32::try_from(word.len()).unwrap()).collect();
    assert_eq!(prompts(&server), [expected]);
    // The request's own word goes before the server's.
    let mut body = body;
    body["overflow"] = "refuse".into();
    assert_eq!(ask(&server, "/v1/completions", &body).await.0, 400);
}

#[tokio::test]
async fn what_goes_is_summarized_once() {
    let server = Running::start(Fake { context: 400, ..Fake::default() }).await;
    let body = chat(60, json!({"overflow": "summarize"}));
    let (status, header, answer) = ask(&server, PATH, &body).await;
    assert_eq!(status, 200, "{answer}");
    let header = header.unwrap();
    // In two pieces, of five words each.
    assert!(header.starts_with("turns=30 ") && header.ends_with(" summary_tokens=10"), "{header}");
    let calls = prompts(&server);
    assert_eq!(calls.len(), 3);
    assert!(calls.iter().all(|prompt| prompt.len() <= 390));
    // Its words are between the system message and the turns that stay: `[Summary of the earlier conversation: w0 …`.
    assert_eq!(calls[2][..12], [1, 1, 8, 2, 3, 7, 13, 2, 2, 2, 2, 3]);
    assert_eq!(ask(&server, PATH, &body).await.0, 200);
    assert_eq!(prompts(&server).len(), 4, "it is remembered");
    assert_eq!(ask(&server, PATH, &chat(62, json!({"overflow": "summarize"}))).await.0, 200);
    assert_eq!(prompts(&server).len(), 6, "and goes on from there");
}

#[tokio::test]
async fn what_cannot_be_made_to_fit_is_refused() {
    let server = Running::start(Fake::default()).await;
    let long = vec!["w"; 60].join(" ");
    for overflow in ["slide", "summarize"] {
        let body = json!({"model": "org/fake-1", "max_tokens": 10, "overflow": overflow,
            "messages": [{"role": "user", "content": long}]});
        let (status, _, answer) = ask(&server, PATH, &body).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
    }
    let (status, _, answer) = ask(&server, PATH, &chat(1, json!({"overflow": "cut"}))).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("overflow")));
    let both = json!({"model": "org/fake-1", "input": "a", "overflow": "slide", "truncation": "auto"});
    assert_eq!(ask(&server, "/v1/responses", &both).await.0, 400);
    let auto = json!({"model": "org/fake-1", "input": "a", "truncation": "auto"});
    assert_eq!(ask(&server, "/v1/responses", &auto).await.2["truncation"], "auto");
}

#[tokio::test]
async fn grpc_clients_are_told_too() {
    let config = ServerConfig { overflow: Overflow::Slide, ..ServerConfig::default() };
    let server = Running::start_with(Fake::default(), config).await;
    let mut client = crate::grpc::connect(&server).await;
    let request = || GenerateRequest {
        model: "org/fake-1".to_owned(),
        input: Some(Input::Prompt(vec!["w"; 100].join(" "))),
        parameters: Some(Parameters { max_tokens: Some(10), ..Parameters::default() }),
    };
    let said = Some("turns=0 tokens=46 summary_tokens=0");
    let answer = client.generate(request()).await.unwrap();
    let dropped = answer.metadata().get("x-edgelm-context-dropped").map(|value| value.to_str().unwrap());
    assert_eq!(dropped, said);
    assert_eq!(answer.get_ref().usage.unwrap().dropped_tokens, 46);
    let chunks = client.generate_stream(request()).await.unwrap();
    let dropped = chunks.metadata().get("x-edgelm-context-dropped").map(|value| value.to_str().unwrap());
    assert_eq!(dropped, said);
    let chunks: Vec<Chunk> = chunks.into_inner().try_collect().await.unwrap();
    let Some(Event::Usage(usage)) = &chunks.last().unwrap().event else { panic!("no usage") };
    assert_eq!((usage.prompt_tokens, usage.dropped_tokens), (54, 46));
}
