//! Flags of who gets in and how.

use super::parse_seconds;
use crate::failure::Usage;
use clap::Args;
use edgelm_compress::parse_size;
use edgelm_serve::{ApiKeys, DoorLimits, Origin, RateLimits, ServerConfig, TlsFiles};
use std::{path::PathBuf, time::Duration};

#[derive(Args)]
pub(super) struct DoorArgs {
    /// Address to listen on
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on (0 = any free one)
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Port for gRPC alone. It is served on --port as well
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    grpc_port: Option<u16>,
    /// Accept only requests with one of these keys: lines of `edgelm keys new --api`, or keys as they are. Read again when
    /// it changes
    #[arg(long, value_name = "F")]
    api_key_file: Option<PathBuf>,
    /// Certificate of the server and those above it (PEM); with it, everything is TLS. Read again when it changes
    #[arg(long, value_name = "F")]
    tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM)
    #[arg(long, value_name = "F")]
    tls_key: Option<PathBuf>,
    /// Accept only clients with a certificate of these authorities (PEM)
    #[arg(long, value_name = "F")]
    client_ca: Option<PathBuf>,
    /// Of these clients, accept none whose certificate, or that of an authority between, is on these revocation lists (PEM; one list
    /// of each authority). Read again when it changes
    #[arg(long, value_name = "F", requires = "client_ca")]
    client_crl: Option<PathBuf>,
    /// Listen for other machines even though nothing asks who they are
    #[arg(long)]
    insecure_bind: bool,
    /// Origin whose web pages may use the API, or `*` (repeatable) [default: none but the server's own]
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<Origin>,
    /// Requests that a client may make in a minute: a key, a certificate, or an address where there are neither [default:
    /// any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate_requests: Option<u32>,
    /// Tokens of prompts and answers that a client may have in a minute [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate_tokens: Option<u32>,
    /// Open connections; others wait outside
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
    /// Seconds for a TLS handshake, and for the headers of a request
    #[arg(long, value_name = "S", default_value = "20", value_parser = parse_seconds)]
    header_timeout: Duration,
    /// Seconds for the body of a request
    #[arg(long, value_name = "S", default_value = "60", value_parser = parse_seconds)]
    body_timeout: Duration,
    /// Seconds after which a client that reads nothing of its answer is taken to be gone
    #[arg(long, value_name = "S", default_value = "30", value_parser = parse_seconds)]
    read_timeout: Duration,
    /// Largest body of a request (`500KB`, `8MiB`, bytes)
    #[arg(long, value_name = "S", default_value = "8MiB", value_parser = parse_size)]
    body_limit: u64,
}

impl DoorArgs {
    /// Reads the key file. What else is wrong shows when the server begins.
    pub(super) fn apply(self, config: ServerConfig) -> anyhow::Result<ServerConfig> {
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(cert), Some(key)) => {
                Some(TlsFiles { cert, key, client_ca: self.client_ca, client_crl: self.client_crl })
            }
            (Some(_), None) => return Err(Usage("--tls-cert needs --tls-key".to_owned()).into()),
            (None, Some(_)) => return Err(Usage("--tls-key needs --tls-cert".to_owned()).into()),
            (None, None) if self.client_ca.is_some() => {
                return Err(Usage("--client-ca needs --tls-cert and --tls-key".to_owned()).into());
            }
            (None, None) => None,
        };
        let api_keys = match &self.api_key_file {
            Some(path) => ApiKeys::from_file(path)?,
            None => ApiKeys::default(),
        };
        let connections = usize::try_from(self.max_connections).unwrap_or(usize::MAX);
        Ok(ServerConfig {
            host: self.host,
            port: self.port,
            grpc_port: self.grpc_port,
            tls,
            is_open: self.insecure_bind,
            door: DoorLimits { connections, headers: self.header_timeout, unread: self.read_timeout },
            api_keys,
            rates: RateLimits { requests: self.rate_requests, tokens: self.rate_tokens },
            cors_origins: self.cors_origin,
            body_timeout: self.body_timeout,
            body_limit_bytes: usize::try_from(self.body_limit).unwrap_or(usize::MAX),
            ..config
        })
    }
}
