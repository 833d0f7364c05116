//! An idempotent producer.
use std::{collections::VecDeque, time::Duration};

use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    Arguments,
    api::{
        Batch, Durability, Message, PublishRequest, PublishResult, PublishStreamRequest, publish_result::Outcome,
        publish_stream_request::Command, publisher_service_client::PublisherServiceClient,
    },
    session::{Client, Problem, Session, random, signed},
};

/// At most so many batches of a producer may be unanswered on one channel.
const MAX_UNANSWERED: usize = 64;

/// One idempotent producer on one channel. A batch keeps its numbers however often it is sent, so that the broker
/// stores it once. There is one way to recover: leave the stream, and send everything unanswered again, in order.
pub struct Publisher {
    channel: String,
    name: String,
    count: u64,
    batch: u64,
    pause: Duration,
    producer_id: u64,
    /// Number of the next message that was never sent.
    next: u64,
    unanswered: VecDeque<PublishRequest>,
}

impl Client for Publisher {
    async fn work(&mut self, session: &mut Session) -> Result<(), Problem> {
        let (requests, queue) = mpsc::channel(MAX_UNANSWERED);
        let mut client = PublisherServiceClient::new(session.channel.clone());
        let mut responses = client.publish_stream(signed(ReceiverStream::new(queue))?).await?.into_inner();
        // Its end is the half-close.
        let mut requests = Some(requests);
        let (mut window, mut sent, mut leaving) = (0, 0, false);
        let mut earliest = Instant::now();
        loop {
            let more = self.next < self.count || sent < self.unanswered.len();
            if sent == 0 && (leaving || !more) {
                // Every answer is there; the node ends the stream.
                requests = None;
            }
            let ready = more && !leaving && sent < window;
            tokio::select! {
                () = sleep_until(earliest), if ready => {
                    if sent == self.unanswered.len() {
                        let batch = self.next_batch();
                        self.unanswered.push_back(batch);
                    }
                    let command = Some(Command::Publish(self.unanswered[sent].clone()));
                    sent += 1;
                    if let Some(requests) = &requests {
                        // An error says only that the stream is over; the responses say why.
                        let _ = requests.send(PublishStreamRequest { correlation: 0, command }).await;
                    }
                    earliest = Instant::now() + self.pause;
                }
                response = responses.message() => match response? {
                    Some(response) => {
                        if let Some(opened) = response.opened {
                            window = MAX_UNANSWERED.min(opened.max_unanswered_batches as usize);
                        }
                        leaving |= response.drain.is_some();
                        for result in response.results {
                            self.answered(result)?;
                            sent -= 1;
                            session.worked = true;
                        }
                    }
                    None if self.next == self.count && self.unanswered.is_empty() => return Ok(()),
                    None => return Err(Problem::Lost("the node is draining".to_owned())),
                }
            }
        }
    }
}

impl Publisher {
    pub fn new(arguments: &Arguments) -> Result<Self, Problem> {
        Ok(Self {
            channel: arguments.text("channel")?,
            name: arguments.text("producer")?,
            count: arguments.number("count")?,
            batch: arguments.number("batch")?,
            pause: Duration::from_millis(arguments.optional("pause-ms")?.unwrap_or(0)),
            producer_id: random()? | 1,
            next: 0,
            unanswered: VecDeque::new(),
        })
    }

    /// The outcome of the oldest batch: answers of one channel come in the order of its batches.
    fn answered(&mut self, result: PublishResult) -> Result<(), Problem> {
        match result.outcome {
            Some(Outcome::Stored(stored)) => {
                let (first, count, duplicate) = (stored.first_offset, stored.count, stored.duplicate);
                println!(r#"{{"first_offset": {first}, "count": {count}, "duplicate": {duplicate}}}"#);
                self.unanswered.pop_front();
                Ok(())
            }
            Some(Outcome::Failure(failure)) => Err(failure.into()),
            None => Err(Problem::Definite("a result that this client does not know".to_owned())),
        }
    }

    fn next_batch(&mut self) -> PublishRequest {
        let first_sequence = self.next;
        self.next = self.count.min(self.next + self.batch);
        let messages: Vec<Message> = (first_sequence..self.next).map(|number| self.message(number)).collect();
        let count = messages.len() as u32;
        let batch = Batch { messages }.encode_to_vec();
        PublishRequest {
            channel: self.channel.clone(),
            count,
            crc32c: Some(crc32c::crc32c(&batch)),
            batch,
            durability: Durability::Quorum.into(),
            producer_id: self.producer_id,
            first_sequence,
            ..Default::default()
        }
    }

    fn message(&self, number: u64) -> Message {
        let name = &self.name;
        let headers = [("number", number.to_string()), ("note", r#"he said "grüezi""#.to_owned())];
        Message {
            key: format!("{name}-{}", number % 7).into(),
            data: [format!("{name} {number}").as_bytes(), &[0, 255, number as u8]].concat(),
            headers: headers.map(|(key, value)| (key.to_owned(), value)).into(),
            message_id: format!("{name}/{number}"),
            ..Default::default()
        }
    }
}
