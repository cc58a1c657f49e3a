//! `Host` on turmoil: what `weft_node::run` gets in a simulation.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng};
use tokio_util::sync::CancellationToken;
use weft_cluster::ids::Millis;
use weft_node::host::{Connection, Disk, Host, Listener, Promise, SocketBuffers, Work};

use crate::disk::SimDisk;
use crate::net::{self, SimListener, SimUdp};

/// How often a task looks whether its hung disk is well again.
const HANG_POLL: Duration = Duration::from_millis(10);

/// What the harness holds of a node, beyond its lives.
pub struct Control {
    /// The simulated host's name.
    pub name: String,
    /// Its disk.
    pub disk: SimDisk,
    /// How far its wall clock is off, in milliseconds.
    pub skew_ms: AtomicI64,
    /// Datagrams lost, per thousand.
    pub loss_per_mille: AtomicU32,
    /// Datagrams doubled, per thousand.
    pub double_per_mille: AtomicU32,
    aborted: Mutex<Option<String>>,
    stop: Mutex<CancellationToken>,
    dice: Mutex<StdRng>,
    sockets: Mutex<Vec<Arc<net::Open>>>,
}

impl Control {
    /// A node that has never run.
    pub fn new(name: &str, seed: u64) -> Arc<Control> {
        Arc::new(Control {
            name: name.to_owned(),
            disk: SimDisk::default(),
            skew_ms: AtomicI64::new(0),
            loss_per_mille: AtomicU32::new(0),
            double_per_mille: AtomicU32::new(0),
            aborted: Mutex::new(None),
            stop: Mutex::default(),
            dice: Mutex::new(StdRng::seed_from_u64(seed)),
            sockets: Mutex::default(),
        })
    }

    /// The node's dice.
    pub fn dice(&self) -> MutexGuard<'_, StdRng> {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn opened(&self, socket: Arc<net::Open>) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
    }

    /// Closes what the process before has left open. Call it first on the simulated host.
    pub fn close_sockets(&self) {
        let sockets = std::mem::take(&mut *self.sockets.lock().unwrap_or_else(PoisonError::into_inner));
        sockets.iter().for_each(|socket| socket.close());
    }

    /// What tells the process that starts now to stop.
    pub(crate) fn begin(&self) -> CancellationToken {
        let stop = CancellationToken::new();
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = stop.clone();
        stop
    }

    /// Tells the process to stop, as SIGTERM does.
    pub fn stop(&self) {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).cancel();
    }

    /// Why the process ended itself, if it did; asked once.
    pub fn take_abort(&self) -> Option<String> {
        self.aborted.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Between an abort and the moment when the harness removes the process, it must do nothing any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.aborted.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// How many copies of a datagram reach the network.
    pub(crate) fn copies(&self) -> u32 {
        let (loss, double) =
            (self.loss_per_mille.load(Ordering::Relaxed), self.double_per_mille.load(Ordering::Relaxed));
        if loss == 0 && double == 0 {
            return 1;
        }
        let dice = self.dice().random_range(0..1000);
        if dice < loss { 0 } else { 1 + u32::from(dice >= 1000 - double) }
    }

    /// How long the disk takes for a piece of work: mostly nothing, now and then long.
    fn disk_delay(&self) -> Duration {
        let mut dice = self.dice();
        Duration::from_millis(match dice.random_range(0..1000) {
            0..600 => 0,
            600..980 => 1,
            980..998 => dice.random_range(2..10),
            _ => dice.random_range(10..60),
        })
    }
}

/// The payload of the unwinding that ends an aborted process; `resume_unwind` calls no panic hook.
pub(crate) struct Aborted;

/// One life of a simulated node.
pub struct SimHost {
    control: Arc<Control>,
    disk: Arc<dyn Disk>,
}

impl SimHost {
    /// The host for a process that starts now.
    pub fn new(control: Arc<Control>) -> Arc<SimHost> {
        Arc::new(SimHost { disk: control.disk.mount(), control })
    }
}

impl Host for SimHost {
    fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    fn quic<'a>(
        &'a self,
        bind: SocketAddr,
        buffers: SocketBuffers,
        mut config: quinn::EndpointConfig,
        server: quinn::ServerConfig,
    ) -> Promise<'a, io::Result<(quinn::Endpoint, SocketBuffers)>> {
        Box::pin(async move {
            let mut seed = [0; 32];
            self.entropy(&mut seed);
            config.rng_seed(Some(seed));
            let socket = SimUdp::bind(self.control.clone(), bind).await?;
            let runtime = Arc::new(quinn::TokioRuntime);
            Ok((quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)?, buffers))
        })
    }

    fn listen<'a>(&'a self, bind: SocketAddr) -> Promise<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = SimListener::bind(self.control.clone(), bind).await?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, to: SocketAddr) -> Promise<'a, io::Result<Connection>> {
        Box::pin(async move {
            let stream = net::connect(Some(self.control.clone()), to).await?;
            let remote = stream.remote()?;
            Ok(Connection { io: Box::new(stream), remote })
        })
    }

    fn resolve<'a>(&'a self, name: &'a str) -> Promise<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { resolve(name).map(|at| vec![at]) })
    }

    fn wall(&self) -> Millis {
        let now = turmoil::since_epoch().unwrap_or(crate::entropy::EPOCH).as_millis() as i64;
        Millis(now + self.control.skew_ms.load(Ordering::Relaxed))
    }

    fn entropy(&self, buffer: &mut [u8]) {
        self.control.dice().fill_bytes(buffer);
    }

    fn blocking(&self, work: Work) -> Promise<'static, ()> {
        let control = self.control.clone();
        Box::pin(async move {
            while control.disk.faults().hangs {
                tokio::time::sleep(HANG_POLL).await;
            }
            let delay = control.disk_delay() + control.disk.faults().slow;
            // Half of the wait before the work and half after it: a crash may find it done and unanswered.
            tokio::time::sleep(delay / 2).await;
            work();
            tokio::time::sleep(delay - delay / 2).await;
        })
    }

    fn spawn(&self, task: Promise<'static, ()>) -> tokio::task::JoinHandle<()> {
        tokio::spawn(until_abort(task))
    }

    fn abort(&self, reason: &str) -> ! {
        tracing::warn!(node = self.control.name, reason, "abort");
        *self.control.aborted.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        self.control.disk.process_gone();
        resume_unwind(Box::new(Aborted))
    }
}

/// Runs a task; if it aborts the process, it stays where it is until the harness removes the process.
pub(crate) async fn until_abort<T>(task: impl Future<Output = T>) -> T {
    match AssertUnwindSafe(task).catch_unwind().await {
        Ok(output) => output,
        Err(payload) if payload.is::<Aborted>() => std::future::pending().await,
        Err(payload) => resume_unwind(payload),
    }
}

/// `host:port` in turmoil's names.
pub(crate) fn resolve(name: &str) -> io::Result<SocketAddr> {
    if let Ok(at) = name.parse() {
        return Ok(at);
    }
    let (host, port) = name.rsplit_once(':').ok_or(io::ErrorKind::InvalidInput)?;
    let port = port.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(SocketAddr::new(turmoil::lookup(host), port))
}

/// One tick of the simulation. A panic that is a node's abort is no failure: ask the controls.
///
/// # Errors
/// What turmoil reports, or the text of a panic in simulated code.
pub fn step(sim: &mut turmoil::Sim<'_>, controls: &[Arc<Control>]) -> Result<bool, String> {
    match std::panic::catch_unwind(AssertUnwindSafe(|| sim.step())) {
        Ok(result) => result.map_err(|error| error.to_string()),
        // tokio's runtime has shut down because a task that the Host did not spawn has aborted the process.
        Err(_) if controls.iter().any(|control| control.is_gone()) => Ok(false),
        Err(payload) => {
            let text = payload.downcast_ref::<String>().cloned();
            let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(format!("panic: {}", text.unwrap_or_default()))
        }
    }
}
