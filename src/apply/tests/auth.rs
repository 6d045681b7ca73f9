//! Who may have which entry applied, and what entries about users leave behind.

use super::*;
use crate::apply::permit_txn;
use crate::auth::{Caller, password};
use crate::base::error::Error;
use crate::pb::authpb::{Permission, UserAddOptions};

const READ: i32 = 0;
const WRITE: i32 = 1;
const READWRITE: i32 = 2;

/// A machine with users: root; `rw`, who may read and write `a` to `c`, write `w` and read `l`;
/// `none`, who may nothing.
struct Guarded(World);

impl Guarded {
    fn new() -> Guarded {
        let mut guarded = Guarded(World::new());
        for user in ["root", "rw", "none"] {
            guarded.user(user);
        }
        guarded.role("r", &[(READWRITE, "a", "d"), (WRITE, "w", ""), (READ, "l", "")]);
        guarded.grant("rw", "r");
        guarded.grant("root", "root");
        guarded.by("", |r| r.auth_enable = Some(rpc::AuthEnableRequest {})).unwrap();
        guarded
    }

    /// Applies a request in somebody's name, at the newest auth revision.
    fn by(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut rpc::InternalRaftRequest),
    ) -> Result<Reply> {
        let revision = self.0.machine.auth_reader().revision();
        self.at(name, if name.is_empty() { 0 } else { revision }, fill)
    }

    fn at(
        &mut self,
        name: &str,
        auth_revision: u64,
        fill: impl FnOnce(&mut rpc::InternalRaftRequest),
    ) -> Result<Reply> {
        let username = name.to_owned();
        let header = Some(rpc::RequestHeader { username, auth_revision, ..Default::default() });
        let mut request = rpc::InternalRaftRequest { header, ..Default::default() };
        fill(&mut request);
        self.0.apply(request).result
    }

    /// What is asked before a transaction is proposed.
    fn asks(&self, name: &str, txn: &rpc::TxnRequest) -> Result<()> {
        let auth = self.0.machine.auth_reader();
        let caller = Caller { name, revision: auth.revision() };
        permit_txn(&auth.state(), &self.0.machine.lease_reader(), &caller, txn)
    }

    fn user(&mut self, name: &str) {
        let options = Some(UserAddOptions { no_password: true });
        let add = rpc::AuthUserAddRequest { name: name.into(), options, ..Default::default() };
        self.by("root", |r| r.auth_user_add = Some(add)).unwrap();
    }

    fn grant(&mut self, user: &str, role: &str) {
        let grant = rpc::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
        self.by("root", |r| r.auth_user_grant_role = Some(grant)).unwrap();
    }

    fn role(&mut self, name: &str, permissions: &[(i32, &str, &str)]) {
        let add = rpc::AuthRoleAddRequest { name: name.into() };
        self.by("root", |r| r.auth_role_add = Some(add)).unwrap();
        for (perm_type, key, range_end) in permissions {
            let perm =
                Some(Permission { perm_type: *perm_type, key: b(key), range_end: b(range_end) });
            let given = rpc::AuthRoleGrantPermissionRequest { name: name.into(), perm };
            self.by("root", |r| r.auth_role_grant_permission = Some(given)).unwrap();
        }
    }

    fn puts(&mut self, name: &str, put: rpc::PutRequest) -> Result<()> {
        self.by(name, |r| r.put = Some(put)).map(drop)
    }

    fn txn(&mut self, name: &str, txn: rpc::TxnRequest) -> Result<()> {
        self.by(name, |r| r.txn = Some(txn)).map(drop)
    }
}

fn ops(request: Request) -> rpc::TxnRequest {
    rpc::TxnRequest { success: vec![op(request)], ..Default::default() }
}

#[test]
fn auth_single_requests() {
    let mut w = Guarded::new();
    let denied = Err(Error::PermissionDenied);
    for (name, want) in
        [("", Err(Error::UserEmpty)), ("none", denied), ("x", denied), ("root", Ok(()))]
    {
        assert_eq!(w.puts(name, put("a", "1")), want);
        assert_eq!(w.by(name, |r| r.range = Some(range("a", ""))).map(drop), want);
        assert_eq!(w.by(name, |r| r.delete_range = Some(del("a", "b"))).map(drop), want);
    }
    assert_eq!(w.at("root", 3, |r| r.put = Some(put("a", ""))), Err(Error::AuthOldRevision));
    assert_eq!(w.puts("rw", put("a", "1")), Ok(()));
    assert_eq!(w.puts("rw", put("d", "1")), denied);
    assert_eq!(w.puts("rw", put("l", "1")), denied, "read only");
    assert_eq!(w.puts("rw", put("w", "1")), Ok(()));
    let with_prev = |key: &str| rpc::PutRequest { prev_kv: true, ..put(key, "2") };
    assert_eq!(w.puts("rw", with_prev("w")), denied, "a previous value is read");
    assert_eq!(w.puts("rw", with_prev("a")), Ok(()));
    let delete_prev = |key: &str| rpc::DeleteRangeRequest { prev_kv: true, ..del(key, "") };
    assert_eq!(w.by("rw", |r| r.delete_range = Some(delete_prev("w"))).map(drop), denied);
    assert_eq!(w.by("rw", |r| r.delete_range = Some(del("w", ""))).map(drop), Ok(()));
    assert_eq!(w.by("rw", |r| r.delete_range = Some(del("a", "e"))).map(drop), denied);
    assert_eq!(w.by("rw", |r| r.range = Some(range("a", "d"))).map(drop), Ok(()));
    assert_eq!(w.by("rw", |r| r.range = Some(range("a", "\0"))).map(drop), denied);
}

/// Before a transaction is proposed, what it does is checked as if it were done alone
/// (CVE-2026-44283 and its kin). Where it is applied, it is checked as etcd 3.5.17 does.
#[test]
fn auth_transactions() {
    let mut w = Guarded::new();
    let denied = Err(Error::PermissionDenied);
    let nested = |txn: rpc::TxnRequest| ops(Request::RequestTxn(txn));
    let mut run = |txn: rpc::TxnRequest| -> [Result<()>; 4] {
        let other =
            rpc::TxnRequest { success: Vec::new(), failure: txn.success.clone(), ..txn.clone() };
        let both = |w: &mut Guarded, wrap: fn(rpc::TxnRequest) -> rpc::TxnRequest| {
            let (asked, applied) =
                (w.asks("rw", &wrap(txn.clone())), w.txn("rw", wrap(txn.clone())));
            assert_eq!(w.asks("rw", &wrap(other.clone())), asked, "both branches are checked");
            assert_eq!(w.txn("rw", wrap(other.clone())), applied, "both branches are checked");
            [asked, applied]
        };
        let plain = both(&mut w, |txn| txn);
        let within = both(&mut w, nested);
        [plain[0], plain[1], within[0], within[1]]
    };
    let put = |put| ops(Request::RequestPut(put));
    let delete = |delete| ops(Request::RequestDeleteRange(delete));
    let all = |result| [result; 4];
    assert_eq!(run(put(self::put("a", ""))), all(Ok(())));
    assert_eq!(run(put(self::put("d", ""))), [denied, denied, denied, Ok(())]);
    let prev = rpc::PutRequest { prev_kv: true, ..self::put("w", "") };
    assert_eq!(run(put(prev)), [denied, Ok(()), denied, Ok(())]);
    assert_eq!(run(ops(Request::RequestRange(range("l", "")))), all(Ok(())));
    assert_eq!(run(ops(Request::RequestRange(range("w", "")))), [denied, denied, denied, Ok(())]);
    let prev = rpc::DeleteRangeRequest { prev_kv: true, ..del("w", "") };
    assert_eq!(run(delete(prev)), [denied, denied, denied, Ok(())]);
    assert_eq!(run(delete(del("w", ""))), all(Ok(())));
    let compare = rpc::Compare { key: b("w"), ..Default::default() };
    let compares = rpc::TxnRequest { compare: vec![compare], ..Default::default() };
    assert_eq!(run(compares), [denied, denied, denied, Ok(())]);
    assert_eq!(w.txn("", rpc::TxnRequest::default()), Ok(()), "nothing is asked");
}

#[test]
fn auth_leases() {
    let mut w = Guarded::new();
    let denied = Err(Error::PermissionDenied);
    let leased = |key: &str, lease: i64| rpc::PutRequest { lease, ..put(key, "") };
    let revoke = |id: i64| rpc::LeaseRevokeRequest { id };
    for id in 1..=3 {
        let grant = rpc::LeaseGrantRequest { id, ttl: 60 };
        w.by("rw", |r| r.lease_grant = Some(grant)).unwrap();
    }
    w.puts("root", leased("secret", 1)).unwrap();
    assert_eq!(w.puts("rw", leased("a", 1)), denied, "it could delete the key by revoking");
    assert_eq!(w.asks("rw", &ops(Request::RequestPut(leased("a", 1)))), denied);
    assert_eq!(w.by("rw", |r| r.lease_revoke = Some(revoke(1))).map(drop), denied);
    assert_eq!(w.by("", |r| r.lease_revoke = Some(revoke(1))), Err(Error::UserEmpty));
    assert_eq!(w.puts("rw", leased("a", 2)), Ok(()));
    assert_eq!(w.by("rw", |r| r.lease_revoke = Some(revoke(2))).map(drop), Ok(()));
    assert_eq!(w.at("root", 1, |r| r.lease_revoke = Some(revoke(1))).map(drop), Ok(()));
    assert_eq!(w.puts("rw", leased("a", 9)), Err(Error::LeaseNotFound));
}

#[test]
fn auth_management_is_for_root() {
    let mut w = Guarded::new();
    let get = |name: &str| rpc::AuthUserGetRequest { name: name.into() };
    let role = |role: &str| rpc::AuthRoleGetRequest { role: role.into() };
    for (name, want) in
        [("", Error::UserEmpty), ("none", Error::PermissionDenied), ("gone", Error::UserNotFound)]
    {
        let list = Some(rpc::AuthUserListRequest {});
        assert_eq!(w.by(name, |r| r.auth_user_list = list), Err(want));
        let status = Some(rpc::AuthStatusRequest {});
        assert_eq!(w.by(name, |r| r.auth_status = status), Err(want));
        assert_eq!(w.by(name, |r| r.auth_disable = Some(rpc::AuthDisableRequest {})), Err(want));
        assert_eq!(w.by(name, |r| r.auth_user_get = Some(get("root"))), Err(want));
        assert_eq!(w.by(name, |r| r.auth_role_get = Some(role("r"))), Err(want));
    }
    assert!(w.by("none", |r| r.auth_user_get = Some(get("none"))).is_ok(), "oneself");
    assert!(w.by("rw", |r| r.auth_role_get = Some(role("r"))).is_ok(), "one's own role");
    assert!(w.by("root", |r| r.auth_status = Some(rpc::AuthStatusRequest {})).is_ok());
    // etcd 3.5's machine forgets users while an alarm is raised (etcd#22386).
    w.0.alarm(1, 7, 1);
    let disable = w.by("rw", |r| r.auth_disable = Some(rpc::AuthDisableRequest {}));
    assert_eq!(disable, Err(Error::PermissionDenied));
    let delete = w.by("rw", |r| r.delete_range = Some(del("secret", "")));
    assert_eq!(delete, Err(Error::PermissionDenied));
}

#[test]
fn auth_tokens_follow_entries() {
    let mut w = Guarded::new();
    let hashed_password = password::to_request("hash");
    let add = rpc::AuthUserAddRequest { name: "u".into(), hashed_password, ..Default::default() };
    w.by("root", |r| r.auth_user_add = Some(add)).unwrap();
    let login = |name: &str| rpc::InternalAuthenticateRequest {
        name: name.into(),
        simple_token: "seed".into(),
        ..Default::default()
    };
    let refused = w.by("", |r| r.authenticate = Some(login("none")));
    assert_eq!(refused, Err(Error::AuthFailed), "no password");
    let request = rpc::InternalRaftRequest { authenticate: Some(login("u")), ..Default::default() };
    let applied = w.0.apply(request);
    let token = format!("seed.{}", w.0.index);
    match applied.result {
        Ok(Reply::Auth(AuthReply::Authenticate { response, revision })) => {
            assert_eq!(response.token, token);
            assert_eq!(revision, w.0.machine.auth_reader().revision());
        }
        other => panic!("{other:?}"),
    }
    let change = TokenChange::Assigned { user: "u".into(), token };
    assert_eq!(applied.effects, [Effect::Tokens(change)]);
    let header = Some(rpc::RequestHeader { username: "root".into(), ..Default::default() });
    let auth_user_delete = Some(rpc::AuthUserDeleteRequest { name: "u".into() });
    let applied =
        w.0.apply(rpc::InternalRaftRequest { header, auth_user_delete, ..Default::default() });
    let change = TokenChange::UserForgotten { user: "u".into() };
    assert_eq!(applied.effects, [Effect::AuthChanged, Effect::Tokens(change)]);
}

/// Members older than 3.5 send passwords in clear: every member must keep the same hash.
#[test]
fn auth_passwords_in_clear_are_hashed_alike() {
    let hash = |name: &str| {
        let mut w = World::new();
        let add = rpc::AuthUserAddRequest {
            name: name.into(),
            password: "secret".into(),
            ..Default::default()
        };
        w.apply(rpc::InternalRaftRequest { auth_user_add: Some(add), ..Default::default() })
            .result
            .unwrap();
        let row = w.backend.get(Bucket::AuthUsers, name.as_bytes()).unwrap().unwrap();
        crate::pb::authpb::User::decode(row).unwrap().password
    };
    let first = hash("u");
    assert_eq!(first, hash("u"));
    assert_ne!(first, hash("v"));
    assert!(password::verify(b"secret", &first) && !password::verify(b"Secret", &first));
}

#[test]
fn auth_survives_a_restart() {
    let mut w = Guarded::new();
    w.puts("root", put("a", "1")).unwrap();
    let revision = w.0.machine.auth_reader().revision();
    w.0.reopen();
    assert!(w.0.machine.auth_reader().is_enabled());
    assert_eq!(w.0.machine.auth_reader().revision(), revision);
    assert_eq!(w.puts("rw", put("a", "2")), Ok(()));
    assert_eq!(w.puts("none", put("a", "2")), Err(Error::PermissionDenied));
}
