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
/// Changes of members that wait for an earlier one; each also ends with its request timeout.
pub const CHANGES_PENDING_MAX: usize = 64;
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
/// Revisions that one pass over the history reads for lagging watchers, and with that the most that
/// one watch response holds (etcd v3.5.17 `server/mvcc/watcher_group.go` watchBatchMaxRevs).
pub const WATCH_PASS_REVISIONS_MAX: i64 = 1000;
/// Lagging watchers that share one pass (etcd v3.5.17 maxWatchersPerSync).
pub const WATCH_PASS_WATCHERS_MAX: usize = 512;
/// Bytes of events after which a pass ends with the revision it is in.
pub const WATCH_PASS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of events that are kept in memory for watchers which a pass is about to bring up to date;
/// beyond it they take another pass.
pub const WATCH_RECENT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Watch responses that wait for one stream's client before its watchers start to lag.
pub const WATCH_STREAM_RESPONSES_MAX: usize = 4096;
/// Bytes of events that wait for one stream's client before its watchers start to lag.
pub const WATCH_STREAM_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of events of one stream from which on no more are joined into the responses at hand.
pub const WATCH_JOIN_BYTES_MAX: usize = 256 * 1024;
/// Requests of one watch stream on their way to the hub and back (etcd v3.5.17 ctrlStreamBufLen
/// holds 16 answers).
pub const WATCH_REQUESTS_MAX: usize = 64;
/// Simple tokens that are remembered; beyond it those go that would expire first. Each login makes
/// one: thousands a second for minutes get there, and clients whose token has gone log in again.
pub const TOKENS_MAX: usize = 1 << 20;
/// Passwords that wait to be hashed; beyond it logins are refused with "too many requests".
pub const PASSWORD_WORK_MAX: usize = 1024;
/// Passwords that were found right lately and are not put through bcrypt again; beyond it they are.
pub const PROVEN_MAX: usize = 4096;
/// JSON web tokens whose signature need not be checked again.
pub const JWT_CACHED_MAX: usize = 4096;
/// Bytes of the longest token that is kept for that.
pub const JWT_CACHED_BYTES_MAX: usize = 4096;
/// Bytes of a user's or role's name: bbolt's longest key, so that the row fits into etcd's file.
pub const AUTH_NAME_BYTES_MAX: usize = 32_768;
/// Revokes of expired leases on their way through the log, a lease with many keys counting as so
/// many: what a write of someone else may have to wait behind. Members that are short of CPU do not
/// get through more of them when more are on their way.
pub const LEASE_REVOKES_IN_FLIGHT_MAX: usize = 256;
/// Expired leases revoked in a second, counted in the same way: 100,000 that end together are gone
/// within 5 s, and slower members keep up.
pub const LEASE_REVOKES_PER_SECOND_MAX: usize = 25_000;
/// Leases whose remaining time one entry of the log tells (etcd v3.5.17 `lease/lessor.go`
/// maxLeaseCheckpointBatchSize).
pub const LEASE_CHECKPOINTS_PER_ENTRY_MAX: usize = 1000;
/// Checkpoints proposed at once, so that a wave of them leaves room for others.
pub const LEASE_CHECKPOINTS_PER_LOOK_MAX: usize = 20 * LEASE_CHECKPOINTS_PER_ENTRY_MAX;
/// Bytes that the log may grow behind the newest snapshot before one is asked for, however few
/// entries they are.
pub const LOG_BYTES_PER_SNAPSHOT_MAX: u64 = 1024 * 1024 * 1024;
/// Segments of the log, of 64 MB each, that stay at most for members that are behind, however many
/// entries `--experimental-snapshot-catchup-entries` asks for.
pub const WAL_SEGMENTS_FOR_PEERS: usize = 32;
/// Snapshots on their way to members at once (etcd v3.5.17 `server/etcdserver/server.go`
/// maxInFlightMsgSnap).
pub const SNAPSHOTS_SENDING_MAX: usize = 16;
/// Bytes of checkpoints that may be written before any are earned.
pub const CHECKPOINT_BYTES_AT_FIRST: u64 = 64 * 1024 * 1024;
/// Bytes of checkpoints that each second earns, beside those that go to the log.
pub const CHECKPOINT_BYTES_PER_SECOND: u64 = 256 * 1024;
