//! Users, tokens and permissions across restarts, members and panics.

use super::daemon::{Member, leader, members, start};
use rpc::watch_request::RequestUnion;
use rusd::pb::authpb::Permission;
use rusd::pb::etcdserverpb as rpc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Status};

const PATIENCE: Duration = Duration::from_secs(30);
const READ: i32 = 0;
const READWRITE: i32 = 2;

/// Flags of members whose passwords are quickly hashed.
const QUICK: &[&str] = &["--bcrypt-cost", "4"];

fn with_token<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("token", token.parse().unwrap());
    }
    request
}

fn password(name: &str) -> String {
    format!("{name}'s password")
}

async fn log_in(member: &Member, name: &str) -> Result<String, Status> {
    log_in_with(member, name, &password(name)).await
}

async fn log_in_with(member: &Member, name: &str, password: &str) -> Result<String, Status> {
    let (name, password) = (name.to_owned(), password.to_owned());
    let request = rpc::AuthenticateRequest { name, password };
    Ok(member.auth().authenticate(request).await?.into_inner().token)
}

async fn put(member: &Member, token: &str, key: &str) -> Result<(), Status> {
    let put = rpc::PutRequest { key: key.to_owned().into(), ..Default::default() };
    member.kv().put(with_token(token, put)).await.map(drop)
}

async fn get(member: &Member, token: &str, key: &str) -> Result<i64, Status> {
    let range = rpc::RangeRequest { key: key.to_owned().into(), ..Default::default() };
    Ok(member.kv().range(with_token(token, range)).await?.into_inner().count)
}

async fn give(member: &Member, token: &str, role: &str, perm_type: i32, key: &str) {
    let end = format!("{key}\u{7f}");
    let perm = Permission { perm_type, key: key.to_owned().into(), range_end: end.into() };
    let grant = rpc::AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) };
    member.auth().role_grant_permission(with_token(token, grant)).await.unwrap();
}

/// Users `root` and `u` with passwords; `u` has role `r` for keys with `a`.
async fn enable(member: &Member) {
    let mut auth = member.auth();
    for name in ["root", "u"] {
        let (name, password) = (name.to_owned(), password(name));
        let add = rpc::AuthUserAddRequest { name, password, ..Default::default() };
        auth.user_add(add).await.unwrap();
    }
    for name in ["root", "r"] {
        auth.role_add(rpc::AuthRoleAddRequest { name: name.into() }).await.unwrap();
    }
    give(member, "", "r", READWRITE, "a").await;
    for (user, role) in [("root", "root"), ("u", "r")] {
        let grant = rpc::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
        auth.user_grant_role(grant).await.unwrap();
    }
    auth.auth_enable(rpc::AuthEnableRequest {}).await.unwrap();
}

fn code<T>(result: Result<T, Status>) -> Code {
    result.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// Logs in as soon as the member serves.
async fn log_in_when_ready(member: &Member, name: &str) -> String {
    let started = Instant::now();
    loop {
        match log_in(member, name).await {
            Ok(token) => return token,
            Err(_) if started.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(status) => panic!("{status}; its log:\n{}", member.log()),
        }
    }
}

#[tokio::test]
async fn auth_users_survive_a_kill_and_tokens_do_not() {
    let mut all = start(members(1, QUICK), "").await;
    let member = &mut all[0];
    enable(member).await;
    let token = log_in(member, "u").await.unwrap();
    put(member, &token, "a1").await.unwrap();
    assert_eq!(code(put(member, &token, "b").await), Code::PermissionDenied);
    assert_eq!(code(put(member, "", "a1").await), Code::InvalidArgument);
    assert_eq!(code(put(member, "nonsense", "a1").await), Code::Unauthenticated);
    assert_eq!(code(put(member, "nonsense.1", "a1").await), Code::Unauthenticated);
    let root = log_in(member, "root").await.unwrap();
    let long = rpc::AuthRoleAddRequest { name: "n".repeat(1 << 20) };
    let added = member.auth().role_add(with_token(&root, long)).await;
    assert_eq!(code(added), Code::InvalidArgument, "no row of etcd's is so long");
    let longest = rpc::AuthRoleAddRequest { name: "n".repeat(32_768) };
    member.auth().role_add(with_token(&root, longest)).await.unwrap();
    let revision = member.metric("etcd_debugging_auth_revision").await;
    member.kill();
    member.start("");
    let again = log_in_when_ready(member, "u").await;
    assert_eq!(code(put(member, &token, "a1").await), Code::Unauthenticated);
    assert_eq!(get(member, &again, "a1").await.unwrap(), 1);
    assert_eq!(code(get(member, &again, "b").await), Code::PermissionDenied);
    assert_eq!(member.metric("etcd_debugging_auth_revision").await, revision);
    let log = std::fs::read_dir(member.data_dir().join("member/wal")).unwrap();
    for segment in log.filter_map(|entry| std::fs::read(entry.unwrap().path()).ok()) {
        let clear = password("root").into_bytes();
        let found = segment.windows(clear.len()).any(|window| window == &clear[..]);
        assert!(!found, "a password is in the log in clear");
    }
}

#[tokio::test]
async fn auth_tokens_are_good_on_every_member() {
    let mut all = start(members(3, QUICK), "").await;
    enable(&all[0]).await;
    for round in 0..10 {
        let token = log_in(&all[round % 3], "u").await.unwrap();
        for member in &all {
            put(member, &token, "a1").await.unwrap();
        }
        assert_eq!(code(put(&all[(round + 1) % 3], &token, "b").await), Code::PermissionDenied);
    }
    let root = log_in(&all[1], "root").await.unwrap();
    let token = log_in(&all[2], "u").await.unwrap();
    let delete = rpc::AuthUserDeleteRequest { name: "u".into() };
    all[0].auth().user_delete(with_token(&root, delete)).await.unwrap();
    for member in &all {
        // Wherever it was applied, the token is gone; elsewhere the log says so, in the end that
        // the revision of the auth store is old, which is an invalid argument.
        let refused = put(member, &token, "a1").await.unwrap_err();
        let old = refused.message() == "etcdserver: revision of auth store is old";
        let known = [Code::Unauthenticated, Code::PermissionDenied].contains(&refused.code());
        assert!(known || old, "{refused:?}");
    }
    let at = leader(&all, &[0, 1, 2]).await;
    all[at].kill();
    let other = &all[(at + 1) % 3];
    let root = log_in_when_ready(other, "root").await;
    assert_eq!(code(put(other, &root, "b").await), Code::Ok);
}

/// The member revokes expired leases in root's name, whatever keys are on them.
#[tokio::test]
async fn auth_leases_expire() {
    let all = start(members(1, QUICK), "").await;
    let member = &all[0];
    enable(member).await;
    let root = log_in(member, "root").await.unwrap();
    let user = log_in(member, "u").await.unwrap();
    let grant = rpc::LeaseGrantRequest { id: 7, ttl: 2 };
    assert_eq!(code(member.lease().lease_grant(grant).await), Code::InvalidArgument);
    member.lease().lease_grant(with_token(&user, grant)).await.unwrap();
    let secret = rpc::PutRequest { key: "secret".into(), lease: 7, ..Default::default() };
    member.kv().put(with_token(&root, secret)).await.unwrap();
    let renew = |token: &str| {
        let calls = tokio_stream::iter([rpc::LeaseKeepAliveRequest { id: 7 }]);
        let (request, mut lease) = (with_token(token, calls), member.lease());
        async move { lease.lease_keep_alive(request).await?.into_inner().message().await }
    };
    assert_eq!(code(renew("").await), Code::InvalidArgument);
    assert_eq!(code(renew(&user).await), Code::PermissionDenied, "it may not write the key");
    assert_eq!(renew(&root).await.unwrap().unwrap().ttl, 2);
    let revoke = rpc::LeaseRevokeRequest { id: 7 };
    let revoked = member.lease().lease_revoke(with_token(&user, revoke)).await;
    assert_eq!(code(revoked), Code::PermissionDenied);
    let keys = rpc::LeaseTimeToLiveRequest { id: 7, keys: true };
    let seen = member.lease().lease_time_to_live(with_token(&user, keys)).await;
    assert_eq!(code(seen), Code::PermissionDenied);
    let started = Instant::now();
    while get(member, &root, "secret").await.unwrap() > 0 {
        assert!(started.elapsed() < PATIENCE, "it does not expire:\n{}", member.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn watch_request(key: &str, range_end: &str) -> rpc::WatchRequest {
    let create = rpc::WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        ..Default::default()
    };
    rpc::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

#[tokio::test]
async fn auth_watches_end_with_the_permission() {
    const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    let all = start(members(1, QUICK), "").await;
    let member = &all[0];
    enable(member).await;
    let (root, user) = (log_in(member, "root").await.unwrap(), log_in(member, "u").await.unwrap());
    give(member, &root, "r", READ, "w").await;
    // Between others, so that answers must keep their order.
    let asked = [("w", "w\u{7f}"), ("b", ""), ("a", ""), ("a", "\0"), ("w", "")];
    let asked = asked.map(|(key, end)| watch_request(key, end));
    let stream = tokio_stream::iter(asked).chain(tokio_stream::pending());
    let answers = member.watch().watch(with_token(&user, stream)).await;
    let mut answers = answers.unwrap().into_inner();
    let mut created = Vec::new();
    for _ in 0..5 {
        let answer = answers.message().await.unwrap().unwrap();
        assert!(answer.created);
        created.push((answer.watch_id, answer.canceled, answer.cancel_reason));
    }
    let denied = (-1, true, DENIED.to_owned());
    let made = |id: i64| (id, false, String::new());
    assert_eq!(created, [made(0), denied.clone(), made(1), denied, made(2)]);
    put(member, &root, "w").await.unwrap();
    for _ in 0..2 {
        assert_eq!(answers.message().await.unwrap().unwrap().events.len(), 1);
    }
    let revoke = rpc::AuthRoleRevokePermissionRequest {
        role: "r".into(),
        key: "w".into(),
        range_end: "w\u{7f}".into(),
    };
    member.auth().role_revoke_permission(with_token(&root, revoke)).await.unwrap();
    for key in ["w", "a"] {
        put(member, &root, key).await.unwrap();
    }
    let mut ended = Vec::new();
    loop {
        let answer = answers.message().await.unwrap().unwrap();
        if answer.canceled {
            assert_eq!(answer.cancel_reason, DENIED);
            ended.push(answer.watch_id);
            continue;
        }
        assert_eq!((answer.watch_id, answer.events.len()), (1, 1), "{answer:?}");
        break;
    }
    assert_eq!(ended, [0, 2], "before any event of a later revision");
}

/// However often a password was right, it is wrong once it is changed or its user is gone.
#[tokio::test]
async fn auth_a_password_that_was_right_is_not_right_for_ever() {
    let member = start(members(1, QUICK), "").await.into_iter().next().unwrap();
    enable(&member).await;
    let root = log_in(&member, "root").await.unwrap();
    for _ in 0..3 {
        log_in(&member, "u").await.unwrap();
        assert_eq!(code(log_in_with(&member, "u", "other").await), Code::InvalidArgument);
        assert_eq!(code(log_in_with(&member, "root", &password("u")).await), Code::InvalidArgument);
    }
    let change = rpc::AuthUserChangePasswordRequest {
        name: "u".into(),
        password: "other".into(),
        ..Default::default()
    };
    member.auth().user_change_password(with_token(&root, change)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(code(log_in(&member, "u").await), Code::InvalidArgument);
        log_in_with(&member, "u", "other").await.unwrap();
    }
    let delete = rpc::AuthUserDeleteRequest { name: "u".into() };
    member.auth().user_delete(with_token(&root, delete)).await.unwrap();
    assert_eq!(code(log_in_with(&member, "u", "other").await), Code::InvalidArgument);
}

/// Clients notice that AuthActor panics by nothing but time.
#[tokio::test]
async fn auth_actor_panics_under_load() {
    let failpoints = "auth-work=20*off->1*panic->20*off->1*panic;auth-sweep=1*off->1*panic";
    let all = start(members(1, QUICK), failpoints).await;
    let member = Arc::new(all.into_iter().next().unwrap());
    enable(&member).await;
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let load: Vec<_> = (0..4)
        .map(|worker| {
            let (member, stop, done) = (member.clone(), stop.clone(), done.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    // A right password is proven once, a wrong one costs work each time.
                    let refused = log_in_with(&member, "u", "another's").await.unwrap_err();
                    assert!(refused.message().contains("authentication failed"), "{refused}");
                    let token = log_in(&member, "u").await.unwrap();
                    for number in 0..5 {
                        put(&member, &token, &format!("a{worker}/{number}")).await.unwrap();
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let restarts = async || member.metric("rusd_actor_restarts_total{actor=\"AuthActor\"}").await;
    let started = Instant::now();
    while restarts().await.as_deref() != Some("3") || done.load(Ordering::Relaxed) < 60 {
        assert!(started.elapsed() < PATIENCE, "{:?}: {}", restarts().await, member.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for worker in load {
        worker.await.unwrap();
    }
}
