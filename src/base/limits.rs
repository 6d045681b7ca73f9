//! Every bound of the server, with its reason. No literal bounds elsewhere.

use std::time::Duration;

/// Restarts of one actor within [`ACTOR_RESTART_WINDOW`]; one more ends the process, since an actor
/// that panics on everything serves nobody.
pub const ACTOR_RESTARTS_MAX: usize = 5;
/// How long a restart counts against [`ACTOR_RESTARTS_MAX`].
pub const ACTOR_RESTART_WINDOW: Duration = Duration::from_secs(60);
/// Entries that may be committed but not applied before proposals are refused with "too many
/// requests" (etcd v3.5.17 `server/etcdserver/v3_server.go` maxGapBetweenApplyAndCommitIndex).
pub const APPLY_GAP_MAX: u64 = 5000;
/// Largest message between peers and largest batch of entries in one append (etcd: 1 MiB, 4096
/// messages in flight).
pub const RAFT_MESSAGE_BYTES_MAX: u64 = 1024 * 1024;
/// Appends in flight to one follower (etcd v3.5.17 maxInflightMsgs).
pub const RAFT_INFLIGHT_MAX: usize = 512;
/// Mailbox of RaftActor: requests beyond it are refused at the edge.
pub const RAFT_MAILBOX_MAX: usize = 65_536;
/// Proposals waiting for a leader; each also ends with its request timeout.
pub const PROPOSALS_PENDING_MAX: usize = 65_536;
/// Bytes of one proposed batch, so that one flush stays one readable WAL write.
pub const PROPOSE_BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Applied log entries kept in memory for followers that are slightly behind.
pub const LOG_CACHE_ENTRIES_MAX: usize = 4096;
/// Bytes of applied log entries kept in memory.
pub const LOG_CACHE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Default `--max-request-bytes` (etcd v3.5.17 embed/config.go).
pub const REQUEST_BYTES_MAX: usize = 1_572_864;
/// Room for gRPC framing on top of the request limit (etcd: 512 KiB).
pub const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;
/// Bytes of one key or range end that a log line about a request shows.
pub const LOG_KEY_BYTES_MAX: usize = 256;
/// Bytes of a log line's text about a request, after which further operations are only counted.
pub const LOG_REQUEST_BYTES_MAX: usize = 4096;
/// Bytes of newest rows kept in the key index, so that reads of recent data touch no disk.
pub const INDEX_ROW_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of rows applied but not yet committed to the engine; beyond it apply waits.
pub const OVERLAY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Page of etcd's database file, in which sizes are told.
pub const PAGE_BYTES: u64 = 4096;
