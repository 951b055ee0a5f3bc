//! Messages, client and server of the gRPC API, generated from `proto/edgelm/v1/edgelm.proto`.

/// `edgelm.v1`. The comments stand in the proto file.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("edgelm.v1");
}

/// The file itself, encoded, for reflection.
pub(crate) const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("edgelm");
