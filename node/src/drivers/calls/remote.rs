//! One attempt at an instance whose home is another node, over the link to it.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message;
use tokio::sync::oneshot;
use tokio::time::Instant;
use weft_cluster::ids::{InstanceId, NodeId};
use weft_proto::internal::v1::{CallAnswer, CallWhole, call_answer};
use weft_proto::v1::ErrorCode;

use super::body::{Client, Opening, Part, Source, pass_and_stay};
use super::call::Call;
use super::failure::Failure;
use super::relay::{beside, relay};
use super::rotation::Member;
use super::{Calls, Inner, frames, linked};
use crate::drivers::link::{Lane, LinkError, LinkStream};

/// Whole calls whose answer may go on in a stream of its own.
#[derive(Default)]
pub(super) struct Continuations {
    state: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    last: u64,
    streams: BTreeMap<u64, (NodeId, oneshot::Sender<LinkStream>)>,
}

/// A call's place among them.
struct Place<'a> {
    of: &'a Continuations,
    id: u64,
    stream: oneshot::Receiver<LinkStream>,
}

impl Continuations {
    fn enter(&self, home: NodeId) -> Place<'_> {
        let (tell, stream) = oneshot::channel();
        let mut waiting = self.lock();
        waiting.last += 1;
        let id = waiting.last;
        waiting.streams.insert(id, (home, tell));
        Place { of: self, id, stream }
    }

    /// A stream from `home` goes on with a call. One that nobody waits for is dropped, which resets it.
    pub(super) fn give(&self, home: NodeId, id: u64, stream: LinkStream) {
        let mut waiting = self.lock();
        if waiting.streams.get(&id).is_some_and(|(of, _)| *of == home)
            && let Some((_, tell)) = waiting.streams.remove(&id)
        {
            drop(waiting);
            let _ = tell.send(stream);
        }
    }

    /// Calls whose answer may still need one.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().streams.len()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.of.lock().streams.remove(&self.id);
    }
}

impl Calls {
    /// Brings a call to the home node of an instance: as one frame if all of it is here and small, else on a stream of
    /// its own.
    ///
    /// # Errors
    /// Honest about what came to the instance.
    pub(super) async fn remote(
        &self,
        member: &Member,
        call: &Call,
        source: &mut Opening<impl Source>,
        client: &mut impl Client,
        mut on_head: impl FnMut(),
    ) -> Result<(), Failure> {
        match source.take_whole() {
            Some(body) => self.remote_whole(member, call, body, client, &mut on_head).await,
            None => self.remote_stream(member, call, source, client, &mut on_head).await,
        }
    }

    async fn remote_whole(
        &self,
        member: &Member,
        call: &Call,
        body: Vec<Bytes>,
        client: &mut impl Client,
        on_head: &mut impl FnMut(),
    ) -> Result<(), Failure> {
        let inner = &self.inner;
        let mut place = inner.continuations.enter(member.home);
        let now = Instant::now();
        let left = call.left(now)?;
        let frame = frames::whole_call(InstanceId(member.instance.id), call, left, place.id, body.iter());
        drop(body);
        let sent_by = now + inner.shared.config.connect_timeout;
        let asking = inner.links.request_by(member.home, Lane::Call, frame, sent_by, call.deadline);
        let answer = beside(client, pin!(asking)).await?.map_err(|error| inner.of_link(member, error))?;
        let answer = CallAnswer::decode(answer).map_err(|error| unreadable(&error.to_string()))?;
        match answer.answer {
            Some(call_answer::Answer::Whole(whole)) => {
                on_head();
                pass_whole(whole, client).await
            }
            Some(call_answer::Answer::Failure(failure)) => Err(frames::failed(failure)),
            Some(call_answer::Answer::Reset(code)) => Err(Failure::Reset(code.into())),
            Some(call_answer::Answer::Continued(_)) => {
                let stream = tokio::time::timeout(inner.shared.config.connect_timeout, &mut place.stream);
                let Ok(Ok(stream)) = beside(client, pin!(stream)).await? else {
                    return Err(unreadable("its answer was to go on in a stream, and none came"));
                };
                let (answer, mut target) = linked::ends(stream, false);
                let mut no_more = NoMore;
                let up = pass_and_stay(&mut no_more, &mut target, true);
                relay(pin!(up), pin!(answer.begin()), client, on_head).await
            }
            None => Err(unreadable("it is empty")),
        }
    }

    async fn remote_stream(
        &self,
        member: &Member,
        call: &Call,
        source: &mut Opening<impl Source>,
        client: &mut impl Client,
        on_head: &mut impl FnMut(),
    ) -> Result<(), Failure> {
        let opened = beside(client, pin!(self.inner.links.open(member.home, Lane::Call))).await?;
        let opened = opened.map_err(|error| self.inner.of_link(member, error))?;
        let (answer, mut target) = linked::ends(opened, false);
        let left = call.left(Instant::now())?;
        let head = frames::open(InstanceId(member.instance.id), call, left);
        let lost = |_| Failure::unknown("the link to the instance's home node was lost while the call was sent");
        target.say(head).await.map_err(lost)?;
        relay(pin!(pass_and_stay(source, &mut target, false)), pin!(answer.begin()), client, on_head).await
    }
}

async fn pass_whole(whole: CallWhole, client: &mut impl Client) -> Result<(), Failure> {
    let head = frames::response_of(whole.status, whole.headers).map_err(|reason| unreadable(&reason))?;
    let trailers = frames::headers_of(whole.trailers).map_err(|reason| unreadable(&reason))?;
    let (no_data, no_trailers) = (whole.data.is_empty(), trailers.is_empty());
    client.head(head, no_data && no_trailers).await?;
    if !no_data {
        client.put(Part::Data(whole.data, no_trailers)).await?;
    }
    if no_trailers { Ok(()) } else { client.put(Part::Trailers(trailers)).await }
}

/// A request that has been sent already.
struct NoMore;

impl Source for NoMore {
    async fn next(&mut self) -> Result<Part, Failure> {
        Ok(Part::End)
    }
    fn release(&mut self, _bytes: usize) {}
}

fn unreadable(reason: &str) -> Failure {
    Failure::unknown(format!("the answer of the instance's home node is not readable: {reason}"))
}

impl Inner {
    /// What the failure of the link to an instance's home node says about a call.
    fn of_link(&self, member: &Member, error: LinkError) -> Failure {
        let home = || format!("{}'s home node {}", member.instance.address, self.view.borrow().name_of(member.home));
        match error {
            LinkError::NotSent(_) => Failure::homeless(format!("there is no link to {}", home())),
            LinkError::Refused(_, why) => {
                Failure::refused(ErrorCode::Unreachable, format!("{} refused: {why}", home()))
            }
            LinkError::TooLarge { .. } => Failure::refused(ErrorCode::TooLarge, error.to_string()),
            LinkError::Lost(_) => Failure::unknown(format!("the link to {} was lost before the answer", home())),
            LinkError::Deadline(_) => Failure::late(),
        }
    }
}
