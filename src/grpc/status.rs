//! The error table: what each of etcd's errors looks like on the wire.

use crate::base::error::Error;
use crate::mvcc::watch::Refusal;
use tonic::{Code, Status};

/// Code and text of an error, as etcd v3.5.17 puts them on the wire.
///
/// etcd answers `MemberNotEnoughStarted` and `TooManyRequests` with Unknown: its table translates
/// them to the client's error values, which carry no gRPC status. Context errors leave etcd with
/// grpc-go's own texts.
pub fn code_and_text(error: Error) -> (Code, &'static str) {
    use Code::*;
    match error {
        Error::EmptyKey => (InvalidArgument, "etcdserver: key is not provided"),
        Error::KeyNotFound => (InvalidArgument, "etcdserver: key not found"),
        Error::ValueProvided => (InvalidArgument, "etcdserver: value is provided"),
        Error::LeaseProvided => (InvalidArgument, "etcdserver: lease is provided"),
        Error::TooManyOps => (InvalidArgument, "etcdserver: too many operations in txn request"),
        Error::DuplicateKey => (InvalidArgument, "etcdserver: duplicate key given in txn request"),
        Error::InvalidClientApiVersion => {
            (InvalidArgument, "etcdserver: invalid client api version")
        }
        Error::InvalidSortOption => (InvalidArgument, "etcdserver: invalid sort option"),
        Error::Compacted => (OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
        Error::FutureRev => {
            (OutOfRange, "etcdserver: mvcc: required revision is a future revision")
        }
        Error::NoSpace => (ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        Error::LeaseNotFound => (NotFound, "etcdserver: requested lease not found"),
        Error::LeaseExist => (FailedPrecondition, "etcdserver: lease already exists"),
        Error::LeaseTtlTooLarge => (OutOfRange, "etcdserver: too large lease TTL"),
        Error::WatchCanceled => (Cancelled, "etcdserver: watch canceled"),
        Error::MemberExist => (FailedPrecondition, "etcdserver: member ID already exist"),
        Error::PeerUrlExist => (FailedPrecondition, "etcdserver: Peer URLs already exists"),
        Error::MemberNotEnoughStarted => {
            (Unknown, "etcdserver: re-configuration failed due to not enough started members")
        }
        Error::MemberBadUrls => (InvalidArgument, "etcdserver: given member URLs are invalid"),
        Error::MemberNotFound => (NotFound, "etcdserver: member not found"),
        Error::MemberNotLearner => {
            (FailedPrecondition, "etcdserver: can only promote a learner member")
        }
        Error::LearnerNotReady => (
            FailedPrecondition,
            "etcdserver: can only promote a learner member which is in sync with leader",
        ),
        Error::TooManyLearners => {
            (FailedPrecondition, "etcdserver: too many learner members in cluster")
        }
        Error::RequestTooLarge => (InvalidArgument, "etcdserver: request is too large"),
        Error::TooManyRequests => (Unknown, "etcdserver: too many requests"),
        Error::RootUserNotExist => (FailedPrecondition, "etcdserver: root user does not exist"),
        Error::RootRoleNotExist => {
            (FailedPrecondition, "etcdserver: root user does not have root role")
        }
        Error::UserAlreadyExist => (FailedPrecondition, "etcdserver: user name already exists"),
        Error::UserEmpty => (InvalidArgument, "etcdserver: user name is empty"),
        Error::UserNotFound => (FailedPrecondition, "etcdserver: user name not found"),
        Error::RoleAlreadyExist => (FailedPrecondition, "etcdserver: role name already exists"),
        Error::RoleNotFound => (FailedPrecondition, "etcdserver: role name not found"),
        Error::RoleEmpty => (InvalidArgument, "etcdserver: role name is empty"),
        Error::AuthFailed => {
            (InvalidArgument, "etcdserver: authentication failed, invalid user ID or password")
        }
        Error::PermissionNotGiven => (InvalidArgument, "etcdserver: permission not given"),
        Error::PermissionDenied => (PermissionDenied, "etcdserver: permission denied"),
        Error::RoleNotGranted => {
            (FailedPrecondition, "etcdserver: role is not granted to the user")
        }
        Error::PermissionNotGranted => {
            (FailedPrecondition, "etcdserver: permission is not granted to the role")
        }
        Error::AuthNotEnabled => (FailedPrecondition, "etcdserver: authentication is not enabled"),
        Error::InvalidAuthToken => (Unauthenticated, "etcdserver: invalid auth token"),
        Error::InvalidAuthMgmt => (InvalidArgument, "etcdserver: invalid auth management"),
        Error::AuthOldRevision => (InvalidArgument, "etcdserver: revision of auth store is old"),
        Error::NoLeader => (Unavailable, "etcdserver: no leader"),
        Error::NotLeader => (FailedPrecondition, "etcdserver: not leader"),
        Error::LeaderChanged => (Unavailable, "etcdserver: leader changed"),
        Error::NotCapable => (Unavailable, "etcdserver: not capable"),
        Error::Stopped => (Unavailable, "etcdserver: server stopped"),
        Error::Timeout => (Unavailable, "etcdserver: request timed out"),
        Error::TimeoutDueToLeaderFail => {
            (Unavailable, "etcdserver: request timed out, possibly due to previous leader failure")
        }
        Error::TimeoutDueToConnectionLost => {
            (Unavailable, "etcdserver: request timed out, possibly due to connection lost")
        }
        Error::TimeoutWaitAppliedIndex => (
            Unavailable,
            "etcdserver: request timed out, waiting for the applied index took too long",
        ),
        Error::TimeoutLeaderTransfer => {
            (Unknown, "etcdserver: request timed out, leader transfer took too long")
        }
        Error::Unhealthy => (Unavailable, "etcdserver: unhealthy cluster"),
        Error::Corrupt => (DataLoss, "etcdserver: corrupt cluster"),
        Error::NotSupportedForLearner => (Unavailable, "etcdserver: rpc not supported for learner"),
        Error::BadLeaderTransferee => (FailedPrecondition, "etcdserver: bad leader transferee"),
        Error::ClusterVersionUnavailable => {
            (Unavailable, "etcdserver: cluster version not found during downgrade")
        }
        Error::WrongDowngradeVersionFormat => {
            (InvalidArgument, "etcdserver: wrong downgrade target version format")
        }
        Error::InvalidDowngradeTargetVersion => {
            (InvalidArgument, "etcdserver: invalid downgrade target version")
        }
        Error::DowngradeInProcess => {
            (FailedPrecondition, "etcdserver: cluster has a downgrade job in progress")
        }
        Error::NoInflightDowngrade => (FailedPrecondition, "etcdserver: no inflight downgrade job"),
        Error::UnknownMethod => (Unknown, "etcdserver: unknown method"),
        Error::CanceledByClient => (Cancelled, "context canceled"),
        Error::DeadlineExceeded => (DeadlineExceeded, "context deadline exceeded"),
        Error::NotImplemented => (Unimplemented, "etcdserver: not implemented"),
        Error::NoPasswordUser => {
            (Unknown, "auth: authentication failed, password was given for no password user")
        }
        Error::PasswordTooLong => (Unknown, "bcrypt: password length exceeds 72 bytes"),
        Error::VerifyOnlyKey => (Unknown, "auth: token signing attempted with verify-only key"),
    }
}

/// Why a watcher was not made, as its client reads it (etcd v3.5.17 `server/mvcc/watcher.go`).
pub fn watch_refusal(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::EmptyRange => "mvcc: watcher range is empty",
        Refusal::DuplicateId => "mvcc: duplicate watch ID provided on the WatchStream",
    }
}

/// A refusal as etcd's Maintenance service lets it out, untranslated (v3.5.17
/// `v3rpc/maintenance.go` isAuthenticated).
pub fn untranslated(refusal: Error) -> Status {
    let text = match refusal {
        Error::UserEmpty => "auth: user name is empty",
        Error::UserNotFound => "auth: user not found",
        Error::PermissionDenied => "auth: permission denied",
        Error::InvalidAuthToken => "auth: invalid auth token",
        other => return of(other),
    };
    Status::new(Code::Unknown, text)
}

/// Why a watcher may not be made, or not go on, as its client reads it.
pub fn watch_denial(refusal: Error) -> String {
    let refusal = match refusal {
        Error::InvalidAuthToken | Error::AuthOldRevision | Error::UserEmpty => refusal,
        _ => Error::PermissionDenied,
    };
    let (code, text) = code_and_text(refusal);
    format!("rpc error: code = {code:?} desc = {text}")
}

/// The status for an error.
pub fn of(error: Error) -> Status {
    let (code, text) = code_and_text(error);
    Status::new(code, text)
}

/// The status for a snapshot that this member cannot make, or not to its end.
pub fn snapshot_failed() -> Status {
    Status::internal("etcdserver: failed to make a snapshot")
}

/// The status for a failure of this machine, which etcd passes on as it is.
pub fn failed(reason: &str) -> Status {
    Status::unknown(reason)
}

/// The status for a path that names no service (grpc-go `server.go` handleStream).
pub fn unknown_service(service: &str) -> Status {
    Status::new(Code::Unimplemented, format!("unknown service {service}"))
}

/// The status for a path that names no method of its service.
pub fn unknown_method(service: &str, name: &str) -> Status {
    Status::new(Code::Unimplemented, format!("unknown method {name} for service {service}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, code as Go prints it, text; extracted from etcd v3.5.17 `v3rpc/rpctypes/error.go`.
    const FACTS: &str = include_str!("status_facts.txt");

    /// Go's names, where they differ from `Debug` of tonic's.
    fn go_name(code: Code) -> String {
        match code {
            Code::Cancelled => "Canceled".to_owned(),
            code => format!("{code:?}"),
        }
    }

    #[test]
    fn the_table_is_etcds() {
        let table: Vec<String> = Error::ALL
            .iter()
            .map(|error| {
                let (code, text) = code_and_text(*error);
                format!("{error:?}\t{}\t{text}", go_name(code))
            })
            .collect();
        assert_eq!(table, FACTS.lines().collect::<Vec<_>>());
    }
}
