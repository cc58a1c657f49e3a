//! What `cluster/clippy.toml` and `node/clippy.toml` must ban. Clippy enforces the bans; this list keeps a ban
//! from being dropped unseen.

/// Functions that go around the Host: clocks, dice, files, tasks and threads.
pub(crate) const METHODS: &[&str] = &[
    "std::time::Instant::now",
    "std::time::SystemTime::now",
    "std::thread::spawn",
    "std::fs::read",
    "std::fs::write",
    "std::fs::read_to_string",
    "std::fs::create_dir_all",
    "std::fs::remove_file",
    "std::fs::rename",
    "tokio::spawn",
    "tokio::task::spawn",
    "tokio::task::spawn_blocking",
    "tokio::fs::read",
    "tokio::fs::write",
    "rand::rng",
    "rand::random",
];

/// Types that go around the Host: files and sockets.
pub(crate) const TYPES: &[&str] = &[
    "std::fs::File",
    "std::fs::OpenOptions",
    "tokio::fs::File",
    "tokio::net::TcpListener",
    "tokio::net::TcpStream",
    "tokio::net::UdpSocket",
];
