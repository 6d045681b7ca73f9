//! Passwords as etcd keeps them: bcrypt, in version `2a`.

use crate::base::error::{Error, Result};
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use bcrypt::Version;

/// Bytes of a salt.
pub const SALT_BYTES: usize = 16;
/// The costs that bcrypt has, and the one that etcd takes for others (v3.5.17
/// `server/auth/store.go` NewAuthStore).
const COST_MIN: u32 = 4;
const COST_MAX: u32 = 31;
const COST_DEFAULT: u32 = 10;
/// Longer passwords are refused: bcrypt would not look at the rest.
const BYTES_MAX: usize = 72;
/// Go's `base64.StdEncoding`, which does not look at unused bits.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// The cost that is used where `asked` is configured.
pub fn cost(asked: u32) -> u32 {
    if (COST_MIN..=COST_MAX).contains(&asked) { asked } else { COST_DEFAULT }
}

/// Hashes a password. Takes long, by intention: twice as long with each step of the cost.
pub fn hash(password: &[u8], cost: u32, salt: [u8; SALT_BYTES]) -> Result<String> {
    if password.len() > BYTES_MAX {
        return Err(Error::PasswordTooLong);
    }
    let parts = bcrypt::hash_with_salt(password, self::cost(cost), salt);
    let parts = parts.unwrap_or_else(|error| unreachable!("a cost that bcrypt has: {error}"));
    Ok(parts.format_for_version(Version::TwoA))
}

/// Whether a password is the one of a stored hash. Takes as long as the hash's cost says.
pub fn verify(password: &[u8], hash: &[u8]) -> bool {
    let hash = std::str::from_utf8(hash).unwrap_or_default();
    bcrypt::verify(password, hash).unwrap_or(false)
}

/// A hash as requests carry it.
pub fn to_request(hash: &str) -> String {
    BASE64.encode(hash)
}

/// The bytes to keep for a hash as requests carry it. `NoPasswordUser` if it is malformed, as in
/// etcd.
pub(super) fn from_request(hashed: &str) -> Result<Vec<u8>> {
    let compact: String = hashed.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    BASE64.decode(compact).map_err(|_| Error::NoPasswordUser)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by golang.org/x/crypto/bcrypt with cost 4.
    const OF_GO: [(&[u8], &[u8]); 3] = [
        (b"secret", b"$2a$04$P4IQG7zdudABHnMQ9jT4GOgzBhuLJ7L.20rVpv.zT7XD2aldHv.tG"),
        (b"", b"$2a$04$FBspjQibCkb9XIX6z.rKbOlgoKHtlWDlOgXX/T7BZiNV7f6QWxmk."),
        (b"\0a", b"$2a$04$IefnhYwczNSAWHRo8EImmObWj6R2twwkvuDWhca2cKfW4j3Ds6lDe"),
    ];

    #[test]
    fn hashes_verify_and_are_gos() {
        let hash = hash(b"secret", 4, [7; SALT_BYTES]).unwrap();
        assert!(hash.starts_with("$2a$04$") && hash.len() == 60, "{hash}");
        assert!(verify(b"secret", hash.as_bytes()));
        assert!(!verify(b"Secret", hash.as_bytes()) && !verify(b"", hash.as_bytes()));
        for (password, hash) in OF_GO {
            assert!(verify(password, hash) && !verify(b"other", hash));
        }
        for malformed in [&b""[..], b"secret", b"\xff", &OF_GO[0].1[1..]] {
            assert!(!verify(b"secret", malformed));
        }
        let empty = super::hash(b"", 4, [0; SALT_BYTES]).unwrap();
        assert!(verify(b"", empty.as_bytes()));
    }

    #[test]
    fn lengths_and_costs() {
        assert_eq!(hash(&[b'a'; 73], 4, [0; SALT_BYTES]), Err(Error::PasswordTooLong));
        let longest = hash(&[b'a'; 72], 4, [0; SALT_BYTES]).unwrap();
        assert!(
            verify(&[b'a'; 72], longest.as_bytes()) && !verify(&[b'a'; 71], longest.as_bytes())
        );
        assert_eq!([0, 3, 4, 31, 32].map(cost), [10, 10, 4, 31, 10]);
    }

    #[test]
    fn base64_is_gos() {
        assert_eq!(from_request("").unwrap(), b"");
        assert_eq!(from_request("aG\r\nk=").unwrap(), b"hi");
        assert_eq!(from_request("aGl=").unwrap(), b"hi", "unused bits");
        for malformed in ["aGk", "a", "aG k=", "_-8="] {
            assert_eq!(from_request(malformed), Err(Error::NoPasswordUser), "{malformed}");
        }
        assert_eq!(from_request(&to_request("$2a$")).unwrap(), b"$2a$");
    }
}
