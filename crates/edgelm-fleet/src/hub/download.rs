//! One file, from an address to a `.incomplete` file of the right length, over as many connections as it takes.
//!
//! Beside it lies `.incomplete.etag`, the answering server's ETag: a later attempt sends it as `If-Range`, so that a
//! file which changed meanwhile comes whole instead of as a tail that does not fit. (The digest would find that out
//! too, but only after the last byte.)

use super::{
    HubError, Reference,
    client::{Client, Failure, network},
};
use reqwest::{
    Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tokio::io::AsyncWriteExt;

/// What to fetch and where to put it.
pub(super) struct Download<'a> {
    pub(super) reference: &'a Reference,
    pub(super) url: &'a Url,
    /// For messages.
    pub(super) name: &'a str,
    pub(super) size: u64,
    /// The `.incomplete` file.
    pub(super) part: &'a Path,
}

impl Download<'_> {
    /// Fetches what is missing. Afterwards `part` has `size` bytes, which are on disk.
    pub(super) async fn run(&self, client: &Client, report: &mut (dyn FnMut(u64) + Send)) -> Result<(), HubError> {
        let mut patience = client.patience();
        loop {
            let before = self.have()?;
            match self.attempt(client, before, report).await {
                Ok(()) => return Ok(()),
                Err(failure) => {
                    if self.have()? > before {
                        patience.renew();
                    }
                    patience.after(failure).await?;
                }
            }
        }
    }

    /// Forgets what came so far.
    pub(super) fn discard(&self) -> Result<(), HubError> {
        for path in [self.part.to_owned(), self.etag_path()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(HubError::io(path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Bytes that came so far.
    pub(super) fn have(&self) -> Result<u64, HubError> {
        match fs::metadata(self.part) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(HubError::io(self.part)(error)),
        }
    }

    fn etag_path(&self) -> PathBuf {
        let mut path = self.part.as_os_str().to_owned();
        path.push(".etag");
        path.into()
    }

    async fn attempt(&self, client: &Client, have: u64, report: &mut (dyn FnMut(u64) + Send)) -> Result<(), Failure> {
        if have > self.size {
            self.discard()?;
            return Err(Failure::Passing(
                HubError::Size { file: self.name.to_owned(), got: have, want: self.size },
                None,
            ));
        }
        if have == self.size && have > 0 {
            return Ok(());
        }
        let response = client.get(self.reference, self.url, self.range(have)).await?;
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT if self.continues(&response, have) => have,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                self.discard()?;
                let status = response.status().as_u16();
                return Err(Failure::Passing(HubError::Status { url: self.url.to_string(), status }, None));
            }
            _ => 0,
        };
        let announced = response.content_length().map(|length| length.saturating_add(start));
        if let Some(got) = announced.filter(|&got| got != self.size) {
            return Err(HubError::Size { file: self.name.to_owned(), got, want: self.size }.into());
        }
        self.receive(response, start, report).await
    }

    /// Asks for the rest only, if there is a beginning.
    fn range(&self, have: u64) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if have > 0
            && let Ok(range) = HeaderValue::try_from(format!("bytes={have}-"))
        {
            headers.insert(header::RANGE, range);
            let etag = fs::read(self.etag_path()).ok().and_then(|etag| HeaderValue::try_from(etag).ok());
            if let Some(etag) = etag {
                headers.insert(header::IF_RANGE, etag);
            }
        }
        headers
    }

    /// Whether a partial answer is the rest that was asked for.
    fn continues(&self, response: &Response, have: u64) -> bool {
        let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let last = self.size.saturating_sub(1);
        range.is_some_and(|range| {
            range == format!("bytes {have}-{last}/{}", self.size) || range == format!("bytes {have}-{last}/*")
        })
    }

    async fn receive(
        &self,
        mut response: Response,
        start: u64,
        report: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), Failure> {
        let io = || HubError::io(self.part);
        if start == 0 {
            self.discard()?;
            self.keep_etag(&response)?;
        }
        let mut options = tokio::fs::OpenOptions::new();
        let mut file = options.create(true).append(true).open(self.part).await.map_err(io())?;
        let mut have = start;
        let outcome = loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break Ok(()),
                // What came so far is kept.
                Err(error) => break Err(network(self.url, error)),
            };
            have += chunk.len() as u64;
            if have > self.size {
                drop(file);
                self.discard()?;
                return Err(HubError::Size { file: self.name.to_owned(), got: have, want: self.size }.into());
            }
            file.write_all(&chunk).await.map_err(io())?;
            report(have);
        };
        file.flush().await.map_err(io())?;
        file.sync_all().await.map_err(io())?;
        outcome?;
        if have < self.size {
            let error = HubError::Truncated { url: self.url.to_string(), got: have, want: self.size };
            return Err(Failure::Passing(error, None));
        }
        Ok(())
    }

    /// Weak ETags say nothing about bytes, so they are not kept.
    fn keep_etag(&self, response: &Response) -> Result<(), HubError> {
        match response.headers().get(header::ETAG) {
            Some(etag) if !etag.as_bytes().starts_with(b"W/") => {
                let path = self.etag_path();
                fs::write(&path, etag.as_bytes()).map_err(HubError::io(path))
            }
            _ => Ok(()),
        }
    }
}
