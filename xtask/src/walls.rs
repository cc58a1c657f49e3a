//! The walls: what Cargo and the compiler do not hold by themselves is read from the sources here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::bans;
use crate::stages::root;

/// The one file that may hold unsafe code.
const UNSAFE_FILE: &str = "sim-tests/src/entropy.rs";
/// The one folder that may name openraft.
const RAFT_FOLDER: &str = "node/src/drivers/raft";

/// Checks every wall and lists all that is broken, one line each.
pub(crate) fn check() -> Result<()> {
    let sources = sources()?;
    let mut broken = Vec::new();
    core_is_free_of_tokio(&mut broken)?;
    for source in &sources {
        gateways_stand_alone(source, &mut broken);
        drivers_know_no_gateway(source, &mut broken);
        openraft_stays_in_its_folder(source, &mut broken);
        unsafe_stays_in_its_file(source, &mut broken);
    }
    bans_are_in_place(&mut broken)?;
    nothing_of_this_machine(&mut broken)?;
    if broken.is_empty() {
        println!("walls: {} files keep them", sources.len());
        return Ok(());
    }
    bail!("walls broken:\n  {}", broken.join("\n  "))
}

/// A Rust file: its path from the root, and its lines without comments.
struct Source {
    path: String,
    lines: Vec<String>,
}

impl Source {
    fn say(&self, line: usize, what: &str) -> String {
        format!("{}:{}: {what}", self.path, line + 1)
    }

    /// The lines of `use` items, with all of a list that spans lines joined to its first.
    fn uses(&self) -> Vec<(usize, String)> {
        let mut found: Vec<(usize, String)> = Vec::new();
        let mut open = false;
        for (number, line) in self.lines.iter().enumerate() {
            let code = line.trim();
            let starts = code.starts_with("use ") || (code.starts_with("pub") && code.contains(" use "));
            if starts {
                found.push((number, code.to_owned()));
            } else if let (true, Some(last)) = (open, found.last_mut()) {
                last.1.push_str(code);
            }
            if starts || open {
                open = !code.ends_with(';');
            }
        }
        found
    }
}

fn core_is_free_of_tokio(broken: &mut Vec<String>) -> Result<()> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["tree", "-p", "weft-cluster", "-e", "normal", "--prefix", "none"])
        .current_dir(root())
        .output()
        .context("start cargo tree")?;
    if !output.status.success() {
        bail!("cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    }
    let tree = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = tree.lines().find(|line| line.starts_with("tokio")) {
        broken.push(format!("weft-cluster depends on {line}"));
    }
    Ok(())
}

fn gateways_stand_alone(source: &Source, broken: &mut Vec<String>) {
    let Some(inside) = source.path.strip_prefix("node/src/gateways/") else { return };
    let own = inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs");
    if own == "mod" {
        return;
    }
    let others: Vec<String> = gateways().into_iter().filter(|name| name != own).collect();
    for (number, line) in source.uses() {
        let Some(at) = line.find("gateways::") else { continue };
        let rest = &line[at + "gateways::".len()..];
        if others.iter().any(|other| words(rest).any(|word| word == other)) {
            broken.push(source.say(number, "a gateway imports another gateway"));
        }
    }
}

/// The names of the gateways: the files and folders in their folder.
fn gateways() -> Vec<String> {
    let Ok(entries) = fs::read_dir(root().join("node/src/gateways")) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().trim_end_matches(".rs").to_owned())
        .filter(|name| name != "mod" && name != "tests")
        .collect();
    names.sort();
    names
}

fn drivers_know_no_gateway(source: &Source, broken: &mut Vec<String>) {
    if !source.path.starts_with("node/src/drivers/") {
        return;
    }
    for (number, line) in source.lines.iter().enumerate() {
        if line.contains("gateways::") {
            broken.push(source.say(number, "a driver names a gateway"));
        }
    }
}

fn openraft_stays_in_its_folder(source: &Source, broken: &mut Vec<String>) {
    if source.path.starts_with(RAFT_FOLDER) || source.path.starts_with("xtask/") {
        return;
    }
    for (number, line) in source.lines.iter().enumerate() {
        if words(line).any(|word| word.starts_with("openraft")) {
            broken.push(source.say(number, "openraft is named outside its folder"));
        }
    }
}

fn unsafe_stays_in_its_file(source: &Source, broken: &mut Vec<String>) {
    if source.path == UNSAFE_FILE || source.path.starts_with("xtask/") {
        return;
    }
    for (number, line) in source.lines.iter().enumerate() {
        if words(line).any(|word| word == "unsafe") {
            broken.push(source.say(number, "unsafe code outside its file"));
        }
    }
}

fn bans_are_in_place(broken: &mut Vec<String>) -> Result<()> {
    for folder in ["cluster", "node"] {
        let path = root().join(folder).join("clippy.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        for ban in bans::METHODS.iter().chain(bans::TYPES) {
            if !text.contains(&format!("path = \"{ban}\"")) {
                broken.push(format!("{folder}/clippy.toml does not ban {ban}"));
            }
        }
    }
    Ok(())
}

/// Nothing that is committed may name folders of a developer's machine, or packages from more than the one registry.
fn nothing_of_this_machine(broken: &mut Vec<String>) -> Result<()> {
    let folders = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/tm", "p/wt/"), concat!("/tm", "p/weft-")];
    for path in tracked()? {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        let is_lock = path.ends_with("Cargo.lock");
        let mut registry: Option<&str> = None;
        for (number, line) in text.lines().enumerate() {
            if folders.iter().any(|folder| line.contains(folder)) {
                broken.push(format!("{path}:{}: names a folder of a machine", number + 1));
            }
            if is_lock && line.starts_with("source = ") && *registry.get_or_insert(line) != line {
                broken.push(format!("{path}:{}: a package from another source than the others", number + 1));
            }
        }
        if path.starts_with(".cargo/") && (text.contains("[source") || text.contains("[registries")) {
            broken.push(format!("{path}: names a registry"));
        }
    }
    Ok(())
}

fn tracked() -> Result<Vec<String>> {
    let output = Command::new("git").args(["ls-files"]).current_dir(root()).output().context("start git ls-files")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

fn sources() -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for folder in ["proto", "cluster", "node", "sim-tests", "sdk/rust", "bench", "e2e", "xtask"] {
        collect(&root().join(folder), &mut found)?;
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn collect(folder: &Path, found: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path: PathBuf = entry?.path();
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned()).collect();
            let path = path.strip_prefix(root()).unwrap_or(&path).to_string_lossy().into_owned();
            found.push(Source { path, lines });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), lines: text.lines().map(str::to_owned).collect() }
    }

    #[test]
    fn the_walls_stand() {
        check().expect("the walls stand");
    }

    #[test]
    fn every_wall_notices_a_hole() {
        let mut broken = Vec::new();
        drivers_know_no_gateway(&source("node/src/drivers/x.rs", "use crate::gateways::peer;"), &mut broken);
        openraft_stays_in_its_folder(&source("node/src/lib.rs", "use openraft::Raft;"), &mut broken);
        unsafe_stays_in_its_file(&source("node/src/lib.rs", "unsafe { x() }"), &mut broken);
        assert_eq!(broken.len(), 3, "{broken:?}");
        openraft_stays_in_its_folder(&source("node/src/drivers/raft/x.rs", "use openraft::Raft;"), &mut broken);
        unsafe_stays_in_its_file(&source("node/src/lib.rs", "#![forbid(unsafe_code)]"), &mut broken);
        assert_eq!(broken.len(), 3, "{broken:?}");
    }

    #[test]
    fn a_use_list_over_lines_is_read_whole() {
        let lines = source("a.rs", "use a::{\n    b,\n    gateways::x,\n};\nfn f() {}").uses();
        assert_eq!(lines, vec![(0, "use a::{b,gateways::x,};".to_owned())]);
    }
}
