//! Questions to peers over connections that are kept for the next question: a lease is renewed
//! again and again, and a TLS handshake costs more than the rest.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::client::{ANSWER_BYTES_MAX, dial, read_all, request, timed_out};
use super::connect::Connect;
use crate::base::url::Url;

/// Connections kept for one address; as many questions as this are asked at once without dialling.
const IDLE_MAX: usize = 64;
/// An unused connection is closed after this long, at the next question to its address.
const IDLE_TIME: Duration = Duration::from_secs(30);

type Sender = SendRequest<Full<Bytes>>;

/// See the module.
pub struct Pool {
    connect: Arc<dyn Connect>,
    /// By address, the one used last at the end.
    idle: Mutex<HashMap<String, Vec<(Instant, Sender)>>>,
}

impl Pool {
    /// Without connections yet.
    pub fn new(connect: Arc<dyn Connect>) -> Pool {
        Pool { connect, idle: Mutex::default() }
    }

    /// Posts `body` to `path` and returns the whole answer; `wait` bounds each of dial, head and
    /// body. The question may be asked twice, if a kept connection turns out to be closed.
    pub async fn post(
        &self,
        url: &Url,
        path: &str,
        content_type: &'static str,
        body: Bytes,
        wait: Duration,
    ) -> io::Result<(StatusCode, Bytes)> {
        let question = || {
            let mut headers = HeaderMap::new();
            let kind = HeaderValue::from_static(content_type);
            headers.insert(http::header::CONTENT_TYPE, kind);
            request(Method::POST, url, path, headers, body.clone())
        };
        let address = url.to_string();
        let mut kept = None;
        while kept.is_none()
            && let Some(mut sender) = self.take(&address)
        {
            match ask(&mut sender, question()?, wait).await {
                Ok(answer) => kept = Some((answer, sender)),
                // The peer is there and silent: others would wait as long.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
                Err(_) => {}
            }
        }
        let (answer, sender) = match kept {
            Some(kept) => kept,
            None => {
                let mut sender = dial(&*self.connect, url, wait).await?;
                (ask(&mut sender, question()?, wait).await?, sender)
            }
        };
        let status = answer.status();
        let body = read_all(answer.into_body(), ANSWER_BYTES_MAX, wait).await?;
        self.keep(address, sender);
        Ok((status, body))
    }

    fn take(&self, address: &str) -> Option<Sender> {
        let mut idle = self.idle.lock();
        let senders = idle.get_mut(address)?;
        while let Some((_, sender)) = senders.pop() {
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, address: String, sender: Sender) {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        let senders = idle.entry(address).or_default();
        senders.retain(|(since, _)| now.duration_since(*since) < IDLE_TIME);
        if senders.len() < IDLE_MAX {
            senders.push((now, sender));
        }
    }
}

/// Sends a question and waits for the head of its answer.
async fn ask(
    sender: &mut Sender,
    question: Request<Full<Bytes>>,
    wait: Duration,
) -> io::Result<Response<Incoming>> {
    let answer = async {
        sender.ready().await?;
        sender.send_request(question).await
    };
    timeout(wait, answer).await.map_err(|_| timed_out("request"))?.map_err(io::Error::other)
}
