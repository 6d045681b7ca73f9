//! `/health`, `/livez` and `/readyz`.

use crate::actors::handle::NodeHandle;
use crate::base::error::{Error, Result};
use crate::http::text::{allow, error_text, failure, plain, query};
use crate::obs::metrics::metrics;
use crate::pb::etcdserverpb::AlarmType;
use axum::body::Body;
use axum::http::{HeaderValue, Method, Response, StatusCode, Uri, header};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

/// etcd's request timeout at default flags: 5 s and two election timeouts.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(7);

/// A serializable read of at most one key from the local store.
pub type LocalRead = Arc<dyn Fn() -> Result<()> + Send + Sync>;

const CORRUPTION: &str = "data_corruption";
const SERIALIZABLE: &str = "serializable_read";
const LINEARIZABLE: &str = "linearizable_read";
/// Checks of `/livez`.
pub(crate) const LIVEZ: [&str; 1] = [SERIALIZABLE];
/// Checks of `/readyz`.
pub(crate) const READYZ: [&str; 3] = [CORRUPTION, SERIALIZABLE, LINEARIZABLE];

/// What the checks look at.
#[derive(Clone)]
pub(crate) struct Health {
    pub node: NodeHandle,
    pub local_read: LocalRead,
    pub request_timeout: Duration,
}

impl Health {
    async fn read(&self, serializable: bool) -> Result<()> {
        if !serializable {
            let wait = self.node.linearizable_read_notify();
            tokio::time::timeout(self.request_timeout, wait)
                .await
                .unwrap_or(Err(Error::DeadlineExceeded))?;
        }
        (self.local_read)()
    }

    /// `None` when healthy, else the reason.
    async fn reason(&self, excluded: &[String], serializable: bool) -> Option<String> {
        for alarm in self.node.alarms() {
            let kind = AlarmType::try_from(alarm.alarm).ok();
            if kind.is_some_and(|kind| excluded.iter().any(|name| name == kind.as_str_name())) {
                continue;
            }
            let reason = match kind {
                Some(AlarmType::Nospace) => "ALARM NOSPACE",
                Some(AlarmType::Corrupt) => "ALARM CORRUPT",
                _ => "ALARM UNKNOWN",
            };
            tracing::warn!(alarm = reason, "serving /health false due to an alarm");
            return Some(reason.to_owned());
        }
        if !serializable && self.node.raft_status().leader.0 == 0 {
            tracing::warn!("serving /health false; no leader");
            return Some("RAFT NO LEADER".to_owned());
        }
        let error = self.read(serializable).await.err()?;
        let error = error_text(error);
        tracing::warn!(%error, "serving /health false; Range fails");
        Some(format!("RANGE ERROR:{error}"))
    }

    /// Answers `/health`.
    pub async fn health(&self, method: &Method, uri: &Uri) -> Response<Body> {
        if let Err(refusal) = allow(method, &Method::GET) {
            tracing::warn!("status-code" = 405, "/health error");
            return *refusal;
        }
        let excluded = query(uri.query(), "exclude");
        let serializable = query(uri.query(), "serializable").first().is_some_and(|v| v == "true");
        let reason = self.reason(&excluded, serializable).await;
        let healthy = reason.is_none();
        let body = serde_json::json!({
            "health": healthy.to_string(),
            "reason": reason.unwrap_or_default(),
        })
        .to_string();
        if healthy {
            metrics().health_success.inc();
            return plain(StatusCode::OK, body);
        }
        metrics().health_failures.inc();
        tracing::warn!(output = %body, "status-code" = 503, "/health error");
        failure(StatusCode::SERVICE_UNAVAILABLE, &body)
    }

    async fn check(&self, name: &str) -> std::result::Result<(), String> {
        match name {
            CORRUPTION => {
                let raised = self.node.alarms();
                if raised.iter().any(|one| one.alarm == AlarmType::Corrupt as i32) {
                    return Err("alarm activated: CORRUPT".to_owned());
                }
                Ok(())
            }
            LINEARIZABLE => self.read(false).await.map_err(error_text),
            _ => self.read(true).await.map_err(error_text),
        }
    }

    /// Answers `/livez`, `/readyz` and the pages of single checks.
    pub async fn checks(
        &self,
        kind: &str,
        names: &[&str],
        single: bool,
        method: &Method,
        uri: &Uri,
    ) -> Response<Body> {
        if let Err(refusal) = allow(method, &Method::GET) {
            tracing::warn!(path = uri.path(), "status-code" = 405, "Health request error");
            return *refusal;
        }
        let excluded = if single { Vec::new() } else { query(uri.query(), "exclude") };
        let missing: Vec<_> = excluded
            .iter()
            .filter(|name| !name.is_empty() && !names.contains(&name.as_str()))
            .map(|name| format!("{name:?}"))
            .collect();
        if !missing.is_empty() {
            tracing::warn!(
                "missing-health-checks" = %missing.join(","),
                "some health checks cannot be excluded"
            );
        }
        let (mut report, mut failed) = (String::new(), false);
        for name in names.iter().filter(|name| !excluded.iter().any(|one| one == *name)) {
            let result = self.check(name).await;
            let status = if result.is_ok() { "success" } else { "error" };
            // Writing to a String cannot fail.
            let _ = match &result {
                Ok(()) => writeln!(report, "[+]{name} ok"),
                Err(error) => writeln!(report, "[-]{name} failed: {error}"),
            };
            failed |= result.is_err();
            metrics().healthcheck.with_label_values(&[kind, name]).set(result.is_ok().into());
            metrics().healthchecks.with_label_values(&[kind, name, status]).inc();
        }
        if failed {
            tracing::error!(
                path = uri.path(),
                reason = %report,
                "status-code" = 503,
                "Health check error"
            );
            return failure(StatusCode::SERVICE_UNAVAILABLE, &report);
        }
        if query(uri.query(), "verbose").is_empty() {
            report.clear();
        }
        report.push_str("ok\n");
        let mut response = plain(StatusCode::OK, report);
        let nosniff = HeaderValue::from_static("nosniff");
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
        response
    }
}
