//! The calls of `edgelm.v1.EdgeLM`.

use super::{
    answer::{Chunks, chunks, whole},
    request,
    status::{deadline, status},
};
use crate::{
    api::{App, chat, embeddings, generate, models, tokens},
    caller::Caller,
    error::ApiError,
    proto::v1::{self, edge_lm_server::EdgeLm},
};
use axum::{Json, extract::State};
use serde_json::Value;
use std::{future::Future, sync::Arc, time::Duration};
use tonic::{Request, Response, Status};

pub(super) struct Calls(pub(super) Arc<App>);

#[tonic::async_trait]
impl EdgeLm for Calls {
    async fn generate(&self, call: Request<v1::GenerateRequest>) -> Result<Response<v1::Answer>, Status> {
        let (caller, deadline, message) = open(call)?;
        let begun = async { generate::begin(&self.0, caller, request::generate(message, deadline)?).await };
        let (model, answers) = begun.await.map_err(|error| status(&error))?;
        whole(model, answers).await.map(Response::new).map_err(|error| status(&error))
    }

    type GenerateStreamStream = Chunks;

    async fn generate_stream(&self, call: Request<v1::GenerateRequest>) -> Result<Response<Chunks>, Status> {
        let (caller, deadline, message) = open(call)?;
        let begun = async { generate::begin(&self.0, caller, request::generate(message, deadline)?).await };
        let (_, answers) = begun.await.map_err(|error| status(&error))?;
        Ok(Response::new(chunks(answers)))
    }

    async fn chat(&self, call: Request<v1::ChatRequest>) -> Result<Response<v1::Answer>, Status> {
        let (caller, deadline, message) = open(call)?;
        let begun = async { chat::begin(&self.0, caller, request::chat(message, deadline)?).await };
        let begun = begun.await.map_err(|error| status(&error))?;
        whole(begun.model, begun.answers).await.map(Response::new).map_err(|error| status(&error))
    }

    type ChatStreamStream = Chunks;

    async fn chat_stream(&self, call: Request<v1::ChatRequest>) -> Result<Response<Chunks>, Status> {
        let (caller, deadline, message) = open(call)?;
        let begun = async { chat::begin(&self.0, caller, request::chat(message, deadline)?).await };
        let begun = begun.await.map_err(|error| status(&error))?;
        Ok(Response::new(chunks(begun.answers)))
    }

    async fn embed(&self, call: Request<v1::EmbedRequest>) -> Result<Response<v1::EmbedResponse>, Status> {
        let (caller, deadline, message) = open(call)?;
        let app = State(Arc::clone(&self.0));
        let work = async { embeddings::create(app, caller, request::embed(message)?).await };
        let answer = within(deadline, work).await?;
        let vector = |entry: &Value| v1::Embedding {
            // Written from f32, so nothing is lost.
            values: list(&entry["embedding"]).iter().filter_map(Value::as_f64).map(|x| x as f32).collect(),
        };
        Ok(Response::new(v1::EmbedResponse {
            model: text(&answer["model"]),
            embeddings: list(&answer["data"]).iter().map(vector).collect(),
            prompt_tokens: count(&answer["usage"]["prompt_tokens"]),
        }))
    }

    async fn tokenize(&self, call: Request<v1::TokenizeRequest>) -> Result<Response<v1::TokenizeResponse>, Status> {
        let (_, deadline, message) = open(call)?;
        let app = State(Arc::clone(&self.0));
        let work = async { tokens::tokenize(app, request::tokenize(message)?).await };
        let answer = within(deadline, work).await?;
        let ids = list(&answer["tokens"]).iter().filter_map(|id| u32::try_from(id.as_u64()?).ok());
        let (tokens, max_model_len) = (ids.collect(), count(&answer["max_model_len"]));
        Ok(Response::new(v1::TokenizeResponse { tokens, max_model_len }))
    }

    async fn detokenize(
        &self,
        call: Request<v1::DetokenizeRequest>,
    ) -> Result<Response<v1::DetokenizeResponse>, Status> {
        let (_, deadline, message) = open(call)?;
        let app = State(Arc::clone(&self.0));
        let work = async { tokens::detokenize(app, request::detokenize(message)?).await };
        let answer = within(deadline, work).await?;
        Ok(Response::new(v1::DetokenizeResponse { text: text(&answer["prompt"]) }))
    }

    async fn list_models(
        &self,
        call: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let (_, deadline, _) = open(call)?;
        let answer = within(deadline, models::list(State(Arc::clone(&self.0)))).await?;
        let model = |entry: &Value| v1::Model {
            id: text(&entry["id"]),
            created: count(&entry["created"]),
            parent: entry["parent"].as_str().map(str::to_owned),
            context_length: count(&entry["context_length"]),
        };
        Ok(Response::new(v1::ListModelsResponse { models: list(&answer["data"]).iter().map(model).collect() }))
    }
}

/// Who calls, until when, and with what.
fn open<T>(call: Request<T>) -> Result<(Caller, Option<Duration>, T), Status> {
    let deadline = deadline(call.metadata())?;
    Ok((Caller::of(call.extensions()), deadline, call.into_inner()))
}

/// The answer of an endpoint, if it comes in time.
async fn within(
    deadline: Option<Duration>,
    work: impl Future<Output = Result<Json<Value>, ApiError>>,
) -> Result<Value, Status> {
    let answer = match deadline {
        None => work.await,
        Some(time) => tokio::time::timeout(time, work).await.unwrap_or(Err(ApiError::DeadlineExceeded)),
    };
    answer.map(|Json(answer)| answer).map_err(|error| status(&error))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}
