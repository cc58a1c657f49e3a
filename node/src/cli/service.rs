//! `weft service`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use weft_sdk::health_check::Kind;
use weft_sdk::{
    Balance, Client, HealthCheck, Instance, InstanceBuilder, RegisterInstanceResponse, Service, ServiceDescription,
};

use super::args::{BalanceBy, RegisterService, Service as Command};
use super::call;
use super::failure::Failure;
use super::output::Output;
use super::server::Target;

/// The weight of who names none.
const WEIGHT_DEFAULT: u32 = 100;
/// How long a service may take to describe itself.
const REFLECTION_PATIENCE: Duration = Duration::from_secs(5);

pub(crate) async fn run(command: Command, target: &Target, output: &mut Output) -> Result<(), Failure> {
    let client = target.connect().await?;
    match command {
        Command::Register(register) => {
            let registered = builder(&client, &register)?.register_once().await?;
            let (service, address) = (&register.name, &register.address);
            let home = &registered.home;
            let mut sentence = format!("registered {address} as an instance of {service}; its home is {home}");
            if register.weight != WEIGHT_DEFAULT {
                let known = client.services().describe(service).await?.service.unwrap_or_default();
                if matches!(known.balance(), Balance::RoundRobin | Balance::Random) {
                    let by = balance_name(&known);
                    sentence.push_str(&format!(
                        "; calls are balanced by {by}, which does not mind weights: weft service configure {service} \
                         --balance weighted does"
                    ));
                }
            }
            output.say(&registered_json(&registered), format_args!("{sentence}; {}", health(&registered)))
        }
        Command::Deregister { name, address } => {
            client.services().deregister(&name, &address).await?;
            output.say(&json!({"deregistered": address}), format_args!("deregistered {address} from {name}"))
        }
        Command::List => list(&client.services().list().await?, output),
        Command::Describe { name } => describe(&client.services().describe(&name).await?, output),
        Command::Configure { name, balance, idempotent, add_idempotent, remove_idempotent, none_idempotent, force } => {
            let changes = !add_idempotent.is_empty() || !remove_idempotent.is_empty();
            let new: Vec<String> = idempotent.iter().chain(&add_idempotent).cloned().collect();
            if !force {
                known_methods(target, &new).await?;
            }
            let methods = if changes {
                let present = client.services().describe(&name).await?.service.unwrap_or_default().idempotent_methods;
                Some(changed(present, &add_idempotent, &remove_idempotent)?)
            } else {
                (none_idempotent || !idempotent.is_empty()).then_some(idempotent)
            };
            let service = client.services().configure(&name, balance.map(BalanceBy::into), methods).await?;
            output.say(&service_json(&service), format_args!("configured {name}: {}", settings(&service)))
        }
        Command::Delete { name, force } => {
            let described = client.services().describe(&name).await?;
            let (instances, name) = (described.instances.len(), described.service.unwrap_or_default().name);
            if instances > 0 && !force {
                let message = format!("service {name} has {instances} instances: deregister them, or give --force");
                return Err(Failure::failed(message));
            }
            client.services().delete(&name).await?;
            let object = json!({"deleted": name, "instances": instances});
            output.say(&object, format_args!("deleted service {name} and {instances} instances"))
        }
    }
}

/// The list of methods with some added and some taken out.
fn changed(present: Vec<String>, add: &[String], remove: &[String]) -> Result<Vec<String>, Failure> {
    if let Some(missing) = remove.iter().find(|method| !present.contains(method)) {
        let have = if present.is_empty() { "none".to_owned() } else { present.join(", ") };
        return Err(Failure::invalid(format!("{missing} is not in the list, which holds: {have}")));
    }
    let mut methods: Vec<String> = present.into_iter().filter(|method| !remove.contains(method)).collect();
    for method in add {
        if !methods.contains(method) {
            methods.push(method.clone());
        }
    }
    Ok(methods)
}

/// Asks the services, by reflection, whether they have these methods: a slip of the pen would protect no call.
async fn known_methods(target: &Target, methods: &[String]) -> Result<(), Failure> {
    if methods.is_empty() {
        return Ok(());
    }
    let channel = call::connect(&target.servers).await?;
    let metadata = call::metadata(&[], &target.namespace)?;
    for entry in methods {
        // What is no SERVICE/METHOD is the node's to refuse; SERVICE/* names no method.
        let Some((service, method)) = entry.split_once('/').filter(|(_, method)| *method != "*") else { continue };
        let asking = call::reflection::describe(channel.clone(), service, &metadata);
        let described = tokio::time::timeout(REFLECTION_PATIENCE, asking).await;
        let described =
            described.unwrap_or_else(|_| Err(Failure::late("its reflection did not answer", REFLECTION_PATIENCE)));
        let hint = format!("{entry} is not checked against the service; --force takes it as it is");
        let described = described.map_err(|failure| failure.and(&hint))?;
        call::find(&described, method).map_err(|failure| failure.and("--force takes it all the same"))?;
    }
    Ok(())
}

fn registered_json(registered: &RegisterInstanceResponse) -> Value {
    json!({
        "instance": registered.instance, "home": registered.home, "ttl_ms": registered.ttl_ms,
        "healthy": registered.healthy, "reason": registered.reason,
    })
}

fn health(registered: &RegisterInstanceResponse) -> String {
    match registered.healthy {
        true => "it is healthy".to_owned(),
        false => format!("it is not healthy, so no calls go to it until it passes its check: {}", registered.reason),
    }
}

fn builder(client: &Client, register: &RegisterService) -> Result<InstanceBuilder, Failure> {
    let mut instance = client
        .services()
        .instance(&register.name, &register.address)
        .grpc_services(register.grpc_services.iter().cloned())
        .weight(register.weight)
        .zone(register.zone.clone().unwrap_or_default())
        .ttl(register.ttl);
    for (name, value) in &register.metadata {
        instance = instance.metadata(name, value);
    }
    if register.tls {
        let ca = match &register.tls_ca {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| Failure::from(error).context(&format!("read {}", path.display())))?,
            None => String::new(),
        };
        instance = instance.tls(ca, register.tls_name.clone().unwrap_or_default());
    }
    let interval_ms = register.check_interval.map_or(0, |every| u32::try_from(every.as_millis()).unwrap_or(u32::MAX));
    Ok(instance.check(weft_sdk::HealthCheck { kind: Some(register.check.clone()), interval_ms, ..Default::default() }))
}

impl From<BalanceBy> for Balance {
    fn from(by: BalanceBy) -> Balance {
        match by {
            BalanceBy::LeastRequest => Balance::LeastRequest,
            BalanceBy::RoundRobin => Balance::RoundRobin,
            BalanceBy::Random => Balance::Random,
            BalanceBy::Weighted => Balance::Weighted,
        }
    }
}

fn balance_name(service: &Service) -> &'static str {
    match service.balance() {
        Balance::Unspecified | Balance::LeastRequest => "least-request",
        Balance::RoundRobin => "round-robin",
        Balance::Random => "random",
        Balance::Weighted => "weighted",
    }
}

/// What is set, in words.
fn settings(service: &Service) -> String {
    let methods = &service.idempotent_methods;
    let methods = if methods.is_empty() { "none".to_owned() } else { methods.join(", ") };
    format!("{}; may run more than once: {methods}", balance_name(service))
}

fn service_json(service: &Service) -> Value {
    json!({
        "name": service.name, "namespace": service.namespace, "grpc_services": service.grpc_services,
        "balance": balance_name(service), "idempotent_methods": service.idempotent_methods,
        "instances": service.instances, "instances_healthy": service.instances_healthy,
    })
}

fn list(services: &[Service], output: &mut Output) -> Result<(), Failure> {
    if output.json {
        return output.line(Value::from_iter(services.iter().map(service_json)));
    }
    let row = |service: &Service| {
        let healthy = format!("{} of {}", service.instances_healthy, service.instances);
        vec![service.name.clone(), healthy, balance_name(service).to_owned(), service.grpc_services.join(",")]
    };
    output.table(&["name", "healthy", "balance", "grpc services"], services.iter().map(row).collect())
}

fn instance_json(instance: &Instance) -> Value {
    json!({
        "id": instance.id, "address": instance.address, "tls": instance.tls, "weight": instance.weight,
        "zone": instance.zone, "metadata": instance.metadata, "home": instance.home, "healthy": instance.healthy,
        "reason": instance.reason, "registered_ms": instance.registered_ms, "ttl_ms": instance.ttl_ms,
        "check": instance.check.as_ref().map(check_name),
        "check_interval_ms": instance.check.as_ref().map(|check| check.interval_ms),
    })
}

/// A check as `--check` takes it.
fn check_name(check: &HealthCheck) -> String {
    match &check.kind {
        None | Some(Kind::Tcp(_)) => "tcp".to_owned(),
        Some(Kind::GrpcService(name)) if name.is_empty() => "grpc".to_owned(),
        Some(Kind::GrpcService(name)) => format!("grpc:{name}"),
        Some(Kind::HttpPath(path)) => format!("http:{path}"),
    }
}

/// What an instance was registered with, for people.
fn how(instance: &Instance) -> Vec<String> {
    let check = instance.check.as_ref().map_or_else(
        || "?".to_owned(),
        |check| format!("{} every {:?}", check_name(check), Duration::from_millis(check.interval_ms.into())),
    );
    let ttl = match instance.ttl_ms {
        0 => "none".to_owned(),
        ttl => format!("{:?}", Duration::from_millis(ttl.into())),
    };
    let sorted: BTreeMap<_, _> = instance.metadata.iter().collect();
    let metadata: Vec<String> = sorted.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    vec![check, ttl, metadata.join(",")]
}

fn describe(description: &ServiceDescription, output: &mut Output) -> Result<(), Failure> {
    let service = description.service.clone().unwrap_or_default();
    if output.json {
        let instances = Value::from_iter(description.instances.iter().map(instance_json));
        return output.line(json!({"service": service_json(&service), "instances": instances}));
    }
    output.line(format_args!(
        "{}: {}, gRPC {}",
        service.name,
        balance_name(&service),
        service.grpc_services.join(", ")
    ))?;
    if !service.idempotent_methods.is_empty() {
        output.line(format_args!("may run more than once: {}", service.idempotent_methods.join(", ")))?;
    }
    if description.instances.is_empty() {
        return output.line("no instances: weft service register adds one");
    }
    output.line("")?;
    let row = |instance: &Instance| {
        let health = if instance.healthy { "healthy".to_owned() } else { format!("out: {}", instance.reason) };
        let mut row = vec![
            instance.address.clone(),
            instance.home.clone(),
            instance.zone.clone(),
            instance.weight.to_string(),
            if instance.tls { "yes" } else { "no" }.to_owned(),
            health,
        ];
        row.extend(how(instance));
        row
    };
    let columns = ["address", "home", "zone", "weight", "tls", "health", "check", "ttl", "metadata"];
    output.table(&columns, description.instances.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_methods_is_changed_one_by_one() {
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let both = changed(of(&["a.B/C", "a.B/D"]), &of(&["a.B/E", "a.B/D"]), &of(&["a.B/C"]));
        assert_eq!(both.expect("it holds what is removed"), of(&["a.B/D", "a.B/E"]));
        let missing = changed(of(&["a.B/C"]), &[], &of(&["a.B/X"])).expect_err("it is not there").message;
        assert_eq!(missing, "a.B/X is not in the list, which holds: a.B/C");
    }

    #[test]
    fn an_instance_shows_how_it_is_checked() {
        let check = HealthCheck { kind: Some(Kind::HttpPath("/z".into())), interval_ms: 2_000, ..Default::default() };
        let metadata = [("b", "2"), ("a", "1")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let instance = Instance { check: Some(check), ttl_ms: 0, metadata: metadata.into(), ..Default::default() };
        assert_eq!(how(&instance), ["http:/z every 2s", "none", "a=1,b=2"]);
        assert_eq!(instance_json(&instance)["check"], "http:/z");
    }

    #[test]
    fn a_registration_says_whether_calls_go_there() {
        let well =
            RegisterInstanceResponse { instance: 3, home: "n1".into(), ttl_ms: 0, healthy: true, ..Default::default() };
        assert_eq!((health(&well).as_str(), &registered_json(&well)["healthy"]), ("it is healthy", &Value::Bool(true)));
        let sick = RegisterInstanceResponse { healthy: false, reason: "connection refused".into(), ..well };
        assert!(health(&sick).ends_with("until it passes its check: connection refused"));
        let object = registered_json(&sick);
        assert_eq!((&object["healthy"], &object["reason"]), (&json!(false), &json!("connection refused")));
    }
}
