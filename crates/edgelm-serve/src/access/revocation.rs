//! The end of a key: what was begun under it ends too.

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::sync::watch;

/// Held with a key for as long as it is good.
#[derive(Debug)]
pub(super) struct Validity(watch::Sender<bool>);

impl Default for Validity {
    fn default() -> Self {
        Self(watch::Sender::new(true))
    }
}

impl Validity {
    /// For a request that is let in by the key.
    pub(super) fn watch(&self) -> Revocation {
        Revocation(self.0.subscribe())
    }

    /// The key opens nothing any more.
    pub(super) fn end(&self) {
        self.0.send_replace(false);
    }
}

/// Tells whoever is served under a key that it is good no longer.
#[derive(Debug, Clone)]
pub(crate) struct Revocation(watch::Receiver<bool>);

impl Revocation {
    /// Completes when the key has been revoked.
    pub(crate) async fn revoked(mut self) {
        // An error means that nobody is left who could revoke it.
        if self.0.wait_for(|&is_good| !is_good).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The same body, cut when the key is revoked. Dropping what is inside cancels what it waits for.
    pub(crate) fn guard(self, body: Body) -> Body {
        // What has a length is there already.
        if body.size_hint().exact().is_some() {
            return body;
        }
        Body::new(Guarded { body: Some(body), revoked: Box::pin(self.revoked()) })
    }
}

struct Guarded {
    /// `None` once it was cut.
    body: Option<Body>,
    revoked: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        if this.revoked.as_mut().poll(context).is_ready() {
            this.body = None;
            return Poll::Ready(Some(Err(axum::Error::new(io::Error::from(io::ErrorKind::PermissionDenied)))));
        }
        Pin::new(body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}
