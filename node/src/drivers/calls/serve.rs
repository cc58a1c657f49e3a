//! The home node's side: calls that other nodes bring for instances whose home is here. They go to no other node.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response};
use prost::Message;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use weft_cluster::caller::Caller;
use weft_cluster::ids::{InstanceId, NodeId};
use weft_proto::internal::v1::{CallHead, CallOpen, InstanceRecord, call_answer, call_open};
use weft_proto::v1::ErrorCode;

use super::body::{Client, Opening, Part, Source, Target};
use super::call::Call;
use super::failure::Failure;
use super::linked::{LinkClient, LinkSource};
use super::metrics::Open;
use super::{Calls, Inner, frames, linked};
use crate::drivers::link::{Lane, LinkStream, Parts};
use crate::host::Promise;

/// The largest answer that goes back as one frame.
const WHOLE_ANSWER_BYTES_MAX: usize = 64 << 10;
/// How long after its head an answer may end and still go back as one frame.
const WHOLE_ANSWER_PATIENCE: Duration = Duration::from_millis(5);

impl Calls {
    /// Serves a whole call of another node: a request of the call lane.
    pub fn serve_whole(&self, from: NodeId, body: Bytes) -> Promise<'static, Result<Parts, String>> {
        let calls = self.clone();
        Box::pin(async move {
            let mut head = CallHead::decode(body).map_err(|error| format!("the call is not readable: {error}"))?;
            let (body, id) = (std::mem::take(&mut head.body), head.call);
            let (call, instance) = match calls.accept(head).await {
                Ok(accepted) => accepted,
                Err(failure) => return Ok(answer_of(failure)),
            };
            let (tell, continues) = oneshot::channel();
            let mut client = WholeClient::new(calls.clone(), from, id, tell);
            let serving = calls.clone();
            let mut work = Box::pin(async move {
                let source = Opening::new(Whole(Some(body)));
                let ended = serving.serve(&instance, &call, source, &mut client).await;
                client.end(ended).await
            });
            tokio::select! {
                biased;
                answer = &mut work => Ok(answer.unwrap_or_else(|| frames::answer(call_answer::Answer::Continued(id)))),
                Ok(()) = continues => {
                    calls.metrics().continued.inc();
                    calls.inner.shared.tasks.spawn("call answer", async move { drop(work.await) });
                    Ok(frames::answer(call_answer::Answer::Continued(id)))
                }
            }
        })
    }

    /// Serves a call's own stream, whose first frame is `first`.
    pub async fn serve_stream(&self, from: NodeId, first: Bytes, stream: LinkStream) {
        let head = match CallOpen::decode(first) {
            Ok(CallOpen { open: Some(call_open::Open::Head(head)) }) => head,
            Ok(CallOpen { open: Some(call_open::Open::Continued(id)) }) => {
                return self.inner.continuations.give(from, id, stream);
            }
            Ok(CallOpen { open: None }) | Err(_) => {
                return tracing::warn!(%from, "a call's first frame is not readable");
            }
        };
        let (source, target) = linked::ends(stream, true);
        let mut client = LinkClient::new(target);
        let ended = match self.accept(head).await {
            Ok((call, instance)) => self.serve(&instance, &call, Opening::new(source), &mut client).await,
            Err(failure) => Err(failure),
        };
        client.end(ended).await;
    }

    /// The call in a peer's frame, and the instance that it is for. Views differ for a moment after an instance has got
    /// another home: whichever node the call has come to brings it to the instance.
    ///
    /// # Errors
    /// `UNREACHABLE` if the instance is gone; not sent.
    async fn accept(&self, mut head: CallHead) -> Result<(Call, Arc<InstanceRecord>), Failure> {
        let now = Instant::now();
        let id = InstanceId(head.instance);
        let caller = Caller::from_wire(head.caller.take());
        let deadline = (head.timeout_us > 0).then(|| now.checked_add(Duration::from_micros(head.timeout_us))).flatten();
        let known = self.inner.view.borrow().registry.instance(id).cloned();
        let instance = match known {
            Some(instance) => instance,
            // A box of its own, so that it takes no room in calls that do not wait.
            None => Box::pin(self.inner.learn(id, now, deadline)).await.ok_or_else(|| {
                tracing::debug!(%caller, instance = %id, "a call comes for an instance that is not known here");
                Failure::homeless(format!("instance {id} is not known at its home node (any more)"))
            })?,
        };
        let bad = |reason: String| Failure::refused(ErrorCode::InvalidArgument, reason);
        let (uri, headers) = frames::request_of(&mut head).map_err(bad)?;
        let call = Call::new(uri, headers, caller);
        let mut call = call.ok_or_else(|| bad("the path names no method".into()))?;
        call.deadline = deadline;
        Ok((call, instance))
    }

    async fn serve(
        &self,
        instance: &InstanceRecord,
        call: &Call,
        mut source: Opening<impl Source>,
        client: &mut impl Client,
    ) -> Result<(), Failure> {
        let counted = self.metrics();
        counted.served.inc();
        let _open = Open::new(&counted.served_open);
        source.gather()?;
        let local = pin!(self.local(instance, call, &mut source, client, || {}));
        match call.deadline {
            Some(deadline) => timeout_at(deadline, local).await.unwrap_or_else(|_| Err(Failure::late())),
            None => local.await,
        }
    }
}

impl Inner {
    /// An instance that this node does not know of. If its copy of the registry is too old for it (a node that has just
    /// started), it waits as long as a call waits for an instance.
    async fn learn(&self, id: InstanceId, now: Instant, deadline: Option<Instant>) -> Option<Arc<InstanceRecord>> {
        let (config, waiting) = (&self.shared.config, &self.shared.metrics.waiting);
        if usize::try_from(waiting.get()).is_ok_and(|waiting| waiting >= config.waiting_max) {
            return None;
        }
        let _waiting = Open::new(waiting);
        let until = now + config.instance_wait;
        let mut views = self.view.clone();
        let settled = views.wait_for(|view| view.registry.instance(id).is_some() || view.registry.instance_gone(id));
        let view = timeout_at(deadline.map_or(until, |deadline| deadline.min(until)), settled).await.ok()?.ok()?;
        view.registry.instance(id).cloned()
    }
}

fn answer_of(failure: Failure) -> Parts {
    frames::answer(match failure {
        Failure::Failed(failed) => call_answer::Answer::Failure(frames::failure(failed)),
        Failure::Reset(reason) => call_answer::Answer::Reset(reason.into()),
        // Nobody reads it.
        Failure::Gone => call_answer::Answer::Reset(h2::Reason::CANCEL.into()),
    })
}

/// A whole body.
struct Whole(Option<Bytes>);

impl Source for Whole {
    async fn next(&mut self) -> Result<Part, Failure> {
        match self.0.take().filter(|data| !data.is_empty()) {
            Some(data) => Ok(Part::Data(data, true)),
            None => Ok(Part::End),
        }
    }
    fn release(&mut self, _bytes: usize) {}
}

/// The client's node of a whole call: its answer is gathered, and goes back as one frame if it is short and quick.
/// Otherwise a stream of its own takes it.
struct WholeClient {
    calls: Calls,
    from: NodeId,
    id: u64,
    state: State,
    /// Told when the answer needs a stream.
    tell: Option<oneshot::Sender<()>>,
}

enum State {
    Waiting,
    Gathering { head: Response<()>, since: Instant, data: Vec<Bytes>, bytes: usize, trailers: Option<HeaderMap> },
    Streaming { client: LinkClient, back: LinkSource },
}

impl WholeClient {
    fn new(calls: Calls, from: NodeId, id: u64, tell: oneshot::Sender<()>) -> Self {
        WholeClient { calls, from, id, state: State::Waiting, tell: Some(tell) }
    }

    /// The answer to the lane's request, unless it goes on in a stream.
    async fn end(self, ended: Result<(), Failure>) -> Option<Parts> {
        match (self.state, ended) {
            (State::Streaming { client, .. }, ended) => {
                client.end(ended).await;
                None
            }
            (State::Gathering { head, data, trailers, .. }, Ok(())) => {
                Some(frames::whole_answer(&head, &data, trailers.as_ref()))
            }
            (_, Err(failure)) => Some(answer_of(failure)),
            (State::Waiting, Ok(())) => unreachable!("an answer has a head"),
        }
    }

    /// Opens a stream for what is here and what follows.
    async fn stream(&mut self) -> Result<(), Failure> {
        let State::Gathering { head, data, .. } = std::mem::replace(&mut self.state, State::Waiting) else {
            unreachable!("only a gathered answer is streamed")
        };
        let opened = self.calls.inner.links.open(self.from, Lane::Call).await;
        let (back, mut target) = linked::ends(opened.map_err(|_| Failure::Gone)?, true);
        target.say(frames::continued(self.id)).await?;
        if let Some(tell) = self.tell.take() {
            let _ = tell.send(());
        }
        let mut client = LinkClient::new(target);
        client.head(head, false).await?;
        // Within the first credit: nothing has to come back for it.
        for data in data {
            client.put(Part::Data(data, false)).await?;
        }
        self.state = State::Streaming { client, back };
        Ok(())
    }

    /// Passes a part on, on the stream.
    async fn pass_on(&mut self, part: Part) -> Result<(), Failure> {
        let State::Streaming { client, back } = &mut self.state else { unreachable!("the stream is open") };
        tokio::select! {
            biased;
            done = client.put(part) => done,
            failure = back.read_ahead() => Err(failure),
        }
    }
}

impl Target for WholeClient {
    async fn put(&mut self, part: Part) -> Result<(), Failure> {
        match &mut self.state {
            State::Waiting => unreachable!("an answer begins with its head"),
            State::Gathering { data, bytes, trailers, .. } => match part {
                Part::Data(more, _) if *bytes + more.len() <= WHOLE_ANSWER_BYTES_MAX => {
                    *bytes += more.len();
                    data.push(more);
                    Ok(())
                }
                Part::Data(..) => {
                    self.stream().await?;
                    self.pass_on(part).await
                }
                Part::Trailers(last) => {
                    *trailers = Some(last);
                    Ok(())
                }
                Part::End => Ok(()),
            },
            State::Streaming { .. } => self.pass_on(part).await,
        }
    }

    async fn due(&mut self) -> Result<(), Failure> {
        match &mut self.state {
            State::Waiting => pending().await,
            State::Gathering { since, .. } => {
                tokio::time::sleep_until(*since + WHOLE_ANSWER_PATIENCE).await;
                Ok(())
            }
            State::Streaming { client, back } => tokio::select! {
                biased;
                failure = back.read_ahead() => Err(failure),
                due = client.due() => due,
            },
        }
    }

    async fn attend(&mut self) -> Result<(), Failure> {
        match &mut self.state {
            State::Waiting => Ok(()),
            State::Gathering { .. } => self.stream().await,
            State::Streaming { client, .. } => client.attend().await,
        }
    }
}

impl Client for WholeClient {
    async fn head(&mut self, head: Response<()>, _end: bool) -> Result<(), Failure> {
        let since = Instant::now();
        self.state = State::Gathering { head, since, data: Vec::new(), bytes: 0, trailers: None };
        Ok(())
    }

    fn is_answered(&self) -> bool {
        !matches!(self.state, State::Waiting)
    }
}
