//! Configurations that follow their files: rebuilt for the handshake after a change.

use super::{TlsInfo, shown};
use parking_lot::Mutex;
use rustls::ServerConfig;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

/// Modification time and length of each file, `None` where there is none.
pub(super) type Stamps = Vec<Option<(SystemTime, u64)>>;

/// A value that is rebuilt when its files change. Resumption caches live in the configs, so
/// rebuilding each time would also cost every client a full handshake.
#[derive(Debug)]
pub(super) struct Fresh<T> {
    info: Arc<TlsInfo>,
    last: Mutex<Option<(Stamps, Arc<T>)>>,
}

impl<T> Fresh<T> {
    pub(super) fn new(info: Arc<TlsInfo>) -> Fresh<T> {
        Fresh { info, last: Mutex::new(None) }
    }

    pub(super) fn info(&self) -> &TlsInfo {
        &self.info
    }

    pub(super) fn get(
        &self,
        build: impl FnOnce(&TlsInfo) -> io::Result<Arc<T>>,
    ) -> io::Result<Arc<T>> {
        let now = self.info.stamps();
        let mut last = self.last.lock();
        if let Some((stamps, value)) = last.as_ref()
            && *stamps == now
            && now.iter().any(Option::is_some)
        {
            return Ok(value.clone());
        }
        let value = build(&self.info)?;
        *last = Some((now, value.clone()));
        Ok(value)
    }
}

/// A listener's TLS: current config for each handshake.
#[derive(Debug)]
pub struct ServerTls {
    fresh: Fresh<ServerConfig>,
}

impl ServerTls {
    /// Fails as etcd does when the files cannot be used.
    pub fn new(info: Arc<TlsInfo>) -> io::Result<Self> {
        info.validate()?;
        Ok(Self { fresh: Fresh::new(info) })
    }

    /// The flags.
    pub fn info(&self) -> &TlsInfo {
        &self.fresh.info
    }

    /// The config for a handshake that starts now.
    pub fn config(&self) -> io::Result<Arc<ServerConfig>> {
        let config = self.fresh.get(TlsInfo::server_config);
        if let Err(error) = &config {
            tracing::warn!(
                "cert-file" = %shown(self.fresh.info.cert_file.as_ref()),
                "key-file" = %shown(self.fresh.info.key_file.as_ref()),
                %error,
                "failed to create peer certificate"
            );
        }
        config
    }
}
