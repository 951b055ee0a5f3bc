//! `grpc.health.v1`: what `/health` says.

use crate::api::App;
use futures::stream::{self, Stream};
use std::{pin::Pin, sync::Arc, time::Duration};
use tonic::{Request, Response, Status, server::NamedService};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health as Service, HealthServer},
};

/// How soon a watcher learns of a change.
const INTERVAL: Duration = Duration::from_millis(500);

pub(super) struct Health(pub(super) Arc<App>);

impl Health {
    /// An empty name is the server as a whole; one service is as well as the other.
    fn knows(service: &str) -> bool {
        service.is_empty()
            || service == <crate::proto::v1::edge_lm_server::EdgeLmServer<super::Calls>>::NAME
            || service == <HealthServer<Self>>::NAME
    }
}

fn current(app: &App) -> ServingStatus {
    match app.service().and_then(|service| service.check_alive()) {
        Ok(()) => ServingStatus::Serving,
        Err(_) => ServingStatus::NotServing,
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Service for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !Self::knows(&service) {
            return Err(Status::not_found(format!("there is no service `{service}`")));
        }
        Ok(Response::new(response(current(&self.0))))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let is_known = Self::knows(&request.into_inner().service);
        let changes = stream::unfold((Arc::clone(&self.0), None), move |(app, told)| async move {
            loop {
                let now = if is_known { current(&app) } else { ServingStatus::ServiceUnknown };
                if told != Some(now) {
                    return Some((Ok(response(now)), (app, Some(now))));
                }
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
