//! The looks themselves: whom to ask, what to log, when to raise the alarm. What the answers mean
//! is `mvcc::corrupt`'s to say.

use crate::actors::core::Shared;
use crate::actors::handle::Answer;
use crate::base::error::{Error, Result};
use crate::base::ids::MemberId;
use crate::mvcc::Reader;
use crate::mvcc::corrupt::{self, AtStart, Finding, KvHash, Told};
use crate::pb::etcdserverpb as rpc;
use std::sync::Arc;
use std::time::Duration;

/// Why a peer told no hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRev,
    #[error("etcdserver: cluster ID mismatch")]
    ClusterIdMismatch,
    #[error("{0}")]
    Other(String),
}

/// How peers are asked; the transport implements it.
pub trait PeerHashes: Send + Sync + 'static {
    /// The hash up to `revision`, from one of a member's URLs, within the request timeout.
    fn ask(
        &self,
        url: String,
        revision: i64,
    ) -> Answer<'static, std::result::Result<Told, AskError>>;
}

/// What a look needs.
#[derive(Clone)]
pub struct Checker {
    pub reader: Reader,
    pub shared: Arc<Shared>,
    pub peers: Arc<dyn PeerHashes>,
    pub request_timeout: Duration,
}

/// A peer, and what it told.
struct Asked {
    id: MemberId,
    urls: Vec<String>,
    told: std::result::Result<Told, AskError>,
}

impl Checker {
    /// Compares this member's store with everyone's before it serves; a difference is an error
    /// (etcd v3.5.17 `corrupt.go` InitialCheck).
    pub async fn at_start(&self) -> std::result::Result<(), String> {
        let own_id = self.shared.member_id;
        tracing::info!(
            "local-member-id" = %own_id,
            timeout = ?self.request_timeout,
            "starting initial corruption check"
        );
        let own = self.own_hash().await;
        let own = own.map_err(|error| format!("{own_id} failed to fetch hash ({error:?})"))?;
        let mut differ = false;
        for peer in self.ask(own.revision).await {
            let found = peer.told.as_ref().map(|told| corrupt::at_start(own, *told));
            differ |= found == Ok(AtStart::Differs);
            let what = match (&peer.told, found) {
                (_, Ok(AtStart::Same)) => continue,
                (_, Ok(AtStart::Differs)) => "found different hash values from remote peer",
                (_, Ok(AtStart::OtherCompaction)) => {
                    "found different compact revision values from remote peer"
                }
                (Err(AskError::FutureRev), _) => "cannot fetch hash from slow remote peer",
                (Err(AskError::Compacted), _) => {
                    "cannot fetch hash from remote peer; local member is behind"
                }
                (Err(AskError::ClusterIdMismatch), _) => "cluster ID mismatch",
                (Err(AskError::Other(_)) | Ok(_), _) => continue,
            };
            let told = peer.told.as_ref().ok();
            tracing::warn!(
                "local-member-id" = %own_id,
                "local-member-revision" = own.revision,
                "local-member-compact-revision" = own.compact_revision,
                "local-member-hash" = own.hash,
                "remote-peer-id" = %peer.id,
                "remote-peer-endpoints" = ?peer.urls,
                "remote-peer-revision" = told.map(|told| told.revision),
                "remote-peer-compact-revision" = told.map(|told| told.compact_revision),
                "remote-peer-hash" = told.map(|told| told.hash),
                error = peer.told.as_ref().err().map(tracing::field::display),
                "{what}"
            );
        }
        if differ {
            return Err(format!("{own_id} found data inconsistency with peers"));
        }
        tracing::info!(
            "local-member-id" = %own_id,
            "initial corruption checking passed; no corruption"
        );
        Ok(())
    }

    /// Compares the whole store (etcd v3.5.17 `corrupt.go` PeriodicCheck).
    pub async fn store(&self) -> Result<()> {
        let before = self.own_hash().await?;
        let asked = self.ask(before.revision).await;
        tokio::time::timeout(self.request_timeout, self.shared.caught_up())
            .await
            .unwrap_or(Err(Error::DeadlineExceeded))?;
        let after = self.own_hash().await?;
        let told: Vec<_> =
            asked.iter().filter_map(|peer| Some((peer.id, *peer.told.as_ref().ok()?))).collect();
        let findings = corrupt::periodic(before, &told, after);
        for finding in &findings {
            log_finding(finding, before, after);
        }
        if !findings.is_empty() {
            self.raise();
        }
        tracing::info!("number-of-peers-checked" = told.len(), "finished peer corruption check");
        Ok(())
    }

    /// Compares what compactions have hashed, the newest first, until all members agree on one.
    /// Compactions up to `checked` are passed over; the new value of that comes back
    /// (etcd v3.5.17 `corrupt.go` CompactHashCheck).
    pub async fn compactions(&self, checked: i64) -> i64 {
        tracing::info!(
            "local-member-id" = %self.shared.member_id,
            timeout = ?self.request_timeout,
            "starting compact hash check"
        );
        let hashes = corrupt::unchecked(self.reader.hashes(), checked);
        let mut looked_at = 0;
        for own in hashes {
            looked_at += 1;
            let asked = self.ask(own.revision).await;
            if asked.is_empty() {
                continue;
            }
            let told: Vec<_> = asked.iter().map(|peer| (peer.id, peer.told.clone().ok())).collect();
            let compared = corrupt::compacted(own, &told);
            for id in &compared.same {
                tracing::info!(
                    revision = own.revision,
                    "peer-id" = %id,
                    "successfully checked hash on follower"
                );
            }
            if let Some((id, told)) = compared.differs {
                self.raise();
                tracing::error!(
                    revision = own.revision,
                    "leader-compact-revision" = own.compact_revision,
                    "leader-hash" = own.hash,
                    "follower-compact-revision" = told.compact_revision,
                    "follower-hash" = told.hash,
                    "follower-peer-id" = %id,
                    "failed compaction hash check"
                );
                return checked;
            }
            let same = compared.same.len();
            if same == asked.len() {
                tracing::info!(
                    "number-of-peers-checked" = same,
                    revision = own.revision,
                    "successfully checked hash on whole cluster"
                );
                finished_compactions(looked_at);
                return own.revision;
            }
            tracing::warn!(
                "number-of-peers-checked" = same,
                "number-of-peers" = asked.len(),
                revision = own.revision,
                "skipped revision in compaction hash check; was not able to check all peers"
            );
        }
        finished_compactions(looked_at);
        checked
    }

    /// The hash of the whole store, made on a thread that may block.
    async fn own_hash(&self) -> Result<KvHash> {
        let reader = self.reader.clone();
        let hash = tokio::task::spawn_blocking(move || reader.hash_kv(0));
        let (hash, revision, compact_revision) = hash.await.map_err(|_| Error::Stopped)??;
        Ok(KvHash { hash, revision, compact_revision })
    }

    /// Asks all other members at once, each at its URLs in turn, and waits for all of them.
    async fn ask(&self, revision: i64) -> Vec<Asked> {
        let own_id = self.shared.member_id;
        let members = self.shared.members();
        let others = members.iter().filter(|member| member.id != own_id.0);
        let mut asking = Vec::new();
        for member in others.filter(|member| !member.peer_urls.is_empty()) {
            let (id, urls) = (MemberId(member.id), member.peer_urls.clone());
            let peers = Arc::clone(&self.peers);
            let asked = urls.clone();
            let answer = tokio::spawn(async move {
                let mut last = AskError::Other("the member has no URL".to_owned());
                for url in asked {
                    match peers.ask(url.clone(), revision).await {
                        Ok(told) => return Ok(told),
                        Err(error) => last = error,
                    }
                    tracing::warn!(
                        "local-member-id" = %own_id,
                        "requested-revision" = revision,
                        "remote-peer-endpoint" = %url,
                        error = %last,
                        "failed hash kv request"
                    );
                }
                Err(last)
            });
            asking.push((id, urls, answer));
        }
        let mut asked = Vec::new();
        for (id, urls, answer) in asking {
            let told = answer.await.unwrap_or_else(|error| Err(AskError::Other(error.to_string())));
            asked.push(Asked { id, urls, told });
        }
        asked
    }

    /// It is not clear who is right, so that the alarm names nobody, as etcd 3.5's.
    fn raise(&self) {
        let alarm = rpc::AlarmRequest {
            action: rpc::alarm_request::AlarmAction::Activate as i32,
            member_id: 0,
            alarm: rpc::AlarmType::Corrupt as i32,
        };
        let request = rpc::InternalRaftRequest { alarm: Some(alarm), ..Default::default() };
        self.shared.propose_quietly(request);
    }
}

fn finished_compactions(looked_at: usize) {
    tracing::info!("number-of-hashes-checked" = looked_at, "finished compaction hash check");
}

fn log_finding(finding: &Finding, before: KvHash, after: KvHash) {
    match finding {
        Finding::OwnChanged => tracing::warn!(
            "revision-1" = before.revision,
            "compact-revision-1" = before.compact_revision,
            "hash-1" = before.hash,
            "revision-2" = after.revision,
            "compact-revision-2" = after.compact_revision,
            "hash-2" = after.hash,
            "found hash mismatch"
        ),
        Finding::RevisionAhead(id, told) => tracing::warn!(
            "leader-revision" = after.revision,
            "follower-revision" = told.revision,
            "follower-peer-id" = %id,
            "revision from follower must be less than or equal to leader's"
        ),
        Finding::CompactedAhead(id, told) => tracing::warn!(
            "leader-compact-revision" = after.compact_revision,
            "follower-compact-revision" = told.compact_revision,
            "follower-peer-id" = %id,
            "compact revision from follower must be less than or equal to leader's"
        ),
        Finding::HashDiffers(id, told) => tracing::warn!(
            "leader-compact-revision" = after.compact_revision,
            "leader-hash" = before.hash,
            "follower-compact-revision" = told.compact_revision,
            "follower-hash" = told.hash,
            "follower-peer-id" = %id,
            "same compact revision then hashes must match"
        ),
    }
}
