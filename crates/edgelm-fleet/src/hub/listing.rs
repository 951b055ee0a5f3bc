//! What a revision holds: the API's answer, checked. Sizes and digests from here bound and verify every download.

use super::{
    HubError,
    reference::{is_portable, is_safe_path},
};
use serde::Deserialize;

/// A revision.
#[derive(Debug)]
pub(super) struct Listing {
    /// 40 hexadecimal digits.
    pub(super) commit: String,
    /// In order of names.
    pub(super) files: Vec<RemoteFile>,
}

/// A file of it.
#[derive(Debug)]
pub(super) struct RemoteFile {
    /// Safe to join to a folder.
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) digest: Digest,
}

/// What the content must hash to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Digest {
    /// Large files.
    Sha256(String),
    /// Small files, which git itself holds: SHA-1 over a header and the content.
    GitSha1(String),
}

impl Digest {
    /// Lower-case hexadecimal; also the blob's name in the cache.
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitSha1(hex) => hex,
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Listing {
    /// Reads the answer of `/api/models/{repo}/revision/{revision}?blobs=true`. `url` is for messages.
    pub(super) fn parse(json: &[u8], url: &str) -> Result<Self, HubError> {
        let error = |what: String| HubError::Listing { url: url.to_owned(), what };
        let answer: Answer = serde_json::from_slice(json).map_err(|e| error(format!("unexpected JSON: {e}")))?;
        if !is_hex(&answer.sha, 40) {
            return Err(error("`sha` is not a commit".to_owned()));
        }
        let mut files =
            answer.siblings.into_iter().map(|file| read_file(file, &error)).collect::<Result<Vec<_>, _>>()?;
        // Some systems cannot hold these, and no file that is read here is called so.
        files.retain(|file| is_portable(&file.name));
        files.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = files.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(error(format!("`{}` is listed twice", pair[0].name)));
        }
        Ok(Self { commit: answer.sha, files })
    }
}

fn read_file(file: Sibling, error: &impl Fn(String) -> HubError) -> Result<RemoteFile, HubError> {
    let name = file.rfilename;
    if !is_safe_path(&name) {
        return Err(HubError::UnsafeName { name });
    }
    let (size, digest) = match (file.lfs, file.size, file.blob_id) {
        (Some(lfs), _, _) if is_hex(&lfs.sha256, 64) => (lfs.size, Digest::Sha256(lfs.sha256)),
        (None, Some(size), Some(id)) if is_hex(&id, 40) => (size, Digest::GitSha1(id)),
        _ => return Err(error(format!("`{name}` comes without a size or a digest"))),
    };
    Ok(RemoteFile { name, size, digest })
}

/// Lower-case hexadecimal of a fixed length.
pub(super) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(sha: &str, siblings: Value) -> Result<Listing, HubError> {
        Listing::parse(json!({"sha": sha, "siblings": siblings}).to_string().as_bytes(), "u")
    }

    #[test]
    fn a_listing() {
        let commit = "c".repeat(40);
        let listing = parse(
            &commit,
            json!([
                {"rfilename": "m.gguf", "size": 7, "blobId": "b".repeat(40), "lfs": {"sha256": "a".repeat(64), "size": 7}},
                {"rfilename": "config.json", "size": 2, "blobId": "b".repeat(40)},
            ]),
        )
        .expect("valid");
        assert_eq!(listing.commit, commit);
        assert_eq!((listing.files[0].name.as_str(), listing.files[0].size), ("config.json", 2));
        assert_eq!(listing.files[0].digest, Digest::GitSha1("b".repeat(40)));
        assert_eq!(listing.files[1].digest, Digest::Sha256("a".repeat(64)));
    }

    #[test]
    fn odd_names_are_left_out() {
        let file = |name: &str| json!({"rfilename": name, "size": 1, "blobId": "b".repeat(40)});
        let names = ["why?.png", "c:a", "a.", &"x".repeat(256), "plain"].map(file);
        let listing = parse(&"c".repeat(40), json!(names)).expect("valid");
        assert_eq!(listing.files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["plain"]);
    }

    #[test]
    fn hostile_listings() {
        let good = || json!({"rfilename": "a", "size": 1, "blobId": "b".repeat(40)});
        let commit = "c".repeat(40);
        assert!(parse("../../x", json!([good()])).is_err());
        assert!(parse(&commit, json!([good(), good()])).is_err());
        assert!(parse(&commit, json!([{"rfilename": "a"}])).is_err());
        assert!(parse(&commit, json!([{"rfilename": "a", "size": 1, "blobId": "../x"}])).is_err());
        assert!(parse(&commit, json!([{"rfilename": "a", "lfs": {"sha256": "A", "size": 1}}])).is_err());
        assert!(parse(&commit, json!([{"rfilename": "a", "size": -1, "blobId": "b".repeat(40)}])).is_err());
        for name in ["../a", "/a", "a/../b", "", "a//b", ".", "a\\b", "a\u{0}", "a/"] {
            let mut file = good();
            file["rfilename"] = name.into();
            assert!(matches!(parse(&commit, json!([file])), Err(HubError::UnsafeName { .. })), "{name:?}");
        }
    }
}
