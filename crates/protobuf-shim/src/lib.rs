//! The part of the `protobuf` 2 API that the `raft` crate uses, on top of prost, so that one
//! protobuf runtime serves raft and gRPC alike (docs/decisions/0004-dependencies.md).

/// What `raft::Error::CodecError` wraps.
#[derive(Debug)]
pub struct ProtobufError(prost::DecodeError);

impl std::fmt::Display for ProtobufError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for ProtobufError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// The calls raft makes on its messages.
pub trait Message {
    /// Encoded size in bytes.
    fn compute_size(&self) -> u32;
    /// Merges the message in `bytes` into this one.
    fn merge_from_bytes(&mut self, bytes: &[u8]) -> Result<(), ProtobufError>;
    /// Encodes into a fresh vector.
    fn write_to_bytes(&self) -> Result<Vec<u8>, ProtobufError>;
}

impl<M: prost::Message> Message for M {
    fn compute_size(&self) -> u32 {
        u32::try_from(self.encoded_len()).unwrap_or(u32::MAX)
    }

    fn merge_from_bytes(&mut self, bytes: &[u8]) -> Result<(), ProtobufError> {
        self.merge(bytes).map_err(ProtobufError)
    }

    fn write_to_bytes(&self) -> Result<Vec<u8>, ProtobufError> {
        Ok(self.encode_to_vec())
    }
}
