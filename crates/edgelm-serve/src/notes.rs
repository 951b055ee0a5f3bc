//! What a client has to know of how its request was answered, as headers: another model, something left out.
//!
//! Whoever handles a request says it with [`say`], however deep below the handler; [`collect`] stands around the handler and
//! writes it into the answer's headers. So no API has to pass it through, and none can forget it.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use std::cell::RefCell;

tokio::task_local! {
    static NOTES: RefCell<Vec<(HeaderName, HeaderValue)>>;
}

/// Names the model that answered in place of the one that was asked for, or `text`.
pub(crate) const FALLBACK: HeaderName = HeaderName::from_static("x-edgelm-fallback");

/// Adds a header to the answer of the request that is being handled. Nothing outside of one.
pub(crate) fn say(name: HeaderName, value: &str) {
    // Ids may hold what headers cannot.
    let text: String = value.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    if let Ok(value) = HeaderValue::from_str(&text) {
        let _ = NOTES.try_with(|notes| notes.borrow_mut().push((name, value)));
    }
}

/// Puts what was said into the headers.
pub(crate) async fn collect(request: Request, next: Next) -> Response {
    let handle = async {
        let mut response = next.run(request).await;
        NOTES.with(|notes| response.headers_mut().extend(notes.borrow_mut().drain(..)));
        response
    };
    NOTES.scope(RefCell::default(), handle).await
}
