//! Permissions against brute force, and changes as a transcript.

use super::*;
use crate::base::error::{Error, Result};
use crate::mvcc::backend::{Backend, Batch, Bucket, MemBackend};
use crate::pb::authpb::Permission;
use crate::pb::etcdserverpb as rpc;
use bytes::Bytes;
use proptest::prelude::*;
use std::ops::ControlFlow;
use std::sync::Arc;

/// A store whose rows are kept, as the engine keeps them.
struct World {
    backend: Arc<MemBackend>,
    store: AuthStore,
}

impl World {
    fn new() -> World {
        let backend = Arc::new(MemBackend::default());
        let store = AuthStore::open(&*backend).unwrap();
        World { backend, store }
    }

    fn does(&mut self, change: impl FnOnce(&mut AuthStore) -> Changed) -> Result<()> {
        let ops = change(&mut self.store)?;
        self.backend.submit(Batch { ops, ..Batch::default() });
        self.store.publish();
        Ok(())
    }

    fn user(&mut self, name: &str) -> Result<()> {
        let options = Some(crate::pb::authpb::UserAddOptions { no_password: true });
        let r = rpc::AuthUserAddRequest { name: name.into(), options, ..Default::default() };
        self.does(|store| store.user_add(&r, |_| unreachable!("no password")))
    }

    fn role(&mut self, name: &str) -> Result<()> {
        self.does(|store| store.role_add(&rpc::AuthRoleAddRequest { name: name.into() }))
    }

    fn grant(&mut self, user: &str, role: &str) -> Result<()> {
        let r = rpc::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
        self.does(|store| store.user_grant_role(&r))
    }

    fn permit(&mut self, role: &str, kind: i32, key: &[u8], range_end: &[u8]) -> Result<()> {
        let (key, range_end) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(range_end));
        let perm = Some(Permission { perm_type: kind, key, range_end });
        let r = rpc::AuthRoleGrantPermissionRequest { name: role.into(), perm };
        self.does(|store| store.role_grant_permission(&r))
    }

    /// Root, enabled.
    fn enabled() -> World {
        let mut w = World::new();
        w.user("root").unwrap();
        w.grant("root", "root").unwrap();
        w.does(AuthStore::enable).unwrap();
        w
    }

    fn may(&self, name: &str, access: Access, key: &[u8], range_end: &[u8]) -> Result<()> {
        let revision = self.store.state().revision();
        self.store.state().permit(&Caller { name, revision }, access, key, range_end)
    }

    fn rows(&self, bucket: Bucket) -> Vec<(String, Vec<u8>)> {
        let mut rows = Vec::new();
        self.backend
            .scan(bucket, &[], None, &mut |key, value| {
                rows.push((String::from_utf8_lossy(key).into_owned(), value.to_vec()));
                ControlFlow::Continue(())
            })
            .unwrap();
        rows
    }
}

const READ: i32 = 0;
const WRITE: i32 = 1;
const READWRITE: i32 = 2;

#[test]
fn enabling_needs_root_and_its_role() {
    let mut w = World::new();
    let revision = |w: &World| w.store.state().revision();
    assert_eq!(revision(&w), 1);
    assert_eq!(w.does(AuthStore::enable), Err(Error::RootUserNotExist));
    w.user("root").unwrap();
    assert_eq!(w.does(AuthStore::enable), Err(Error::RootRoleNotExist));
    w.grant("root", "root").unwrap();
    assert_eq!(w.does(AuthStore::disable), Ok(()), "off already");
    assert_eq!(revision(&w), 3);
    assert_eq!(w.does(AuthStore::enable), Ok(()));
    assert_eq!((w.does(AuthStore::enable), revision(&w)), (Ok(()), 3), "enabling is no change");
    assert!(w.store.reader().is_enabled());
    let delete = rpc::AuthUserDeleteRequest { name: "root".into() };
    assert_eq!(w.does(|s| s.user_delete(&delete)), Err(Error::InvalidAuthMgmt));
    let revoke = rpc::AuthUserRevokeRoleRequest { name: "root".into(), role: "root".into() };
    assert_eq!(w.does(|s| s.user_revoke_role(&revoke)), Err(Error::InvalidAuthMgmt));
    let delete_role = rpc::AuthRoleDeleteRequest { role: "root".into() };
    assert_eq!(w.does(|s| s.role_delete(&delete_role)), Err(Error::InvalidAuthMgmt));
    assert_eq!((w.does(AuthStore::disable), revision(&w)), (Ok(()), 4));
    assert!(!w.store.reader().is_enabled());
    assert_eq!(w.does(|s| s.role_delete(&delete_role)), Err(Error::RoleNotFound));
    assert_eq!(w.does(|s| s.user_revoke_role(&revoke)), Ok(()));
    assert_eq!(w.does(|s| s.user_delete(&delete)), Ok(()));
}

#[test]
fn users_and_roles_as_etcd_answers() {
    let mut w = World::new();
    assert_eq!(w.user(""), Err(Error::UserEmpty));
    assert_eq!((w.user("a"), w.user("a")), (Ok(()), Err(Error::UserAlreadyExist)));
    assert_eq!(w.role(""), Err(Error::RoleEmpty));
    let (longest, longer) = ("n".repeat(32_768), "n".repeat(32_769));
    assert_eq!((w.user(&longest), w.role(&longest)), (Ok(()), Ok(())));
    assert_eq!(w.user(&longer), Err(Error::RequestTooLarge));
    assert_eq!(w.role(&longer), Err(Error::RequestTooLarge));
    w.does(|s| s.user_delete(&rpc::AuthUserDeleteRequest { name: longest.clone() })).unwrap();
    w.does(|s| s.role_delete(&rpc::AuthRoleDeleteRequest { role: longest })).unwrap();
    assert_eq!((w.role("r"), w.role("r")), (Ok(()), Err(Error::RoleAlreadyExist)));
    assert_eq!(w.grant("b", "r"), Err(Error::UserNotFound));
    assert_eq!(w.grant("a", "q"), Err(Error::RoleNotFound));
    let before = w.store.state().revision();
    assert_eq!((w.grant("a", "r"), w.grant("a", "r")), (Ok(()), Ok(())));
    assert_eq!(w.store.state().revision(), before + 1, "granting again is no change");
    w.role("b").unwrap();
    w.grant("a", "b").unwrap();
    assert_eq!(w.store.user_get("a").unwrap(), ["b", "r"]);
    let revoke =
        |role: &str| rpc::AuthUserRevokeRoleRequest { name: "a".into(), role: role.into() };
    assert_eq!(w.does(|s| s.user_revoke_role(&revoke("q"))), Err(Error::RoleNotGranted));
    assert_eq!(w.does(|s| s.user_revoke_role(&revoke("b"))), Ok(()));
    let missing = rpc::AuthRoleGrantPermissionRequest { name: "q".into(), perm: None };
    assert_eq!(w.does(|s| s.role_grant_permission(&missing)), Err(Error::PermissionNotGiven));
    for (key, end, want) in [
        (&b"a"[..], &b""[..], Err(Error::RoleNotFound)),
        (b"", b"b", Err(Error::InvalidAuthMgmt)),
        (b"b", b"a", Err(Error::InvalidAuthMgmt)),
        (b"b", b"b", Err(Error::InvalidAuthMgmt)),
        (b"b", b"\0", Err(Error::RoleNotFound)),
    ] {
        assert_eq!(w.permit("q", READ, key, end), want);
    }
    w.permit("r", READ, b"b", b"c").unwrap();
    w.permit("r", READ, b"a", b"").unwrap();
    w.permit("r", WRITE, b"b", b"c").unwrap();
    let held = w.store.role_get("r").unwrap();
    let held: Vec<(i32, &[u8])> =
        held.iter().map(|held| (held.perm_type, held.key.as_ref())).collect();
    assert_eq!(held, [(READ, &b"a"[..]), (WRITE, b"b")]);
    let revoke = rpc::AuthRoleRevokePermissionRequest {
        role: "r".into(),
        key: "b".into(),
        range_end: "d".into(),
    };
    let changed = w.does(|s| s.role_revoke_permission(&revoke));
    assert_eq!(changed, Err(Error::PermissionNotGranted));
    let revoke = rpc::AuthRoleRevokePermissionRequest { range_end: "c".into(), ..revoke };
    assert_eq!(w.does(|s| s.role_revoke_permission(&revoke)), Ok(()));
    assert_eq!(
        (w.store.user_list(), w.store.role_list()),
        (vec!["a".into()], vec!["b".into(), "r".into()])
    );
    w.does(|s| s.role_delete(&rpc::AuthRoleDeleteRequest { role: "r".into() })).unwrap();
    assert_eq!(w.store.user_get("a").unwrap(), [""; 0]);
}

/// Users stand so in the file of etcd v3.5.17; roles as its generated types write them.
#[test]
fn rows_are_etcds_and_survive() {
    let mut w = World::new();
    w.role("r").unwrap();
    w.permit("r", READWRITE, b"k", b"\0").unwrap();
    w.user("root").unwrap();
    w.grant("root", "root").unwrap();
    w.grant("root", "r").unwrap();
    let hashed = rpc::AuthUserAddRequest {
        name: "u".into(),
        hashed_password: password::to_request("$2a$"),
        ..Default::default()
    };
    w.does(|s| s.user_add(&hashed, |_| unreachable!("hashed already"))).unwrap();
    w.does(AuthStore::enable).unwrap();
    assert_eq!(
        w.rows(Bucket::Auth),
        [("authEnabled".into(), vec![1]), ("authRevision".into(), vec![0, 0, 0, 0, 0, 0, 0, 7]),]
    );
    let role = b"\x0a\x01r\x12\x08\x08\x02\x12\x01k\x1a\x01\x00";
    assert_eq!(w.rows(Bucket::AuthRoles), [("r".into(), role.to_vec())]);
    assert_eq!(
        w.rows(Bucket::AuthUsers),
        [
            ("root".into(), b"\x0a\x04root\x1a\x01r\x1a\x04root\x22\x02\x08\x01".to_vec()),
            ("u".into(), b"\x0a\x01u\x12\x04$2a$\x22\x00".to_vec()),
        ]
    );
    let again = AuthStore::open(&*w.backend).unwrap();
    assert!(again.state().is_enabled());
    assert_eq!(again.state().revision(), 7);
    assert_eq!((again.user_list(), again.role_list()), (w.store.user_list(), w.store.role_list()));
    w.does(AuthStore::disable).unwrap();
    assert_eq!(w.rows(Bucket::Auth)[0], ("authEnabled".into(), vec![0]));
    let again = AuthStore::open(&*w.backend).unwrap();
    assert!(!again.state().is_enabled());
}

#[test]
fn passwords_are_checked_as_in_etcd() {
    let mut w = World::enabled();
    let add = |password: &str, hashed: &str| rpc::AuthUserAddRequest {
        name: "u".into(),
        password: password.into(),
        hashed_password: hashed.into(),
        ..Default::default()
    };
    let never = |_: &str| -> Result<String> { unreachable!("not in clear") };
    assert_eq!(w.does(|s| s.user_add(&add("", "?"), never)), Err(Error::NoPasswordUser));
    w.does(|s| s.user_add(&add("old", ""), |clear| Ok(format!("hash of {clear}")))).unwrap();
    assert_eq!(w.store.state().password_hash("u").unwrap(), "hash of old");
    assert_eq!(w.store.state().password_hash("root"), Err(Error::NoPasswordUser));
    assert_eq!(w.store.state().password_hash("x"), Err(Error::AuthFailed));
    assert_eq!(w.store.authenticate("u"), Ok(()));
    assert_eq!(w.store.authenticate("x"), Err(Error::AuthFailed));
    assert_eq!(w.store.authenticate("root"), Err(Error::AuthFailed));
    let change = |name: &str| rpc::AuthUserChangePasswordRequest {
        name: name.into(),
        hashed_password: password::to_request("new"),
        ..Default::default()
    };
    assert_eq!(w.does(|s| s.user_change_password(&change("x"), never)), Err(Error::UserNotFound));
    w.does(|s| s.user_change_password(&change("u"), never)).unwrap();
    assert_eq!(w.store.state().password_hash("u").unwrap(), "new");
    w.does(|s| s.user_change_password(&change("root"), never)).unwrap();
    assert_eq!(w.store.authenticate("root"), Err(Error::AuthFailed), "still without");
    w.does(AuthStore::disable).unwrap();
    assert_eq!(w.store.state().password_hash("u"), Err(Error::AuthNotEnabled));
    assert_eq!(w.store.authenticate("u"), Err(Error::AuthNotEnabled));
}

#[test]
fn callers_are_checked_in_etcds_order() {
    let mut w = World::enabled();
    w.user("u").unwrap();
    let state = w.store.state();
    let permit = |name, revision| state.permit(&Caller { name, revision }, Access::Read, b"k", b"");
    let now = state.revision();
    assert_eq!(permit("", 0), Err(Error::UserEmpty));
    assert_eq!(permit("root", now - 1), Err(Error::AuthOldRevision));
    assert_eq!(permit("root", now), Ok(()));
    assert_eq!(permit("root", now + 1), Ok(()), "a signed token may be ahead of this member");
    assert_eq!(permit("x", now), Err(Error::PermissionDenied));
    assert_eq!(permit("", now), Err(Error::PermissionDenied), "a certificate without a name");
    assert_eq!(permit("u", now), Err(Error::PermissionDenied));
    let admin = |name| state.permit_admin(&Caller { name, revision: 1 });
    assert_eq!(
        ["", "x", "u", "root"].map(admin),
        [Err(Error::UserEmpty), Err(Error::UserNotFound), Err(Error::PermissionDenied), Ok(()),]
    );
}

#[test]
fn published_permissions_follow_roles() {
    let mut w = World::enabled();
    w.user("u").unwrap();
    w.role("r").unwrap();
    w.grant("u", "r").unwrap();
    assert_eq!(w.may("u", Access::Read, b"k", b""), Err(Error::PermissionDenied));
    let old = w.store.reader().state().clone();
    w.permit("r", READ, b"k", b"").unwrap();
    assert_eq!(w.may("u", Access::Read, b"k", b""), Ok(()));
    assert_eq!(w.may("u", Access::Write, b"k", b""), Err(Error::PermissionDenied));
    assert_eq!(w.may("u", Access::Read, b"k", b"\0"), Err(Error::PermissionDenied));
    let before = Caller { name: "u", revision: old.revision() };
    assert_eq!(old.permit(&before, Access::Read, b"k", b""), Err(Error::PermissionDenied));
    w.permit("r", READWRITE, b"k", b"").unwrap();
    assert_eq!(w.may("u", Access::Write, b"k", b""), Ok(()));
    w.does(|s| s.role_delete(&rpc::AuthRoleDeleteRequest { role: "r".into() })).unwrap();
    assert_eq!(w.may("u", Access::Read, b"k", b""), Err(Error::PermissionDenied));
}

/// Keys of up to three letters out of three, the smallest and the largest byte among them.
fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![0u8, b'a', 0xff]), 1..=3)
}

fn range_end() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(Vec::new()), Just(vec![0]), key()]
}

/// Every key that the ranges above can tell apart.
fn all_keys() -> Vec<Vec<u8>> {
    let letters = [0u8, b'a', 0xff];
    let mut keys: Vec<Vec<u8>> = vec![Vec::new()];
    let mut all = Vec::new();
    for _ in 0..4 {
        keys = keys
            .iter()
            .flat_map(|key| letters.map(|letter| [&key[..], &[letter]].concat()))
            .collect();
        all.extend(keys.clone());
    }
    all
}

fn holds(key: &[u8], range_end: &[u8], one: &[u8]) -> bool {
    match range_end {
        [] => one == key,
        [0] => one >= key,
        end => one >= key && one < end,
    }
}

proptest! {
    #[test]
    fn merged_permissions_are_brute_force(
        given in prop::collection::vec((0..3i32, key(), range_end()), 0..6),
        asked in prop::collection::vec((key(), range_end()), 20),
    ) {
        let mut w = World::enabled();
        w.user("u").unwrap();
        for role in ["r", "s"] {
            w.role(role).unwrap();
            w.grant("u", role).unwrap();
        }
        for (at, (kind, key, end)) in given.iter().enumerate() {
            // An invalid range is refused.
            let _ = w.permit(["r", "s"][at % 2], *kind, key, end);
        }
        let valid: Vec<(i32, Bytes, Bytes)> = ["r", "s"]
            .iter()
            .flat_map(|role| w.store.role_get(role).unwrap())
            .map(|held| (held.perm_type, held.key, held.range_end))
            .collect();
        let all = all_keys();
        for (key, end) in &asked {
            // A range that is empty is asked for as its key.
            let empty = end <= key && end != &[0];
            let end: &[u8] = if empty { &[] } else { end };
            for (access, kind) in [(Access::Read, READ), (Access::Write, WRITE)] {
                let wanted = all.iter().filter(|one| holds(key, end, one)).all(|one| {
                    valid.iter().any(|(held, from, to)| {
                        (*held == kind || *held == READWRITE) && holds(from, to, one)
                    })
                });
                // Beyond the last key that can be told apart there are more.
                let open = end == [0] && !valid.iter().any(|(held, _, to)| {
                    (*held == kind || *held == READWRITE) && to.as_ref() == [0]
                });
                prop_assert_eq!(w.may("u", access, key, end).is_ok(), wanted && !open);
            }
        }
    }
}
