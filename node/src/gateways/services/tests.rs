use std::collections::BTreeMap;
use std::sync::Mutex;

use weft_cluster::caller::Caller;
use weft_cluster::ids::{Generation, LogPosition, NodeId};
use weft_cluster::view::{Member, MemberState};
use weft_proto::internal::v1::{Bootstrap, NodeRecord, RegistryEntry, RemoveInstance};
use weft_proto::v1::services_server::Services as _;

use super::*;
use crate::wire::from_status;

/// A registry of one process; instances are healthy unless their address says `sick`.
struct Fake {
    state: Mutex<State>,
    view: watch::Sender<Arc<ClusterView>>,
    /// Who registered last.
    caller: Mutex<Option<Caller>>,
}

impl Fake {
    fn run(&self, command: Command) -> Result<RegistryOutcome, v1::Error> {
        let mut state = self.state.lock().expect("the lock");
        let index = state.applied().map_or(1, |at| at.index + 1);
        let command = RegistryCommand { level: 1, command: Some(command) };
        let entry = RegistryEntry { log_time_ms: 5, command: Some(command) };
        let outcome = state.apply(LogPosition { term: 1, index }, &entry);
        self.view.send_modify(|view| Arc::make_mut(view).registry = Arc::new(state.clone()));
        match outcome.outcome {
            Some(Outcome::Error(error)) => Err(error),
            _ => Ok(outcome),
        }
    }
}

impl Backend for Fake {
    fn settled(&self) -> Result<(), v1::Error> {
        Ok(())
    }

    fn register<'a>(
        &'a self,
        caller: &'a Caller,
        mut put: PutInstance,
    ) -> Promise<'a, Result<InstanceRecord, v1::Error>> {
        *self.caller.lock().expect("the lock") = Some(caller.clone());
        let instance = put.instance.get_or_insert_default();
        instance.home = 1;
        instance.healthy = !instance.address.starts_with("sick");
        instance.reason = if instance.healthy { String::new() } else { "nothing listens".into() };
        let outcome = self.run(Command::PutInstance(put));
        Box::pin(async {
            match outcome?.outcome {
                Some(Outcome::Instance(instance)) => Ok(instance),
                other => panic!("{other:?}"),
            }
        })
    }

    fn renew<'a>(&'a self, _: &'a Caller, id: InstanceId) -> Promise<'a, Result<u32, v1::Error>> {
        let known = self.state.lock().expect("the lock").instance(id).map(|instance| instance.ttl_ms);
        Box::pin(async move { known.ok_or_else(|| error(ErrorCode::NotFound, "gone")) })
    }

    fn deregister<'a>(&'a self, _: &'a Caller, id: InstanceId) -> Promise<'a, Result<(), v1::Error>> {
        let outcome = self.run(Command::RemoveInstance(RemoveInstance { id: id.0, ..Default::default() }));
        Box::pin(async { outcome.map(drop) })
    }

    fn propose<'a>(
        &'a self,
        _: &'a Caller,
        command: RegistryCommand,
        _: Duration,
    ) -> Promise<'a, Result<RegistryOutcome, v1::Error>> {
        let outcome = self.run(command.command.expect("a command"));
        Box::pin(async { outcome })
    }

    fn read(&self, _: Duration) -> Promise<'_, Result<Arc<State>, v1::Error>> {
        Box::pin(async { Ok(Arc::new(self.state.lock().expect("the lock").clone())) })
    }
}

fn open() -> (Arc<Fake>, Services) {
    let member = Member {
        id: NodeId(1),
        name: "n1".into(),
        zone: String::new(),
        generation: Generation(1),
        client_address: String::new(),
        peer_address: String::new(),
        version: String::new(),
        disk_full: false,
        replicas_fenced: 0,
        state: MemberState::Alive,
    };
    let view = ClusterView {
        // The home of all instances is another node than this one.
        me: NodeId(2),
        registry: Arc::default(),
        registry_leader: None,
        members: BTreeMap::from([(NodeId(1), member)]),
        owners: BTreeMap::new(),
        cut_off: Default::default(),
    };
    let fake =
        Arc::new(Fake { state: Mutex::default(), view: watch::Sender::new(Arc::new(view)), caller: Mutex::default() });
    let nodes = [1, 2]
        .map(|id| NodeRecord {
            id,
            name: format!("n{id}"),
            level_max: 1,
            registry_replica_id: id,
            ..Default::default()
        })
        .to_vec();
    let bootstrap = Bootstrap { cluster_id: 9, shards: 1, replication: 1, nodes, level: 1 };
    fake.run(Command::Bootstrap(bootstrap)).expect("founded");
    let services = Services::new(fake.clone(), fake.view.subscribe());
    (fake, services)
}

fn cart(address: &str) -> v1::RegisterInstanceRequest {
    v1::RegisterInstanceRequest { service: "shop.Cart".into(), address: address.into(), ..Default::default() }
}

async fn describe(services: &Services, service: &str) -> Result<v1::ServiceDescription, v1::Error> {
    let request = v1::DescribeServiceRequest { service: service.into(), ..Default::default() };
    services.describe_service(Request::new(request)).await.map(Response::into_inner).map_err(|it| from_status(&it))
}

#[tokio::test]
async fn an_instance_comes_is_described_and_goes() {
    let (_, services) = open();
    let request = v1::RegisterInstanceRequest { ttl_ms: 10_000, ..cart("h1:80") };
    let first = services.register_instance(Request::new(request)).await.expect("registered").into_inner();
    let (home, reason) = ("n1".to_owned(), String::new());
    assert_eq!(first, v1::RegisterInstanceResponse { instance: 1, home, ttl_ms: 10_000, healthy: true, reason });
    let sick = services.register_instance(Request::new(cart("sick:80"))).await.expect("registered").into_inner();
    assert_eq!((sick.healthy, &*sick.reason), (false, "nothing listens"));
    let renew = |instance| services.renew_instance(Request::new(v1::RenewInstanceRequest { instance }));
    assert_eq!(renew(1).await.expect("it is there").into_inner().ttl_ms, 10_000);
    assert_eq!(from_status(&renew(7).await.expect_err("nobody")).code(), ErrorCode::NotFound);

    let described = describe(&services, "shop.Cart").await.expect("it is there");
    let service = described.service.expect("always there");
    assert_eq!((service.instances, service.instances_healthy), (2, 1));
    assert_eq!((service.balance(), service.namespace.as_str()), (v1::Balance::LeastRequest, "default"));
    let instance = &described.instances[0];
    assert_eq!((instance.id, instance.weight, instance.healthy, instance.home.as_str()), (1, 100, true, "n1"));
    assert_eq!(instance.check.as_ref().map(|check| check.interval_ms), Some(2_000), "the default is shown");
    let listed = services.list_services(Request::new(v1::ListServicesRequest::default())).await.expect("listed");
    assert_eq!(listed.into_inner().services, [service]);

    let go = |request| services.deregister_instance(Request::new(request));
    go(v1::DeregisterInstanceRequest { instance: 1, ..Default::default() }).await.expect("gone");
    let by_address =
        v1::DeregisterInstanceRequest { service: "shop.Cart".into(), address: "sick:80".into(), ..Default::default() };
    go(by_address.clone()).await.expect("gone");
    assert_eq!(from_status(&go(by_address).await.expect_err("gone")).code(), ErrorCode::UnknownService);
    assert_eq!(describe(&services, "shop.Cart").await.expect_err("gone").code(), ErrorCode::UnknownService);
}

#[tokio::test]
async fn instances_of_a_home_that_does_not_answer_may_not_be_called() {
    let (fake, services) = open();
    services.register_instance(Request::new(cart("h1:80"))).await.expect("registered");
    fake.view.send_modify(|view| {
        let view = Arc::make_mut(view);
        view.members.get_mut(&NodeId(1)).expect("a member").state = MemberState::Suspect;
    });
    let described = describe(&services, "shop.Cart").await.expect("it is there");
    assert!(!described.instances[0].healthy);
    assert_eq!(described.instances[0].reason, "its home node n1 does not answer");
    assert_eq!(described.service.expect("always there").instances_healthy, 0);
}

#[tokio::test]
async fn who_asks_is_told_to_the_drivers() {
    let (fake, services) = open();
    services.register_instance(Request::new(cart("h1:80"))).await.expect("registered");
    let told = || fake.caller.lock().expect("the lock").clone();
    assert_eq!(told(), Some(Caller::anonymous()), "without the door");
    let mut request = Request::new(cart("h1:80"));
    request.extensions_mut().insert(Caller::node("n7"));
    services.register_instance(request).await.expect("registered");
    assert_eq!(told(), Some(Caller::node("n7")));
}

#[tokio::test]
async fn a_service_is_found_by_its_grpc_names_and_configured() {
    let (_, services) = open();
    let grpc_services = vec!["shop.Cart".to_owned(), "shop.Stock".to_owned()];
    let request = v1::RegisterInstanceRequest { service: "shop".into(), grpc_services, ..cart("h1:80") };
    services.register_instance(Request::new(request)).await.expect("registered");
    assert_eq!(describe(&services, "shop.Stock").await.expect("found").service.expect("it").name, "shop");
    let configure = |balance: v1::Balance, methods: &[&str]| {
        let request = v1::ConfigureServiceRequest {
            service: "shop".into(),
            balance: balance.into(),
            idempotent_methods: methods.iter().map(|method| (*method).to_owned()).collect(),
            set_idempotent_methods: !methods.is_empty(),
            ..Default::default()
        };
        services.configure_service(Request::new(request))
    };
    let set = configure(v1::Balance::RoundRobin, &["shop.Cart/Get"]).await.expect("configured").into_inner();
    assert_eq!((set.balance(), set.instances), (v1::Balance::RoundRobin, 1));
    assert_eq!(set.idempotent_methods, ["shop.Cart/Get"]);
    let refusal = configure(v1::Balance::Unspecified, &["shop.Bill/Get"]).await.expect_err("not of this service");
    assert!(refusal.message().contains("names no method of service"), "{}", refusal.message());
}

#[tokio::test]
async fn what_is_wrong_is_said_in_one_sentence() {
    let (_, services) = open();
    let check = |check| v1::RegisterInstanceRequest { check: Some(check), ..cart("h1:80") };
    let kind = |kind| v1::HealthCheck { kind: Some(kind), ..Default::default() };
    use v1::health_check::Kind;
    let many = (0..101).map(|number| format!("s{number}")).collect();
    let cases = [
        (v1::RegisterInstanceRequest { service: String::new(), ..cart("h:1") }, "service name"),
        (v1::RegisterInstanceRequest { service: "weft.v1.Events".into(), ..cart("h:1") }, "Weft's own"),
        (v1::RegisterInstanceRequest { namespace: "a b".into(), ..cart("h:1") }, "namespace name"),
        (cart("h1"), "host:port"),
        (cart("h1:0"), "host:port"),
        (v1::RegisterInstanceRequest { tls_name: "h1".into(), ..cart("h1:80") }, "tls is not"),
        (v1::RegisterInstanceRequest { weight: 10_001, ..cart("h1:80") }, "weight is 10001"),
        (v1::RegisterInstanceRequest { ttl_ms: 5, ..cart("h1:80") }, "ttl_ms is 5"),
        (v1::RegisterInstanceRequest { grpc_services: many, ..cart("h1:80") }, "at most 100"),
        (check(kind(Kind::Tcp(false))), "check.tcp is false"),
        (check(kind(Kind::HttpPath("health".into()))), "begin with /"),
        (check(v1::HealthCheck { interval_ms: 3, ..Default::default() }), "interval_ms is 3"),
    ];
    for (request, part) in cases {
        let refusal = services.register_instance(Request::new(request)).await.expect_err(part);
        assert_eq!(from_status(&refusal).code(), ErrorCode::InvalidArgument);
        assert!(refusal.message().contains(part), "{:?} lacks {part:?}", refusal.message());
    }
    let nothing = v1::DeregisterInstanceRequest::default();
    let both = v1::DeregisterInstanceRequest { instance: 1, address: "h1:80".into(), ..Default::default() };
    for request in [nothing, both] {
        let refusal = services.deregister_instance(Request::new(request)).await.expect_err("names no one");
        assert_eq!(from_status(&refusal).code(), ErrorCode::InvalidArgument);
    }
    let balance = v1::ConfigureServiceRequest { service: "shop".into(), balance: 9, ..Default::default() };
    let refusal = services.configure_service(Request::new(balance)).await.expect_err("no such balance");
    assert!(refusal.message().contains("balance is 9"), "{}", refusal.message());
    let unknown = v1::ConfigureServiceRequest { service: "shop".into(), ..Default::default() };
    let refusal = services.configure_service(Request::new(unknown)).await.expect_err("no such service");
    assert_eq!(from_status(&refusal).code(), ErrorCode::UnknownService);
}
