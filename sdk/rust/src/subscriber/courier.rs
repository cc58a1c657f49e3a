//! A consumer's task: one subscribe stream at a time, to whichever node the client is connected to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use weft_proto::v1::events_client::EventsClient;
use weft_proto::v1::subscribe_request::Frame as Request;
use weft_proto::v1::subscribe_response::Frame;
use weft_proto::v1::{SubscribeOpen, SubscribeRequest, SubscribeResponse};

use super::consumer::Shared;
use crate::client::{Client, MESSAGE_BYTES_MAX};
use crate::error::{Error, Retry};
use crate::keeper::Connection;

/// Frames handed to the connection ahead of its flow control.
const FRAMES_AHEAD: usize = 16;
/// How long acks are gathered while an earlier ack frame is unanswered.
const GATHER: Duration = Duration::from_millis(2);
/// Before acks that were refused for the moment are sent again.
const ACK_PAUSE: Duration = Duration::from_millis(50);
/// How long one node may take to answer a subscription.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);
/// How long a consumer that has never been joined is tried.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);
/// How long a consumer that is closing waits for the answers to its last acks, and for its group to have let it go.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// Runs until the consumer is closed and its acks are answered.
pub(super) async fn run(client: Client, shared: Arc<Shared>, open: SubscribeOpen) {
    let mut courier = Courier { client, shared, open, started: Instant::now(), tries: 0 };
    loop {
        let ended = match courier.client.connection(Instant::now() + OPEN_PATIENCE).await {
            Ok(connection) => match courier.join(&connection).await {
                Ok(stream) => courier.serve(stream).await,
                Err(error) => Err(error),
            }
            .map_err(|error| (error, Some(connection))),
            Err(error) => Err((error, None)),
        };
        match ended {
            Ok(()) => return courier.end(Error::Closed),
            Err((error, connection)) => {
                if !courier.between(error, connection).await {
                    return;
                }
            }
        }
    }
}

struct Courier {
    client: Client,
    shared: Arc<Shared>,
    open: SubscribeOpen,
    started: Instant,
    tries: u32,
}

struct Stream {
    /// `None` when the consumer has left: the node ends the stream then.
    requests: Option<mpsc::Sender<SubscribeRequest>>,
    responses: Streaming<SubscribeResponse>,
}

impl Courier {
    /// Joins the group at a node; `opened` is its first word.
    async fn join(&mut self, connection: &Connection) -> Result<Stream, Error> {
        let (requests, frames) = mpsc::channel(FRAMES_AHEAD);
        let first = requests.try_send(SubscribeRequest { frame: Some(Request::Open(self.open.clone())) });
        debug_assert!(first.is_ok(), "the channel is new and empty");
        let mut events = EventsClient::new(connection.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let opening = async {
            let mut responses = events.subscribe(ReceiverStream::new(frames)).await?.into_inner();
            let first = responses.message().await?;
            Ok::<_, tonic::Status>((first, responses))
        };
        let opened = tokio::time::timeout(OPEN_PATIENCE, opening).await;
        let (first, responses) =
            opened.map_err(|_| Error::Lost(format!("{}: no answer", connection.address).into()))??;
        self.shared.lock().begin();
        self.received(first)?;
        self.tries = 0;
        {
            self.shared.lock().opened = true;
        }
        self.shared.news.notify_waiters();
        Ok(Stream { requests: Some(requests), responses })
    }

    /// Takes deliveries and sends acks until the stream fails; `Ok` when the consumer is closed.
    async fn serve(&mut self, stream: Stream) -> Result<(), Error> {
        let Stream { mut requests, mut responses } = stream;
        let mut frames: VecDeque<SubscribeRequest> = VecDeque::new();
        // While set, no new frames are gathered before it.
        let mut gather_until: Option<Instant> = None;
        let mut closing_since: Option<Instant> = None;
        loop {
            let now = Instant::now();
            {
                let mut state = self.shared.lock();
                if state.closing {
                    let since = *closing_since.get_or_insert(now);
                    if now - since >= CLOSE_PATIENCE {
                        return Ok(());
                    }
                }
                if requests.is_some() && gather_until.is_none_or(|until| now >= until) && frames.len() < FRAMES_AHEAD {
                    gather_until = None;
                    let gathered = state.frames();
                    frames.extend(gathered.into_iter().map(|frame| SubscribeRequest { frame: Some(frame) }));
                }
                if state.closing && frames.is_empty() && state.is_settled() {
                    requests = None;
                }
            }
            let close_check = closing_since.map(|since| since + CLOSE_PATIENCE);
            // While no frame leaves there is nothing to gather for: a time that is over would wake us for ever.
            let gather = gather_until.filter(|_| frames.len() < FRAMES_AHEAD && requests.is_some());
            let wake = gather.into_iter().chain(close_check).min();
            tokio::select! {
                biased;
                response = responses.message() => {
                    let response = response?;
                    if requests.is_none() && response.is_none() {
                        return Ok(());
                    }
                    if self.received(response)? {
                        gather_until = Some(now + ACK_PAUSE);
                    }
                    self.shared.news.notify_waiters();
                }
                slot = reserve(requests.as_ref()), if !frames.is_empty() => {
                    let slot = slot.map_err(|_| Error::Lost("the subscription is closed".into()))?;
                    slot.send(frames.pop_front().expect("checked by the arm's condition"));
                }
                () = self.shared.work.notified() => {
                    if gather_until.is_none() && self.shared.lock().may_gather() {
                        gather_until = Some(now + GATHER);
                    }
                }
                () = until(wake) => {}
            }
        }
    }

    /// True if acks were refused for the moment.
    fn received(&self, response: Option<SubscribeResponse>) -> Result<bool, Error> {
        let Some(response) = response else { return Err(Error::Lost("the node ended the subscription".into())) };
        let mut state = self.shared.lock();
        match response.frame {
            Some(Frame::Deliveries(frame)) => state.deliver(frame.deliveries),
            Some(Frame::Epoch(frame)) => state.epoch(frame),
            Some(Frame::Ack(answer)) => return Ok(state.answered(answer)),
            Some(Frame::Opened(_) | Frame::Packed(_) | Frame::End(_)) | None => {}
        }
        Ok(false)
    }

    /// Between two streams: everything given out is void. False if the consumer ends here.
    async fn between(&mut self, error: Error, connection: Option<Connection>) -> bool {
        let (opened, closing) = {
            let state = self.shared.lock();
            (state.opened, state.closing)
        };
        let hopeless = !opened && self.started.elapsed() > JOIN_PATIENCE;
        if error.retry() == Retry::Never || hopeless || closing {
            self.end(error);
            return false;
        }
        tracing::debug!(%error, "a consumer goes on elsewhere");
        if let Some(connection) = connection {
            self.client.doubt(&connection, &error);
        }
        self.shared.lock().begin();
        self.shared.news.notify_waiters();
        tokio::time::sleep(self.client.backoff(self.tries)).await;
        self.tries = self.tries.saturating_add(1);
        true
    }

    fn end(&self, error: Error) {
        self.shared.lock().end(error);
        self.shared.news.notify_waiters();
    }
}

/// Room for a frame. Of no use once the requests are over.
async fn reserve(
    requests: Option<&mpsc::Sender<SubscribeRequest>>,
) -> Result<mpsc::Permit<'_, SubscribeRequest>, mpsc::error::SendError<()>> {
    match requests {
        Some(requests) => requests.reserve().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
