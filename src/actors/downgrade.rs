//! Downgrades of the cluster: what is refused at once, and what goes through the log
//! (etcd v3.5.17 `etcdserver/v3_server.go` Downgrade).

use crate::actors::core::Core;
use crate::actors::handle::downgrade::Downgrading;
use crate::actors::handle::{Answer, Node as _};
use crate::base::error::{Error, Result};
use crate::cluster::version::{self, Version};
use crate::pb::etcdserverpb as rpc;
use crate::pb::membershippb::DowngradeInfoSetRequest;

impl Core {
    async fn downgrade_to(&self, target: &str) -> Result<(Version, String)> {
        version::wanted(target)?;
        self.linearizable_read_notify().await?;
        let (cluster, under_way) = (self.cluster_version(), self.shared.downgrade());
        let target = version::downgrade_target(target, cluster.as_deref(), under_way.as_deref())?;
        Ok((target, cluster.unwrap_or_default()))
    }

    async fn set_downgrade(&self, enabled: bool, ver: String) -> Result<String> {
        let set = DowngradeInfoSetRequest { enabled, ver };
        let request =
            rpc::InternalRaftRequest { downgrade_info_set: Some(set), ..Default::default() };
        self.propose(request).await?;
        self.cluster_version().ok_or(Error::ClusterVersionUnavailable)
    }
}

impl Downgrading for Core {
    fn validate<'a>(&'a self, target: &'a str) -> Answer<'a, Result<String>> {
        Box::pin(async move { Ok(self.downgrade_to(target).await?.1) })
    }

    fn enable<'a>(&'a self, target: &'a str) -> Answer<'a, Result<String>> {
        Box::pin(async move {
            let checked = self.downgrade_to(target).await;
            if let Err(error) = &checked {
                tracing::warn!(?error, "reject downgrade request");
            }
            self.set_downgrade(true, checked?.0.to_string()).await
        })
    }

    fn cancel(&self) -> Answer<'_, Result<String>> {
        Box::pin(async move {
            if !self.is_enabled().await? {
                return Err(Error::NoInflightDowngrade);
            }
            self.set_downgrade(false, String::new()).await
        })
    }

    fn is_enabled(&self) -> Answer<'_, Result<bool>> {
        Box::pin(async move {
            self.linearizable_read_notify().await?;
            Ok(self.shared.downgrade().is_some())
        })
    }
}
