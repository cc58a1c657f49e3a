//! A consumer of a group, as the application sees it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prost::Message;
use tokio::sync::{Notify, oneshot};
use weft_proto::v1::{self, Event, SubscribeOpen};

use super::courier;
use super::group::{Place, State};
use crate::client::Client;
use crate::error::{Error, ErrorCode, Retry};

/// A member of a group. Dropped, it leaves once its acks are answered, and its unacked deliveries go to other members.
pub struct Consumer {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    state: Mutex<State>,
    /// Deliveries came, a session or epoch ended, acks were answered, or the consumer ended.
    pub(super) news: Notify,
    /// The courier has something to send.
    pub(super) work: Notify,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the consumer's state")
    }

    /// Waits until `look` finds something, looking again at all news.
    async fn wait<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            {
                let mut state = self.lock();
                if let Some(found) = look(&mut state) {
                    return found;
                }
                news.as_mut().enable();
            }
            news.await;
        }
    }
}

impl Consumer {
    pub(super) async fn open(client: Client, open: SubscribeOpen) -> Result<Consumer, Error> {
        let state = Mutex::new(State::new(open.credit));
        let shared = Arc::new(Shared { state, news: Notify::new(), work: Notify::new() });
        let consumer = Consumer { shared: shared.clone() };
        tokio::spawn(courier::run(client, shared, open));
        consumer.shared.wait(|state| state.ended.clone().map(Err).or(state.opened.then_some(Ok(())))).await?;
        Ok(consumer)
    }

    /// The next delivery. Waits for one; follows failovers by itself.
    ///
    /// # Errors
    /// What cannot be healed by another node, for example `UnknownTopic` after the topic is deleted; `Corrupt`
    /// for a record that is no event (it is given out again until it is parked).
    pub async fn next(&mut self) -> Result<Delivery, Error> {
        let look = |state: &mut State| state.take().map(Ok).or_else(|| state.ended.clone().map(Err));
        let (session, delivery) = self.shared.wait(look).await?;
        Delivery::new(&self.shared, session, delivery)
    }

    /// Waits until all acks made so far are answered: committed, or refused (then they come again).
    ///
    /// # Errors
    /// What has ended the consumer.
    pub async fn flush_acks(&self) -> Result<(), Error> {
        self.shared.work.notify_one();
        self.shared.wait(|state| state.ended.clone().map(Err).or((!state.has_acks()).then_some(Ok(())))).await
    }

    /// Flushes the acks and leaves the group; when it returns, what is not acked has gone to others.
    ///
    /// # Errors
    /// As of [`Consumer::flush_acks`].
    pub async fn close(self) -> Result<(), Error> {
        self.flush_acks().await?;
        self.leave();
        // A connection that is lost on the way out is a leave, too.
        self.shared.wait(|state| state.ended.is_some().then_some(())).await;
        Ok(())
    }

    fn leave(&self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.leave();
    }
}

/// An event to handle.
pub struct Delivery {
    /// The partition.
    pub partition: u32,
    /// Its place there.
    pub offset: u64,
    /// The epoch of the owner that gives it out.
    pub epoch: u64,
    /// Grows when the owner starts to dispatch the group anew within an epoch. Of two deliveries of one event, that
    /// with the greater (epoch, dispatch, attempt) was given out later.
    pub dispatch: u32,
    /// 1 for the first delivery by this dispatch.
    pub attempt: u32,
    /// The event.
    pub event: Event,
    /// To ack, nack or extend. When the last clone is dropped without, the event is given out again after its
    /// ack deadline.
    pub handle: Handle,
}

impl Delivery {
    fn new(shared: &Arc<Shared>, session: u64, delivery: v1::Delivery) -> Result<Delivery, Error> {
        let v1::Delivery { partition, offset, epoch, attempt, event, dispatch } = delivery;
        let place = Place { partition, epoch, offset };
        let settled = AtomicBool::new(false);
        let handle = Handle { ticket: Arc::new(Ticket { shared: shared.clone(), session, place, settled }) };
        let event = Event::decode(event).map_err(|error| Error::Refused {
            code: ErrorCode::Corrupt,
            message: format!("partition {partition} offset {offset}: {error}").into(),
            retry: Retry::Same,
            owner: 0,
        })?;
        Ok(Delivery { partition, offset, epoch, dispatch, attempt, event, handle })
    }
}

/// Acks, nacks or extends one delivery. Cheap to clone; may be sent to another task.
#[derive(Clone)]
pub struct Handle {
    ticket: Arc<Ticket>,
}

struct Ticket {
    shared: Arc<Shared>,
    session: u64,
    place: Place,
    settled: AtomicBool,
}

impl Ticket {
    /// True for the first who acks or nacks.
    fn claim(&self) -> bool {
        !self.settled.swap(true, Ordering::Relaxed)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.claim() {
            self.shared.lock().settle(self.session, self.place);
            self.shared.work.notify_one();
        }
    }
}

impl Handle {
    /// Marks the event as handled and goes on; acks are gathered and sent together.
    pub fn ack(&self) {
        self.send_ack(None);
    }

    /// Acks and waits until that is committed: the event is never delivered to the group again.
    ///
    /// # Errors
    /// `StaleEpoch` if the delivery is void: the event comes again, or came to another consumer. `Invalid` if
    /// it was acked or nacked before.
    pub async fn ack_confirmed(&self) -> Result<(), Error> {
        let (confirm, confirmed) = oneshot::channel();
        if !self.send_ack(Some(confirm)) {
            return Err(Error::invalid("the delivery was acked or nacked before"));
        }
        confirmed.await.unwrap_or(Err(Error::Closed))
    }

    fn send_ack(&self, confirm: Option<oneshot::Sender<Result<(), Error>>>) -> bool {
        let Ticket { shared, session, place, .. } = &*self.ticket;
        let first = self.ticket.claim();
        if first {
            let mut state = shared.lock();
            state.ack(*place, confirm);
            state.settle(*session, *place);
            drop(state);
            shared.work.notify_one();
        }
        first
    }

    /// Gives the event back; it is given out again after `delay` (zero: the group's backoff).
    pub fn nack(&self, delay: Duration) {
        let Ticket { shared, session, place, .. } = &*self.ticket;
        if self.ticket.claim() {
            let mut state = shared.lock();
            state.nack(*session, *place, delay);
            state.settle(*session, *place);
            drop(state);
            shared.work.notify_one();
        }
    }

    /// Restarts the ack deadline.
    pub fn extend(&self) {
        let Ticket { shared, session, place, .. } = &*self.ticket;
        shared.lock().extend(*session, *place);
        shared.work.notify_one();
    }

    /// False once the delivery is void: a newer epoch acts, or the connection that brought it is lost, and it
    /// is given out again. Stop handling it.
    pub fn is_valid(&self) -> bool {
        let Ticket { shared, session, place, .. } = &*self.ticket;
        shared.lock().is_valid(*session, *place)
    }

    /// Resolves when the delivery becomes void.
    pub async fn voided(&self) {
        let Ticket { shared, session, place, .. } = &*self.ticket;
        shared.wait(|state| (!state.is_valid(*session, *place)).then_some(())).await;
    }
}
