//! The Python programs of this folder: an ordinary gRPC server and client.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// What the programs import.
const IMPORTS: &str = "import grpc, grpc_status, grpc_health, grpc_reflection";

/// A Python that has what the programs need.
pub(crate) struct Python(PathBuf);

impl Python {
    /// Finds one, or makes a virtual environment in the target folder.
    ///
    /// # Errors
    /// It can neither be found nor made: why.
    pub(crate) fn find() -> Result<Python> {
        let own = own_folder()?.join("bin/python");
        for candidate in [own.clone(), PathBuf::from("python3")] {
            if fits(&candidate) {
                return Ok(Python(candidate));
            }
        }
        eprintln!("no Python with gRPC is here: making one in {}", own_folder()?.display());
        install().context("install Python's gRPC")?;
        ensure!(fits(&own), "{} was installed, but cannot `{IMPORTS}`", own.display());
        Ok(Python(own))
    }

    fn command(&self, program: &str) -> Result<Command> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
        let mut command = Command::new(&self.0);
        command.arg("-B").arg(folder.join(program));
        Ok(command)
    }

    /// Starts the server; it notes its calls in `directory/calls-NAME`.
    pub(crate) fn server(&self, name: &str, directory: &Path, spoil: &str) -> Result<Server> {
        let log = File::create(directory.join(format!("server-{name}.log")))?;
        let mut command = self.command("server.py")?;
        command.arg("--calls").arg(directory.join(format!("calls-{name}"))).args(["--name", name, "--spoil", spoil]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let mut port = String::new();
        BufReader::new(process.stdout.take().context("its stdout")?).read_line(&mut port)?;
        let port: u16 = port.trim().parse().with_context(|| format!("server {name} did not start"))?;
        Ok(Server { address: format!("127.0.0.1:{port}"), process })
    }

    /// Starts the client with these arguments.
    pub(crate) fn client(&self, arguments: &[&str]) -> Result<Client> {
        let mut command = self.command("client.py")?;
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        Ok(Client { process: command.spawn().context("start the client")? })
    }
}

/// A server that runs; dropped, it is killed.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: String,
    process: Child,
}

impl Server {
    /// kill -9.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill().context("kill a server")?;
        self.process.wait().context("reap a server")?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// A client that runs; dropped, it is killed.
pub(crate) struct Client {
    process: Child,
}

/// One call of the client's load.
#[derive(Debug, Deserialize)]
pub(crate) struct Call {
    pub(crate) id: String,
    /// A gRPC status by name.
    pub(crate) status: String,
    /// Weft's error code, or what the status says.
    pub(crate) detail: String,
    /// When it ended, since the load began.
    pub(crate) at_ms: u64,
    pub(crate) took_ms: f64,
}

impl Client {
    /// Its stdin; closed, a load without an end ends.
    pub(crate) fn stdin(&mut self) -> Option<ChildStdin> {
        self.process.stdin.take()
    }

    /// Waits for its end and reads the lines that it has printed.
    pub(crate) fn lines<T: serde::de::DeserializeOwned>(mut self) -> Result<Vec<T>> {
        let mut text = String::new();
        self.process.stdout.take().context("its stdout is read once")?.read_to_string(&mut text)?;
        let status = self.process.wait()?;
        ensure!(status.success(), "the client ended with {status}");
        text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("read {line:?}"))).collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether this is a machine of the checks alone.
pub(crate) fn in_ci() -> bool {
    std::env::var("CI").as_deref() == Ok("true")
}

fn fits(python: &Path) -> bool {
    let mut command = Command::new(python);
    let status = command.args(["-c", IMPORTS]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    status.status().is_ok_and(|status| status.success())
}

/// A virtual environment in the target folder.
fn own_folder() -> Result<PathBuf> {
    let executable = std::env::current_exe().context("find this executable")?;
    let target = executable.parent().and_then(Path::parent).context("the executable is in a target folder")?;
    Ok(target.join("e2e-python"))
}

fn install() -> Result<()> {
    let folder = own_folder()?;
    let make = |folder: &Path| run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder));
    if let Err(error) = make(&folder) {
        // Debian's python3 comes without venv. Packages of a person's own machine are not ours to change.
        if !in_ci() {
            return Err(error.context("make a virtual environment: python3 with its venv is needed"));
        }
        run(Command::new("apt-get").args(["-q", "update"]))?;
        let packages = ["install", "-q", "-y", "--no-install-recommends", "python3", "python3-venv"];
        run(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(packages))?;
        make(&folder)?;
    }
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/requirements.txt");
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    run(Command::new(folder.join("bin/python")).args(pip).arg(requirements))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{:?} {:?} ended with {status}", command.get_program(), command.get_args().collect::<Vec<_>>());
    }
    Ok(())
}
