//! What an answer leaves unread of its request.
//!
//! A refusal often comes before the request's body is read. Over HTTP/1.1 the next request stands behind that body, so either the
//! rest is read and dropped, or the connection ends and the answer says so: a client that is not told sends its next request into
//! a closed connection (RFC 9112, §9.3 and §9.6).

use axum::{
    body::{Body, Bytes, HttpBody},
    http::{HeaderValue, Request, Version, header},
    response::Response,
};
use http_body::{Frame, SizeHint};
use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;

/// As much is read for a connection to be kept; most of it is in the system's buffers already.
const LIMIT_BYTES: u64 = 256 << 10;
/// An answer waits for so long at most.
const LIMIT_TIME: Duration = Duration::from_secs(1);

/// A request's body, from outside of it.
pub(super) struct Rest {
    /// The client waits for a word before it sends its body.
    is_held: bool,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Given back by who did not read it to the end.
    body: Option<Body>,
    is_read: bool,
    is_over: bool,
}

impl Rest {
    /// Lends the request's body to who answers it. `None` where nothing can be left: there is no body, or every request has a stream
    /// of its own.
    pub(super) fn of(request: Request<Body>) -> (Request<Body>, Option<Self>) {
        if request.version() > Version::HTTP_11 || request.body().is_end_stream() {
            return (request, None);
        }
        let rest = Self { is_held: request.headers().contains_key(header::EXPECT), state: Arc::default() };
        let state = Arc::clone(&rest.state);
        (request.map(|body| Body::new(Lent { body: Some(body), state })), Some(rest))
    }

    /// Reads what is left, if it is little, or adds to the answer that the connection ends with it.
    pub(super) async fn settle(self, response: &mut Response) {
        let body = {
            let mut state = lock(&self.state);
            // To read would be to ask for it.
            let is_asked_for = state.is_read || !self.is_held;
            match state.is_over {
                true => return,
                false => state.body.take().filter(|_| is_asked_for),
            }
        };
        let is_read = match body {
            Some(body) => timeout(LIMIT_TIME, skip(body)).await.unwrap_or(false),
            None => false,
        };
        if !is_read {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// Whether that was the end of it.
async fn skip(mut body: Body) -> bool {
    let mut left = LIMIT_BYTES;
    while body.size_hint().lower() <= left {
        match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            None => return true,
            Some(Err(_)) => return false,
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                let Some(fewer) = left.checked_sub(bytes as u64) else { return false };
                left = fewer;
            }
        }
    }
    false
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A body that comes back when it is dropped.
struct Lent {
    body: Option<Body>,
    state: Arc<Mutex<State>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        lock(&self.state).body = self.body.take();
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = Pin::new(&mut *body).poll_frame(context);
        let is_over = matches!(frame, Poll::Ready(None)) || body.is_end_stream();
        let mut state = lock(&self.state);
        state.is_read = true;
        state.is_over |= is_over;
        drop(state);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}
