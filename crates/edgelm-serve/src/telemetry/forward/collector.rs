//! The way to a collector: OTLP over gRPC, in the clear or over TLS, with headers that say who we are.

use super::{Kind, OtlpConfig};
use crate::ServeError;
use axum::http::{Uri, uri::PathAndQuery};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use prost::{
    Message,
    bytes::{Buf, BufMut, Bytes},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::{
    env, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::Service,
    metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue},
    transport::{Channel, Endpoint},
};

/// For a connection, and again for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where systems keep the certificates that they trust, as Linux distributions and the BSDs have it.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/etc/ssl/cert.pem",
];

/// A collector's address, and what it is shown.
pub(super) struct Collector {
    channel: Channel,
    metadata: MetadataMap,
}

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Acknowledged, but for so many records of it that the collector does not take.
    Taken { refused: u64 },
    /// The collector will never take it.
    Refused(String),
    /// Not now.
    Later(String),
}

/// An answer to any export; the three kinds have the same form.
#[derive(Clone, PartialEq, Message)]
struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

impl Collector {
    /// The connection is made with the first batch. To be called inside the runtime that carries it.
    pub(super) fn new(config: &OtlpConfig) -> Result<Self, ServeError> {
        let wrong = |what: String| ServeError::Traces { endpoint: config.endpoint.clone(), what };
        let uri: Uri = config.endpoint.parse().map_err(|_| wrong("is not an address".to_owned()))?;
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => Some(tls(config.ca.as_deref(), &uri).map_err(wrong)?),
            _ => return Err(wrong("must begin with `http://` or `https://`".to_owned())),
        };
        if tls.is_none() && config.ca.is_some() {
            return Err(wrong("has no certificate to check: `https://` has".to_owned()));
        }
        let (Some(host), port) = (uri.host(), uri.port_u16()) else { return Err(wrong("names no host".to_owned())) };
        let default_port = if tls.is_some() { 443 } else { 80 };
        let address = (host.trim_matches(['[', ']']).to_owned(), port.unwrap_or(default_port));
        let endpoint = Endpoint::from_shared(config.endpoint.clone()).map_err(|error| wrong(error.to_string()))?;
        let endpoint = endpoint.timeout(PATIENCE).connect_timeout(PATIENCE);
        let mut metadata = MetadataMap::new();
        for (name, value) in &config.headers {
            let fault = || wrong(format!("the header `{name}` is none that gRPC can send"));
            let key: MetadataKey<Ascii> = name.parse().map_err(|_| fault())?;
            metadata.insert(key, value.parse::<MetadataValue<Ascii>>().map_err(|_| fault())?);
        }
        Ok(Self { channel: endpoint.connect_with_connector_lazy(Dialer { address, tls }), metadata })
    }

    /// Sends a batch: an encoded export request of its kind.
    pub(super) async fn deliver(&self, kind: Kind, content: Bytes) -> Delivery {
        let mut client = Grpc::new(self.channel.clone());
        let send = async {
            client.ready().await.map_err(|error| Status::unavailable(chain(&error)))?;
            let mut request = Request::new(content);
            *request.metadata_mut() = self.metadata.clone();
            client.unary(request, PathAndQuery::from_static(kind.path()), Plain).await
        };
        let answer = match timeout(2 * PATIENCE, send).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                let what = format!("{:?}: {}", status.code(), chain(&status));
                return if is_final(status.code()) { Delivery::Refused(what) } else { Delivery::Later(what) };
            }
            Err(_) => return Delivery::Later("no answer in time".to_owned()),
        };
        let partial = ExportResponse::decode(answer).ok().and_then(|answer| answer.partial_success).unwrap_or_default();
        if partial.rejected > 0 {
            tracing::warn!(records = partial.rejected, why = partial.error_message, "the collector left out records");
        }
        Delivery::Taken { refused: u64::try_from(partial.rejected).unwrap_or(0) }
    }
}

/// Whether a batch that was answered so must not be sent again (OpenTelemetry Protocol 1.x, "Failures" of OTLP/gRPC). Departs from
/// there: who is not let in keeps what it has, since keys and certificates are mended, and what waits is bounded.
fn is_final(code: Code) -> bool {
    match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss
        | Code::ResourceExhausted
        | Code::Unauthenticated
        | Code::PermissionDenied
        // A connection that broke: nobody has answered.
        | Code::Unknown => false,
        _ => true,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Trusts `ca`, or what the system trusts.
fn tls(ca: Option<&Path>, uri: &Uri) -> Result<(TlsConnector, ServerName<'static>), String> {
    let bundle = match ca {
        Some(path) => path.to_owned(),
        None => system_bundle().ok_or("this system has no trusted certificates: name them with `--otlp-ca`")?,
    };
    let fault = |what: String| format!("`{}` {what}", bundle.display());
    let certificates =
        CertificateDer::pem_file_iter(&bundle).map_err(|error| fault(format!("cannot be read: {error}")))?;
    let mut roots = RootCertStore::empty();
    // Of a system's hundreds some may be of a kind that is not known here.
    roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    if roots.is_empty() {
        return Err(fault("holds no certificate in PEM".to_owned()));
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("`{host}` is no name of a server"))?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

fn system_bundle() -> Option<PathBuf> {
    let named = env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    named.into_iter().chain(BUNDLES.map(PathBuf::from)).find(|path| path.is_file())
}

/// Opens connections.
#[derive(Clone)]
struct Dialer {
    address: (String, u16),
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TokioIo<Box<dyn Stream>>>> + Send>>;

impl Service<Uri> for Dialer {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Connecting {
        let Self { address, tls } = self.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let stream: Box<dyn Stream> = match tls {
                None => Box::new(stream),
                Some((connector, name)) => Box::new(connector.connect(name, stream).await?),
            };
            Ok(TokioIo::new(stream))
        })
    }
}

/// Messages that are bytes already.
#[derive(Clone, Copy)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}

/// The headers of `OTEL_EXPORTER_OTLP_HEADERS`: `name=value` with commas between, values with `%` escapes (OpenTelemetry, "Specifying
/// headers via environment variables").
///
/// # Errors
/// An entry that is none, by its place: what it holds may be secret.
pub fn otlp_headers(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut headers = Vec::new();
    for (index, entry) in text.split(',').enumerate().filter(|(_, entry)| !entry.trim().is_empty()) {
        let fault = || format!("header {} of OTEL_EXPORTER_OTLP_HEADERS is not `name=value`", index + 1);
        let (name, value) = entry.split_once('=').ok_or_else(fault)?;
        let value = percent_decode_str(value.trim()).decode_utf8().map_err(|_| fault())?.into_owned();
        let name = name.trim().to_ascii_lowercase();
        let is_name = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
        if !is_name || !value.bytes().all(|c| (0x20..0x7f).contains(&c)) {
            return Err(fault());
        }
        headers.push((name, value));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_the_environment() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let read = otlp_headers("Authorization=Basic%20YTpi==, x-team = a%2Cb ,").expect("headers");
        assert_eq!(read, [pair("authorization", "Basic YTpi=="), pair("x-team", "a,b")]);
        assert_eq!(otlp_headers(""), Ok(Vec::new()));
        // What is no escape stays (W3C Baggage, "Value").
        assert_eq!(otlp_headers("a=%zz"), Ok(vec![pair("a", "%zz")]));
        for bad in ["secret", "a=b,=c", "a=%0a", "a b=c", "a=é"] {
            let error = otlp_headers(bad).expect_err(bad);
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
