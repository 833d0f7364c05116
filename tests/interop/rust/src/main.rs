//! Speaks to a broker as any program with a gRPC code generator can, and judges the answers.
//!
//! `ringpost-interop HOST:PORT CHANNEL`: CHANNEL must not exist yet. Prints one line for each thing shown; exits 0 only
//! when all of it is as the .proto files promise.
mod producer;
mod subscriber;

#[allow(clippy::all, rustdoc::all)]
pub mod api {
    tonic::include_proto!("ringpost.v1");
}

use std::{error::Error, process::ExitCode, time::Duration};

use api::{
    Batch, Credit, DeliveredBatch, Message, OffsetRange, OpenSubscription, Outcome, PublishRequest, Start,
    publisher_service_client::PublisherServiceClient, settle::Action, start, subscribe_request::Command,
    subscribe_response::Event,
};
use prost::Message as _;
use subscriber::Subscriber;
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt;

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Longest wait for any one answer.
pub const PATIENCE: Duration = Duration::from_secs(30);

const BATCHES: u64 = 20;
const PER_BATCH: u64 = 100;
const TOTAL: u64 = BATCHES * PER_BATCH;
const GROUP: &str = "workers";

/// Fails with the sentence unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($sentence:tt)+) => {
        if !$condition {
            return Err(format!($($sentence)+).into());
        }
    };
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, channel] = arguments.as_slice() else {
        eprintln!("usage: ringpost-interop HOST:PORT CHANNEL");
        return ExitCode::from(2);
    };
    match run(address, channel).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(address: &str, channel: &str) -> Result<()> {
    let connection = Channel::from_shared(format!("http://{address}"))?.connect_timeout(PATIENCE).connect().await?;
    producer::stream(&connection, channel).await?;
    work_through_group(&connection, channel).await?;
    redeliver(&connection, channel).await?;
    replay(&connection, channel).await?;
    errors(&connection, channel).await
}

/// The content of message number `index`, the same for every reader.
fn message(index: u64) -> Message {
    Message {
        key: format!("key-{}", index % 7).into_bytes(),
        data: format!("message {index} says grüezi").into_bytes(),
        headers: [("language".to_owned(), "rust".to_owned())].into(),
        producer_time_us: 1_700_000_000_000_000 + index as i64,
        message_id: format!("id-{index}"),
    }
}

/// Messages first..first+count as an encoded `Batch`.
fn batch(first: u64, count: u64) -> Vec<u8> {
    let messages = (first..first + count).map(message).collect();
    Batch { messages }.encode_to_vec()
}

/// Checks one delivered run of messages against what was published: checksum, count, place, content, attempt.
fn examine(delivered: &DeliveredBatch, expected_offset: u64, attempt: u32) -> Result<u64> {
    let first = delivered.first_offset;
    check!(first == expected_offset, "got offset {first}, expected {expected_offset}");
    check!(delivered.attempt == attempt, "offset {first}: attempt {}, not {attempt}", delivered.attempt);
    check!(crc32c::crc32c(&delivered.batch) == delivered.crc32c, "offset {first}: wrong checksum");
    let messages = Batch::decode(delivered.batch.as_slice())?.messages;
    check!(messages.len() == delivered.count as usize, "offset {first}: wrong count");
    for (offset, got) in (first..).zip(&messages) {
        check!(*got == message(offset), "offset {offset}: wrong content {got:?}");
    }
    Ok(messages.len() as u64)
}

fn open(channel: &str, group: &str, start: Option<start::At>, messages: u64) -> OpenSubscription {
    OpenSubscription {
        subscription_id: 1,
        channel: channel.to_owned(),
        start: start.map(|at| Start { at: Some(at) }),
        group: group.to_owned(),
        consumer: "rust".to_owned(),
        credit: Some(Credit { messages, bytes: 1 << 40 }),
        heartbeat_interval_ms: 1_000,
        ..Default::default()
    }
}

/// A group reads everything in three grants of credit and acks it by ranges.
async fn work_through_group(connection: &Channel, channel: &str) -> Result<()> {
    let mut subscriber = Subscriber::connect(connection, open(channel, GROUP, None, 500)).await?;
    let opened = subscriber.opened().await?;
    check!(opened.next_offset == 0 && opened.end_offset == TOTAL, "odd places in {opened:?}");
    check!(opened.ack_deadline_ms >= 1_000, "odd ack deadline in {opened:?}");
    let mut next = 0;
    for granted in [500, 1_250, TOTAL + 50] {
        subscriber.grant(granted).await?;
        while next < granted.min(TOTAL) {
            let mut ranges = Vec::new();
            for delivered in subscriber.deliver().await? {
                let first = next;
                next += examine(&delivered, next, 1)?;
                ranges.push(OffsetRange { first, last: next - 1 });
            }
            check!(next <= granted, "{next} messages delivered with a credit of {granted}");
            subscriber.settle(ranges, Action::Ack(api::Ack {})).await?;
        }
    }
    let done = subscriber.settled(Outcome::Done, TOTAL).await?;
    subscriber.close().await?;
    subscriber.finish().await?;
    println!("ok  group: {next} messages within the credit, checksums right, {done} acks answered DONE");
    Ok(())
}

/// The group has nothing left; a message published by the unary call is nacked and comes again.
async fn redeliver(connection: &Channel, channel: &str) -> Result<()> {
    let mut subscriber = Subscriber::connect(connection, open(channel, GROUP, None, 10)).await?;
    let opened = subscriber.opened().await?;
    check!(opened.next_offset == TOTAL, "the group is at {}, not {TOTAL}", opened.next_offset);
    subscriber.silence().await?;
    println!("ok  reopened group: nothing more");

    let request = PublishRequest { channel: channel.to_owned(), batch: batch(TOTAL, 1), ..Default::default() };
    let stored = PublisherServiceClient::new(connection.clone()).publish(request).await?.into_inner();
    check!(stored.first_offset == TOTAL && stored.count == 1, "odd answer {stored:?}");
    for attempt in [1, 2] {
        let delivered = subscriber.deliver().await?;
        check!(delivered.len() == 1, "{} batches for one message", delivered.len());
        examine(&delivered[0], TOTAL, attempt)?;
        let range = OffsetRange { first: TOTAL, last: TOTAL };
        let action = if attempt == 1 { Action::Nack(api::Nack::default()) } else { Action::Ack(api::Ack {}) };
        subscriber.settle(vec![range], action).await?;
        subscriber.settled(Outcome::Done, 1).await?;
    }
    subscriber.close().await?;
    subscriber.finish().await?;
    println!("ok  unary publish, nack: delivered again with attempt 2, then acked");
    Ok(())
}

/// Without a group: from the earliest on, exactly as many as granted.
async fn replay(connection: &Channel, channel: &str) -> Result<()> {
    let everything = TOTAL + 1;
    let mut subscriber =
        Subscriber::connect(connection, open(channel, "", Some(start::At::Earliest(true)), 150)).await?;
    subscriber.opened().await?;
    let mut next = 0;
    for granted in [150, everything + 50] {
        subscriber.grant(granted).await?;
        while next < granted.min(everything) {
            for delivered in subscriber.deliver().await? {
                next += examine(&delivered, next, 0)?;
            }
        }
        check!(next <= granted, "{next} messages delivered with a credit of {granted}");
        subscriber.silence().await?;
    }
    subscriber.close().await?;
    subscriber.finish().await?;
    println!("ok  replay: {next} messages from the earliest, exactly by credit");
    Ok(())
}

/// A bad channel name: a status with google.rpc details on a unary call, a `Failure` inside a stream.
async fn errors(connection: &Channel, channel: &str) -> Result<()> {
    let request = PublishRequest { channel: "not a name".to_owned(), batch: batch(0, 1), ..Default::default() };
    let status = match PublisherServiceClient::new(connection.clone()).publish(request).await {
        Ok(answer) => return Err(format!("a bad channel name was taken: {answer:?}").into()),
        Err(status) => status,
    };
    check!(status.code() == Code::InvalidArgument, "wrong status {status:?}");
    let details = status.check_error_details()?;
    let violations = details.bad_request().map(|b| b.field_violations.clone()).unwrap_or_default();
    check!(violations.iter().any(|v| v.field.contains("channel")), "no BadRequest that names the field: {details:?}");
    check!(details.error_info().is_some_and(|i| i.domain == "ringpost"), "no ErrorInfo: {details:?}");
    println!("ok  bad name: {}; details name the field {:?}", status.message(), violations[0].field);

    let mut subscriber = Subscriber::connect(connection, open("not a name", "", None, 1)).await?;
    let Event::Closed(closed) = subscriber.event().await? else {
        return Err("a subscription with a bad channel name was not closed".into());
    };
    let failure = closed.failure.unwrap_or_default();
    check!(failure.code == Code::InvalidArgument as i32, "wrong failure {failure:?}");
    check!(failure.violations.iter().any(|v| v.field.contains("channel")), "no field named: {failure:?}");
    let other = OpenSubscription { subscription_id: 2, ..open(channel, "", None, 1) };
    subscriber.send(Command::Open(other)).await?;
    check!(subscriber.opened().await?.subscription_id == 2, "the stream did not go on");
    subscriber.finish().await?;
    println!("ok  bad name in a stream: closed with {}, the stream went on", failure.reason);
    Ok(())
}
