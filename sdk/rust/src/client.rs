//! The client: one connection at a time, to any node, and the way to the next one.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::transport::Channel;
use weft_proto::v1::events_client::EventsClient;
use weft_proto::v1::publish_result::Result as PublishOutcome;
use weft_proto::v1::{Ack, ErrorCode, Event, PublishRequest, Receipt};

use crate::cluster::Cluster;
use crate::connect::{Connector, Patience, server_address};
use crate::error::{Error, Retry};
use crate::groups::Groups;
use crate::keeper::{self, Connection, Link};
use crate::producer::ProducerBuilder;
use crate::services::Services;
use crate::subscriber::SubscriberBuilder;
use crate::topics::Topics;

/// The largest message accepted from a node, bytes: over the largest batch.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// First and longest pause between tries of one request.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How to connect; made by [`Client::builder`].
#[derive(Clone)]
pub struct Builder {
    servers: Vec<String>,
    namespace: String,
    connector: Connector,
    seed: Option<u64>,
    clock: Clock,
    connect_timeout: Duration,
    patience: Duration,
    keep_alive: Duration,
    refused_at_once: bool,
}

/// Reads a wall clock: milliseconds since 1970.
pub(crate) type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

impl Builder {
    /// Adds nodes, as `host:port` (`http://` before it does no harm). The first that answers is used; the others, and those learned from it,
    /// are where the client goes when it fails.
    pub fn servers<S: Into<String>>(mut self, servers: impl IntoIterator<Item = S>) -> Self {
        self.servers.extend(servers.into_iter().map(Into::into));
        self
    }

    /// The namespace of all topics this client names. Default `default`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// How connections are opened. Default: TCP of the operating system.
    pub fn connector(mut self, connector: Connector) -> Self {
        self.connector = connector;
        self
    }

    /// Makes every random choice (jitter, spreading of events without a key) repeatable.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The wall clock (milliseconds since 1970) that events without a time are given. Default: the system's.
    pub fn clock(mut self, clock: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// How long one connection attempt may take. Default 1 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a request, or the first connection, is tried before it fails. Default 10 s.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Time between HTTP/2 pings, and how long one may stay unanswered before the connection is given up.
    /// Default 2 s.
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.keep_alive = interval;
        self
    }

    /// Fails the wait for the first connection as soon as nothing listens at any of the servers: for who sits and waits
    /// for a command, and rather reads of a wrong address at once. Default: they are tried until the patience is over.
    pub fn refused_at_once(mut self) -> Self {
        self.refused_at_once = true;
        self
    }

    /// Connects to the first node that answers.
    ///
    /// # Errors
    /// `Invalid` without a server or with a malformed address; `Unreachable` when none answers in time.
    pub async fn connect(self) -> Result<Client, Error> {
        let client = self.start()?;
        client.connected().await?;
        Ok(client)
    }

    /// A client that connects in the background; its requests wait for that. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// `Invalid` without a server or with a malformed address.
    pub fn start(self) -> Result<Client, Error> {
        if self.servers.is_empty() {
            return Err(Error::invalid("no server given: name at least one node as host:port"));
        }
        let servers = self.servers.iter().map(|server| server_address(server)).collect::<Result<_, _>>()?;
        let seed = self.seed.unwrap_or_else(|| rand::rng().random());
        let patience = Patience { connect: self.connect_timeout, keep_alive: self.keep_alive };
        let (link, failed) =
            keeper::spawn(servers, self.connector, patience, StdRng::seed_from_u64(seed.wrapping_add(1)));
        let dice = Mutex::new(StdRng::seed_from_u64(seed));
        let (namespace, patience, clock, waits) = (self.namespace, self.patience, self.clock, Mutex::default());
        let refused_at_once = self.refused_at_once;
        Ok(Client { inner: Arc::new(Inner { namespace, patience, clock, link, failed, dice, waits, refused_at_once }) })
    }
}

/// A connection to a cluster. Cheap to clone; all clones share one connection.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    namespace: String,
    patience: Duration,
    clock: Clock,
    link: watch::Receiver<Link>,
    failed: mpsc::Sender<u64>,
    dice: Mutex<StdRng>,
    waits: Mutex<Waits>,
    refused_at_once: bool,
}

/// What is under way and has no answer yet.
#[derive(Default)]
struct Waits {
    requests: usize,
    /// Why the last of them that failed is tried again.
    why: Option<Error>,
}

/// A request that is under way.
struct Waiting<'a>(&'a Inner);

impl<'a> Waiting<'a> {
    fn new(inner: &'a Inner) -> Waiting<'a> {
        inner.waits().requests += 1;
        Waiting(inner)
    }

    fn again(&self, why: &Error) {
        self.0.waits().why = Some(why.clone());
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waits = self.0.waits();
        waits.requests -= 1;
        if waits.requests == 0 {
            waits.why = None;
        }
    }
}

impl Inner {
    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().expect("nothing panics while it holds what is waited for")
    }
}

impl Client {
    /// Connects with all defaults to the first of `servers` (`host:port`) that answers.
    ///
    /// # Errors
    /// As of [`Builder::connect`].
    pub async fn connect<S: Into<String>>(servers: impl IntoIterator<Item = S>) -> Result<Client, Error> {
        Client::builder().servers(servers).connect().await
    }

    /// To set more than the servers.
    pub fn builder() -> Builder {
        Builder {
            servers: Vec::new(),
            namespace: "default".into(),
            connector: Connector::tcp(),
            seed: None,
            clock: Arc::new(system_clock),
            connect_timeout: Duration::from_secs(1),
            patience: Duration::from_secs(10),
            keep_alive: Duration::from_secs(2),
            refused_at_once: false,
        }
    }

    /// The topics of this client's namespace.
    pub fn topics(&self) -> Topics {
        Topics::new(self.clone())
    }

    /// The consumer groups of this client's namespace.
    pub fn groups(&self) -> Groups {
        Groups::new(self.clone())
    }

    /// The members, shards and state of the cluster.
    pub fn cluster(&self) -> Cluster {
        Cluster::new(self.clone())
    }

    /// The services of this client's namespace.
    pub fn services(&self) -> Services {
        Services::new(self.clone())
    }

    /// An idempotent, batching producer for one topic.
    pub fn producer(&self, topic: &str) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), topic)
    }

    /// A subscriber of one topic: an observer, or a consumer of a group.
    pub fn subscriber(&self, topic: &str) -> SubscriberBuilder {
        SubscriberBuilder::new(self.clone(), topic)
    }

    /// Publishes up to 1,000 events in one request and returns one result for each, in order.
    ///
    /// Sent again only where no event can have been stored; for retries without doubles, and for speed, use
    /// [`Client::producer`].
    pub async fn publish(
        &self,
        topic: &str,
        events: Vec<Event>,
        ack: Ack,
    ) -> Result<Vec<Result<Receipt, Error>>, Error> {
        let (topic, namespace) = (topic.to_owned(), self.namespace().to_owned());
        let request = PublishRequest { topic, namespace, ack: ack.into(), events };
        let response = self
            .request_once("publish", request, |channel, request| async move {
                EventsClient::new(channel).publish(request).await
            })
            .await?;
        let results = response.results.into_iter().map(|result| match result.result {
            Some(PublishOutcome::Receipt(receipt)) => Ok(receipt),
            Some(PublishOutcome::Error(error)) => Err(error.into()),
            None => Err(Error::unknown("the node sent an empty answer")),
        });
        Ok(results.collect())
    }

    /// The address of the node that this client is connected to; `None` while it looks for one.
    pub fn connected_to(&self) -> Option<String> {
        match &*self.inner.link.borrow() {
            Link::Up(connection) => Some(connection.address.to_string()),
            Link::Down(_) | Link::Refused(_) => None,
        }
    }

    /// Waits for the first connection, or the next one.
    ///
    /// # Errors
    /// `Unreachable`: no node answered within the client's patience.
    pub async fn connected(&self) -> Result<(), Error> {
        let waiting = Waiting::new(&self.inner);
        let mut link = self.inner.link.clone();
        let refused = async {
            // Nothing borrowed of the link is held over a wait.
            let refusal = |link: &Link| match link {
                Link::Refused(error) if self.inner.refused_at_once => Some(error.clone()),
                _ => None,
            };
            let refused = link.wait_for(|link| refusal(link).is_some()).await.ok().and_then(|link| refusal(&link));
            match refused {
                Some(error) => error,
                None => std::future::pending().await,
            }
        };
        let connection = tokio::select! {
            biased;
            connection = self.connection(Instant::now() + self.inner.patience) => connection.map(drop),
            error = refused => Err(error),
        };
        drop(waiting);
        connection
    }

    /// Why requests have no answer yet, if some are under way: for who wants to tell a person. Streams are not among
    /// them.
    pub fn waits_for(&self) -> Option<String> {
        let (requests, why) = {
            let waits = self.inner.waits();
            (waits.requests, waits.why.clone())
        };
        if requests == 0 {
            return None;
        }
        let text = match (&*self.inner.link.borrow(), why) {
            (_, Some(why)) => why.to_string(),
            (Link::Down(Some(why)) | Link::Refused(why), None) => why.to_string(),
            (Link::Down(None), None) => "no connection yet".to_owned(),
            (Link::Up(connection), None) => format!("{} has not answered yet", connection.address),
        };
        Some(text)
    }

    /// The namespace of the topics that this client names.
    pub fn namespace(&self) -> &str {
        &self.inner.namespace
    }

    /// Runs a request that may be run twice, on another node if need be, until `patience` is over.
    pub(crate) async fn request<Q, A, F, R>(&self, what: &str, request: Q, call: F) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Channel, Q) -> R,
        R: Future<Output = Result<tonic::Response<A>, tonic::Status>>,
    {
        self.run(what, request, call, true).await
    }

    /// Runs a request, again only where it cannot have taken effect.
    pub(crate) async fn request_once<Q, A, F, R>(&self, what: &str, request: Q, call: F) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Channel, Q) -> R,
        R: Future<Output = Result<tonic::Response<A>, tonic::Status>>,
    {
        self.run(what, request, call, false).await
    }

    async fn run<Q, A, F, R>(&self, what: &str, request: Q, call: F, idempotent: bool) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Channel, Q) -> R,
        R: Future<Output = Result<tonic::Response<A>, tonic::Status>>,
    {
        let deadline = Instant::now() + self.inner.patience;
        let mut tries = 0;
        let mut last: Option<Error> = None;
        // The first try of which nobody knows whether it took effect. What later tries say of themselves is no
        // answer about that one.
        let mut unsure: Option<Error> = None;
        let waiting = Waiting::new(&self.inner);
        loop {
            // What a node said says more than that the next one is not there.
            let connection = match self.connection(deadline).await {
                Ok(connection) => connection,
                Err(error) => return Err(last.unwrap_or(error).after(unsure)),
            };
            let calling = call(connection.channel.clone(), request.clone());
            let error = match tokio::time::timeout_at(deadline, calling).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => Error::from(status),
                // What was said before says why. This try may have taken effect all the same.
                Err(_) => {
                    let before = last.map_or_else(String::new, |why| format!("; before that: {why}"));
                    return Err(Error::Deadline(format!("{what} at {}{before}", connection.address).into()));
                }
            };
            self.doubt(&connection, &error);
            let again = match error.retry() {
                Retry::Same => true,
                Retry::IfIdempotent => idempotent,
                _ => false,
            };
            let pause = self.backoff(tries);
            if !again || Instant::now() + pause >= deadline {
                return Err(error.after(unsure));
            }
            waiting.again(&error);
            if error.retry() == Retry::IfIdempotent {
                unsure.get_or_insert_with(|| error.clone());
            }
            last = Some(error);
            tokio::time::sleep(pause).await;
            tries += 1;
        }
    }

    /// The present connection, or the next one.
    pub(crate) async fn connection(&self, deadline: Instant) -> Result<Connection, Error> {
        let mut link = self.inner.link.clone();
        let up = link.wait_for(|link| matches!(link, Link::Up(_)));
        if let Ok(up) = tokio::time::timeout_at(deadline, up).await {
            return match &*up.map_err(|_| Error::Closed)? {
                Link::Up(connection) => Ok(connection.clone()),
                Link::Down(_) | Link::Refused(_) => Err(Error::Closed),
            };
        }
        match &*self.inner.link.borrow() {
            Link::Up(connection) => Ok(connection.clone()),
            Link::Down(Some(error)) | Link::Refused(error) => Err(error.clone()),
            Link::Down(None) => Err(Error::Unreachable("no answer in time".into())),
        }
    }

    /// Gives a connection up if `error` says that it, or the node behind it, is of no use now.
    pub(crate) fn doubt(&self, connection: &Connection, error: &Error) {
        let lost = matches!(error, Error::Lost(_) | Error::Unreachable(_));
        if lost || error.code() == ErrorCode::NotReady {
            // If the queue is full, the keeper is being told already.
            let _ = self.inner.failed.try_send(connection.id);
        }
    }

    /// The pause before try number `tries` + 1: doubles from 20 ms to 1 s, half of it by dice.
    pub(crate) fn backoff(&self, tries: u32) -> Duration {
        let mut dice = self.inner.dice.lock().expect("nothing panics while it holds the dice");
        jittered(&mut dice, BACKOFF, tries)
    }

    /// The wall clock.
    pub(crate) fn clock(&self) -> Clock {
        self.inner.clock.clone()
    }

    /// A random number.
    pub(crate) fn roll(&self) -> u64 {
        self.inner.dice.lock().expect("nothing panics while it holds the dice").random()
    }
}

fn system_clock() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// `range.0` doubled `tries` times, at most `range.1`, of which the upper half is left to the dice.
pub(crate) fn jittered(dice: &mut StdRng, range: (Duration, Duration), tries: u32) -> Duration {
    let full = range.0.saturating_mul(1 << tries.min(16)).min(range.1);
    full.mul_f64(dice.random_range(0.5..1.0))
}
