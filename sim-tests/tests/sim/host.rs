//! The simulated Host: QUIC, TCP, aborts, and that one seed is one run.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_node::host::{Host, Open, SocketBuffers};
use weft_sim::host::{Control, SimHost};
use weft_sim::{entropy, trace};

const BUFFERS: SocketBuffers = SocketBuffers { receive_bytes: 1 << 20, send_bytes: 1 << 20 };

fn server_config() -> (quinn::ServerConfig, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["node".to_owned()]).expect("a certificate");
    let cert = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = quinn::ServerConfig::with_single_cert(vec![cert.clone()], key).expect("a server configuration");
    (config, cert)
}

fn endpoint_config() -> quinn::EndpointConfig {
    quinn::EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &[7; 64])))
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

fn sim(seed: u64) -> turmoil::Sim<'static> {
    turmoil::Builder::new()
        .rng_seed(seed)
        .epoch(std::time::UNIX_EPOCH + entropy::EPOCH)
        .simulation_duration(Duration::from_secs(60))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(5))
        .udp_capacity(4096)
        .tcp_capacity(4096)
        .build()
}

/// On a thread of its own, since the seed belongs to the thread.
pub(crate) fn seeded<T: Send + 'static>(seed: u64, work: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(move || {
        entropy::seed(seed);
        trace::start(None).expect("no file is involved");
        work()
    })
    .join()
    .expect("the simulation passes")
}

/// 20 echoes over QUIC with one datagram in ten lost, then one over TCP.
fn echo(seed: u64) -> trace::Traffic {
    seeded(seed, move || {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut sim = sim(seed);
        let (server, cert) = server_config();
        let controls = [Control::new("a", seed), Control::new("b", seed + 1)];
        controls.iter().for_each(|control| control.loss_per_mille.store(100, Ordering::Relaxed));
        let (a, b) = (controls[0].clone(), controls[1].clone());
        let answering = server.clone();
        sim.host("a", move || {
            let (host, server) = (SimHost::new(a.clone()), answering.clone());
            async move {
                let (endpoint, _) = host.quic(any(7401), BUFFERS, endpoint_config(), server).await?;
                let mut tcp = host.listen(any(7401)).await?;
                tokio::spawn(async move {
                    while let Ok(mut connection) = tcp.accept().await {
                        connection.io.write_all(b"hello").await.expect("the other end reads");
                    }
                });
                let connection = endpoint.accept().await.ok_or("closed")?.await?;
                while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                    let data = receive.read_to_end(1 << 20).await?;
                    send.write_all(&data).await?;
                    send.finish()?;
                }
                Ok(())
            }
        });
        sim.client("b", async move {
            let host = SimHost::new(b);
            let (mut endpoint, _) = host.quic(any(7401), BUFFERS, endpoint_config(), server).await?;
            let mut roots = rustls::RootCertStore::empty();
            roots.add(cert)?;
            endpoint.set_default_client_config(quinn::ClientConfig::with_root_certificates(Arc::new(roots))?);
            let to = host.resolve("a:7401").await?[0];
            let connection = endpoint.connect(to, "node")?.await?;
            for round in 0..20u8 {
                let (mut send, mut receive) = connection.open_bi().await?;
                send.write_all(&[round; 5000]).await?;
                send.finish()?;
                assert_eq!(receive.read_to_end(1 << 20).await?, vec![round; 5000]);
            }
            let mut greeting = [0; 5];
            host.connect(to).await?.io.read_exact(&mut greeting).await?;
            assert_eq!(&greeting, b"hello");
            Ok(())
        });
        sim.run().expect("the echoes come back");
        trace::traffic()
    })
}

#[test]
fn quic_and_tcp_echo_and_one_seed_is_one_run() {
    let first = echo(3);
    assert!(first.messages > 100, "{first:?}");
    assert_eq!(first, echo(3));
    assert_ne!(first.hash, echo(4).hash);
}

/// A node that aborts in a task that the host does not know of (as a library's would be) is removed and can be
/// started again; the others go on.
#[test]
fn an_abort_ends_one_node_only() {
    seeded(1, || {
        let mut sim = sim(1);
        let control = Control::new("n", 1);
        let lives = Arc::new(AtomicU32::new(0));
        let (in_host, count) = (control.clone(), lives.clone());
        sim.host("n", move || {
            let (host, count) = (SimHost::new(in_host.clone()), count.clone());
            async move {
                let life = count.fetch_add(1, Ordering::Relaxed);
                let file = host.disk().open(Path::new("/x"), Open::Replace)?;
                file.write_at(&[1], 0)?;
                if life == 0 {
                    tokio::spawn(async move { host.abort("the disk failed") });
                }
                std::future::pending::<()>().await;
                Ok(())
            }
        });
        for _ in 0..5 {
            weft_sim::host::step(&mut sim, std::slice::from_ref(&control)).expect("an abort is no failure");
            if let Some(reason) = control.take_abort() {
                assert_eq!(reason, "the disk failed");
                sim.crash("n");
                sim.bounce("n");
            }
        }
        assert_eq!(lives.load(Ordering::Relaxed), 2);
        assert!(sim.is_host_running("n"));
    });
}

#[test]
fn work_on_a_hung_disk_does_not_return() {
    seeded(1, || {
        let mut sim = sim(1);
        let control = Control::new("n", 1);
        sim.client("n", async move {
            let host: Arc<dyn Host> = SimHost::new(control.clone());
            assert_eq!(host.run_blocking(|| 7).await, 7);
            control.disk.set_faults(|faults| faults.hangs = true);
            assert!(tokio::time::timeout(Duration::from_secs(3), host.run_blocking(|| 7)).await.is_err());
            Ok(())
        });
        sim.run().expect("the client ends");
    });
}
