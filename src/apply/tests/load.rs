//! Many puts, and readers that race with writes and compactions.

use super::*;
use crate::mvcc::backend::{Backend, BackendError, Batch, Bucket};

/// Not a test of speed: run it in release to see what a put costs.
#[test]
fn a_hundred_thousand_puts() {
    struct Sink;
    impl Backend for Sink {
        fn submit(&self, batch: Batch) {
            std::hint::black_box(&batch);
        }
        fn get(&self, _: Bucket, _: &[u8]) -> std::result::Result<Option<Bytes>, BackendError> {
            Ok(None)
        }
        fn scan(
            &self,
            _: Bucket,
            _: &[u8],
            _: Option<&[u8]>,
            _: &mut dyn FnMut(&[u8], &Bytes) -> std::ops::ControlFlow<()>,
        ) -> std::result::Result<(), BackendError> {
            Ok(())
        }
        fn flush(&self) -> std::result::Result<(), BackendError> {
            Ok(())
        }
        fn position(&self) -> (u64, u64) {
            (0, 0)
        }
        fn size_bytes(&self) -> u64 {
            0
        }
    }
    let mut machine = Machine::open(Arc::new(Sink), Options::default()).unwrap();
    let value = "v".repeat(256);
    let requests: Vec<_> = (0..100_000u64)
        .map(|i| {
            let key = format!("key-{:08}", i.wrapping_mul(0x9E37_79B9) % 50_000);
            rpc::InternalRaftRequest { put: Some(put(&key, &value)), ..Default::default() }
        })
        .collect();
    let begin = std::time::Instant::now();
    for (at, request) in requests.iter().enumerate() {
        assert!(machine.apply(at as u64 + 1, 1, request).result.is_ok());
    }
    println!("{:?} a put", begin.elapsed() / 100_000);
    let begin = std::time::Instant::now();
    let all = machine.reader().range(&range("\0", "\0")).unwrap();
    println!("{} rows in {:?}", all.kvs.len(), begin.elapsed());
}

/// Readers on other threads see whole transactions and never an error.
#[test]
fn readers_race_with_writes_and_compactions() {
    let mut w = World::new();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (reader, done) = (w.machine.reader(), Arc::clone(&done));
            std::thread::spawn(move || {
                let mut newest = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let all = reader.range(&range("k", "l")).unwrap();
                    let seen = revision(&all.header);
                    assert!(seen >= newest);
                    newest = seen;
                    let values: Vec<_> = all
                        .kvs
                        .iter()
                        .map(|row| KeyValue::decode(row.clone()).unwrap().value)
                        .collect();
                    assert!(values.is_empty() || values.len() == 4, "{values:?}");
                    assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
                    reader.hash_kv(0).unwrap();
                }
            })
        })
        .collect();
    for round in 0..3000u64 {
        let value = round.to_string();
        let ops = match round % 10 {
            9 => vec![op(Request::RequestDeleteRange(del("k", "l")))],
            _ => {
                ["k1", "k2", "k3", "k4"].map(|key| op(Request::RequestPut(put(key, &value)))).into()
            }
        };
        w.txn(rpc::TxnRequest { success: ops, ..Default::default() }).unwrap();
        if round % 50 == 49 {
            w.compact(w.machine.reader().revision() - (round % 3) as i64).unwrap();
        }
        w.machine.compact_step(20).unwrap();
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
}
