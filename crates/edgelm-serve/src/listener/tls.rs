//! Certificates: read from PEM files, and read again when those change.

use crate::ServeError;
use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::WebPkiClientVerifier,
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

/// Where a server's certificates are, all in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, followed by those between it and its root.
    pub cert: PathBuf,
    /// Its private key (PKCS #8, PKCS #1 or SEC 1).
    pub key: PathBuf,
    /// Roots of the clients that may connect. `None` = clients need no certificate.
    pub client_ca: Option<PathBuf>,
    /// Lists of certificates that were revoked, one of each authority that signs clients' certificates. `None` = none is asked.
    pub client_crl: Option<PathBuf>,
}

impl TlsFiles {
    /// All of them.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).chain(&self.client_crl).cloned().collect()
    }
}

/// How handshakes are made. Connections keep what they began with.
pub(crate) struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<rustls::ServerConfig>>,
}

impl Tls {
    pub(crate) fn load(files: TlsFiles) -> Result<Self, ServeError> {
        let current = RwLock::new(Arc::new(read(&files)?));
        Ok(Self { files, current })
    }

    /// Reads the files again, for the connections to come. Sessions of before cannot be resumed, so who is no longer
    /// trusted cannot come back by one.
    ///
    /// # Errors
    /// Files that do not make a working server: what was there stays.
    pub(crate) fn reload(&self) -> Result<(), ServeError> {
        let new = Arc::new(read(&self.files)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    pub(crate) fn files(&self) -> &TlsFiles {
        &self.files
    }

    pub(super) fn current(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn read(files: &TlsFiles) -> Result<rustls::ServerConfig, ServeError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain = certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| pem_error(&files.key, "private key", error))?;
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| tls_error(&files.cert, &error))?;
    let builder = match &files.client_ca {
        Some(path) => builder.with_client_cert_verifier(client_verifier(path, files.client_crl.as_deref(), provider)?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| tls_error(&files.cert, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// With revocation lists, every certificate up to the root must be on none of them, and one whose authority has no list there is
/// refused: what is not known to be good is not let in. Lists count beyond their next update, which a device that is offline
/// may miss.
fn client_verifier(
    path: &Path,
    lists: Option<&Path>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, ServeError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| tls_error(path, &error))?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if let Some(lists) = lists {
        builder = builder.with_crls(revocations(lists)?);
    }
    let at_fault = lists.unwrap_or(path);
    builder.build().map_err(|error| ServeError::Tls { path: at_fault.to_owned(), what: error.to_string() })
}

/// At least one.
fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, ServeError> {
    let read = || CertificateRevocationListDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    match read() {
        Ok(all) if all.is_empty() => Err(pem_error(path, "revocation list", pem::Error::NoItemsFound)),
        Ok(all) => Ok(all),
        Err(error) => Err(pem_error(path, "revocation list", error)),
    }
}

/// At least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    match read() {
        Ok(all) if all.is_empty() => Err(pem_error(path, "certificate", pem::Error::NoItemsFound)),
        Ok(all) => Ok(all),
        Err(error) => Err(pem_error(path, "certificate", error)),
    }
}

fn pem_error(path: &Path, wanted: &str, error: pem::Error) -> ServeError {
    let what = match error {
        pem::Error::NoItemsFound => format!("holds no {wanted} in PEM"),
        pem::Error::Io(error) => format!("cannot be read: {error}"),
        // Says what is wrong with the form, and quotes at most a mark.
        pem::Error::Base64Decode(_) => "holds a block that is not base64".to_owned(),
        _ => "holds a block that is not PEM".to_owned(),
    };
    ServeError::Tls { path: path.to_owned(), what }
}

fn tls_error(path: &Path, error: &rustls::Error) -> ServeError {
    ServeError::Tls { path: path.to_owned(), what: error.to_string() }
}
