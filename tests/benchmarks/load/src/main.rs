//! Runs load jobs against a broker and prints, for each, one JSON object with what was counted.
//!
//! `ringpost-load JOBS`: a JSON array of objects as `job::Job` describes them, run one after the other. Exits 0 only when
//! every job ran to its end; whether messages are missing is in the figures, for the caller to judge.
mod amqp;
mod codec;
mod fan;
mod grpc;
mod job;
mod nats;
mod open_loop;
mod redis;
mod resp;
mod ringpost;
mod run;

#[allow(clippy::all, rustdoc::all)]
pub mod api {
    tonic::include_proto!("ringpost.v1");
}

use std::{error::Error, process::ExitCode};

use job::{Found, Job};
use tokio::task::LocalSet;

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

async fn dispatch(job: Job) -> Result<Found> {
    match job.system.as_str() {
        "ringpost" => ringpost::run(job).await,
        "grpc" => grpc::run(job).await,
        "nats" | "jetstream" => nats::run(job).await,
        "classic" | "quorum" => amqp::run(job).await,
        "pubsub" | "streams" => redis::run(job).await,
        other => Err(format!("unknown system {other}").into()),
    }
}

async fn all(jobs: &str) -> Result<()> {
    for job in serde_json::from_str::<Vec<Job>>(jobs)? {
        println!("{}", serde_json::to_string(&dispatch(job).await?)?);
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Some(jobs) = std::env::args().nth(1) else {
        eprintln!("usage: ringpost-load JOBS");
        return ExitCode::from(2);
    };
    match LocalSet::new().run_until(all(&jobs)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed: {error}");
            ExitCode::FAILURE
        }
    }
}
