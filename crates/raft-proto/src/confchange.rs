//! Membership changes in both of their wire forms, and the comparison of configurations.

use crate::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};
use std::borrow::Cow;

/// etcd's `ConfChangeUpdateNode`. Raft ignores it: [`ConfChangeI::into_v2`] turns it into a change
/// of node 0, which the crate takes for "nothing to do", as etcd's raft takes UpdateNode.
pub const CONF_CHANGE_UPDATE_NODE: i32 = 2;

/// One step of a V2 change.
pub fn new_conf_change_single(node_id: u64, change_type: ConfChangeType) -> ConfChangeSingle {
    ConfChangeSingle { change_type: change_type as i32, node_id }
}

/// Reads `v1 l2 r3` (voter, learner, remove) as steps; for tests and transcripts.
pub fn parse_conf_change(text: &str) -> Result<Vec<ConfChangeSingle>, String> {
    let mut steps = Vec::new();
    for word in text.split_ascii_whitespace() {
        let (kind, id) = word.split_at_checked(1).ok_or_else(|| format!("bad step {word:?}"))?;
        let change_type = match kind {
            "v" => ConfChangeType::AddNode,
            "l" => ConfChangeType::AddLearnerNode,
            "r" => ConfChangeType::RemoveNode,
            _ => return Err(format!("bad step {word:?}")),
        };
        let node_id = id.parse().map_err(|e| format!("bad step {word:?}: {e}"))?;
        steps.push(new_conf_change_single(node_id, change_type));
    }
    Ok(steps)
}

/// Writes steps as [`parse_conf_change`] reads them.
pub fn stringify_conf_change(steps: &[ConfChangeSingle]) -> String {
    let words: Vec<String> = steps
        .iter()
        .map(|step| {
            let kind = match step.get_change_type() {
                ConfChangeType::AddNode => 'v',
                ConfChangeType::AddLearnerNode => 'l',
                ConfChangeType::RemoveNode => 'r',
            };
            format!("{kind}{}", step.node_id)
        })
        .collect();
    words.join(" ")
}

/// What V1 and V2 changes have in common.
pub trait ConfChangeI {
    /// This change as V2.
    fn into_v2(self) -> ConfChangeV2;
    /// This change as V2, borrowed where it already is.
    fn as_v2(&self) -> Cow<'_, ConfChangeV2>;
    /// This change as V1, if it was one.
    fn as_v1(&self) -> Option<&ConfChange>;
}

impl ConfChangeI for ConfChange {
    fn into_v2(self) -> ConfChangeV2 {
        let known = ConfChangeType::try_from(self.change_type).is_ok();
        let step = if known {
            ConfChangeSingle { change_type: self.change_type, node_id: self.node_id }
        } else {
            new_conf_change_single(0, ConfChangeType::AddNode)
        };
        ConfChangeV2 {
            transition: ConfChangeTransition::Auto as i32,
            changes: vec![step],
            context: self.context,
        }
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Owned(self.clone().into_v2())
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        Some(self)
    }
}

impl ConfChangeI for ConfChangeV2 {
    fn into_v2(self) -> ConfChangeV2 {
        self
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Borrowed(self)
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        None
    }
}

impl ConfChangeV2 {
    /// `Some(auto_leave)` if this change goes through joint consensus: more than one step, or asked
    /// for by its transition (etcd v3.5.17 `raft/raftpb/confchange.go`).
    pub fn enter_joint(&self) -> Option<bool> {
        let simple = self.get_transition() == ConfChangeTransition::Auto && self.changes.len() <= 1;
        if simple {
            return None;
        }
        Some(self.get_transition() != ConfChangeTransition::Explicit)
    }

    /// Whether this change only leaves a joint configuration: it is empty but for its context.
    pub fn leave_joint(&self) -> bool {
        self.get_transition() == ConfChangeTransition::Auto && self.changes.is_empty()
    }
}

/// Whether two configurations hold the same members, whatever their order.
#[must_use]
pub fn conf_state_eq(left: &ConfState, right: &ConfState) -> bool {
    fn same(left: &[u64], right: &[u64]) -> bool {
        let mut left = left.to_vec();
        let mut right = right.to_vec();
        left.sort_unstable();
        right.sort_unstable();
        left == right
    }
    same(&left.voters, &right.voters)
        && same(&left.learners, &right.learners)
        && same(&left.voters_outgoing, &right.voters_outgoing)
        && same(&left.learners_next, &right.learners_next)
        && left.auto_leave == right.auto_leave
}
