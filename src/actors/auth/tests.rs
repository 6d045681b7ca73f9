//! JSON web tokens: those that etcd v3.5.17 signed with the keys in `testdata/jwt`, our own, and
//! those that nobody should take.

use super::jwt::Jwt;
use super::keys::Keys;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use std::collections::BTreeMap;
use std::time::Duration;

/// A time at which etcd's tokens, which live for a hundred years, are good.
const NOW: Duration = Duration::from_secs(1_795_777_100);

fn file(name: &str) -> String {
    format!("{}/testdata/jwt/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Tokens by method, as etcd's Authenticate returned them for root at auth revision 3.
fn etcds() -> Vec<(String, String)> {
    let lines = std::fs::read_to_string(file("tokens.tsv")).unwrap();
    let pair = |line: &str| line.split_once('\t').map(|(a, b)| (a.to_owned(), b.to_owned()));
    lines.lines().filter_map(pair).collect()
}

/// Public and private key file of a method, with the private one in either form.
fn files(method: &str, pkcs8: bool) -> (Option<String>, String) {
    let end = if pkcs8 { "-8" } else { "" };
    match &method[..2] {
        "HS" => (None, file("hs.key")),
        "ES" => {
            let size = &method[2..];
            (Some(file(&format!("es{size}.pub"))), file(&format!("es{size}{end}.key")))
        }
        _ if pkcs8 => (Some(file("rsa.pub")), file("rsa8.key")),
        _ => (Some(file("rsa.crt")), file("rsa.key")),
    }
}

fn jwt(
    method: &str,
    public: Option<&str>,
    private: Option<&str>,
    ttl: &str,
) -> Result<Jwt, String> {
    let mut options = BTreeMap::from([("sign-method", method), ("ttl", ttl)]);
    options.extend(public.map(|path| ("pub-key", path)));
    options.extend(private.map(|path| ("priv-key", path)));
    Jwt::new(&options, seconds)
}

/// Durations of whole seconds are all that is needed here.
fn seconds(text: &str) -> Option<i64> {
    text.strip_suffix('s')?.parse::<i64>().ok()?.checked_mul(1_000_000_000)
}

fn both(method: &str, pkcs8: bool, ttl: &str) -> Jwt {
    let (public, private) = files(method, pkcs8);
    jwt(method, public.as_deref(), Some(&private), ttl).unwrap()
}

#[test]
fn jwt_of_etcd_are_taken() {
    let tokens = etcds();
    assert_eq!(tokens.len(), 12);
    for (method, token) in &tokens {
        for pkcs8 in [false, true] {
            let identity = both(method, pkcs8, "").verify(token, NOW).unwrap();
            assert_eq!((&*identity.name, identity.revision), ("root", 3), "{method}");
        }
        let (public, _) = files(method, false);
        if public.is_some() {
            let verifier = jwt(method, public.as_deref(), None, "").unwrap();
            assert!(verifier.verify(token, NOW).is_some(), "{method}");
            assert!(verifier.may_sign().is_err() && verifier.sign("u", 1, NOW).is_err());
        }
        for (other, wrong) in tokens.iter().filter(|(other, _)| other != method) {
            assert_eq!(both(method, false, "").verify(wrong, NOW), None, "{other} for {method}");
        }
    }
}

#[test]
fn jwt_of_ours_are_etcds_and_end() {
    for (method, token) in etcds() {
        let ours = both(&method, true, "10s");
        let made = ours.sign("root", 3, NOW).unwrap();
        let head = |token: &str| token.split('.').next().map(str::to_owned);
        assert_eq!(head(&made), head(&token));
        let claims = BASE64.decode(made.split('.').nth(1).unwrap()).unwrap();
        let expires = NOW.as_secs() + 10;
        let wanted = format!(r#"{{"exp":{expires},"revision":3,"username":"root"}}"#);
        assert_eq!(String::from_utf8(claims).unwrap(), wanted);
        let verify = |at: u64| ours.verify(&made, Duration::from_secs(at)).is_some();
        assert!(verify(expires - 1) && !verify(expires) && !verify(expires + 1));
        assert!(verify(expires - 1), "its place among those checked does not end it");
    }
}

#[test]
fn jwt_that_nobody_should_take() {
    let ours = both("RS256", false, "10s");
    let good = ours.sign("u", 7, NOW).unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let signed = |header: &str, claims: &str| {
        let keys =
            Keys::new("RS256", None, Some(&std::fs::read(file("rsa.key")).unwrap())).unwrap();
        let text = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
        let signature = keys.sign(text.as_bytes()).unwrap();
        format!("{text}.{}", BASE64.encode(signature))
    };
    let header = r#"{"alg":"RS256","typ":"JWT"}"#;
    let claims = |more: &str| format!(r#"{{"revision":7,"username":"u"{more}}}"#);
    for taken in ["", r#","exp":0"#, r#","exp":1795777101"#, r#","nbf":1795777100,"iat":1"#] {
        assert!(ours.verify(&signed(header, &claims(taken)), NOW).is_some(), "{taken}");
    }
    let none = BASE64.encode(r#"{"alg":"none"}"#);
    let other = BASE64.encode(claims("").replace("u", "root"));
    let mut refused = vec![
        String::new(),
        "..".to_owned(),
        good.to_uppercase(),
        format!("{good}."),
        format!("{}.{}", parts[0], parts[1]),
        format!("{none}.{}.", parts[1]),
        format!("{none}.{}.{}", parts[1], parts[2]),
        format!("{}.{other}.{}", parts[0], parts[2]),
        format!("{}.{}.{}", parts[0], parts[1], &parts[2][4..]),
        signed(r#"{"typ":"JWT"}"#, &claims("")),
        signed(r#"{"alg":"HS256"}"#, &claims("")),
        signed(header, "[]"),
        signed(header, r#"{"revision":7}"#),
        signed(header, r#"{"username":"u"}"#),
        signed(header, r#"{"username":7,"revision":7}"#),
        signed(header, r#"{"username":"u","revision":"7"}"#),
    ];
    for more in [
        r#","exp":1795777100"#,
        r#","exp":"later""#,
        r#","nbf":1795777101"#,
        r#","iat":1795777101"#,
    ] {
        refused.push(signed(header, &claims(more)));
    }
    // The public key as a secret: its holder would sign for everyone.
    let public = std::fs::read(file("rsa.pub")).unwrap();
    let keys = Keys::new("HS256", None, Some(&public)).unwrap();
    let text = format!("{}.{}", BASE64.encode(r#"{"alg":"HS256"}"#), BASE64.encode(claims("")));
    let signature = BASE64.encode(keys.sign(text.as_bytes()).unwrap());
    refused.push(format!("{text}.{signature}"));
    for token in refused {
        assert_eq!(ours.verify(&token, NOW), None, "{token}");
    }
}

#[test]
fn jwt_options_that_make_no_sense() {
    let (public, private) = (file("rsa.pub"), file("rsa.key"));
    let (public, private) = (Some(public.as_str()), Some(private.as_str()));
    let (other, missing) = (file("es256.pub"), file("missing"));
    for (method, public, private, ttl) in [
        ("", public, private, ""),
        ("none", public, private, ""),
        ("EdDSA", public, private, ""),
        ("RS256", None, None, ""),
        ("HS256", public, None, ""),
        ("RS256", public, public, ""),
        ("RS256", private, None, ""),
        ("RS256", Some(other.as_str()), private, ""),
        ("ES256", public, private, ""),
        ("RS256", public, Some(missing.as_str()), ""),
        ("RS256", public, private, "soon"),
    ] {
        let error = jwt(method, public, private, ttl).err();
        assert!(error.is_some_and(|error| error.starts_with("auth: ")), "{method} {ttl}");
    }
}
