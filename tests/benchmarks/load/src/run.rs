//! Steady loads: producers that run until they are told to stop, watched over a span in the middle.
use std::{
    cell::{Cell, RefCell},
    future::Future,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{task::spawn_local, time::sleep};

use crate::{
    Result,
    job::{Found, Job, Moment, percentiles},
};

/// What the producers of one job share.
#[derive(Default)]
pub struct Tally {
    /// Messages.
    pub acknowledged: Cell<u64>,
    pub stop: Cell<bool>,
    /// Seconds from a send to its answer, while `measuring`.
    waits: RefCell<Vec<f32>>,
    measuring: Cell<bool>,
}

impl Tally {
    pub fn answered(&self, messages: u64, sent: Instant) {
        self.acknowledged.set(self.acknowledged.get() + messages);
        if self.measuring.get() {
            self.waits.borrow_mut().push(sent.elapsed().as_secs_f32());
        }
    }
}

/// Runs `job.producers` of them: warms up, measures for `job.seconds`, stops, and waits for the last answers.
pub async fn steady<M, F>(job: &Job, mut make: M) -> Result<Found>
where
    M: FnMut(usize, Rc<Tally>) -> F,
    F: Future<Output = Result<()>> + 'static,
{
    let tally = Rc::new(Tally::default());
    let tasks: Vec<_> = (0..job.producers).map(|number| spawn_local(guarded(make(number, tally.clone())))).collect();
    sleep(Duration::from_secs_f64(job.warm_up)).await;
    let before = tally.acknowledged.get();
    tally.measuring.set(true);
    let begin = Moment::now(job);
    sleep(Duration::from_secs_f64(job.seconds)).await;
    let end = Moment::now(job);
    tally.measuring.set(false);
    let count = tally.acknowledged.get() - before;
    tally.stop.set(true);
    for task in tasks {
        task.await??;
    }
    let mut found = begin.until(&end, count)?;
    found.acknowledged = tally.acknowledged.get();
    found.wait_ms = percentiles(tally.waits.take());
    Ok(found)
}

/// Errors as text, so that a task can hand them over.
pub async fn guarded<T>(work: impl Future<Output = Result<T>>) -> std::result::Result<T, String> {
    work.await.map_err(|error| error.to_string())
}
