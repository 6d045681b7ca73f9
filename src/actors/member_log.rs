//! The lines that say the members changed, as etcd words them.

use crate::actors::core::Shared;
use crate::cluster::members::{PeerChange, Rejected};

/// Logs what a conf change did, before the new members are published.
pub(super) fn applied(shared: &Shared, outcome: &Result<PeerChange, Rejected>) {
    let (cluster, local) = (shared.cluster_id, shared.member_id);
    match outcome {
        Ok(PeerChange::Add(member)) => tracing::info!(
            "cluster-id" = %cluster,
            "local-member-id" = %local,
            "added-peer-id" = format!("{:x}", member.id),
            "added-peer-peer-urls" = ?member.peer_urls,
            "added-peer-is-learner" = member.is_learner,
            "added member"
        ),
        Ok(PeerChange::Remove(id)) => {
            let urls = shared.members().get(*id).map(|member| member.peer_urls.clone());
            tracing::info!(
                "cluster-id" = %cluster,
                "local-member-id" = %local,
                "removed-remote-peer-id" = %id,
                "removed-remote-peer-urls" = ?urls.unwrap_or_default(),
                "removed member"
            );
        }
        Ok(PeerChange::Update(member)) => tracing::info!(
            "cluster-id" = %cluster,
            "local-member-id" = %local,
            "updated-remote-peer-id" = format!("{:x}", member.id),
            "updated-remote-peer-urls" = ?member.peer_urls,
            "updated member"
        ),
        Ok(PeerChange::Promote(id)) => tracing::info!(
            "cluster-id" = %cluster,
            "local-member-id" = %local,
            "promoted-member-id" = %id,
            "promote member"
        ),
        Ok(PeerChange::None) => {}
        Err(rejected) => {
            tracing::warn!(error = %rejected, "Validation on configuration change failed");
        }
    }
}
