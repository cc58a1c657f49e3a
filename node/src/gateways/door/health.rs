//! `grpc.health.v1.Health`: of this node's own API, and of users' services as the cluster sees them.

use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{self, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use weft_cluster::ids::NodeId;
use weft_cluster::view::ClusterView;
use weft_proto::v1::ErrorCode;

use super::own;
use crate::wire;

/// The metadata key that names the namespace of a user's service; "default" without it.
pub(super) const NAMESPACE: &str = "weft-namespace";

type Changes = (watch::Receiver<Arc<ClusterView>>, Option<ServingStatus>);

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    view: watch::Receiver<Arc<ClusterView>>,
    draining: CancellationToken,
    stop: CancellationToken,
}

impl Health {
    /// Health as `view` has it. Once `draining` is cancelled nothing serves through this node; watches end at `stop`.
    pub fn new(
        view: watch::Receiver<Arc<ClusterView>>,
        draining: CancellationToken,
        stop: CancellationToken,
    ) -> Health {
        Health { view, draining, stop }
    }

    /// The gRPC service.
    pub fn service(&self) -> HealthServer<Health> {
        HealthServer::new(self.clone())
    }

    /// Empty: this node. A user's service serves while it has an instance that may be called.
    fn status(&self, namespace: &str, service: &str) -> ServingStatus {
        let view = self.view.borrow();
        let serves = if service.is_empty() || own::is_service(service) {
            true
        } else {
            let Some(known) = view.registry.service_of_grpc(namespace, service) else {
                return ServingStatus::ServiceUnknown;
            };
            view.registry.instances_of(known).any(|it| it.healthy && view.usable(NodeId(it.home)))
        };
        match serves && !self.draining.is_cancelled() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        }
    }

    /// The status at once, then at each change of it.
    fn watch(self, namespace: String, service: String) -> BoxStream<'static, Result<HealthCheckResponse, Status>> {
        let mut view = self.view.clone();
        view.mark_changed();
        let stop = self.stop.clone();
        let next = move |(mut view, last): Changes| {
            let (health, namespace, service) = (self.clone(), namespace.clone(), service.clone());
            async move {
                loop {
                    let drains = async {
                        health.draining.cancelled().await;
                        // It drains for good: told once, by the first round after it.
                        if last == Some(ServingStatus::NotServing) || last == Some(ServingStatus::ServiceUnknown) {
                            std::future::pending::<()>().await;
                        }
                    };
                    tokio::select! {
                        changed = view.changed() => changed.ok()?,
                        () = drains => {}
                    }
                    view.mark_unchanged();
                    let status = health.status(&namespace, &service);
                    if last != Some(status) {
                        let response = HealthCheckResponse { status: status.into() };
                        return Some((Ok(response), (view, Some(status))));
                    }
                }
            }
        };
        stream::unfold((view, None), next).take_until(stop.cancelled_owned()).boxed()
    }
}

/// The namespace that a request names.
pub(super) fn namespace<T>(request: &Request<T>) -> String {
    request.metadata().get(NAMESPACE).and_then(|name| name.to_str().ok()).unwrap_or("").to_owned()
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let namespace = namespace(&request);
        let service = request.into_inner().service;
        match self.status(&namespace, &service) {
            ServingStatus::ServiceUnknown => {
                let message = format!("no service {service:?} is registered");
                Err(wire::status(wire::error(ErrorCode::NotFound, message)))
            }
            status => Ok(Response::new(HealthCheckResponse { status: status.into() })),
        }
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let namespace = namespace(&request);
        Ok(Response::new(self.clone().watch(namespace, request.into_inner().service)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::FutureExt;
    use weft_cluster::registry::State;
    use weft_proto::internal::v1::{InstanceRecord, RegistryState, ServiceRecord};

    use super::*;

    fn view(healthy: &[(u64, bool)]) -> Arc<ClusterView> {
        let instance = |(at, (home, healthy)): (usize, &(u64, bool))| InstanceRecord {
            id: at as u64 + 1,
            namespace: "default".into(),
            service: "shop".into(),
            home: *home,
            address: format!("10.0.0.{at}:80"),
            healthy: *healthy,
            ..Default::default()
        };
        let service = ServiceRecord {
            namespace: "default".into(),
            name: "shop".into(),
            grpc_services: vec!["shop.Cart".into()],
            ..Default::default()
        };
        let registry = RegistryState {
            cluster_id: 1,
            shards_total: 1,
            next_instance_id: 100,
            services: vec![service],
            instances: healthy.iter().enumerate().map(instance).collect(),
            ..Default::default()
        };
        Arc::new(ClusterView {
            me: NodeId(1),
            registry: Arc::new(State::from_proto(registry).expect("a good state")),
            registry_leader: None,
            members: BTreeMap::new(),
            owners: BTreeMap::new(),
            cut_off: Default::default(),
        })
    }

    #[tokio::test]
    async fn a_service_serves_while_an_instance_does() {
        let (sender, receiver) = watch::channel(view(&[(1, false), (9, true)]));
        let (draining, stop) = (CancellationToken::new(), CancellationToken::new());
        let health = Health::new(receiver, draining.clone(), stop.clone());
        let status = |service| health.status("", service);
        assert_eq!(status(""), ServingStatus::Serving);
        assert_eq!(status("weft.v1.Events"), ServingStatus::Serving);
        assert_eq!(status("weft.v1.Nothing"), ServingStatus::ServiceUnknown);
        assert_eq!(status("shop.Other"), ServingStatus::ServiceUnknown);
        assert_eq!(status("shop.Cart"), ServingStatus::NotServing, "one is ill, the other's home is gone");
        assert_eq!(health.status("other", "shop.Cart"), ServingStatus::ServiceUnknown);

        let mut watched = health.clone().watch(String::new(), "shop.Cart".into());
        let mut next = || watched.next().now_or_never().map(|next| next.map(|next| next.expect("a status").status()));
        assert_eq!(next(), Some(Some(ServingStatus::NotServing)));
        assert_eq!(next(), None);
        sender.send_replace(view(&[(1, true)]));
        assert_eq!(next(), Some(Some(ServingStatus::Serving)));
        sender.send_replace(view(&[(1, true), (1, false)]));
        assert_eq!(next(), None, "nothing has changed for it");
        draining.cancel();
        assert_eq!(next(), Some(Some(ServingStatus::NotServing)));
        assert_eq!(next(), None);
        assert_eq!(health.status("", ""), ServingStatus::NotServing);
        stop.cancel();
        assert_eq!(next(), Some(None));
    }
}
