//! One producer, many subscribers of everything: a closed loop, so that at-most-once systems lose nothing.
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    sync::Notify,
    task::spawn_local,
    time::{sleep, timeout},
};

use crate::{
    Result,
    job::{Found, Job, Moment, percentiles},
    run::guarded,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// The state of one fan-out. The producer sends while fewer than `window` batches have not reached everybody.
pub struct Fan {
    window: usize,
    subscribers: usize,
    standing: Cell<usize>,
    published: Cell<u64>,
    /// Copies.
    pub delivered: Cell<u64>,
    /// For each batch on its way: the number of messages up to its end, copies that have not come, time of sending.
    waiting: RefCell<VecDeque<(u64, u64, Instant)>>,
    delays: RefCell<Vec<f32>>,
    measuring: Cell<bool>,
    stop: Cell<bool>,
    turned: Notify,
}

impl Fan {
    fn new(job: &Job) -> Self {
        Self {
            window: job.window,
            subscribers: job.subscribers,
            standing: Cell::new(0),
            published: Cell::new(0),
            delivered: Cell::new(0),
            waiting: RefCell::default(),
            delays: RefCell::default(),
            measuring: Cell::new(false),
            stop: Cell::new(false),
            turned: Notify::new(),
        }
    }

    /// A subscriber stands.
    pub fn ready(&self) {
        self.standing.set(self.standing.get() + 1);
        self.turned.notify_one();
    }

    /// The producer is about to send a batch.
    pub fn sent(&self, messages: u64) {
        self.published.set(self.published.get() + messages);
        let copies = messages * self.subscribers as u64;
        self.waiting.borrow_mut().push_back((self.published.get(), copies, Instant::now()));
    }

    pub fn published(&self) -> u64 {
        self.published.get()
    }

    /// A subscriber got `messages` more and has now `total`, in order.
    pub fn delivered(&self, total: u64, mut messages: u64) {
        self.delivered.set(self.delivered.get() + messages);
        let mut waiting = self.waiting.borrow_mut();
        let mut above = total;
        // From the batch that `total` lies in, backwards.
        for at in (0..waiting.len()).rev() {
            let begin = if at == 0 { 0 } else { waiting[at - 1].0 };
            if above > begin && messages > 0 {
                let part = messages.min(above - begin);
                waiting[at].1 = waiting[at].1.saturating_sub(part);
                messages -= part;
                above -= part;
            }
        }
        while waiting.front().is_some_and(|batch| batch.1 == 0) {
            if let Some((_, _, begin)) = waiting.pop_front()
                && self.measuring.get()
            {
                self.delays.borrow_mut().push(begin.elapsed().as_secs_f32());
            }
            self.turned.notify_one();
        }
    }

    /// Waits for a place in the window; false: enough was sent.
    pub async fn may_send(&self) -> bool {
        while !self.stop.get() && self.waiting.borrow().len() >= self.window {
            self.turned.notified().await;
        }
        !self.stop.get()
    }
}

/// Starts the subscribers, then the producer; measures over `job.seconds`. `messages` counts copies; the wait is from
/// the send of a batch until the last subscriber has it.
pub async fn measure<S, P, FS, FP>(job: &Job, subscribe: S, publish: P) -> Result<Found>
where
    S: Fn(Rc<Fan>) -> FS,
    P: FnOnce(Rc<Fan>) -> FP,
    FS: Future<Output = Result<()>> + 'static,
    FP: Future<Output = Result<u64>> + 'static,
{
    let fan = Rc::new(Fan::new(job));
    let mut readers = Vec::new();
    for number in 0..job.subscribers {
        readers.push(spawn_local(guarded(subscribe(fan.clone()))));
        while number + 1 >= fan.standing.get() + 64 {
            timeout(PATIENCE, fan.turned.notified()).await?;
        }
    }
    while fan.standing.get() < job.subscribers {
        if let Some(at) = readers.iter().position(|reader| reader.is_finished()) {
            readers.swap_remove(at).await??;
        }
        timeout(PATIENCE, fan.turned.notified()).await.map_err(|_| "not all subscriptions stand")?;
    }
    let producer = spawn_local(guarded(publish(fan.clone())));
    sleep(Duration::from_secs_f64(job.warm_up)).await;
    let before = fan.delivered.get();
    fan.measuring.set(true);
    let begin = Moment::now(job);
    sleep(Duration::from_secs_f64(job.seconds)).await;
    let end = Moment::now(job);
    fan.measuring.set(false);
    let mut found = begin.until(&end, fan.delivered.get() - before)?;
    fan.stop.set(true);
    fan.turned.notify_one();
    found.acknowledged = timeout(PATIENCE, producer).await???;
    let wanted = found.acknowledged * job.subscribers as u64;
    let patience = Instant::now() + PATIENCE;
    while fan.delivered.get() < wanted && Instant::now() < patience {
        sleep(Duration::from_millis(5)).await;
    }
    found.missing = wanted as i64 - fan.delivered.get() as i64;
    found.wait_ms = percentiles(fan.delays.take());
    readers.iter().for_each(|reader| reader.abort());
    Ok(found)
}
