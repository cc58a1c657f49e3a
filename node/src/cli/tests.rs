use clap::{CommandFactory, Parser};

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_commands_are_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn commands_that_scripts_rely_on_are_understood() {
    for line in [
        "weft dev",
        "weft dev --nodes 1 --dir /tmp/x --port 9000",
        "weft start --config weft.toml --name n1 --dir d --listen 127.0.0.1:7400 --peer-listen 127.0.0.1:7401 \
         --admin-listen 127.0.0.1:7403 --seed 127.0.0.1:7411 127.0.0.1:7421 --bootstrap-expect 3 --ca-cert ca.pem \
         --cert n1.pem --key n1.key",
        "weft start --seed 127.0.0.1:7411 --seed 127.0.0.1:7421 --set link.mtu=1400",
        "weft --server 127.0.0.1:7410 topic create flights --partitions 8",
        "weft topic list --json",
        "weft topic describe flights",
        "weft topic dump flights --json",
        "weft topic delete flights",
        "weft topic delete flights --yes",
        "weft topic create flights --if-not-exists --namespace blue",
        "weft --namespace blue service list",
        "weft service delete shop.Cart --force",
        "weft service configure shop.Cart --add-idempotent a.B/C --remove-idempotent a.B/D --force",
        "weft ca issue n1 --days 30",
        "weft config check --name n1 --listen 127.0.0.1:7400",
        "weft group list",
        "weft group list flights --json",
        "weft group describe flights g",
        "weft group delete flights g",
        "weft publish flights --key k --data d --json",
        "weft publish flights --file data.bin",
        "weft publish flights --csv flights.csv --key-column tailnum --ack accepted",
        "weft publish flights --json-lines - --ack committed",
        "weft publish flights --lines - --key k",
        "weft subscribe flights --from earliest --raw",
        "weft publish flights --csv f --from-row 7 --patience 90s",
        "weft publish flights --data d --patience 5",
        "weft --server http://127.0.0.1:7400/ version",
        "weft subscribe flights --group g --from earliest --count 10 --json",
        "weft subscribe flights --from 17",
        "weft cluster members",
        "weft cluster status --json",
        "weft cluster shards",
        "weft cluster transfer 3 n2",
        "weft service register shop.Cart --address 127.0.0.1:80 --check grpc",
        "weft service register shop --grpc-service a.B --grpc-service a.C --address h:80 --check http:/z --ttl 10s",
        "weft service register a.B --address h:80 --tls --tls-ca f --tls-name n --metadata a=b --weight 7 --zone z",
        "weft service deregister shop.Cart --address 127.0.0.1:80",
        "weft service list",
        "weft service describe shop.Cart --json",
        "weft service configure shop.Cart --balance weighted --idempotent shop.Cart/*",
        "weft call shop.Cart",
        "weft call shop.Cart/Get --json {\"id\":1} --header a=b --timeout 2s",
        "weft call shop.Cart/Import --json -",
        "weft completion bash",
        "weft ca init --dir ca",
        "weft ca issue n1 --dir ca --ip 127.0.0.1",
        "weft config check --config weft.toml",
        "weft config show",
        "weft shard dump --dir d",
        "weft version",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn wrong_commands_are_refused_on_one_line() {
    for (line, why) in [
        ("weft publish flights", "required"),
        ("weft publish flights --data a --file b", "cannot be used with"),
        ("weft publish flights --csv f --key k", "cannot be used with"),
        ("weft publish flights --data d --from-row 2", "cannot be used with"),
        ("weft publish flights --data d --patience soon", "5s, 500ms or 1m"),
        ("weft --server nonsense version", "write host:port"),
        ("weft subscribe flights --from yesterday", "`earliest`, `now` or an offset"),
        ("weft topic create", "NAME"),
        ("weft ca issue n1 --days 0", "1..=36500"),
        ("weft service configure s --idempotent a.B/C --add-idempotent a.B/D", "cannot be used with"),
        ("weft cluster transfer x n1", "invalid"),
        ("weft dev --nodes 0", "1..=9"),
        ("weft service register a.B --address h:1 --check http:z", "http:/PATH"),
        ("weft service register a.B --address h:1 --tls-ca f", "--tls"),
        ("weft service register a.B --address h:1 --metadata =v", "NAME=VALUE"),
        ("weft tpic list", "tpic"),
    ] {
        let error = parse(line).expect_err(line);
        let failure = Failure::usage(&error);
        assert!(failure.message.contains(why), "{line}: {}", failure.message);
        assert!(!failure.message.contains('\n'));
    }
}

#[test]
fn servers_come_as_lists_or_repeated() {
    let cli = parse("weft --server a:1,b:1 --server c:1 version").unwrap();
    assert_eq!(cli.server, ["a:1", "b:1", "c:1"]);
}

#[test]
fn failures_are_objects_for_machines() {
    let failure = Failure::from(weft_sdk::Error::Unreachable("n1".into()));
    assert_eq!(failure.json()["code"], "NOT_READY");
    assert_eq!(failure.json()["retry"], "SAME");
}

#[test]
fn json_is_a_flag_but_takes_the_message_of_a_call() {
    assert_eq!(parse("weft topic list --json").unwrap().json.as_deref(), Some(""));
    assert_eq!(parse("weft --json topic list").unwrap().json.as_deref(), Some(""));
    assert_eq!(parse("weft topic list").unwrap().json, None);
    for before in ["weft --json call a.B/C", "weft call a.B/C --json", "weft --json call a.B/C --json {}"] {
        let cli = parse(before).unwrap_or_else(|error| panic!("{before}: {error}"));
        assert!(cli.json.is_some(), "{before}");
        let Command::Call(call) = cli.command else { panic!("a call") };
        assert!(matches!(call.json.as_deref(), Some("" | "{}")), "{before}: {:?}", call.json);
    }
    let Command::Call(call) = parse("weft call a.B/C --json {}").unwrap().command else { panic!("a call") };
    assert_eq!(call.json.as_deref(), Some("{}"));
}
