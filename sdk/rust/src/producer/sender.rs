//! The producer's task: one publish stream at a time, to whichever node the client is connected to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use weft_proto::v1::events_client::EventsClient;
use weft_proto::v1::publish_stream_request::Frame;
use weft_proto::v1::{PublishOpen, PublishStreamRequest, PublishStreamResponse};

use super::{Settings, Shared, open_identity};
use crate::client::{Client, MESSAGE_BYTES_MAX};
use crate::error::{Error, Retry};
use crate::keeper::Connection;

/// Frames handed to the connection ahead of its flow control.
const FRAMES_AHEAD: usize = 16;
/// A stream on which a batch is unanswered for this long is given up for another node.
const ANSWER_PATIENCE: Duration = Duration::from_secs(40);
/// How long the opening of a stream may take.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);
/// How often overdue batches are looked for while no node can be reached.
const SEARCH_TICK: Duration = Duration::from_millis(500);

/// Runs until the producer is closed and everything taken is answered.
pub(super) async fn run(client: Client, shared: Arc<Shared>, settings: Settings) {
    let mut sender = Sender { client, shared, settings, last_error: None, tries: 0 };
    while let Some(connection) = sender.next_connection().await {
        let ended = match sender.open(&connection).await {
            Ok(stream) => sender.serve(stream).await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) => return,
            Err(error) => sender.between(&connection, error).await,
        }
    }
}

struct Sender {
    client: Client,
    shared: Arc<Shared>,
    settings: Settings,
    last_error: Option<Error>,
    tries: u32,
}

struct Stream {
    requests: mpsc::Sender<PublishStreamRequest>,
    answers: Streaming<PublishStreamResponse>,
}

impl Sender {
    /// The next connection; fails what is overdue meanwhile. `None` when there is nothing more to do.
    async fn next_connection(&mut self) -> Option<Connection> {
        loop {
            if self.is_over() {
                return None;
            }
            match self.client.connection(Instant::now() + SEARCH_TICK).await {
                Ok(connection) => return Some(connection),
                Err(Error::Closed) => {
                    self.end(Error::Closed);
                    return None;
                }
                Err(error) => {
                    self.last_error = Some(error);
                    self.expire();
                }
            }
        }
    }

    async fn open(&mut self, connection: &Connection) -> Result<Stream, Error> {
        let (requests, frames) = mpsc::channel(FRAMES_AHEAD);
        let open = PublishOpen {
            topic: self.shared.topic.name.clone(),
            namespace: self.client.namespace().to_owned(),
            ack: self.settings.ack.into(),
        };
        let first = requests.try_send(PublishStreamRequest { frame: Some(Frame::Open(open)) });
        debug_assert!(first.is_ok(), "the channel is new and empty");
        let mut events = EventsClient::new(connection.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let opening = events.publish_stream(ReceiverStream::new(frames));
        match tokio::time::timeout(OPEN_PATIENCE, opening).await {
            Ok(answers) => Ok(Stream { requests, answers: answers?.into_inner() }),
            Err(_) => Err(Error::Lost(format!("{}: no answer to a publish stream", connection.address).into())),
        }
    }

    /// Sends and takes answers until the stream fails; `Ok` when the producer is over.
    async fn serve(&mut self, stream: Stream) -> Result<(), Error> {
        let Stream { requests, mut answers } = stream;
        let mut frames: VecDeque<PublishStreamRequest> = VecDeque::new();
        loop {
            self.expire();
            self.number_anew().await?;
            let deadline = self.gather(&mut frames);
            if self.is_over() {
                return Ok(());
            }
            tokio::select! {
                biased;
                answered = answers.message() => {
                    self.answered(answered?)?;
                    // Who was told may publish again: that goes with what has waited for this answer.
                    tokio::task::yield_now().await;
                }
                slot = requests.reserve(), if !frames.is_empty() => {
                    let slot = slot.map_err(|_| Error::Lost("the publish stream is closed".into()))?;
                    slot.send(frames.pop_front().expect("checked by the arm's condition"));
                }
                () = self.shared.work.notified() => {}
                () = until(deadline) => self.check_patience()?,
            }
        }
    }

    /// Moves what is due into `frames`; returns when to look again.
    fn gather(&self, frames: &mut VecDeque<PublishStreamRequest>) -> Option<Instant> {
        let mut state = self.shared.lock();
        let batches = state.due(Instant::now());
        frames.extend(batches.into_iter().map(|batch| PublishStreamRequest { frame: Some(Frame::Batch(batch)) }));
        let answer = state.waiting_since().map(|since| since + ANSWER_PATIENCE);
        answer.into_iter().chain(state.deadline()).min()
    }

    fn answered(&mut self, response: Option<PublishStreamResponse>) -> Result<(), Error> {
        let Some(response) = response else { return Err(Error::Lost("the node ended the publish stream".into())) };
        self.tries = 0;
        let mut finished = Vec::new();
        let elsewhere = {
            let mut state = self.shared.lock();
            for answer in response.answers {
                state.answer(answer, &mut finished);
            }
            state.elsewhere()
        };
        self.shared.tell(finished);
        match elsewhere {
            Some(error) => Err(Error::Lost(format!("the node did not come to an owner: {error}").into())),
            None => Ok(()),
        }
    }

    fn check_patience(&self) -> Result<(), Error> {
        let waiting = self.shared.lock().waiting_since();
        match waiting {
            Some(since) if since.elapsed() >= ANSWER_PATIENCE => {
                Err(Error::Lost(format!("no answer to a batch in {ANSWER_PATIENCE:?}").into()))
            }
            _ => Ok(()),
        }
    }

    /// Gets a new identity for partitions whose numbers cannot go on; what may be stored under the old one fails with
    /// an unknown outcome. Only a producer without a name can have another: a named one would fence itself.
    async fn number_anew(&mut self) -> Result<(), Error> {
        loop {
            let Some(lane) = self.shared.lock().unnumbered() else { return Ok(()) };
            if !self.settings.name.is_empty() {
                let message = "events before it are missing: the numbers of this named producer cannot go on";
                self.end(Error::unknown(message));
                return Ok(());
            }
            let identity = open_identity(&self.client, "").await?;
            let mut finished = Vec::new();
            self.shared.lock().renumber(lane, identity, &mut finished);
            let unknown = finished.len();
            tracing::warn!(partition = lane, unknown, "a new producer id: the outcome of earlier batches is unknown");
            self.shared.tell(finished);
        }
    }

    /// Between two streams: everything unanswered begins again, elsewhere or after a pause.
    async fn between(&mut self, connection: &Connection, error: Error) {
        tracing::debug!(%error, address = %connection.address, "the publish stream ended");
        if error.retry() == Retry::Never {
            return self.end(error);
        }
        self.client.doubt(connection, &error);
        self.shared.lock().lost();
        let lost = matches!(error, Error::Lost(_));
        self.last_error = Some(error);
        // The first time at once: another node may be as good.
        if self.tries > 0 || !lost {
            tokio::time::sleep(self.client.backoff(self.tries)).await;
        }
        self.tries = self.tries.saturating_add(1);
    }

    fn expire(&self) {
        let mut finished = Vec::new();
        self.shared.lock().expire(Instant::now(), self.last_error.as_ref(), &mut finished);
        if !finished.is_empty() {
            self.shared.tell(finished);
        }
    }

    fn end(&self, error: Error) {
        let mut finished = Vec::new();
        self.shared.lock().end(error, &mut finished);
        self.shared.tell(finished);
    }

    fn is_over(&self) -> bool {
        let state = self.shared.lock();
        state.ended.is_some() || state.closing && state.is_idle()
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
