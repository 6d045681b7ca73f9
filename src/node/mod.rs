//! The composition: the only place that knows everyone. Boots a member from its flags, serves, and
//! stops it.
//! Uses: actors, apply, auth, base, cli, cluster, grpc, http, mvcc, obs, pb, raft, storage,
//! transport, v2

mod boot;
pub mod check_data;
mod defragment;
mod glue;
mod join;
mod publish;
mod resolve;
mod scrape;
mod serve;
mod standalone;

use crate::actors::auth::handle::AuthHandle;
use crate::actors::auth::{AuthActor, Passwords, Proven, Provider};
use crate::actors::checkpointer::{self, CheckpointerHandle, Trigger};
use crate::actors::compactor::Compactor;
use crate::actors::core::{Core, Shared};
use crate::actors::corruption::{self, Checker, Corruption};
use crate::actors::inbox::Inbox;
use crate::actors::lease_keeper::{self, LeaseKeeper};
use crate::actors::raft::{Parts, RaftActor};
use crate::actors::store::{self, StoreActor};
use crate::actors::watch_hub::{WatchHandle, WatchHub};
use crate::actors::{core, raft, rt};
use crate::apply::Machine;
use crate::auth::password;
use crate::base::clock::{Clock, SystemClock};
use crate::base::ids::MemberId;
use crate::cli::config::{AutoCompaction, Config};
use crate::cli::govalue;
use crate::grpc;
use crate::http;
use crate::mvcc::auto_compact::Retention;
use crate::node::boot::Installer;
use crate::node::defragment::Defragmenter;
use crate::raft::driver::{Driver, Settings};
use crate::storage::engine::Current;
use actix::Actor;
use actix_rt::Arbiter;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// How long a stop waits for the actors to write down what they hold.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

fn retention(auto: AutoCompaction) -> Option<Retention> {
    match auto {
        AutoCompaction::Off => None,
        AutoCompaction::Periodic(period) => Some(Retention::Period(period)),
        AutoCompaction::Revision(kept) => Some(Retention::Revisions(kept)),
    }
}

/// Runs a member until it is told to stop; the process's exit code.
pub fn run(config: Config) -> i32 {
    let system = actix_rt::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_name("rusd-edge")
            .build()
            .expect("a runtime starts")
    });
    // On the system's own thread, which arbiters need to be started from; connections are spawned
    // onto the runtime's workers.
    match system.block_on(member(config)) {
        Ok(()) => 0,
        Err(error) => {
            crate::obs::log::fatal_line("failed to start or run the member", &[("error", &error)]);
            1
        }
    }
}

async fn member(config: Config) -> Result<(), String> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let provider = Arc::new(token_provider(&config, &*clock)?);
    let tls = serve::tls(&config)?;
    let listeners = serve::bind(&config)?;
    let connector = glue::Connector::new(&tls.peer);
    let (boot_config, ask) = (config.clone(), glue::AskPeers::new(connector.clone()));
    let booted = tokio::task::spawn_blocking(move || boot::boot(&boot_config, &ask))
        .await
        .map_err(|error| error.to_string())??;
    let election_timeout = Duration::from_millis(config.election_timeout_ms);
    let tick_interval = Duration::from_millis(config.heartbeat_interval_ms);
    let members = booted.cluster.members().clone();
    let (inbox, outlet) = Inbox::new();
    let shared = Arc::new(Shared::new(
        booted.member,
        booted.cluster_id,
        clock.unix(),
        booted.applied,
        members.clone(),
        booted.machine.alarms(),
        inbox,
    ));
    shared.publish_downgrade(booted.machine.downgrade());
    let reader = booted.machine.reader();
    let leases = booted.machine.lease_reader();
    let quota = booted.machine.quota_reader();
    let checker = Checker {
        reader: reader.clone(),
        shared: shared.clone(),
        peers: Arc::new(glue::HashPeers {
            connector: connector.clone(),
            cluster: booted.cluster_id,
            request_timeout: core::request_timeout(election_timeout),
        }),
        request_timeout: core::request_timeout(election_timeout),
    };
    if config.experimental_initial_corrupt_check && booted.existed {
        checker.at_start().await?;
    }
    let driver = Driver::new(
        Settings {
            member: booted.member,
            election_ticks: (config.election_timeout_ms / config.heartbeat_interval_ms) as usize,
            pre_vote: config.pre_vote,
            applied: booted.applied,
        },
        booted.log,
        booted.wal.reader(),
        &glue::raft_logger(),
    )
    .map_err(|error| error.to_string())?;

    let snap_dir = booted.dir.snap();
    let sink = Arc::new(glue::Sink::new(shared.clone(), snap_dir.clone(), config.v2_deprecation));
    let transport = glue::transport(
        &config,
        (booted.member, booted.cluster_id),
        connector.clone(),
        sink.clone(),
    );
    if members.is_removed(booted.member) {
        shared.publish_removed();
    }
    for remote in booted.remotes.iter().filter(|remote| remote.id != booted.member.0) {
        transport.add_remote(MemberId(remote.id), &remote.peer_urls.join(","));
    }
    let peers = glue::TransportPeers::new(transport.clone(), booted.member);
    for member in members.iter() {
        crate::actors::raft::Peers::change(
            &peers,
            crate::cluster::members::PeerChange::Add(member.clone()),
        );
    }

    let (keeper_leases, keeper_shared) = (leases.clone(), shared.clone());
    let keeper_clock = clock.clone();
    let checkpoints = config.experimental_enable_lease_checkpoint;
    let terms = lease_keeper::Terms {
        extension: election_timeout,
        checkpoint_interval: checkpoints.then_some(lease_keeper::CHECKPOINT_INTERVAL),
    };
    // The two that mostly sleep share a thread.
    let derived = Arbiter::new().handle();
    let keeper = rt::supervise(&derived, clock.clone(), move || {
        let (shared, clock) = (keeper_shared.clone(), keeper_clock.clone());
        LeaseKeeper::new(&keeper_leases, terms, shared, clock)
    });
    shared.set_auth(booted.machine.auth_reader());
    let auth = auth_handle(&config, &booted.machine, provider.clone(), &shared, &clock)?;
    if let Some(retention) = retention(config.auto_compaction) {
        let (shared, reader) = (shared.clone(), reader.clone());
        let (clock, timeout) = (clock.clone(), core::request_timeout(election_timeout));
        rt::supervise(&derived, clock.clone(), move || {
            let (shared, clock) = (shared.clone(), clock.clone());
            Compactor::new(retention, timeout, reader.clone(), shared, clock)
        });
    }
    let intervals = corruption::Intervals {
        store: (!config.experimental_corrupt_check_time.is_zero())
            .then_some(config.experimental_corrupt_check_time),
        compactions: config
            .experimental_compact_hash_check_enabled
            .then_some(config.experimental_compact_hash_check_time),
    };
    if !intervals.are_none() {
        let runtime = tokio::runtime::Handle::current();
        rt::supervise(&derived, clock.clone(), move || {
            Corruption::new(checker.clone(), intervals, runtime.clone())
        });
    }
    let store_shared = shared.clone();
    let machine = booted.machine;
    let cluster = booted.cluster;
    let checkpointer = CheckpointerHandle::default();
    let pace = store::Pace {
        compact_rows: config.experimental_compaction_batch_limit,
        compact_pause: config.experimental_compaction_sleep_interval,
        slow_apply: config.experimental_warning_apply_duration,
        clock: clock.clone(),
    };
    let trigger = Trigger::new(checkpointer.clone(), config.snapshot_count, booted.snapshot_index);
    let engine = Current::new(booted.engine);
    let viewed = engine.clone();
    let snapshots = store::SnapshotParts {
        trigger,
        view: Box::new(move || viewed.now().view()),
        snapshots: Box::new(peers.clone()),
    };
    let store = StoreActor::start_in_arbiter(&Arbiter::new().handle(), move |_| {
        StoreActor::new(machine, cluster, store_shared, provider, pace, snapshots)
    });
    let (table, hub_reader, hub_store) = (Arc::default(), reader.clone(), store.clone());
    let hub = rt::supervise(&Arbiter::new().handle(), clock.clone(), move || {
        WatchHub::new(Arc::clone(&table), hub_reader.clone(), hub_store.clone())
    });
    let parts = Parts {
        driver,
        wal: booted.wal,
        outlet,
        store: store.clone(),
        lease_keeper: keeper.clone(),
        peers: Box::new(peers),
        checkpointer: checkpointer.clone(),
        segments_kept: (config.max_wals > 0).then_some(config.max_wals),
        catchup_entries: config.snapshot_catchup_entries,
        snap_dir: snap_dir.clone(),
        shared: shared.clone(),
        clock: clock.clone(),
        tick_interval,
    };
    // StoreActor and the sink hold RaftActor's address before it starts, since its start may
    // already commit entries.
    let (address, addressed) = oneshot::channel();
    let raft_store = store.clone();
    let raft_keeper = keeper.clone();
    let raft_shared = shared.clone();
    let raft_sink = sink.clone();
    RaftActor::start_in_arbiter(&Arbiter::new().handle(), move |ctx| {
        use actix::AsyncContext as _;
        let raft = ctx.address();
        raft_store.do_send(store::Connect { raft: raft.clone(), lease_keeper: raft_keeper });
        raft_shared.inbox.connect(raft.clone());
        raft_sink.connect(raft.clone());
        let _ = address.send(raft);
        RaftActor::new(parts)
    });
    let raft_addr = addressed.await.map_err(|_| "RaftActor did not start".to_owned())?;

    let installer = Installer::new(&config, booted.dir, booted.member, booted.cluster_id);
    let checkpointing = checkpointer::Parts {
        checkpoint: booted.checkpoint,
        engine: engine.clone(),
        installer: Box::new(installer),
        dir: snap_dir,
        snaps_kept: config.max_snapshots,
        raft: raft_addr.clone(),
        reader: reader.clone(),
        shared: shared.clone(),
        clock: clock.clone(),
    };
    let checkpointing = checkpointer::start(checkpointer.clone(), checkpointing)
        .map_err(|error| format!("failed to start the checkpointer: {error}"))?;

    let (stop, stopping) = watch::channel(false);
    let (serving, serving_seen) = watch::channel(true);
    let serving = Arc::new(serving);
    let defragmenter = Defragmenter {
        engine: engine.clone(),
        store: store.clone(),
        reader: reader.clone(),
        serving: config.experimental_stop_grpc_service_on_defrag.then(|| serving.clone()),
        checkpointer,
        turn: Arc::default(),
    };
    let forward = Arc::new(glue::Forward::new(connector.clone(), transport.clone()));
    let core = Arc::new(Core {
        shared: shared.clone(),
        defragment: Arc::new(defragmenter),
        lease_keeper: keeper,
        watch_hub: WatchHandle::new(hub),
        leases,
        auth,
        forward: forward.clone(),
        peering: forward,
        strict_reconfig: config.strict_reconfig_check,
        clock: clock.clone(),
        election_timeout,
        tick_interval,
    });
    let reads = Arc::new(glue::Reads { reader, engine: engine.clone(), quota });
    let hash_reads = reads.clone();
    let hash: http::HashRead = Arc::new(move |rev| grpc::Reads::hash_kv(&*hash_reads, rev));
    serve::peers(&config, &tls, listeners.peer, &core, &transport, hash, stopping.clone());
    publish::spawn_tick_advance(core.clone(), &config, transport.clone());
    publish::spawn_version_monitor(core.clone(), connector.clone(), stopping.clone());
    let interval = config.experimental_downgrade_check_time;
    publish::spawn_downgrade_monitor(core.clone(), connector.clone(), interval, stopping.clone());

    tokio::select! {
        () = publish::publish(&core, &config) => {}
        () = serve::stop_signal() => return Ok(()),
        () = serve::removed(&shared) => return Ok(()),
    }
    serve::clients(&config, &tls, listeners.clients, &core, reads, serving_seen, stopping)?;
    let is_member = tokio::select! {
        () = serve::stop_signal() => true,
        () = serve::removed(&shared) => false,
    };
    serving.send_replace(false);
    if is_member {
        core.hand_over_before_stop(|id| transport.active_since(id)).await;
    }
    let _ = stop.send(true);
    transport.stop();
    let stopped = async {
        let (done, finished) = oneshot::channel();
        raft_addr.do_send(raft::Stop(done));
        let _ = finished.await;
        let (done, finished) = oneshot::channel();
        store.do_send(store::Stop(done));
        let _ = finished.await;
    };
    let _ = tokio::time::timeout(STOP_TIMEOUT, stopped).await;
    let closed = tokio::task::spawn_blocking(move || {
        checkpointing.stop();
        engine.now().close()
    });
    if let Err(error) = closed.await {
        rt::fatal(&format!("failed to close the engine: {error}"));
    }
    Ok(())
}

fn token_provider(config: &Config, clock: &dyn Clock) -> Result<Provider, String> {
    let duration = |text: &str| govalue::duration(text).ok();
    Provider::new(&config.auth_token, config.auth_token_ttl, clock.now(), duration)
}

/// Starts AuthActor and its threads.
fn auth_handle(
    config: &Config,
    machine: &Machine,
    provider: Arc<Provider>,
    shared: &Arc<Shared>,
    clock: &Arc<dyn Clock>,
) -> Result<AuthHandle, String> {
    let bcrypt_cost = password::cost(config.bcrypt_cost);
    if bcrypt_cost != config.bcrypt_cost {
        tracing::warn!(
            "given-cost" = config.bcrypt_cost,
            "default-cost" = bcrypt_cost,
            "use default bcrypt cost instead of the invalid given cost"
        );
    }
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let passwords = Passwords::start(threads)
        .map_err(|error| format!("failed to start the threads that hash passwords: {error}"))?;
    let parts = (provider.clone(), clock.clone());
    let actor = rt::supervise(&Arbiter::new().handle(), clock.clone(), move || {
        AuthActor::new(parts.0.clone(), passwords.clone(), parts.1.clone())
    });
    let election_timeout = Duration::from_millis(config.election_timeout_ms);
    let proven = Proven::new().map_err(|_| "the system has no random numbers".to_owned())?;
    Ok(AuthHandle {
        proven,
        view: machine.auth_reader(),
        leases: machine.lease_reader(),
        provider,
        actor,
        shared: shared.clone(),
        clock: clock.clone(),
        certificates: config.client_tls.client_cert_auth,
        bcrypt_cost,
        patience: core::request_timeout(election_timeout),
    })
}
