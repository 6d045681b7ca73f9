//! The v2 store against histories that etcd's own code went through
//! (`testdata/v2/gen` writes `testdata/v2/histories.txt`, and says what its lines are).

use prost::Message as _;
use rusd::cluster::state::Cluster;
use rusd::pb::etcdserverpb::Request;
use rusd::pb::raftpb::ConfChange;
use rusd::v2::{self, Error, Time};

const HISTORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/v2/histories.txt");

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn told(reply: v2::Reply) -> String {
    match reply {
        Ok(Some(event)) => format!("event {}", String::from_utf8(event.json()).unwrap()),
        Ok(None) => "nothing".to_owned(),
        Err(error) => {
            let text = serde_json::to_string(&error.to_string()).unwrap();
            match error {
                Error::Coded { code, index, .. } => format!("error {} {index} {text}", code as u16),
                _ => format!("error 0 0 {text}"),
            }
        }
    }
}

/// Go's text of an error as ours is written: it escapes what HTML takes for markup.
fn unescaped(line: &str) -> String {
    let Some((head, text)) = line.split_once('"') else { return line.to_owned() };
    let text: String = serde_json::from_str(&format!("\"{text}")).unwrap();
    format!("{head}{}", serde_json::to_string(&text).unwrap())
}

#[test]
fn histories_go_as_in_etcd() {
    let (mut cluster, mut now, mut reply) = (Cluster::default(), Time(0), String::new());
    let (mut requests, mut saves) = (0, 0);
    let histories = std::fs::read_to_string(HISTORIES).unwrap();
    for (number, line) in histories.lines().enumerate() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let at = || format!("line {}: {line}", number + 1);
        let json = || String::from_utf8(cluster.tree().json()).unwrap();
        match word {
            "history" => cluster = Cluster::default(),
            "now" => now = Time(rest.parse().unwrap()),
            "request" => {
                requests += 1;
                let request = Request::decode(&bytes(rest)[..]).unwrap();
                reply = told(cluster.apply_v2(&request, now).1);
            }
            "change" => {
                let change = ConfChange::decode(&bytes(rest)[..]).unwrap();
                cluster.change(&change).unwrap();
            }
            "event" | "nothing" => assert_eq!(reply, line, "{}", at()),
            "error" => assert_eq!(reply, unescaped(line), "{}", at()),
            "save" => {
                saves += 1;
                let json = json();
                let sum = format!("{:08x}", crc32c::crc32c(json.as_bytes()));
                assert_eq!(sum, rest, "{}\n{json}", at());
            }
            "json" => assert_eq!(json(), rest, "{}", at()),
            "recover" => cluster = Cluster::from_json(json().as_bytes()).unwrap(),
            _ => panic!("{}", at()),
        }
    }
    assert!(requests > 1000 && saves > 500, "{requests} {saves}");
}
