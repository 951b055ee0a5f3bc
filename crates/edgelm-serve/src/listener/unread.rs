//! Streams whose client leaves them lying.
//!
//! Over HTTP/2 a client can stop one stream by giving it no window, while its connection is as lively as ever: no write
//! ever waits, so [`Patient`](super::patience::Patient) sees nothing. Here it shows: the stream was ready and is not asked
//! for more. The body inside is dropped then, which cancels the generation and gives its place back.

use super::DoorMetrics;
use axum::{
    body::{Body, Bytes, HttpBody},
    response::Response,
};
use http_body::{Frame, SizeHint};
use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::{Duration, Instant},
};

struct Watched {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    /// `None` when it has ended or was left lying for too long.
    body: Option<Body>,
    is_abandoned: bool,
    /// When something was handed out that nobody has come back from yet.
    handed_out: Option<Instant>,
}

/// The same answer; if it is a stream, one that does not wait for ever.
pub(super) fn watch(response: Response, limit: Duration, metrics: &DoorMetrics) -> Response {
    // What has a length is there already: no generation waits behind it.
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| {
        let shared = Arc::new(Mutex::new(Shared { body: Some(body), is_abandoned: false, handed_out: None }));
        tokio::spawn(guard(Arc::downgrade(&shared), limit, metrics.clone()));
        Body::new(Watched { shared })
    })
}

/// Ends with the body.
async fn guard(shared: Weak<Mutex<Shared>>, limit: Duration, metrics: DoorMetrics) {
    loop {
        tokio::time::sleep(limit / 4).await;
        let Some(shared) = shared.upgrade() else { return };
        let mut shared = lock(&shared);
        if shared.body.is_none() {
            return;
        }
        if shared.handed_out.is_some_and(|since| since.elapsed() >= limit) {
            shared.body = None;
            shared.is_abandoned = true;
            metrics.dropped("unread");
            tracing::info!(limit_s = limit.as_secs_f64(), "a client left its stream unread; it was ended");
            return;
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut shared = lock(&self.shared);
        let Some(body) = &mut shared.body else {
            let abandoned = || Err(axum::Error::new(io::Error::from(io::ErrorKind::TimedOut)));
            return Poll::Ready(shared.is_abandoned.then(abandoned));
        };
        let frame = Pin::new(body).poll_frame(context);
        shared.handed_out = matches!(frame, Poll::Ready(Some(Ok(_)))).then(Instant::now);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            shared.body = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        let shared = lock(&self.shared);
        !shared.is_abandoned && shared.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.shared).body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}
