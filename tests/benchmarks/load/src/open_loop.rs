//! An open loop: every message has a time at which it is due, and is measured from that, sent late or not.
//!
//! Messages that are due within the same millisecond leave together, so a message waits at most that long at the
//! producer; the wait counts.
use std::{
    cell::{Cell, RefCell},
    future::Future,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    sync::Notify,
    task::spawn_local,
    time::{sleep, sleep_until, timeout},
};

use crate::{
    Result,
    job::{Found, Job, Moment, payload, percentiles},
    run::guarded,
};

const PATIENCE: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(1);

/// The schedule and what was measured against it. The first eight bytes of a payload are nanoseconds since `begin`.
pub struct Timing {
    begin: Cell<Instant>,
    template: Vec<u8>,
    rate: f64,
    total: u64,
    /// Messages due before this one are to warm up.
    counted_from: u64,
    published: Cell<u64>,
    delivered: Cell<u64>,
    late: Cell<u64>,
    delays: RefCell<Vec<f32>>,
    standing: Notify,
}

impl Timing {
    fn new(job: &Job) -> Result<Self> {
        Ok(Self {
            begin: Cell::new(Instant::now()),
            template: payload(job.size.max(8))?,
            rate: job.rate,
            total: ((job.warm_up + job.seconds) * job.rate) as u64,
            counted_from: (job.warm_up * job.rate) as u64,
            published: Cell::new(0),
            delivered: Cell::new(0),
            late: Cell::new(0),
            delays: RefCell::default(),
            standing: Notify::new(),
        })
    }

    pub fn ready(&self) {
        self.standing.notify_one();
    }

    pub fn published(&self) -> u64 {
        self.published.get()
    }

    fn time_of(&self, number: u64) -> Duration {
        Duration::from_secs_f64(number as f64 / self.rate)
    }

    /// Waits for the next tick at which something is due, and returns it; None at the end.
    pub async fn due(&self) -> Option<Vec<Vec<u8>>> {
        let first = self.published.get();
        if first >= self.total {
            return None;
        }
        let tick = self.time_of(first).as_nanos().div_ceil(TICK.as_nanos()) as u32;
        let at = self.begin.get() + TICK * tick;
        sleep_until(at.into()).await;
        let now = self.begin.get().elapsed();
        // The timer itself is exact to a tick.
        let behind = now.saturating_sub(TICK * tick) > 2 * TICK;
        let until = ((now.as_secs_f64() * self.rate) as u64 + 1).clamp(first + 1, self.total);
        self.published.set(until);
        if behind {
            self.late.set(self.late.get() + until - first);
        }
        Some((first..until).map(|number| self.stamped(number)).collect())
    }

    fn stamped(&self, number: u64) -> Vec<u8> {
        let mut data = self.template.clone();
        data[..8].copy_from_slice(&(self.time_of(number).as_nanos() as u64).to_le_bytes());
        data
    }

    pub fn delivered(&self, data: &[u8]) {
        let number = self.delivered.get();
        self.delivered.set(number + 1);
        if number >= self.counted_from
            && let Some(stamp) = data.first_chunk::<8>()
        {
            let due = self.begin.get() + Duration::from_nanos(u64::from_le_bytes(*stamp));
            self.delays.borrow_mut().push(due.elapsed().as_secs_f32());
        }
    }
}

/// One subscriber, then one producer on schedule. The wait is from a message's due time to its delivery.
pub async fn measure<S, P, FS, FP>(job: &Job, subscribe: S, publish: P) -> Result<Found>
where
    S: FnOnce(Rc<Timing>) -> FS,
    P: FnOnce(Rc<Timing>) -> FP,
    FS: Future<Output = Result<()>> + 'static,
    FP: Future<Output = Result<u64>> + 'static,
{
    let timing = Rc::new(Timing::new(job)?);
    let reader = spawn_local(guarded(subscribe(timing.clone())));
    timeout(PATIENCE, timing.standing.notified()).await.map_err(|_| "the subscription does not stand")?;
    timing.begin.set(Instant::now() + Duration::from_millis(10));
    let begin = Moment::now(job);
    let producer = spawn_local(guarded(publish(timing.clone())));
    let published = producer.await??;
    let patience = Instant::now() + PATIENCE;
    while timing.delivered.get() < published && Instant::now() < patience && !reader.is_finished() {
        sleep(TICK).await;
    }
    let mut found = begin.until(&Moment::now(job), published)?;
    reader.abort();
    found.acknowledged = published;
    found.missing = published as i64 - timing.delivered.get() as i64;
    found.late = timing.late.get();
    found.wait_ms = percentiles(timing.delays.take());
    Ok(found)
}
