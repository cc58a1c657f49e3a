//! One call of a client of this node, from its first try to its outcome.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::{Instant, timeout_at};
use weft_cluster::ids::InstanceId;
use weft_cluster::route::{self, Failed as Try};
use weft_cluster::view::ClusterView;
use weft_proto::v1::{Error, ErrorCode};

use super::body::{Client, Opening, Source};
use super::call::Call;
use super::failure::{Failed, Failure};
use super::metrics::Open;
use super::relay::beside;
use super::rotation::{Member, Rotation};
use super::{Calls, Inner};

/// What one call has tried so far.
#[derive(Default)]
struct Tries {
    attempts: u32,
    instances: Vec<InstanceId>,
    /// It is counted among its service's.
    counted: bool,
    /// It waits for an instance until then.
    until: Option<Instant>,
    /// One of them may have run.
    sent: bool,
}

impl Calls {
    /// Brings a call to an instance of its service, and the answer to `client`. Dropped, it cancels the call.
    ///
    /// # Errors
    /// Why there is no answer, or no whole one; `client` may have had a part of it.
    pub async fn carry(&self, call: &Call, source: impl Source, client: &mut impl Client) -> Result<(), Failure> {
        let inner = &self.inner;
        let _open = Open::new(&inner.shared.metrics.open);
        inner.check_hops(call)?;
        let mut source = Opening::new(source);
        source.gather()?;
        let mut tries = Tries::default();
        match self.try_again(call, &mut source, client, &mut tries).await {
            // That the last try has not run says nothing of those before it.
            Err(Failure::Failed(last)) if last.not_sent && tries.sent => {
                Err(Failure::unknown(format!("a first try may have run; the last one: {}", last.error.message)))
            }
            ended => ended,
        }
    }

    /// Tries until there is an outcome: that of the last try.
    async fn try_again(
        &self,
        call: &Call,
        source: &mut Opening<impl Source>,
        client: &mut impl Client,
        tries: &mut Tries,
    ) -> Result<(), Failure> {
        let inner = &self.inner;
        loop {
            let view = inner.view.borrow().clone();
            let (rotation, chosen) = match inner.choose(&view, call, tries) {
                Ok(chosen) => chosen,
                Err(refusal) if !route::is_settling(&view, &call.namespace, call.grpc_service()) => {
                    return Err(refusal.into());
                }
                Err(refusal) => {
                    // A box of its own, so that it takes no room in calls that do not wait.
                    Box::pin(inner.wait(&view, call, tries, refusal.into(), client)).await?;
                    continue;
                }
            };
            let member = &rotation.members[chosen];
            tries.attempts += 1;
            let failed = match self.attempt(member, call, source, client).await {
                Err(Failure::Failed(failed)) => failed,
                other => return other,
            };
            let (replayable, answered) = (source.is_replayable(), client.is_answered());
            if !inner.may_retry(&failed, tries.attempts, call, &rotation, replayable, answered) {
                return Err(Failure::Failed(failed));
            }
            tries.instances.push(member.id());
            tries.sent |= !failed.not_sent;
            if failed.homeless && rotation.is_tried(&tries.instances) {
                // The home node or the link to it knows before the view does that it is gone. This was no try at an instance.
                tries.attempts -= 1;
                Box::pin(inner.wait(&view, call, tries, Failure::Failed(failed), client)).await?;
            } else {
                rotation.tally.retries_metric.inc();
            }
            source.rewind();
        }
    }

    /// Makes a call once.
    async fn attempt(
        &self,
        member: &Member,
        call: &Call,
        source: &mut Opening<impl Source>,
        client: &mut impl Client,
    ) -> Result<(), Failure> {
        let inner = &self.inner;
        let began = Instant::now();
        call.left(began)?;
        let _in_flight = member.seen.enter();
        let on_head = || {
            let took = began.elapsed();
            inner.shared.metrics.head_seconds.observe(took.as_secs_f64());
            member.seen.answered(inner.now_us(), took.as_micros() as u64);
        };
        let ended = match member.home == inner.me {
            true => self.local(&member.instance, call, source, client, on_head).await,
            // A box of its own, so that it takes no room in calls that stay here.
            false => Box::pin(self.remote(member, call, source, client, on_head)).await,
        };
        if let Err(Failure::Failed(failed)) = &ended
            && failed.unreachable
        {
            let backoff = inner.shared.config.instance_backoff.as_micros() as u64;
            member.seen.leave_out(inner.now_us() + backoff);
        }
        ended
    }
}

impl Inner {
    fn check_hops(&self, call: &Call) -> Result<(), Failure> {
        let hops_max = self.shared.config.hops_max;
        if call.hops() < hops_max {
            return Ok(());
        }
        let message = format!(
            "the call has gone through Weft {} times (calls.hops_max is {hops_max}): an instance of {} is a node, or calls \
             itself",
            call.hops(),
            call.grpc_service(),
        );
        Err(Failure::refused(ErrorCode::Loop, message))
    }

    /// The instance that a call goes to next: its place in the rotation.
    fn choose(&self, view: &Arc<ClusterView>, call: &Call, tries: &mut Tries) -> Result<(Arc<Rotation>, usize), Error> {
        let rotation = self.rotations.get(view, &call.namespace, call.grpc_service())?;
        if !std::mem::replace(&mut tries.counted, true) {
            rotation.tally.calls.fetch_add(1, Ordering::Relaxed);
            rotation.tally.calls_metric.inc();
        }
        let chosen = rotation.choose(&tries.instances, self.roll(), self.now_us())?;
        Ok((rotation, chosen))
    }

    /// Waits until the view is another one: it may have an instance for the call then.
    ///
    /// # Errors
    /// `failure` if that takes too long, or too many calls wait already; `Gone` if the client does not wait.
    async fn wait(
        &self,
        view: &Arc<ClusterView>,
        call: &Call,
        tries: &mut Tries,
        failure: Failure,
        client: &mut impl Client,
    ) -> Result<(), Failure> {
        let (config, waiting) = (&self.shared.config, &self.shared.metrics.waiting);
        let (now, deadline) = (Instant::now(), call.deadline);
        let until = *tries.until.get_or_insert_with(|| {
            let until = now + config.instance_wait;
            deadline.map_or(until, |deadline| deadline.min(until))
        });
        let full = usize::try_from(waiting.get()).is_ok_and(|waiting| waiting >= config.waiting_max);
        if full || now >= until {
            return Err(failure);
        }
        let _waiting = Open::new(waiting);
        let mut views = self.view.clone();
        let changed = pin!(timeout_at(until, async { views.wait_for(|new| !Arc::ptr_eq(new, view)).await.is_ok() }));
        match beside(client, changed).await? {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(failure),
        }
    }

    fn may_retry(
        &self,
        failed: &Failed,
        attempts: u32,
        call: &Call,
        rotation: &Rotation,
        replayable: bool,
        answered: bool,
    ) -> bool {
        let idempotent = call.idempotent || rotation.service.is_idempotent(call.grpc_service(), call.method());
        // What was refused for good will be refused again, and what is late is late.
        let hopeless = !matches!(
            failed.error.code(),
            ErrorCode::Unreachable | ErrorCode::Overloaded | ErrorCode::NotReady | ErrorCode::OutcomeUnknown
        );
        let failed = Try { attempts, not_sent: failed.not_sent, idempotent, replayable, answered };
        let budget = || rotation.tally.may_retry(self.now_us());
        !hopeless && route::may_retry(failed, self.shared.config.attempts_max, budget)
    }
}
