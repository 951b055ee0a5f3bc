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

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use std::{convert::Infallible, future::poll_fn};

    fn endless(dropped: Arc<()>) -> Response {
        let stream = futures::stream::repeat(dropped).map(|_| Ok::<_, Infallible>(Bytes::from_static(b"x")));
        Response::new(Body::from_stream(stream))
    }

    async fn frame(body: &mut Body) -> Option<Result<Frame<Bytes>, axum::Error>> {
        poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
    }

    #[tokio::test]
    async fn a_stream_that_nobody_comes_back_for_is_dropped() {
        let (alive, limit, metrics) = (Arc::new(()), Duration::from_millis(80), DoorMetrics::default());
        let mut body = watch(endless(Arc::clone(&alive)), limit, &metrics).into_body();
        for _ in 0..6 {
            assert!(frame(&mut body).await.is_some_and(|frame| frame.is_ok()));
            tokio::time::sleep(limit / 4).await;
        }
        assert!(Arc::strong_count(&alive) > 1, "slow is not abandoned");
        tokio::time::sleep(limit * 4).await;
        assert_eq!(Arc::strong_count(&alive), 1, "nobody came");
        assert!(frame(&mut body).await.is_some_and(|frame| frame.is_err()), "cut off is not the end");
    }

    #[tokio::test]
    async fn waiting_for_the_model_is_not_waiting_for_the_client() {
        let stream = futures::stream::pending::<Result<Bytes, Infallible>>();
        let limit = Duration::from_millis(20);
        let mut body = watch(Response::new(Body::from_stream(stream)), limit, &DoorMetrics::default()).into_body();
        let waited = tokio::time::timeout(limit * 10, frame(&mut body)).await;
        assert!(waited.is_err(), "still open");
    }
}
