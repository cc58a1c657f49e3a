//! The ways from client to echo: direct, through Weft, and through other proxies if they are installed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use weft_e2e::cluster::{Cluster, weft};

use super::echo;

/// How long a way may take to answer its first call.
const ANSWERS_MAX: Duration = Duration::from_secs(20);

/// One way: its name, where it begins, and the processes between client and echo.
pub(super) struct Way {
    pub(super) name: &'static str,
    pub(super) address: String,
    pub(super) processes: Vec<u32>,
}

/// All ways, and what keeps them open.
pub(super) struct Ways {
    pub(super) all: Vec<Way>,
    _cluster: Cluster,
    _processes: Vec<Process>,
    _folder: TempDir,
}

impl Ways {
    /// Starts the echo, a cluster of three nodes whose first is the echo's home, and nginx and HAProxy where they are
    /// found.
    pub(super) async fn open() -> Result<Ways> {
        let folder = TempDir::with_prefix("weft-bench-calls-").context("make a folder for configurations")?;
        let (echo, address) = start_echo()?;
        let cluster = Cluster::start(3).await?;
        let nodes = cluster.addresses();
        let register = ["--server", &nodes[0], "service", "register", echo::SERVICE, "--address", &address];
        weft(&[&register[..], &["--check", "tcp"]].concat())?;
        let mut processes = vec![echo];
        let mut all = vec![Way { name: "direct", address: address.clone(), processes: Vec::new() }];
        for (name, start) in [("nginx", start_nginx as fn(&Path, &str) -> _), ("HAProxy", start_haproxy)] {
            match start(folder.path(), &address) {
                Ok((process, address)) => {
                    all.push(Way { name, address, processes: process.tree() });
                    processes.push(process);
                }
                Err(error) => eprintln!("{name} is left out: {error:#}"),
            }
        }
        for (name, node) in [("Weft, one hop", &nodes[0]), ("Weft, two hops", &nodes[1])] {
            all.push(Way { name, address: node.clone(), processes: cluster.pids() });
        }
        for way in &mut all {
            answers(way).await?;
        }
        // Workers may have been started by the first call.
        for (way, process) in all.iter_mut().skip(1).zip(processes.iter().skip(1)) {
            way.processes = process.tree();
        }
        Ok(Ways { all, _cluster: cluster, _processes: processes, _folder: folder })
    }
}

async fn answers(way: &Way) -> Result<()> {
    let deadline = Instant::now() + ANSWERS_MAX;
    loop {
        let called = async { echo::connect(&way.address).await?.unary("first".into()).await };
        match called.await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error.context(format!("the way {}", way.name))),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A process that is killed when it is dropped.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Result<Process> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("start {name}"))?;
        Ok(Process(child))
    }

    /// Its id and those of its children.
    fn tree(&self) -> Vec<u32> {
        let id = self.0.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        std::iter::once(id).chain(children.split_whitespace().filter_map(|child| child.parse().ok())).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for id in self.tree() {
            let pid = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw);
            let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
        }
        let _ = self.0.wait();
    }
}

fn start_echo() -> Result<(Process, String)> {
    let executable = std::env::current_exe().context("find this executable")?;
    let mut process = Process::start(Command::new(executable).arg("echo").stdout(Stdio::piped()))?;
    let mut port = String::new();
    BufReader::new(process.0.stdout.take().context("its stdout")?).read_line(&mut port)?;
    Ok((process, format!("127.0.0.1:{}", port.trim())))
}

fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0").context("find a free port")?.local_addr()?.to_string())
}

fn start_nginx(folder: &Path, echo: &str) -> Result<(Process, String)> {
    let address = free_address()?;
    let root = folder.display();
    let text = format!(
        "daemon off; worker_processes 2; pid {root}/nginx.pid; error_log {root}/nginx.log;
         events {{ worker_connections 4096; }}
         http {{
           access_log off;
           client_body_temp_path {root}/a; proxy_temp_path {root}/b; fastcgi_temp_path {root}/c;
           uwsgi_temp_path {root}/d; scgi_temp_path {root}/e;
           upstream echo {{ server {echo}; keepalive 64; keepalive_requests 100000000; }}
           server {{
             listen {address} http2; keepalive_requests 100000000; client_max_body_size 0;
             location / {{ grpc_pass grpc://echo; grpc_read_timeout 1h; grpc_send_timeout 1h; }}
           }}
         }}"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, text)?;
    let log = fs::File::create(folder.join("nginx.out"))?;
    start_proxy(Command::new("nginx").arg("-c").arg(&file).arg("-p").arg(folder).stderr(log), address)
}

fn start_haproxy(folder: &Path, echo: &str) -> Result<(Process, String)> {
    let address = free_address()?;
    let text = format!(
        "global\n  nbthread 2\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         frontend clients\n  bind {address} proto h2\n  default_backend echo\n\
         backend echo\n  server one {echo} proto h2\n"
    );
    let file = folder.join("haproxy.cfg");
    fs::write(&file, text)?;
    let log = fs::File::create(folder.join("haproxy.out"))?;
    start_proxy(Command::new("haproxy").arg("-db").arg("-f").arg(&file).stderr(log), address)
}

/// Starts a proxy and gives it a moment to refuse its configuration.
fn start_proxy(command: &mut Command, address: String) -> Result<(Process, String)> {
    let mut process = Process::start(command)?;
    std::thread::sleep(Duration::from_millis(500));
    let ended = process.0.try_wait()?;
    ensure!(ended.is_none(), "it ended at once: {ended:?}");
    Ok((process, address))
}
