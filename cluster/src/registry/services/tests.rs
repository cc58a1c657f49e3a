use weft_proto::internal::v1::registry_command::Command;
use weft_proto::internal::v1::{
    Bootstrap, InstanceFlip, NodeRecord, RegistryCommand, RegistryEntry, RegistryOutcome, Rehomed,
};
use weft_proto::v1::HealthCheck;
use weft_proto::v1::health_check::Kind;

use super::*;
use crate::ids::LogPosition;
use crate::registry::limits::WEIGHT_DEFAULT;

/// A founded registry of two nodes, 1 and 2, with its log's end.
struct Log(State, u64);

impl Log {
    fn founded() -> Log {
        let node = |id: u64| NodeRecord {
            id,
            name: format!("n{id}"),
            level_max: 1,
            registry_replica_id: id,
            ..Default::default()
        };
        let nodes = vec![node(1), node(2)];
        let bootstrap = Bootstrap { cluster_id: 7, shards: 1, replication: 1, nodes, level: 1 };
        let mut log = Log(State::default(), 0);
        log.ok(Command::Bootstrap(bootstrap));
        log
    }

    fn run(&mut self, command: Command) -> Outcome {
        self.1 += 1;
        let command = RegistryCommand { level: 1, command: Some(command) };
        let entry = RegistryEntry { log_time_ms: 5_000, command: Some(command) };
        let RegistryOutcome { outcome, .. } = self.0.apply(LogPosition { term: 1, index: self.1 }, &entry);
        let state = State::from_proto(self.0.to_proto()).expect("what it writes can be read");
        assert_eq!(state, self.0, "a snapshot holds all of it");
        outcome.expect("every command has an outcome")
    }

    #[track_caller]
    fn ok(&mut self, command: Command) -> Outcome {
        match self.run(command) {
            Outcome::Error(error) => panic!("{error:?}"),
            outcome => outcome,
        }
    }

    #[track_caller]
    fn put(&mut self, service: &str, grpc_services: &[&str], address: &str) -> u64 {
        match self.ok(put(service, grpc_services, address)) {
            Outcome::Instance(instance) => instance.id,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refused(&mut self, command: Command, code: ErrorCode, part: &str) {
        let Outcome::Error(error) = self.run(command) else { panic!("it was not refused") };
        assert_eq!(error.code(), code, "{}", error.message);
        assert!(error.message.contains(part), "{:?} lacks {part:?}", error.message);
    }

    fn ids(&self, service: &str) -> Vec<u64> {
        self.0.service("", service).map_or_else(Vec::new, |service| service.instances().map(|id| id.0).collect())
    }
}

fn put(service: &str, grpc_services: &[&str], address: &str) -> Command {
    let instance = InstanceRecord { home: 1, address: address.into(), healthy: true, ..Default::default() };
    put_with(service, grpc_services, instance)
}

fn put_with(service: &str, grpc_services: &[&str], instance: InstanceRecord) -> Command {
    Command::PutInstance(PutInstance {
        service: service.into(),
        grpc_services: grpc_services.iter().map(|name| name.to_string()).collect(),
        instance: Some(instance),
        ..Default::default()
    })
}

fn remove(id: u64, home: u64) -> Command {
    Command::RemoveInstance(RemoveInstance { id, home, ..Default::default() })
}

#[test]
fn an_instance_is_found_by_every_name_of_its_service() {
    let mut log = Log::founded();
    let first = log.put("shop", &["shop.Cart", "shop.Orders"], "10.0.0.1:80");
    let second = log.put("shop", &["shop.Cart"], "10.0.0.2:80");
    assert_eq!((first, second), (1, 2));
    for name in ["shop.Cart", "shop.Orders"] {
        let service = log.0.service_of_grpc("default", name).expect("registered");
        assert_eq!(service.record().name, "shop");
        assert_eq!(service.instances().map(|id| id.0).collect::<Vec<_>>(), [1, 2]);
    }
    assert!(log.0.service_of_grpc("", "shop").is_none(), "an alias is no gRPC service");
    assert!(log.0.service_of_grpc("other", "shop.Cart").is_none());
    let instance = log.0.instance(InstanceId(1)).expect("registered");
    assert_eq!((instance.weight, instance.registered_ms), (WEIGHT_DEFAULT, 5_000));
    let check = instance.check.as_ref().expect("filled in");
    assert_eq!((check.interval_ms, check.timeout_ms, check.unhealthy_after), (2_000, 1_000, 2));
}

#[test]
fn the_same_address_again_is_the_same_instance_with_new_settings() {
    let mut log = Log::founded();
    let id = log.put("a.B", &[], "h:1");
    let moved = InstanceRecord { home: 2, address: "h:1".into(), weight: 7, ..Default::default() };
    let Outcome::Instance(again) = log.ok(put_with("a.B", &[], moved)) else { panic!("an instance is answered") };
    assert_eq!((again.id, again.home, again.weight, again.healthy), (id, 2, 7, false));
    assert_eq!(log.put("a.C", &[], "h:1"), 2, "of another service it is another instance");
}

#[test]
fn a_service_goes_with_its_last_instance_unless_it_has_settings() {
    let mut log = Log::founded();
    let id = log.put("shop", &["shop.Cart"], "h:1");
    log.refused(remove(id, 2), ErrorCode::NotFound, "another home");
    assert!(!log.0.instance_gone(InstanceId(id)), "it is there");
    log.ok(remove(id, 1));
    assert!(log.0.instance_gone(InstanceId(id)) && !log.0.instance_gone(InstanceId(id + 1)), "one was, one may come");
    assert!(log.0.service("", "shop").is_none() && log.0.service_of_grpc("", "shop.Cart").is_none());
    log.refused(remove(id, 0), ErrorCode::NotFound, "no instance i1");

    let id = log.put("shop", &["shop.Cart"], "h:1");
    assert_eq!(id, 2, "ids are never reused");
    log.ok(Command::ConfigureService(ConfigureService {
        service: "shop".into(),
        balance: Balance::Random.into(),
        ..Default::default()
    }));
    log.ok(remove(id, 0));
    assert!(log.ids("shop").is_empty());
    assert_eq!(log.0.service_of_grpc("", "shop.Cart").expect("kept").record().balance(), Balance::Random);
}

#[test]
fn a_service_whose_settings_are_the_usual_ones_ends_with_its_last_instance() {
    let mut log = Log::founded();
    let set = |balance: Balance| {
        Command::ConfigureService(ConfigureService {
            service: "shop".into(),
            balance: balance.into(),
            ..Default::default()
        })
    };
    let id = log.put("shop", &["shop.Cart"], "h:1");
    log.ok(set(Balance::LeastRequest));
    log.ok(remove(id, 0));
    assert!(log.0.service("", "shop").is_none());

    let id = log.put("shop", &["shop.Cart"], "h:1");
    log.ok(set(Balance::Random));
    log.ok(remove(id, 0));
    assert!(log.0.service("", "shop").is_some());
    log.ok(set(Balance::LeastRequest));
    assert!(log.0.service("", "shop").is_none() && log.0.service_of_grpc("", "shop.Cart").is_none());
}

#[test]
fn a_grpc_name_belongs_to_one_service() {
    let mut log = Log::founded();
    log.put("shop", &["shop.Cart"], "h:1");
    log.refused(put("shop.Cart", &[], "h:2"), ErrorCode::FailedPrecondition, "belongs to service \"shop\"");
    log.refused(put("grpc.health.v1.Health", &[], "h:2"), ErrorCode::InvalidArgument, "Weft's own");
    log.refused(put("weft.v1.Events", &[], "h:2"), ErrorCode::InvalidArgument, "Weft's own");
    assert_eq!(log.0.services_all().count(), 1);
}

#[test]
fn only_its_home_flips_an_instance() {
    let mut log = Log::founded();
    let id = log.put("a.B", &[], "h:1");
    let flip = |home, healthy| {
        let flips = vec![InstanceFlip { id, healthy, reason: "refused".repeat(100) }];
        Command::InstanceHealth(InstanceHealth { home, flips })
    };
    log.ok(flip(2, false));
    assert!(log.0.instance(InstanceId(id)).expect("there").healthy);
    log.ok(flip(1, false));
    let instance = log.0.instance(InstanceId(id)).expect("there");
    assert!(!instance.healthy && instance.reason.len() < 100);
}

#[test]
fn instances_move_from_the_home_they_have_to_nodes_that_are_there() {
    let mut log = Log::founded();
    let ids = [log.put("a.B", &[], "h:1"), log.put("a.B", &[], "h:2")];
    let rehome = |from, to| {
        let rehomed = vec![Rehomed { id: ids[0], home: to }];
        Command::RehomeInstances(RehomeInstances { from, rehomed })
    };
    for (from, to, home) in [(2, 2, 1), (1, 9, 1), (1, 2, 2), (1, 2, 2)] {
        log.ok(rehome(from, to));
        assert_eq!(log.0.instance(InstanceId(ids[0])).expect("there").home, home, "from {from} to {to}");
    }
    assert_eq!(log.0.instance(InstanceId(ids[1])).expect("there").home, 1);
}

#[test]
fn idempotent_methods_are_checked_and_matched() {
    let mut log = Log::founded();
    log.put("shop", &["shop.Cart", "shop.CartOld"], "h:1");
    let configure = |methods: &[&str]| {
        Command::ConfigureService(ConfigureService {
            service: "shop".into(),
            idempotent_methods: methods.iter().map(|method| method.to_string()).collect(),
            set_idempotent_methods: true,
            ..Default::default()
        })
    };
    for wrong in ["Get", "shop.Cart/", "shop.Other/Get", "/Get"] {
        log.refused(configure(&[wrong]), ErrorCode::InvalidArgument, "SERVICE/METHOD");
    }
    log.ok(configure(&["shop.Cart/Get", "shop.CartOld/*"]));
    let service = log.0.service("", "shop").expect("there");
    assert!(service.is_idempotent("shop.Cart", "Get") && service.is_idempotent("shop.CartOld", "Any"));
    assert!(!service.is_idempotent("shop.Cart", "Put") && !service.is_idempotent("shop.Car", "t/Get"));
    log.refused(
        Command::ConfigureService(ConfigureService { service: "none".into(), ..Default::default() }),
        ErrorCode::UnknownService,
        "no service default/none",
    );
}

#[test]
fn bad_registrations_are_refused_with_what_would_be_right() {
    let mut log = Log::founded();
    for address in ["", "host", ":80", "host:0", "host:99999", "http://h:1", "a b:1"] {
        log.refused(put("a.B", &[], address), ErrorCode::InvalidArgument, "host:port");
    }
    let good = InstanceRecord { home: 1, address: "h:1".into(), ..Default::default() };
    let check = |check| InstanceRecord { check: Some(check), ..good.clone() };
    let wrong = [
        (InstanceRecord { weight: 10_001, ..good.clone() }, "weight is 10001"),
        (InstanceRecord { ttl_ms: 5, ..good.clone() }, "ttl_ms is 5"),
        (InstanceRecord { tls_ca_pem: "x".repeat(70_000), ..good.clone() }, "tls_ca_pem"),
        (InstanceRecord { metadata: [("k".into(), "v".repeat(20_000))].into(), ..good.clone() }, "metadata"),
        (check(HealthCheck { interval_ms: 5, ..Default::default() }), "interval_ms is 5"),
        (check(HealthCheck { interval_ms: 500, timeout_ms: 900, ..Default::default() }), "timeout_ms is 900"),
        (check(HealthCheck { unhealthy_after: 101, ..Default::default() }), "at most 100"),
        (check(HealthCheck { kind: Some(Kind::HttpPath("x".into())), ..Default::default() }), "http_path"),
    ];
    for (instance, part) in wrong {
        log.refused(put_with("a.B", &[], instance), ErrorCode::InvalidArgument, part);
    }
    log.refused(put("", &[], "h:1"), ErrorCode::InvalidArgument, "service name");
    let stranger = InstanceRecord { home: 9, ..good };
    log.refused(put_with("a.B", &[], stranger), ErrorCode::FailedPrecondition, "home node");
    assert_eq!(log.0.services_all().count(), 0);
}

#[test]
fn a_lease_that_ran_out_does_not_end_a_newer_registration() {
    let mut log = Log::founded();
    let id = log.put("shop.Cart", &[], "h1:80");
    let remove =
        |registered_ms| Command::RemoveInstance(RemoveInstance { id, home: 1, registered_ms, ..Default::default() });
    log.refused(remove(4_999), ErrorCode::NotFound, "another home or registration");
    log.ok(remove(5_000));
    assert!(log.0.service("", "shop.Cart").is_none());
}
