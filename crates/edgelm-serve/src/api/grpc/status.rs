//! Errors and deadlines in gRPC's words.

use crate::error::ApiError;
use axum::http::StatusCode;
use std::time::Duration;
use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};

/// The status of an error. Its stable code and the field at fault stand in the metadata.
pub(super) fn status(error: &ApiError) -> Status {
    let (code, param) = (error.code(), error.param());
    let mut metadata = MetadataMap::new();
    metadata.insert("edgelm-code", MetadataValue::from_static(code));
    // A name that metadata cannot carry still stands in the message.
    if let Some(param) = param.and_then(|param| MetadataValue::try_from(param).ok()) {
        metadata.insert("edgelm-param", param);
    }
    if let Some(seconds) = error.retry_after_s() {
        metadata.insert("retry-after", MetadataValue::from(seconds));
    }
    Status::with_metadata(kind(error), error.to_string(), metadata)
}

fn kind(error: &ApiError) -> Code {
    match (error, error.status()) {
        (ApiError::DeadlineExceeded | ApiError::BodyTimeout, _) => Code::DeadlineExceeded,
        (ApiError::UnknownUrl { .. } | ApiError::MethodNotAllowed { .. }, _) => Code::Unimplemented,
        (ApiError::ContextLength { .. } | ApiError::KvBudget { .. }, _) => Code::OutOfRange,
        (_, StatusCode::UNAUTHORIZED) => Code::Unauthenticated,
        (_, StatusCode::FORBIDDEN) => Code::PermissionDenied,
        (_, StatusCode::NOT_FOUND) => Code::NotFound,
        (_, StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE) => Code::ResourceExhausted,
        (_, StatusCode::SERVICE_UNAVAILABLE) => Code::Unavailable,
        (_, status) if status.is_client_error() => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

/// The deadline that a client has set: `grpc-timeout`, up to eight digits and a unit.
pub(super) fn deadline(metadata: &MetadataMap) -> Result<Option<Duration>, Status> {
    let Some(value) = metadata.get("grpc-timeout") else { return Ok(None) };
    let parse = || {
        let text = value.to_str().ok()?;
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        let count: u64 = digits.parse().ok().filter(|_| is_number)?;
        Some(match unit {
            "H" => Duration::from_secs(count * 3600),
            "M" => Duration::from_secs(count * 60),
            "S" => Duration::from_secs(count),
            "m" => Duration::from_millis(count),
            "u" => Duration::from_micros(count),
            "n" => Duration::from_nanos(count),
            _ => return None,
        })
    };
    parse().map(Some).ok_or_else(|| Status::invalid_argument("`grpc-timeout` is not up to eight digits and a unit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines() {
        let of = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", MetadataValue::from_static(text));
            deadline(&metadata).ok().flatten()
        };
        assert_eq!(of("2S"), Some(Duration::from_secs(2)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!((of("150m"), of("7u")), (Some(Duration::from_millis(150)), Some(Duration::from_micros(7))));
        for wrong in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1.5S"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert!(deadline(&MetadataMap::new()).is_ok_and(|none| none.is_none()));
    }

    #[test]
    fn every_refusal_has_its_code() {
        let of = |error: ApiError| (kind(&error), status(&error).metadata().len());
        assert_eq!(of(ApiError::InvalidApiKey), (Code::Unauthenticated, 1));
        assert_eq!(of(ApiError::Scope { wanted: "admin" }), (Code::PermissionDenied, 1));
        assert_eq!(of(ApiError::invalid("top_p", "x")), (Code::InvalidArgument, 2));
        assert_eq!(of(ApiError::QueueFull { capacity: 1, retry_after_s: 3 }), (Code::ResourceExhausted, 2));
        assert_eq!(of(ApiError::DeadlineExceeded), (Code::DeadlineExceeded, 1));
        assert_eq!(of(ApiError::Stalled), (Code::Unavailable, 1));
        assert_eq!(of(ApiError::Internal), (Code::Internal, 1));
        let model = ApiError::ModelNotFound { model: "x".into(), available: "y".into() };
        assert_eq!(of(model), (Code::NotFound, 2));
    }
}
