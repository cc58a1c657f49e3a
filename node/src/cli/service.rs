//! `weft service`.

use serde_json::{Value, json};
use weft_sdk::{Balance, Client, Instance, InstanceBuilder, RegisterInstanceResponse, Service, ServiceDescription};

use super::args::{BalanceBy, RegisterService, Service as Command};
use super::failure::Failure;
use super::output::Output;
use super::server;

pub(crate) async fn run(command: Command, servers: &[String], output: &mut Output) -> Result<(), Failure> {
    let client = server::connect(servers).await?;
    match command {
        Command::Register(register) => {
            let registered = builder(&client, &register)?.register_once().await?;
            let (service, address) = (&register.name, &register.address);
            let home = &registered.home;
            let sentence = format!("registered {address} as an instance of {service}; its home is {home}");
            output.say(&registered_json(&registered), format_args!("{sentence}; {}", health(&registered)))
        }
        Command::Deregister { name, address } => {
            client.services().deregister(&name, &address).await?;
            output.say(&json!({"deregistered": address}), format_args!("deregistered {address} from {name}"))
        }
        Command::List => list(&client.services().list().await?, output),
        Command::Describe { name } => describe(&client.services().describe(&name).await?, output),
        Command::Configure { name, balance, idempotent, none_idempotent } => {
            let methods = (none_idempotent || !idempotent.is_empty()).then_some(idempotent);
            let service = client.services().configure(&name, balance.map(BalanceBy::into), methods).await?;
            output.say(&service_json(&service), format_args!("configured {name}: {}", balance_name(&service)))
        }
    }
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
        "reason": instance.reason, "registered_ms": instance.registered_ms,
    })
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
        vec![
            instance.address.clone(),
            instance.home.clone(),
            instance.zone.clone(),
            instance.weight.to_string(),
            if instance.tls { "yes" } else { "no" }.to_owned(),
            health,
        ]
    };
    let columns = ["address", "home", "zone", "weight", "tls", "health"];
    output.table(&columns, description.instances.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

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
