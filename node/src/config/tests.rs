#![allow(clippy::disallowed_methods, reason = "a test reads deploy/weft.toml")]

use std::collections::BTreeMap;

use super::*;

fn file(text: &str) -> Sources {
    Sources { file: Some(("weft.toml".into(), text.into())), ..Sources::default() }
}

fn refusal(sources: &Sources) -> String {
    load(sources).expect_err("it must be refused").to_string()
}

#[test]
fn wrong_files_are_refused_with_file_key_and_what_would_be_right() {
    let cases = [
        ("[link]\nmut = 1452", vec!["weft.toml: link.mut:", "did you mean `link.mtu`?"]),
        ("[lnk]\nmtu = 1452", vec!["weft.toml: lnk:", "did you mean `link`?"]),
        ("[link]\nmtu = 9000", vec!["link.mtu", "6500"]),
        ("[link]\nmtu = \"big\"", vec!["weft.toml: link.mtu:", "`big`", "1452"]),
        ("[link]\nmtu = 70000", vec!["weft.toml: link.mtu:", "70000"]),
        ("[link]\nsuspect_after = \"600 parsecs\"", vec!["weft.toml: link.suspect_after:", "600ms"]),
        ("[link]\nsocket_buffer = \"4 bananas\"", vec!["weft.toml: link.socket_buffer:", "4.0 MiB"]),
        ("[node]\nlisten = \"localhost\"", vec!["weft.toml: node.listen:", "0.0.0.0:7400"]),
        ("[node]\nseeds = [\"10.0.0.1\"]", vec!["node.seeds:", "`10.0.0.1` is not host:port"]),
        ("[node]\nadvertise = \"a b:1\"", vec!["node.advertise:", "not host:port"]),
        ("[node]\nname = \"a b\"", vec!["node.name:", "a-z"]),
        ("[node]\npeer_listen = \"127.0.0.1:7400\"", vec!["node.peer_listen:", "taken by node.listen"]),
        ("[node]\nweight = 0", vec!["node.weight:", "1 to 10,000"]),
        ("[raft]\nshards = 48", vec!["raft.shards:", "power of two", "64"]),
        ("[raft]\nreplication = 2", vec!["raft.replication:", "1, 3, 5 or 7"]),
        ("[log]\nformat = \"xml\"", vec!["weft.toml: log.format:", "`xml`", "`text`", "`json`"]),
        ("[api]\nmessage_bytes_max = \"1 KiB\"", vec!["api.message_bytes_max", "1.0 KiB", "9.0 MiB"]),
        ("[[services]]\nname = \"shop.Cart\"", vec!["services[0]:", "host:port"]),
        ("[[services]]\nname = \"shop.Cart\"\nadress = \"h:1\"", vec!["services", "adress"]),
        ("[[services]]\nname = \"s\"\naddress = \"h:1\"\ncheck = \"ping\"", vec!["services[0]:", "grpc:NAME"]),
        ("[[services]]\nname = \"s\"\naddress = \"h:1\"\ntls_name = \"h\"", vec!["services[0]:", "tls"]),
        (
            "[[services]]\nname=\"s\"\naddress=\"h:1\"\n[[services]]\nname=\"s\"\naddress=\"h:1\"",
            vec!["services[1]:", "twice"],
        ),
        ("[node\nname = 1", vec!["weft.toml:", "not TOML"]),
    ];
    for (text, wanted) in cases {
        let refusal = refusal(&file(text));
        for part in wanted {
            assert!(refusal.contains(part), "`{part}` is missing from: {refusal}");
        }
        assert!(!refusal.contains('\n'), "one line: {refusal}");
    }
}

#[test]
fn flags_win_over_variables_and_these_over_the_file() {
    let mut sources = file("[node]\nname = \"a\"\nzone = \"z1\"\n[link]\nmtu = 1300");
    sources.variables = vec![
        ("HOME".into(), "/root".into()),
        ("WEFT_SERVER".into(), "127.0.0.1:7400".into()),
        ("WEFT_NODE__ZONE".into(), "z2".into()),
        ("WEFT_LINK__MTU".into(), "1400".into()),
        ("WEFT_NODE__SEEDS".into(), "10.0.0.1:7401,10.0.0.2:7401".into()),
        ("WEFT_NODE__STOP_PATIENCE".into(), "3s".into()),
    ];
    sources.flags = vec![
        ("--set".into(), "link.mtu".into(), "1500".into()),
        ("--listen".into(), "node.listen".into(), "127.0.0.1:7500".into()),
        ("--name".into(), "node.name".into(), "7".into()),
    ];
    let config = load(&sources).unwrap();
    assert_eq!((config.node.name.as_str(), config.node.zone.as_str(), config.link.mtu), ("7", "z2", 1500));
    assert_eq!(config.node.seeds, ["10.0.0.1:7401", "10.0.0.2:7401"]);
    assert_eq!(config.node.listen.to_string(), "127.0.0.1:7500");
    assert_eq!(config.node.stop_patience, std::time::Duration::from_secs(3));
}

#[test]
fn wrong_variables_and_flags_are_named() {
    let variable = |name: &str, text: &str| {
        refusal(&Sources { variables: vec![(name.into(), text.into())], ..Sources::default() })
    };
    assert!(variable("WEFT_LINK__MTU", "big").starts_with("WEFT_LINK__MTU: link.mtu: "));
    assert!(variable("WEFT_LINK__MUT", "1400").contains("did you mean `link.mtu`?"));
    assert!(variable("WEFT_LINK_MTU", "1400").contains("write WEFT_LINK__MTU"));
    let flags = vec![("--listen".into(), "node.listen".into(), "nowhere".into())];
    assert!(refusal(&Sources { flags, ..Sources::default() }).starts_with("--listen: node.listen: "));
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let mut sources = file(
        "[node]\nlisten = \"nowhere\"\npeer_listen = \"127.0.0.1:7400\"\nweight = 0\n[link]\nmut = 1\nmtu = 9000\n[raft]\n\
         shards = 48\n[[services]]\nname = \"s\"",
    );
    sources.variables = vec![("WEFT_LINK_MTU".into(), "1400".into())];
    sources.flags = vec![("--set".into(), "foo.bar".into(), "1".into()), ("--set".into(), "link".into(), "1".into())];
    let faults = load_or_faults(&sources).expect_err("all wrong");
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    for part in [
        "WEFT_LINK_MTU: link.mtu: write WEFT_LINK__MTU",
        "--set: foo.bar: there is no such key; `weft config show` prints all of them",
        "--set: link: is a section: name a key of it, for example `link.",
        "weft.toml: node.listen:",
        "weft.toml: link.mut: there is no such key; did you mean `link.mtu`?",
        "node.weight: is 0",
        "link.mtu",
        "raft.shards: is 48",
        "services[0]:",
    ] {
        assert!(faults.iter().any(|fault| fault.contains(part)), "`{part}` is missing from: {faults:#?}");
    }
    assert_eq!(faults.len(), 9, "{faults:#?}");
    load_or_faults(&file("[node]\nname = \"a\"")).expect("nothing is wrong");
}

#[test]
fn the_file_in_deploy_holds_every_key_with_its_default_and_a_sentence() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/weft.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let leaves = |value: &toml::Value| {
        let mut keys = BTreeMap::new();
        check::collect("", value, &mut keys);
        keys
    };
    let config = load(&file(&text)).unwrap();
    let read = leaves(&toml::Value::try_from(&config).unwrap());
    assert_eq!(read, leaves(&toml::Value::try_from(Config::default()).unwrap()), "values are the defaults");
    let written: Vec<String> = leaves(&text.parse::<toml::Table>().unwrap().into()).into_keys().collect();
    assert_eq!(written, check::keys(), "every key is in the file");
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(" = ")) {
        let above = number.checked_sub(1).map_or("", |above| lines[above]);
        assert!(line.starts_with('#') || above.starts_with("# "), "a sentence above: {line}");
    }
}
