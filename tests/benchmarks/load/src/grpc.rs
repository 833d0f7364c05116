//! The ceiling: raw bytes to a server that does nothing (`ceiling.py --serve`).
use std::{collections::VecDeque, rc::Rc, time::Instant};

use bytes::Bytes;
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, client::Grpc, transport::Channel};

use crate::{
    Result,
    codec::Raw,
    fan::{self, Fan},
    job::{Found, Job, payload},
    ringpost::connect,
    run::{Tally, steady},
};

pub async fn run(job: Job) -> Result<Found> {
    match job.load.as_str() {
        // As many answers as frames, as a publish stream has.
        "publish" => steady(&job, |_, tally| frames(job.clone(), tally)).await,
        "unary" => steady(&job, |_, tally| calls(job.clone(), tally)).await,
        "fanout" => fan_out(job).await,
        other => Err(format!("no load {other} for the raw stream").into()),
    }
}

async fn client(job: &Job) -> Result<Grpc<Channel>> {
    let mut client = Grpc::new(connect(&job.address).await?).max_decoding_message_size(64 << 20);
    client.ready().await?;
    Ok(client)
}

async fn frames(job: Job, tally: Rc<Tally>) -> Result<()> {
    let mut client = client(&job).await?;
    let (requests, queue) = mpsc::channel(job.window);
    let path = PathAndQuery::from_static("/ceiling/take");
    let frame = Bytes::from(payload(job.size * job.batch)?);
    let mut sent = VecDeque::from([Instant::now()]);
    requests.send(frame.clone()).await?;
    let mut answers = client.streaming(Request::new(ReceiverStream::new(queue)), path, Raw).await?.into_inner();
    loop {
        while !tally.stop.get() && sent.len() < job.window {
            sent.push_back(Instant::now());
            requests.send(frame.clone()).await?;
        }
        let Some(begin) = sent.pop_front() else { return Ok(()) };
        answers.message().await?.ok_or("the stream ended early")?;
        tally.answered(job.batch as u64, begin);
    }
}

async fn calls(job: Job, tally: Rc<Tally>) -> Result<()> {
    let mut client = client(&job).await?;
    let message = Bytes::from(payload(job.size)?);
    while !tally.stop.get() {
        let begin = Instant::now();
        client.ready().await?;
        let path = PathAndQuery::from_static("/ceiling/call");
        client.unary(Request::new(message.clone()), path, Raw).await?;
        tally.answered(1, begin);
    }
    Ok(())
}

/// A frame that one client uploads is written to every open `listen` stream.
async fn fan_out(job: Job) -> Result<Found> {
    fan::measure(&job, |fan| listen(job.clone(), fan), |fan| talk(job.clone(), fan)).await
}

async fn listen(job: Job, fan: Rc<Fan>) -> Result<()> {
    let mut client = client(&job).await?;
    let path = PathAndQuery::from_static("/ceiling/listen");
    let request = Request::new(tokio_stream::once(Bytes::new()));
    let mut frames = client.streaming(request, path, Raw).await?.into_inner();
    frames.message().await?.ok_or("the stream ended early")?;
    fan.ready();
    for number in 0.. {
        frames.message().await?.ok_or("the stream ended early")?;
        fan.delivered((number + 1) * job.batch as u64, job.batch as u64);
    }
    Ok(())
}

async fn talk(job: Job, fan: Rc<Fan>) -> Result<u64> {
    let mut client = client(&job).await?;
    let (requests, queue) = mpsc::channel(job.window);
    let frame = Bytes::from(payload(job.size * job.batch)?);
    let path = PathAndQuery::from_static("/ceiling/talk");
    requests.send(frame.clone()).await?;
    fan.sent(job.batch as u64);
    let mut answers = client.streaming(Request::new(ReceiverStream::new(queue)), path, Raw).await?.into_inner();
    while fan.may_send().await {
        fan.sent(job.batch as u64);
        requests.send(frame.clone()).await?;
    }
    drop(requests);
    while answers.message().await?.is_some() {}
    Ok(fan.published())
}
