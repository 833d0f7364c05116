//! What a job is, what it finds, and CPU time of processes.
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::Result;

/// One load against one broker. `batch` messages are handed over together (in one frame, or in one write of
/// pipelined commands); a producer has at most `window` batches unanswered.
#[derive(Clone, Deserialize)]
pub struct Job {
    pub system: String,
    pub load: String,
    /// HOST:PORT.
    pub address: String,
    /// The broker's processes.
    pub pids: Vec<i32>,
    /// A name that nobody else uses.
    pub channel: String,
    /// Bytes of payload, at least 8.
    pub size: usize,
    pub batch: usize,
    pub window: usize,
    pub producers: usize,
    pub subscribers: usize,
    /// Length of the steady part; before it `warm_up`.
    pub seconds: f64,
    pub warm_up: f64,
    /// To be consumed, for loads that read what is stored; above 0 there.
    pub messages: u64,
    /// Open loop: messages a second.
    pub rate: f64,
    /// `memory`, `leader` or `quorum`; Ringpost only.
    pub durability: String,
    /// Every message is settled by itself. Otherwise in ranges, where the protocol has them.
    pub single_acks: bool,
    /// Of 100 messages so many are given back once before they are acknowledged; Ringpost only.
    pub returned_percent: u64,
    /// Copies of each message; JetStream only.
    pub replicas: u32,
}

/// What a job counted. `missing`: acknowledged and not there, or published and not delivered.
#[derive(Default, Serialize)]
pub struct Found {
    /// In the measured span.
    pub messages: u64,
    pub seconds: f64,
    pub broker_cpu_s: f64,
    pub client_cpu_s: f64,
    /// Over the whole job.
    pub acknowledged: u64,
    pub missing: i64,
    /// Milliseconds: p50, p99, p99.9, greatest. Of the answers, or of the deliveries; empty where none was taken.
    pub wait_ms: Vec<f64>,
    /// Messages whose tick began more than two milliseconds after its time; open loop only.
    pub late: u64,
    pub redelivered: u64,
}

/// A moment: time, and CPU seconds of the broker and of this process.
pub struct Moment {
    at: Instant,
    broker: f64,
    client: f64,
}

fn clock_seconds(clock: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec; a clock that is gone is answered by an error and leaves zeros.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// User and system time of all threads, also of those that have ended.
fn cpu_seconds(pid: i32) -> f64 {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the pointer is to a live clock id.
    match unsafe { libc::clock_getcpuclockid(pid, &mut clock) } {
        0 => clock_seconds(clock),
        _ => f64::NAN,
    }
}

impl Moment {
    pub fn now(job: &Job) -> Self {
        let broker = job.pids.iter().map(|pid| cpu_seconds(*pid)).sum();
        Self { at: Instant::now(), broker, client: clock_seconds(libc::CLOCK_PROCESS_CPUTIME_ID) }
    }

    /// The figures of the span from `self` to `end`. Fails when a process of the broker could not be watched.
    pub fn until(&self, end: &Self, messages: u64) -> Result<Found> {
        let broker_cpu_s = end.broker - self.broker;
        if broker_cpu_s.is_nan() {
            return Err("the CPU time of a process of the broker cannot be read".into());
        }
        Ok(Found {
            messages,
            seconds: (end.at - self.at).as_secs_f64(),
            broker_cpu_s,
            client_cpu_s: end.client - self.client,
            ..Found::default()
        })
    }
}

/// Nearest rank; empty for no samples. Seconds in, milliseconds out.
pub fn percentiles(mut seconds: Vec<f32>) -> Vec<f64> {
    if seconds.is_empty() {
        return Vec::new();
    }
    seconds.sort_unstable_by(f32::total_cmp);
    let rank = |q: f64| ((seconds.len() as f64 * q).ceil() as usize).clamp(1, seconds.len()) - 1;
    [0.5, 0.99, 0.999, 1.0].iter().map(|q| f64::from(seconds[rank(*q)]) * 1e3).collect()
}

/// Incompressible.
pub fn payload(size: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}
