//! The gRPC API, through a client in Rust.

use crate::fake::{Fake, Running, eventually};
use edgelm_serve::{
    NewKey, RateLimits, Scope, ServerConfig,
    proto::v1::{
        ChatRequest, Chunk, EmbedRequest, FinishReason, GenerateRequest, ListModelsRequest, Message, Parameters,
        TokenizeRequest, chunk::Event, edge_lm_client::EdgeLmClient, generate_request::Input, tokenize_request,
    },
};
use futures::TryStreamExt;
use prost::Message as _;
use std::{sync::atomic::Ordering, time::Duration};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

pub async fn connect(server: &Running) -> EdgeLmClient<Channel> {
    let endpoint = Endpoint::from_shared(server.url("")).unwrap();
    EdgeLmClient::new(endpoint.connect().await.unwrap())
}

fn generate(prompt: &str, parameters: Parameters) -> GenerateRequest {
    let input = Some(Input::Prompt(prompt.to_owned()));
    GenerateRequest { model: "org/fake-1".to_owned(), input, parameters: Some(parameters) }
}

fn words(count: u64) -> Parameters {
    Parameters { max_tokens: Some(count), ..Parameters::default() }
}

fn slow() -> Fake {
    Fake { token_time: Duration::from_millis(30), eos_after: 50, ..Fake::default() }
}

/// Kind, stable code and field of a refusal.
fn parts(status: &Status) -> (Code, &str, &str) {
    let text = |name: &str| status.metadata().get(name).map_or("", |value| value.to_str().unwrap());
    (status.code(), text("edgelm-code"), text("edgelm-param"))
}

#[tokio::test]
async fn calls_answer_as_http_does() {
    let server = Running::start(Fake::default()).await;
    let mut client = connect(&server).await;
    let parameters = Parameters { n: Some(2), logprobs: Some(1), ..words(3) };
    let whole = client.generate(generate("a b", parameters.clone())).await.unwrap().into_inner();
    assert_eq!(whole.choices.len(), 2);
    assert_eq!((whole.choices[1].index, whole.choices[1].text.as_str()), (1, "w0 w1 w2 "));
    assert_eq!(whole.choices[0].finish_reason(), FinishReason::Length);
    assert_eq!((whole.choices[0].logprobs.len(), whole.choices[0].logprobs[0].top_logprobs.len()), (3, 1));
    let usage = whole.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (2, 6));

    let chunks = client.generate_stream(generate("a b", parameters)).await.unwrap().into_inner();
    let chunks: Vec<Chunk> = chunks.try_collect().await.unwrap();
    assert_eq!(chunks.last().unwrap().event, Some(Event::Usage(usage)));
    let text = |index| -> String {
        let pieces = chunks.iter().filter(|chunk| chunk.index == index);
        pieces
            .filter_map(|chunk| if let Some(Event::Piece(piece)) = &chunk.event { Some(&*piece.text) } else { None })
            .collect()
    };
    assert_eq!((text(0).as_str(), text(1).as_str()), ("w0 w1 w2 ", "w0 w1 w2 "));

    let message = Message { role: "user".to_owned(), content: "a b c".to_owned(), ..Message::default() };
    let request = ChatRequest { model: "org/fake-1".to_owned(), messages: vec![message], ..ChatRequest::default() };
    let answer = client.chat(request.clone()).await.unwrap().into_inner();
    assert_eq!((answer.choices[0].text.as_str(), answer.usage.unwrap().prompt_tokens), ("w0 w1 w2 w3 w4 ", 3));
    assert_eq!(answer.choices[0].finish_reason(), FinishReason::Stop);
    let chunks: Vec<Chunk> = client.chat_stream(request).await.unwrap().into_inner().try_collect().await.unwrap();
    assert!(chunks.iter().any(|chunk| chunk.event == Some(Event::FinishReason(FinishReason::Stop.into()))));

    let request = EmbedRequest { model: "org/fake-1".to_owned(), input: vec!["a b".to_owned()], ..Default::default() };
    let embedded = client.embed(request).await.unwrap().into_inner();
    assert_eq!((embedded.embeddings[0].values.as_slice(), embedded.prompt_tokens), (&[2.0, 0.0][..], 2));
    let input = Some(tokenize_request::Input::Prompt("one three".to_owned()));
    let tokens = client.tokenize(TokenizeRequest { input, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!((tokens.tokens.as_slice(), tokens.max_model_len), (&[3, 5][..], 64));
    let models = client.list_models(ListModelsRequest {}).await.unwrap().into_inner();
    assert_eq!((models.models[0].id.as_str(), models.models[0].context_length), ("org/fake-1", 64));
}

#[tokio::test]
async fn what_http_refuses_is_refused_by_the_same_name() {
    let server = Running::start(Fake::default()).await;
    let mut client = connect(&server).await;
    let nothing = GenerateRequest { model: "org/fake-1".to_owned(), ..GenerateRequest::default() };
    let cases = [
        (nothing, (Code::InvalidArgument, "missing_required_parameter", "prompt")),
        (
            GenerateRequest { model: "x".to_owned(), ..generate("a", words(1)) },
            (Code::NotFound, "model_not_found", "model"),
        ),
        (
            generate("a", Parameters { top_p: Some(f64::NAN), ..words(1) }),
            (Code::InvalidArgument, "invalid_value", "top_p"),
        ),
        (generate("a", Parameters { n: Some(9), ..words(1) }), (Code::InvalidArgument, "invalid_value", "n")),
        (generate("a", words(1000)), (Code::OutOfRange, "context_length_exceeded", "prompt")),
        (generate("a", words(u64::MAX)), (Code::InvalidArgument, "invalid_value", "max_tokens")),
    ];
    for (request, wanted) in cases {
        let refused = client.generate(request.clone()).await.unwrap_err();
        assert_eq!(parts(&refused), wanted);
        assert_eq!(parts(&client.generate_stream(request).await.unwrap_err()), wanted);
    }
}

#[tokio::test]
async fn keys_and_rates_hold_here_too() {
    let key = NewKey::random("k", Scope::Use).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("keys"), &key.line).unwrap();
    let api_keys = edgelm_serve::ApiKeys::from_file(&folder.path().join("keys")).unwrap();
    let rates = RateLimits { requests: Some(2), tokens: None };
    let server =
        Running::start_with(Fake::default(), ServerConfig { api_keys, rates, ..ServerConfig::default() }).await;
    let mut client = connect(&server).await;
    let ask = |key: &str| {
        let mut request = Request::new(generate("a", words(1)));
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        request
    };
    let refused = client.generate(generate("a", words(1))).await.unwrap_err();
    assert_eq!(parts(&refused), (Code::Unauthenticated, "invalid_api_key", ""));
    assert_eq!(client.generate(ask("elm_0")).await.unwrap_err().code(), Code::Unauthenticated);
    let answered = client.generate(ask(&key.key)).await.unwrap();
    assert_eq!(answered.metadata().get("x-ratelimit-remaining-requests").unwrap(), "1");
    client.generate(ask(&key.key)).await.unwrap();
    let refused = client.generate(ask(&key.key)).await.unwrap_err();
    assert_eq!(parts(&refused), (Code::ResourceExhausted, "rate_limit_exceeded", ""));
    assert!(refused.metadata().get("retry-after").is_some());
}

#[tokio::test]
async fn deadlines_and_cancelling_stop_generation() {
    let server = Running::start(slow()).await;
    let mut client = connect(&server).await;
    let returned = |count| {
        let fake = server.fake.clone();
        async move { eventually("generation ends", || fake.returned.load(Ordering::SeqCst) == count).await }
    };
    // By hand, as the client of tonic gives up by itself at its deadline.
    let message = generate("a", words(50)).encode_to_vec();
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(&message);
    let plain = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let late = plain.post(server.url("/edgelm.v1.EdgeLM/Generate")).header("content-type", "application/grpc");
    let late = late.header("te", "trailers").header("grpc-timeout", "200m").body(frame).send().await.unwrap();
    assert_eq!(late.headers()["grpc-status"], (Code::DeadlineExceeded as i32).to_string().as_str());
    assert_eq!(late.headers()["edgelm-code"], "deadline_exceeded");
    returned(1).await;
    assert!(server.fake.generated.load(Ordering::SeqCst) < 30);

    let mut stream = client.generate_stream(generate("a", words(50))).await.unwrap().into_inner();
    stream.try_next().await.unwrap().unwrap();
    drop(stream);
    returned(2).await;
    let call = tokio::spawn({
        let mut client = client.clone();
        async move { client.generate(generate("a", words(50))).await }
    });
    eventually("the third runs", || server.fake.calls.lock().unwrap().len() == 3).await;
    call.abort();
    returned(3).await;
    assert!(server.fake.generated.load(Ordering::SeqCst) < 90);

    // The server's own word, also half-way.
    let timed = Parameters { timeout: Some(0.2), ..words(50) };
    let stream = client.generate_stream(generate("a", timed)).await.unwrap().into_inner();
    let failed = stream.try_collect::<Vec<Chunk>>().await.unwrap_err();
    assert_eq!(parts(&failed), (Code::DeadlineExceeded, "deadline_exceeded", ""));
}
