//! Concurrent writers that remember what was acknowledged.

use super::daemon::Member;
use prost::Message as _;
use rusd::pb::etcdserverpb as rpc;
use rusd::pb::mvccpb::KeyValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::task::JoinHandle;

const WRITERS: usize = 8;
const KEYS: &str = "load/";

/// Running writers.
pub struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Vec<(String, i64)>>>,
}

/// Key → revision of each acknowledged write; every key is written once.
pub type Acknowledged = BTreeMap<String, i64>;

impl Load {
    /// Starts writers, each with a connection of its own; a writer ends at its first error.
    pub fn start(member: &Member) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (0..WRITERS)
            .map(|writer| {
                let (mut kv, stop) = (member.kv(), stop.clone());
                tokio::spawn(async move {
                    let mut acknowledged = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let key = format!("{KEYS}{writer}/{:08}", acknowledged.len());
                        let put = rpc::PutRequest {
                            key: key.clone().into(),
                            value: key.clone().into(),
                            ..Default::default()
                        };
                        let Ok(response) = kv.put(put).await else { break };
                        let header = response.into_inner().header.unwrap();
                        acknowledged.push((key, header.revision));
                    }
                    acknowledged
                })
            })
            .collect();
        Load { stop, writers }
    }

    /// Ends the writers: what they were promised.
    pub async fn finish(self) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = Acknowledged::new();
        for writer in self.writers {
            acknowledged.extend(writer.await.unwrap());
        }
        acknowledged
    }
}

/// Reads all keys with a prefix.
pub async fn read(member: &Member, prefix: &str) -> Vec<KeyValue> {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    let range = rpc::RangeRequest {
        key: prefix.as_bytes().to_vec().into(),
        range_end: end.into(),
        ..Default::default()
    };
    let response = member.kv().range(range).await.unwrap().into_inner();
    response.kvs.into_iter().map(|kv| KeyValue::decode(kv).unwrap()).collect()
}

/// Everything acknowledged is there, at the revision that was told.
pub async fn assert_all_there(member: &Member, acknowledged: &Acknowledged) {
    assert!(!acknowledged.is_empty(), "nothing was acknowledged: the test shows nothing");
    let there: Acknowledged = read(member, KEYS)
        .await
        .into_iter()
        .map(|kv| (String::from_utf8(kv.key.to_vec()).unwrap(), kv.mod_revision))
        .collect();
    for (key, revision) in acknowledged {
        assert_eq!(there.get(key), Some(revision), "{key} was acknowledged");
    }
}
