//! Generates `pb` from `proto/`, without protoc.

use prost_types::FileDescriptorSet;
use prost_types::field_descriptor_proto::Type;

/// Message fields that rusd carries as the bytes it stored, undecoded: a row goes from the store to
/// the wire as it is. On the wire a message, a string and a bytes field look the same. What clients
/// of the v2 API sent need not be UTF-8.
const CARRIED_AS_BYTES: &[(&str, &str)] = &[
    ("RangeResponse", "kvs"),
    ("PutResponse", "prev_kv"),
    ("DeleteRangeResponse", "prev_kvs"),
    ("WatchResponse", "events"),
    ("Request", "Path"),
    ("Request", "Val"),
    ("Request", "PrevValue"),
];

const TONIC_CODEC: &str = "tonic_prost::ProstCodec::default()";
const OUR_CODEC: &str = "crate::pb::codec::Codec::default()";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "rpc.proto",
        "raft_internal.proto",
        "wal.proto",
        "snap.proto",
        "lease.proto",
        "lock.proto",
        "election.proto",
        "health.proto",
    ];
    let mut descriptors = protox::compile(files, ["proto"])?;
    carry_as_bytes(&mut descriptors);
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".raftpb", "::raft_proto::eraftpb")
        .compile_fds(descriptors)?;
    use_our_codec()
}

/// The generated services name tonic's codec, for which the generator has no setting.
fn use_our_codec() -> Result<(), Box<dyn std::error::Error>> {
    let mut changed = 0;
    for entry in std::fs::read_dir(std::env::var("OUT_DIR")?)? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        changed += text.matches(TONIC_CODEC).count();
        std::fs::write(&path, text.replace(TONIC_CODEC, OUR_CODEC))?;
    }
    assert!(changed > 0, "tonic's codec is not named any more");
    Ok(())
}

fn carry_as_bytes(descriptors: &mut FileDescriptorSet) {
    let mut changed = 0;
    for message in descriptors.file.iter_mut().flat_map(|file| &mut file.message_type) {
        let owner = message.name().to_owned();
        for field in &mut message.field {
            if CARRIED_AS_BYTES.contains(&(owner.as_str(), field.name())) {
                field.set_type(Type::Bytes);
                field.type_name = None;
                changed += 1;
            }
        }
    }
    assert_eq!(changed, CARRIED_AS_BYTES.len(), "a field of CARRIED_AS_BYTES is gone from proto/");
}
