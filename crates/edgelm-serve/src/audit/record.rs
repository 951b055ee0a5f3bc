//! What a record can say.

use serde::Serialize;

/// A record; `kind` is its name.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Entry {
    /// The first of a log. `log` is its id, drawn at random.
    Start { log: String, version: &'static str },
    /// The first of a further file.
    File { log: String, file: u64 },
    /// A server goes on with a log. `clean`: the one before had closed it.
    Open { version: &'static str, clean: bool },
    /// The line before this one is the rest of a record that a crash cut: so many bytes with this hash.
    Torn { bytes: u64, sha256: String },
    /// A request and how it ended.
    Request(Box<RequestRecord>),
    /// Something that happened to the server or a model.
    Event {
        event: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        model: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        model_digest: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// Records that could not be written.
    Lost { records: u64 },
    /// A signature over everything before it; without a key, only a mark. `last`: the server closes the log.
    Checkpoint {
        last: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        signature: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        signed_time: Option<String>,
    },
}

/// Who asked what of which model, and what came of it. What is not known is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct RequestRecord {
    /// Also in the answer's `x-request-id`.
    pub(crate) request_id: String,
    /// The key's name, or the address.
    pub(crate) client: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<String>,
    /// The route.
    pub(crate) api: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model_digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) adapter: Option<String>,
    /// SHA-256 of the prompt's token ids, each as four bytes, little-endian.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) generated_tokens: Option<usize>,
    /// HTTP status; none where the client went away before there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    /// `stop`, `length`, `cancelled`, or the error's code.
    pub(crate) result: String,
    pub(crate) duration_ms: u64,
    /// Only where the server records contents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) answers: Option<Vec<String>>,
}
