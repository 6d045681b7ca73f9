//! The client listener's pages, and the access rules in front of everything it serves.

use crate::actors::handle::NodeHandle;
use crate::http::health::{Health, LIVEZ, LocalRead, READYZ};
use crate::http::text::{allow, failure, typed, version};
use crate::obs::metrics::metrics;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    CONTENT_TYPE, HOST, ORIGIN,
};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use axum::middleware::Next;
use axum::routing::any;
use std::sync::Arc;
use std::time::Duration;

/// What the client pages need.
#[derive(Clone)]
pub struct ClientHttp {
    /// The server.
    pub node: NodeHandle,
    /// Reads the local store.
    pub local_read: LocalRead,
    /// Brings the metrics up to date before the page is written.
    pub before_metrics: Arc<dyn Fn() + Send + Sync>,
    /// How long a linearizable check may wait; [`crate::http::REQUEST_TIMEOUT`] by default.
    pub request_timeout: Duration,
}

impl ClientHttp {
    fn health(&self) -> Health {
        Health {
            node: self.node.clone(),
            local_read: self.local_read.clone(),
            request_timeout: self.request_timeout,
        }
    }
}

/// `/health`, `/livez`, `/readyz` and `/metrics`: all of a `--listen-metrics-urls` listener.
pub fn metrics_router(state: ClientHttp) -> Router {
    let health = state.health();
    let before = state.before_metrics.clone();
    let page = any(move || async move { page(&*before) });
    let mut router = Router::new().route("/metrics", page).route(
        "/health",
        any({
            let health = health.clone();
            move |method: Method, uri: Uri| async move { health.health(&method, &uri).await }
        }),
    );
    for (kind, names) in [("livez", &LIVEZ[..]), ("readyz", &READYZ[..])] {
        let all = health.clone();
        router = router.route(
            &format!("/{kind}"),
            any(move |method: Method, uri: Uri| async move {
                all.checks(kind, names, false, &method, &uri).await
            }),
        );
        for name in names {
            let one = health.clone();
            router = router.route(
                &format!("/{kind}/{name}"),
                any(move |method: Method, uri: Uri| async move {
                    one.checks(kind, std::slice::from_ref(name), true, &method, &uri).await
                }),
            );
        }
    }
    router
}

/// Every page of the client listener but gRPC and its gateway. It has no fallback; the listener's
/// is [`crate::http::not_found`].
pub fn client_router(state: ClientHttp) -> Router {
    let node = state.node.clone();
    metrics_router(state)
        .route("/version", any(move |method: Method| async move { version(&node, &method) }))
        .route("/debug/vars", any(vars))
}

fn page(before: &dyn Fn()) -> Response<Body> {
    let metrics = metrics();
    metrics.promhttp_in_flight.inc();
    before();
    let text = metrics.text();
    metrics.promhttp_in_flight.dec();
    metrics.promhttp_requests.with_label_values(&["200"]).inc();
    typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
}

async fn vars(method: Method) -> Response<Body> {
    if let Err(refusal) = allow(&method, &Method::GET) {
        return *refusal;
    }
    let line: Vec<String> = std::env::args().collect();
    metrics().text();
    let body = format!(
        "{{\n\"cmdline\": {},\n\"file_descriptor_limit\": {},\n\"memstats\": {}\n}}\n",
        serde_json::json!(line),
        metrics().fd_limit.get(),
        serde_json::json!({ "Sys": metrics().process_resident.get() }),
    );
    typed(StatusCode::OK, "application/json; charset=utf-8", body)
}

/// `--cors` and `--host-whitelist`; `*` or nothing allows all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessControl {
    /// Allowed origins.
    pub cors: Vec<String>,
    /// Host names that plain HTTP requests may use.
    pub hosts: Vec<String>,
}

fn listed(list: &[String], name: &str) -> bool {
    list.is_empty() || list.iter().any(|one| one == "*" || one == name)
}

/// Puts etcd's access rules before `router`. gRPC passes through.
pub fn with_access_control(router: Router, rules: AccessControl) -> Router {
    router.layer(axum::middleware::from_fn_with_state(Arc::new(rules), control))
}

async fn control(
    State(rules): State<Arc<AccessControl>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let headers = request.headers();
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if kind.starts_with(b"application/grpc") {
        return next.run(request).await;
    }
    let tls =
        request.extensions().get::<crate::transport::listen::PeerInfo>().is_some_and(|p| p.tls);
    if !tls && !rules.hosts.is_empty() {
        let host = request_host(&request);
        if !listed(&rules.hosts, &host) {
            tracing::warn!(host = %host, "rejecting HTTP request to prevent DNS rebinding attacks");
            let text = format!(
                "Host {host:?} is not in --host-whitelist (see CVE-2018-5702, DNS rebinding). \
                 Add it there, or use HTTPS."
            );
            return failure(StatusCode::MISDIRECTED_REQUEST, &text);
        }
    }
    let origin = headers.get(ORIGIN).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let allowed = if listed(&rules.cors, "*") {
        Some("*".to_owned())
    } else {
        origin.filter(|origin| listed(&rules.cors, origin))
    };
    let mut response = if request.method() == Method::OPTIONS {
        Response::new(Body::empty())
    } else {
        next.run(request).await
    };
    if let Some(origin) = allowed.and_then(|origin| HeaderValue::from_str(&origin).ok()) {
        add_cors(response.headers_mut(), origin);
    }
    response
}

fn add_cors(headers: &mut HeaderMap, origin: HeaderValue) {
    let methods = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    let names = HeaderValue::from_static("accept, content-type, authorization");
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names);
}

fn request_host(request: &Request) -> String {
    let named = match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => request.headers().get(HOST).and_then(|v| v.to_str().ok()).unwrap_or_default(),
    };
    crate::base::url::hostname(named).to_owned()
}
