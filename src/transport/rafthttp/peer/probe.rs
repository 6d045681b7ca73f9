//! The probe of a peer: its round trip, and a warning while it does not answer.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::time::{MissedTickBehavior, interval_at};

use super::super::PROBE_INTERVAL;
use super::super::client::{self, exchange};
use super::Shared;
use crate::base::clock::{Clock, SystemClock};

/// Measures the round trip, for metrics, and warns while the peer does not answer.
pub(super) async fn probe_loop(shared: Arc<Shared>) {
    let start = tokio::time::Instant::now() + PROBE_INTERVAL;
    let mut ticks = interval_at(start, PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let begin = SystemClock.now();
        let probed = probe(&shared).await;
        if probed.is_ok() {
            shared.counters.round_trip.observe(begin.elapsed().as_secs_f64());
        }
        *shared.round_trip.lock() = probed.is_ok().then(|| begin.elapsed());
        if let Err(error) = probed
            && shared.may_warn()
        {
            tracing::warn!(
                "remote-peer-id" = %shared.id,
                %error,
                "prober detected unhealthy status"
            );
        }
    }
}

async fn probe(shared: &Shared) -> io::Result<()> {
    let url = shared.picker.pick()?;
    let headers = http::HeaderMap::new();
    let request = client::request(Method::GET, &url, "/raft/probing", headers, Bytes::new())?;
    let config = &shared.context.config;
    let connect = config.connector.as_ref();
    let (response, _connection) =
        exchange(connect, &url, request, config.dial_timeout, config.read_timeout).await?;
    match response.status() {
        StatusCode::OK => Ok(()),
        status => Err(io::Error::other(format!("got unexpected HTTP status code {status}"))),
    }
}
