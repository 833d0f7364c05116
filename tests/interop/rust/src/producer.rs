//! An idempotent producer on PublishStream.
use std::collections::VecDeque;

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};

use crate::{
    BATCHES, PATIENCE, PER_BATCH, Result, TOTAL,
    api::{
        Durability, PublishOpened, PublishRequest, PublishResponse, PublishResult, PublishStreamRequest,
        PublishStreamResponse, publish_result::Outcome, publish_stream_request::Command,
        publisher_service_client::PublisherServiceClient,
    },
    batch, check,
};

const PRODUCER_ID: u64 = 0x5275_7374_2d31_2e30;

struct Producer {
    requests: mpsc::Sender<PublishStreamRequest>,
    responses: Streaming<PublishStreamResponse>,
    answers: VecDeque<PublishResult>,
}

impl Producer {
    async fn connect(connection: &Channel) -> Result<(Self, PublishOpened)> {
        let (requests, queue) = mpsc::channel(64);
        let mut client = PublisherServiceClient::new(connection.clone());
        let call = client.publish_stream(ReceiverStream::new(queue));
        let mut responses = timeout(PATIENCE, call).await??.into_inner();
        let first = timeout(PATIENCE, responses.message()).await??.ok_or("the stream ended at once")?;
        let opened = first.opened.ok_or("`opened` was not the first message")?;
        Ok((Self { requests, responses, answers: first.results.into() }, opened))
    }

    async fn send(&self, channel: &str, sequence: u64, correlation: u64) -> Result<()> {
        let body = batch(sequence, PER_BATCH);
        let publish = PublishRequest {
            channel: channel.to_owned(),
            count: PER_BATCH as u32,
            crc32c: Some(crc32c::crc32c(&body)),
            batch: body,
            durability: Durability::Quorum as i32,
            producer_id: PRODUCER_ID,
            producer_epoch: 0,
            first_sequence: sequence,
            ..Default::default()
        };
        let command = Some(Command::Publish(publish));
        Ok(self.requests.send(PublishStreamRequest { correlation, command }).await?)
    }

    /// The next answer; it must be to this correlation.
    async fn outcome(&mut self, correlation: u64) -> Result<Outcome> {
        while self.answers.is_empty() {
            let response = timeout(PATIENCE, self.responses.message()).await??.ok_or("the stream ended early")?;
            self.answers.extend(response.results);
        }
        let result = self.answers.pop_front().ok_or("no answer")?;
        check!(result.correlation == correlation, "answer {}, expected {correlation}", result.correlation);
        Ok(result.outcome.ok_or("an answer without outcome")?)
    }

    async fn stored(&mut self, correlation: u64) -> Result<PublishResponse> {
        match self.outcome(correlation).await? {
            Outcome::Stored(stored) => Ok(stored),
            Outcome::Failure(failure) => Err(format!("batch {correlation} was refused: {failure:?}").into()),
        }
    }
}

/// Publishes all batches at once, sends one again, leaves a gap, and half-closes.
pub async fn stream(connection: &Channel, channel: &str) -> Result<()> {
    let (mut producer, opened) = Producer::connect(connection).await?;
    check!(opened.max_unanswered_batches > 0 && opened.max_batch_bytes > 0, "no limits in {opened:?}");
    for number in 0..BATCHES {
        producer.send(channel, number * PER_BATCH, number).await?;
    }
    let mut first_answers = Vec::new();
    for number in 0..BATCHES {
        let stored = producer.stored(number).await?;
        check!(stored.first_offset == number * PER_BATCH, "a gap in the offsets: {stored:?}");
        check!(stored.count == PER_BATCH as u32 && !stored.duplicate, "odd answer {stored:?}");
        check!(stored.durability() == Durability::Quorum && !stored.replicas.is_empty(), "not durable: {stored:?}");
        first_answers.push(stored);
    }
    println!("ok  publish: {TOTAL} messages in {BATCHES} batches, offsets gap-free, durable on {:?}", opened.node);

    let again = BATCHES - 3;
    producer.send(channel, again * PER_BATCH, 1_000).await?;
    let repeated = producer.stored(1_000).await?;
    check!(repeated.duplicate, "a repeated batch was stored twice: {repeated:?}");
    let first_answer = &first_answers[again as usize];
    check!(repeated.first_offset == first_answer.first_offset, "another offset: {repeated:?}, not {first_answer:?}");
    println!("ok  repeated batch: the first offset {} again, duplicate", repeated.first_offset);

    producer.send(channel, TOTAL + 5, 1_001).await?;
    let Outcome::Failure(failure) = producer.outcome(1_001).await? else {
        return Err("a gap in the sequence was taken".into());
    };
    let expected = (Code::FailedPrecondition as i32, "SEQUENCE_GAP");
    check!((failure.code, failure.reason.as_str()) == expected, "wrong failure {failure:?}");
    let Producer { requests, mut responses, .. } = producer;
    drop(requests);
    check!(timeout(PATIENCE, responses.message()).await??.is_none(), "messages after the last answer");
    println!("ok  sequence gap refused, half-close ends the stream with OK");
    Ok(())
}
