//! Authentication as edges ask for it.

use crate::actors::handle::Answer;
use crate::auth::{AuthReader, Caller};
use crate::base::error::Result;
use crate::lease::LeaseReader;
use std::sync::Arc;
use tokio::sync::watch;

/// What a call says about who makes it.
#[derive(Clone, Default)]
pub struct Credentials {
    /// From the call's metadata.
    pub token: Option<Box<str>>,
    /// The name in the certificate of the connection, empty if it has none; there if certificates
    /// are demanded of clients and the call may use it.
    pub common_name: Option<Arc<str>>,
}

/// Who makes a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: Arc<str>,
    /// The auth revision at which this was so.
    pub revision: u64,
}

impl Identity {
    /// As checks take it.
    pub fn caller(&self) -> Caller<'_> {
        Caller { name: &self.name, revision: self.revision }
    }
}

/// Tokens, passwords, and the published state. Its futures may be dropped at any time.
pub trait Authority: Send + Sync + 'static {
    /// Users, roles and permissions.
    fn view(&self) -> &AuthReader;
    /// Counts changes of the view, each of which is seen before events of later entries are.
    fn changes(&self) -> watch::Receiver<u64>;
    /// Leases and their keys, which some permissions are about.
    fn leases(&self) -> &LeaseReader;
    /// Who makes a call; `None` if it does not say. `InvalidAuthToken` if its token is not one.
    /// Waits until this member has applied the entry that a token came from.
    fn identify<'a>(&'a self, credentials: &'a Credentials)
    -> Answer<'a, Result<Option<Identity>>>;
    /// Checks a password: the auth revision at which it was right. `TooManyRequests` if too many
    /// wait for this.
    fn check_password<'a>(&'a self, name: &'a str, password: String) -> Answer<'a, Result<u64>>;
    /// A password's hash as requests carry it.
    fn hash_password(&self, password: String) -> Answer<'_, Result<String>>;
    /// The part of a simple token that nobody can guess; empty if tokens are of another kind.
    fn token_seed(&self) -> Result<String>;
    /// The token of a user who has logged in at an auth revision; `None` if the entry made it.
    fn sign<'a>(&'a self, name: &'a str, revision: u64) -> Answer<'a, Result<Option<String>>>;
}
