//! A cluster of `weft start` processes on loopback.

use std::fs::{self, File, OpenOptions};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_sdk::Client;

/// How long a cluster may take to become healthy.
const HEALTHY_MAX: Duration = Duration::from_secs(60);

/// The processes and their folders; dropped, all are killed and, unless kept, the folders removed.
pub struct Cluster {
    nodes: Vec<Node>,
    dir: TempDir,
    /// Variables that the nodes are started with.
    variables: Vec<(String, String)>,
    /// The nodes' data folders, where they are not in `dir`.
    folders: Vec<PathBuf>,
    /// Descriptors that each node may have (`ulimit -n`), if they are bounded.
    descriptors: Option<u32>,
}

/// One node: what it takes to start it, again and again.
struct Node {
    name: String,
    listen: String,
    peer: String,
    admin: String,
    process: Option<Child>,
}

impl Cluster {
    /// Makes a CA and `count` nodes, starts them and waits until the cluster is healthy.
    pub async fn start(count: usize) -> Result<Cluster> {
        Cluster::start_with(count, &[]).await
    }

    /// The same, the nodes with these `WEFT_*` variables.
    pub async fn start_with(count: usize, variables: &[(&str, &str)]) -> Result<Cluster> {
        Cluster::start_at(count, variables, &[]).await
    }

    /// The same, each node with at most so many descriptors.
    pub async fn start_bounded(count: usize, variables: &[(&str, &str)], descriptors: u32) -> Result<Cluster> {
        Cluster::start_as(count, variables, &[], Some(descriptors)).await
    }

    /// The same, the first nodes with these data folders.
    pub async fn start_at(count: usize, variables: &[(&str, &str)], folders: &[PathBuf]) -> Result<Cluster> {
        Cluster::start_as(count, variables, folders, None).await
    }

    async fn start_as(
        count: usize,
        variables: &[(&str, &str)],
        folders: &[PathBuf],
        descriptors: Option<u32>,
    ) -> Result<Cluster> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let dir = TempDir::with_prefix("weft-e2e-").context("make a folder for the nodes")?;
        let mut ports = free_ports(3 * count)?.into_iter().map(|port| format!("127.0.0.1:{port}"));
        let mut address = || ports.next().context("a free port");
        let mut nodes = Vec::new();
        for number in 1..=count {
            let name = format!("n{number}");
            nodes.push(Node { name, listen: address()?, peer: address()?, admin: address()?, process: None });
        }
        let mut cluster = Cluster { nodes, dir, variables, folders: folders.to_vec(), descriptors };
        cluster.make_certificates()?;
        for index in 0..count {
            cluster.start_node(index)?;
        }
        cluster.wait_healthy(HEALTHY_MAX).await?;
        Ok(cluster)
    }

    fn make_certificates(&self) -> Result<()> {
        let folder = self.dir.path().join("ca");
        let folder = folder.to_str().context("a folder with a plain name")?;
        weft(&["ca", "init", "--dir", folder])?;
        for node in &self.nodes {
            weft(&["ca", "issue", &node.name, "--dir", folder, "--ip", "127.0.0.1"])?;
        }
        Ok(())
    }

    /// Starts (or starts again) a node.
    pub fn start_node(&mut self, index: usize) -> Result<()> {
        let root = self.dir.path();
        let expect = self.nodes.len().to_string();
        let seeds: Vec<String> = self.nodes.iter().map(|node| node.peer.clone()).collect();
        let folder = self.folder(index);
        let node = &mut self.nodes[index];
        let log = OpenOptions::new().create(true).append(true).open(root.join(format!("{}.log", node.name)))?;
        let mut command = match self.descriptors {
            None => Command::new(binary()?),
            // The shell becomes the node, so that the process id is the node's.
            Some(count) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {count}; exec \"$0\" \"$@\"")]).arg(binary()?);
                shell
            }
        };
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.args(["start", "--name", &node.name]).arg("--dir").arg(folder);
        command.args(["--listen", &node.listen, "--peer-listen", &node.peer, "--admin-listen", &node.admin]);
        for (other, seed) in seeds.iter().enumerate() {
            if other != index {
                command.args(["--seed", seed]);
            }
        }
        command.args(["--bootstrap-expect", &expect]);
        command.arg("--ca-cert").arg(root.join("ca/ca.pem"));
        command.arg("--cert").arg(root.join(format!("ca/{}.pem", node.name)));
        command.arg("--key").arg(root.join(format!("ca/{}.key", node.name)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        node.process = Some(command.spawn().context("start a node")?);
        Ok(())
    }

    /// The process ids of the nodes that run.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(|node| node.process.as_ref().map(Child::id)).collect()
    }

    /// The names of the nodes, in their order.
    pub fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// kill -9.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        if let Some(mut process) = self.nodes[index].process.take() {
            process.kill().context("kill a node")?;
            process.wait().context("reap a node")?;
        }
        Ok(())
    }

    /// SIGTERM, and waits until the node has ended by itself.
    ///
    /// # Errors
    /// It has not ended in `patience`, or not with exit code 0.
    pub async fn terminate(&mut self, index: usize, patience: Duration) -> Result<()> {
        let node = &mut self.nodes[index];
        let mut process = node.process.take().context("the node runs")?;
        let pid = i32::try_from(process.id()).ok().and_then(rustix::process::Pid::from_raw).context("its id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("tell a node to stop")?;
        let deadline = Instant::now() + patience;
        loop {
            match process.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("{} was told to stop and ended with {status}", node.name),
                None if Instant::now() > deadline => {
                    process.kill()?;
                    process.wait()?;
                    bail!("{} was told to stop and still ran after {patience:?}", node.name);
                }
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Waits until a node has ended by itself; returns its exit code.
    ///
    /// # Errors
    /// It runs on for `patience`, or was ended by a signal.
    pub async fn ended(&mut self, index: usize, patience: Duration) -> Result<i32> {
        let node = &mut self.nodes[index];
        let process = node.process.as_mut().context("the node was started")?;
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = process.try_wait()? {
                node.process = None;
                return status.code().with_context(|| format!("{} was ended by a signal", node.name));
            }
            if Instant::now() > deadline {
                bail!("{} still runs after {patience:?}", node.name);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A node's data folder.
    pub fn folder(&self, index: usize) -> PathBuf {
        self.folders.get(index).cloned().unwrap_or_else(|| self.dir.path().join(&self.nodes[index].name))
    }

    /// What a node has logged, over all its starts.
    pub fn log(&self, index: usize) -> Result<String> {
        let path = self.dir.path().join(format!("{}.log", self.nodes[index].name));
        fs::read_to_string(path).context("read a node's log")
    }

    /// What a node's admin port says of it.
    pub async fn metrics(&self, index: usize) -> Result<String> {
        let mut stream = TcpStream::connect(&self.nodes[index].admin).await.context("connect to the admin port")?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.context("read the metrics")?;
        Ok(text)
    }

    /// Waits until a live node says that every shard has an owner and every replica is caught up.
    pub async fn wait_healthy(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut last = String::from("no node has answered");
        while Instant::now() < deadline {
            self.check_alive()?;
            match self.healthy().await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        bail!("the cluster was not healthy after {patience:?}: {last}")
    }

    /// Whether every live node sees all live nodes, and the cluster as healthy.
    async fn healthy(&self) -> Result<bool> {
        let alive: Vec<&Node> = self.nodes.iter().filter(|node| node.process.is_some()).collect();
        for node in &alive {
            let client = Client::builder().servers([&node.listen]).patience(Duration::from_secs(1)).connect().await?;
            let status = client.cluster().status().await?;
            if !status.healthy || status.members_alive as usize != alive.len() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// An error with the end of the log if a node that should run has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        let root = self.dir.path().to_owned();
        for node in &mut self.nodes {
            let ended = node.process.as_mut().map(|process| process.try_wait()).transpose()?.flatten();
            if let Some(status) = ended {
                let log = fs::read_to_string(root.join(format!("{}.log", node.name))).unwrap_or_default();
                bail!("{} has ended with {status}; its last lines:\n{}", node.name, last_lines(&log, 15));
            }
        }
        Ok(())
    }

    /// Where operators connect, in the order of the nodes' numbers.
    pub fn admin_addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.admin.clone()).collect()
    }

    /// Where clients connect, in the order of the nodes' numbers.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.listen.clone()).collect()
    }

    /// Leaves the folders in place and says where they are.
    pub fn keep(&mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.dir.path().to_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for index in 0..self.nodes.len() {
            let _ = self.kill(index);
        }
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Ports that are free for TCP and UDP. The kernel gives none of them to anybody by itself, so that they stay free while
/// their node is down.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let first = std::process::id() % 100 * 200;
    let all = (0..20_000).map(|turn| 10_000 + ((first + turn) % 20_000) as u16);
    let free =
        |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok() && UdpSocket::bind(("127.0.0.1", *port)).is_ok();
    let found: Vec<u16> = all.filter(free).take(count).collect();
    if found.len() < count {
        bail!("{count} ports of 10000 to 29999 are wanted, and {} are free", found.len());
    }
    Ok(found)
}

/// The `weft` executable beside this one.
fn binary() -> Result<PathBuf> {
    let path = std::env::current_exe().context("find this executable")?.with_file_name("weft");
    if !path.exists() {
        bail!("{} is missing: run `cargo build --workspace --bins`", path.display());
    }
    Ok(path)
}

/// Runs `weft` and returns what it printed.
///
/// # Errors
/// With what it said on stderr if it exits with another code than 0.
pub fn weft(args: &[&str]) -> Result<String> {
    let output = Command::new(binary()?).args(args).output().context("start weft")?;
    if !output.status.success() {
        bail!("weft {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("weft prints UTF-8")
}

/// Opens a file of the repository, seen from its root.
pub fn repository_file(path: &str) -> Result<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("e2e is a folder of the repository")?;
    File::open(root.join(path)).with_context(|| format!("open {path}"))
}
