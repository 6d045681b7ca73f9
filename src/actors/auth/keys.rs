//! Keys of JSON web tokens, from the files that `--auth-token` names: what etcd's `server/auth/
//! options.go` takes (v3.5.17), with ring's algorithms, and P-521 beside them.

use p521::ecdsa::signature::{Signer as _, Verifier as _};
use ring::rand::SystemRandom;
use ring::signature::{self as ring_sign, EcdsaKeyPair, RsaKeyPair, UnparsedPublicKey};
use ring::{hmac, signature::KeyPair as _};
use x509_parser::der_parser::Oid;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

/// A signing method's name in the flag and in tokens.
pub type Method = &'static str;

/// The methods that have keys here. `EdDSA` and `none` are refused, as by etcd.
const METHODS: [Method; 12] = [
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256",
    "ES384", "ES512",
];

/// How bytes are signed, if they may be, and how signatures are checked.
pub struct Keys {
    pub method: Method,
    sign: Option<Signer>,
    verify: Verifier,
}

enum Signer {
    Hmac(hmac::Key),
    Rsa(Box<RsaKeyPair>, &'static dyn ring_sign::RsaEncoding),
    Ecdsa(Box<EcdsaKeyPair>),
    P521(Box<p521::ecdsa::SigningKey>),
}

enum Verifier {
    Hmac(hmac::Key),
    Ring(UnparsedPublicKey<Vec<u8>>),
    P521(Box<p521::ecdsa::VerifyingKey>),
}

/// What a method asks of its keys.
enum Kind {
    Hmac(hmac::Algorithm),
    Rsa(&'static dyn ring_sign::RsaEncoding, &'static ring_sign::RsaParameters),
    Ecdsa(
        &'static ring_sign::EcdsaSigningAlgorithm,
        &'static ring_sign::EcdsaVerificationAlgorithm,
    ),
    P521,
}

fn kind(method: Method) -> Kind {
    match method {
        "HS256" => Kind::Hmac(hmac::HMAC_SHA256),
        "HS384" => Kind::Hmac(hmac::HMAC_SHA384),
        "HS512" => Kind::Hmac(hmac::HMAC_SHA512),
        "RS256" => Kind::Rsa(&ring_sign::RSA_PKCS1_SHA256, &ring_sign::RSA_PKCS1_2048_8192_SHA256),
        "RS384" => Kind::Rsa(&ring_sign::RSA_PKCS1_SHA384, &ring_sign::RSA_PKCS1_2048_8192_SHA384),
        "RS512" => Kind::Rsa(&ring_sign::RSA_PKCS1_SHA512, &ring_sign::RSA_PKCS1_2048_8192_SHA512),
        "PS256" => Kind::Rsa(&ring_sign::RSA_PSS_SHA256, &ring_sign::RSA_PSS_2048_8192_SHA256),
        "PS384" => Kind::Rsa(&ring_sign::RSA_PSS_SHA384, &ring_sign::RSA_PSS_2048_8192_SHA384),
        "PS512" => Kind::Rsa(&ring_sign::RSA_PSS_SHA512, &ring_sign::RSA_PSS_2048_8192_SHA512),
        "ES256" => Kind::Ecdsa(
            &ring_sign::ECDSA_P256_SHA256_FIXED_SIGNING,
            &ring_sign::ECDSA_P256_SHA256_FIXED,
        ),
        "ES384" => Kind::Ecdsa(
            &ring_sign::ECDSA_P384_SHA384_FIXED_SIGNING,
            &ring_sign::ECDSA_P384_SHA384_FIXED,
        ),
        _ => Kind::P521,
    }
}

impl Keys {
    /// From the contents of the files. One of them is enough, but without the private one nothing
    /// can be signed; HMAC has only the private one.
    pub fn new(
        method: &str,
        public: Option<&[u8]>,
        private: Option<&[u8]>,
    ) -> Result<Keys, String> {
        let method = *METHODS
            .iter()
            .find(|known| **known == method)
            .ok_or("auth: invalid auth signature method")?;
        let public = public.filter(|file| !file.is_empty());
        let private = private.filter(|file| !file.is_empty());
        let (sign, own, given) = match kind(method) {
            Kind::Hmac(algorithm) => {
                let key = hmac::Key::new(algorithm, private.ok_or(MISSING)?);
                let sign = Some(Signer::Hmac(key.clone()));
                return Ok(Keys { method, sign, verify: Verifier::Hmac(key) });
            }
            Kind::Rsa(encoding, parameters) => {
                let pair = private.map(rsa_pair).transpose()?;
                let own = pair.as_ref().map(|pair| pair.public().as_ref().to_vec());
                let ring = |key| Verifier::Ring(UnparsedPublicKey::new(parameters, key));
                let given = public.map(|file| public_key(file, &RSA)).transpose()?;
                warn_unless_equal(own.as_ref(), given.as_ref());
                let sign = pair.map(|pair| Signer::Rsa(Box::new(pair), encoding));
                (sign, own.map(ring), given.map(ring))
            }
            Kind::Ecdsa(signing, verification) => {
                let pair = private.map(|file| ecdsa_pair(signing, file)).transpose()?;
                let own = pair.as_ref().map(|pair| pair.public_key().as_ref().to_vec());
                let given = public.map(|file| public_key(file, &EC)).transpose()?;
                warn_unless_equal(own.as_ref(), given.as_ref());
                let ring = |key| Verifier::Ring(UnparsedPublicKey::new(verification, key));
                let sign = pair.map(|pair| Signer::Ecdsa(Box::new(pair)));
                (sign, own.map(ring), given.map(ring))
            }
            Kind::P521 => {
                let pair = private.map(p521_pair).transpose()?;
                let own = pair.as_ref().map(|pair| *pair.verifying_key());
                let given = public.map(p521_public).transpose()?;
                warn_unless_equal(own.as_ref(), given.as_ref());
                let boxed = |key| Verifier::P521(Box::new(key));
                let sign = pair.map(|pair| Signer::P521(Box::new(pair)));
                (sign, own.map(boxed), given.map(boxed))
            }
        };
        Ok(Keys { method, sign, verify: own.or(given).ok_or(MISSING)? })
    }

    /// Whether there is a private key.
    pub fn can_sign(&self) -> bool {
        self.sign.is_some()
    }

    /// The signature of `bytes`; `None` without a private key or if the system has no randomness.
    pub fn sign(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        Some(match self.sign.as_ref()? {
            Signer::Hmac(key) => hmac::sign(key, bytes).as_ref().to_vec(),
            Signer::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(*encoding, &random, bytes, &mut signature).ok()?;
                signature
            }
            Signer::Ecdsa(pair) => pair.sign(&random, bytes).ok()?.as_ref().to_vec(),
            Signer::P521(pair) => {
                let signature: p521::ecdsa::Signature = pair.try_sign(bytes).ok()?;
                signature.to_bytes().to_vec()
            }
        })
    }

    /// Whether `signature` is one of `bytes`.
    pub fn verify(&self, bytes: &[u8], signature: &[u8]) -> bool {
        match &self.verify {
            Verifier::Hmac(key) => hmac::verify(key, bytes, signature).is_ok(),
            Verifier::Ring(key) => key.verify(bytes, signature).is_ok(),
            Verifier::P521(key) => p521::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(bytes, &signature).is_ok()),
        }
    }
}

const MISSING: &str = "auth: missing key data";
const RSA: Oid<'static> = x509_parser::oid_registry::OID_PKCS1_RSAENCRYPTION;
const EC: Oid<'static> = x509_parser::oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY;

/// etcd means to refuse keys that do not belong together, but takes nearly all of them; then the
/// private key counts.
fn warn_unless_equal<T: PartialEq>(own: Option<&T>, given: Option<&T>) {
    if own.is_some() && given.is_some() && own != given {
        tracing::warn!("the public key for tokens is not the private key's, and is ignored");
    }
}

/// The first block of a PEM file, whatever its label, as in etcd.
fn first_block(file: &[u8]) -> Result<Vec<u8>, String> {
    let mut blocks = x509_parser::pem::Pem::iter_from_buffer(file);
    let block = blocks.next().ok_or("invalid key: Key must be a PEM encoded PKCS1 or PKCS8 key")?;
    block.map(|block| block.contents).map_err(|error| format!("invalid key: {error}"))
}

fn rsa_pair(file: &[u8]) -> Result<RsaKeyPair, String> {
    let der = first_block(file)?;
    RsaKeyPair::from_der(&der)
        .or_else(|_| RsaKeyPair::from_pkcs8(&der))
        .map_err(|error| format!("key is not a usable RSA private key: {error}"))
}

/// The key inside a certificate or a bare public key, if it is of this kind.
fn public_key(file: &[u8], kind: &Oid<'_>) -> Result<Vec<u8>, String> {
    let der = first_block(file)?;
    let of_kind = |info: &SubjectPublicKeyInfo<'_>| {
        let key = info.subject_public_key.data.to_vec();
        let right = info.algorithm.algorithm == *kind;
        right.then_some(key).ok_or_else(|| "key is not a public key of the method".to_owned())
    };
    if let Ok((_, info)) = SubjectPublicKeyInfo::from_der(&der) {
        return of_kind(&info);
    }
    let (_, certificate) = x509_parser::parse_x509_certificate(&der)
        .map_err(|error| format!("key is not a public key or certificate: {error}"))?;
    of_kind(certificate.public_key())
}

fn ecdsa_pair(
    algorithm: &'static ring_sign::EcdsaSigningAlgorithm,
    file: &[u8],
) -> Result<EcdsaKeyPair, String> {
    let der = first_block(file)?;
    let unusable = "key is not a usable ECDSA private key";
    let (private, public) = ec_private_key(&der).ok_or(unusable)?;
    let public = public.ok_or("key is an ECDSA private key without its public part")?;
    let random = SystemRandom::new();
    EcdsaKeyPair::from_private_key_and_public_key(algorithm, private, public, &random)
        .map_err(|error| format!("{unusable}: {error}"))
}

fn p521_pair(file: &[u8]) -> Result<p521::ecdsa::SigningKey, String> {
    let der = first_block(file)?;
    ec_private_key(&der)
        .and_then(|(private, _)| p521::ecdsa::SigningKey::from_slice(private).ok())
        .ok_or_else(|| "key is not a usable P-521 private key".to_owned())
}

fn p521_public(file: &[u8]) -> Result<p521::ecdsa::VerifyingKey, String> {
    let point = public_key(file, &EC)?;
    p521::ecdsa::VerifyingKey::from_sec1_bytes(&point)
        .map_err(|_| "key is not a usable P-521 public key".to_owned())
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const PKCS8_VERSION: &[u8] = &[0];
const OCTETS: u8 = 0x04;
const BITS: u8 = 0x03;
/// The public key in an `ECPrivateKey`.
const TAGGED_1: u8 = 0xa1;

/// Private and public part of an `ECPrivateKey` (RFC 5915), bare or in PKCS#8.
fn ec_private_key(der: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let (parts, _) = element(der, SEQUENCE)?;
    let (version, parts) = element(parts, INTEGER)?;
    if version == PKCS8_VERSION {
        let (_algorithm, parts) = element(parts, SEQUENCE)?;
        let (key, _) = element(parts, OCTETS)?;
        let (parts, _) = element(key, SEQUENCE)?;
        let (_version, parts) = element(parts, INTEGER)?;
        return ec_parts(parts);
    }
    ec_parts(parts)
}

fn ec_parts(parts: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let (private, mut rest) = element(parts, OCTETS)?;
    while !rest.is_empty() {
        let (tag, content, next) = any_element(rest)?;
        rest = next;
        if tag == TAGGED_1 {
            let (bits, _) = element(content, BITS)?;
            // The first byte counts unused bits, of which a point has none.
            return Some((private, bits.strip_prefix(&[0])));
        }
    }
    Some((private, None))
}

/// The content of the element that `der` begins with, if it has this tag, and what follows.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = any_element(der)?;
    (found == tag).then_some((content, rest))
}

fn any_element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x82 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}
