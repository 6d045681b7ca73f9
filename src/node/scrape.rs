//! Brings the values that others publish into the metrics, when somebody asks for the page.

use crate::actors::core::Shared;
use crate::apply::QUOTA_BYTES_DEFAULT;
use crate::cli::config::Config;
use crate::grpc::VERSION;
use crate::mvcc::Reader;
use crate::obs::metrics::metrics;
use parking_lot::Mutex;
use prometheus::IntCounter;
use std::sync::Arc;

/// What is read at a scrape.
pub struct Scrape {
    pub shared: Arc<Shared>,
    pub reader: Reader,
    /// Two scrapes at once must not both add what happened since the one before.
    pub turn: Mutex<()>,
}

/// Values that stay as they are while the process runs.
pub fn constants(config: &Config, shared: &Shared) {
    let metrics = metrics();
    metrics.server_version.with_label_values(&[VERSION]).set(1);
    metrics.server_id.with_label_values(&[&shared.member_id.to_string()]).set(1);
    metrics.server_go_version.with_label_values(&[RUNTIME]).set(1);
    metrics.quota_backend_bytes.set(match config.quota_backend_bytes {
        0 => i64::try_from(QUOTA_BYTES_DEFAULT).unwrap_or(i64::MAX),
        bytes => bytes,
    });
}

/// Where etcd names its Go version.
const RUNTIME: &str = concat!("rusd-", env!("CARGO_PKG_VERSION"));

/// Brings a counter up to a count kept elsewhere, which only grows.
fn raise(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Scrape {
    /// Reads everything.
    pub fn read(&self) {
        let _turn = self.turn.lock();
        self.raft();
        self.store();
    }

    fn raft(&self) {
        let metrics = metrics();
        let standing = self.shared.standing();
        metrics.has_leader.set(i64::from(standing.leader.0 != 0));
        metrics.is_leader.set(i64::from(standing.is_leader));
        metrics.is_learner.set(i64::from(standing.is_learner));
        raise(&metrics.leader_changes, self.shared.leader_changes());
        if let Some(revision) = self.shared.auth_revision() {
            metrics.auth_revision.set(signed(revision));
        }
        metrics.proposals_committed.set(signed(standing.committed));
        metrics.proposals_applied.set(signed(self.shared.applied_index()));
        if let Some(version) = self.shared.members().version() {
            // etcd shows major and minor, and the version before no more.
            let short = version.rsplit_once('.').map_or(version, |(short, _)| short);
            metrics.cluster_version.reset();
            metrics.cluster_version.with_label_values(&[short]).set(1);
        }
    }

    fn store(&self) {
        let metrics = metrics();
        let counts = self.reader.counts();
        raise(&metrics.mvcc_range, counts.ranges());
        raise(&metrics.mvcc_range_debugging, counts.ranges());
        raise(&metrics.mvcc_put, counts.puts());
        raise(&metrics.mvcc_delete, counts.deletes());
        raise(&metrics.mvcc_txn, counts.txns());
        raise(&metrics.db_compaction_keys, counts.compacted_rows());
        metrics.total_put_size.set(signed(counts.put_bytes()));
        metrics.keys.set(counts.keys());
        metrics.current_revision.set(self.reader.revision());
        metrics.compact_revision.set(self.reader.compact_revision());
        metrics.db_total_size.set(signed(self.reader.size_bytes()));
        metrics.db_size_in_use.set(signed(self.reader.size_in_use_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::inbox::Inbox;
    use crate::apply::{Machine, Options};
    use crate::base::ids::{ClusterId, MemberId};
    use crate::cluster::members::Members;
    use crate::mvcc::backend::MemBackend;
    use crate::pb::etcdserverpb as rpc;
    use crate::raft::driver::Standing;
    use std::time::Duration;

    #[test]
    fn a_scrape_shows_what_is_published() {
        let mut machine =
            Machine::open(Arc::new(MemBackend::default()), Options::default()).unwrap();
        let put = Some(rpc::PutRequest { key: "k".into(), ..Default::default() });
        machine.apply(1, 1, &rpc::InternalRaftRequest { put, ..Default::default() });
        let ids = (MemberId(7), ClusterId(8));
        let members = Members::default();
        let (inbox, _outlet) = Inbox::new();
        let shared = Shared::new(ids.0, ids.1, Duration::ZERO, 1, members, Vec::new(), inbox);
        let shared = Arc::new(shared);
        for leader in [7, 0, 9] {
            let is_leader = leader == 7;
            let leader = MemberId(leader);
            shared.publish_standing(Standing { leader, is_leader, ..Standing::default() });
        }
        assert_eq!(shared.leader_changes(), 2);
        let reader = machine.reader();
        let scrape = Scrape { shared, reader, turn: Mutex::default() };
        scrape.read();
        let metrics = metrics();
        assert_eq!((metrics.has_leader.get(), metrics.is_leader.get()), (1, 0));
        assert_eq!((metrics.current_revision.get(), metrics.keys.get()), (2, 1));
        assert_eq!(metrics.db_total_size.get(), 20_480);
        assert_eq!(metrics.db_size_in_use.get(), 16_384);
        assert_eq!(metrics.proposals_applied.get(), 1);
    }

    #[test]
    fn a_counter_is_raised_and_never_lowered() {
        let counter = IntCounter::new("a", "b").unwrap();
        for (count, shown) in [(3, 3), (3, 3), (5, 5), (4, 5)] {
            raise(&counter, count);
            assert_eq!(counter.get(), shown);
        }
    }
}
