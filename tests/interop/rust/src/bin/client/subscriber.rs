//! A subscriber, alone or as a member of a group.
use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use prost::Message as _;
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    Arguments,
    api::{
        Ack, Batch, Credit, DeliveredBatch, GrantCredit, Message, Nack, OffsetRange, OpenSubscription, Outcome, Settle,
        SettleMessagesRequest, Settled, SettledRange, Start, SubscribeRequest, SubscribeResponse,
        group_service_client::GroupServiceClient, settle::Action, settle_messages_request, start,
        subscribe_request::Command, subscribe_response::Event, subscriber_service_client::SubscriberServiceClient,
    },
    session::{Client, MAX_MESSAGE_BYTES, Problem, Session, signed},
};

const SUBSCRIPTION_ID: u32 = 1;
const HEARTBEAT_MS: u32 = 1_000;
/// A stream that was silent for three heartbeats is dead, whatever TCP says.
const SILENCE: Duration = Duration::from_millis(3 * HEARTBEAT_MS as u64);
/// Credit in bytes; only messages are bounded here.
const PLENTY: u64 = 1 << 40;
const ASK: Duration = Duration::from_secs(10);

pub struct Subscriber {
    channel: String,
    /// Empty: alone.
    group: String,
    credit: u64,
    /// Messages still to print, or in a group to settle.
    left: u64,
    /// Alone: where to go on.
    next: u64,
    /// Group: the offset to refuse once, and ranges whose ack has no answer yet, by correlation.
    nack: Option<u64>,
    unanswered: BTreeMap<u64, Vec<OffsetRange>>,
    correlation: u64,
}

/// One stream, and what was delivered and granted on it.
struct Open {
    requests: mpsc::UnboundedSender<SubscribeRequest>,
    delivered: u64,
    granted: u64,
}

impl Open {
    fn say(&self, command: Command) {
        // An error says only that the stream is over; the responses say why.
        let _ = self.requests.send(SubscribeRequest { command: Some(command) });
    }
}

impl Client for Subscriber {
    async fn work(&mut self, session: &mut Session) -> Result<(), Problem> {
        self.settle_unanswered(session).await?;
        if self.left == 0 {
            return Ok(());
        }
        let (requests, queue) = mpsc::unbounded_channel();
        let mut open = Open { requests, delivered: 0, granted: self.credit };
        open.say(Command::Open(self.opening()));
        let mut client =
            SubscriberServiceClient::new(session.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let call = client.subscribe(signed(UnboundedReceiverStream::new(queue))?);
        let mut responses = timeout(SILENCE, call).await.map_err(silent)??.into_inner();
        while self.left > 0 {
            let response = timeout(SILENCE, responses.message()).await.map_err(silent)??;
            let response = response.ok_or_else(|| Problem::Lost("the node ended the stream".to_owned()))?;
            self.event(&mut open, response, session)?;
        }
        // Half-close: the node releases what is leased, answers what it was asked, and ends the stream.
        drop(open);
        while let Ok(Ok(Some(_))) = timeout(SILENCE, responses.message()).await {}
        Ok(())
    }
}

impl Subscriber {
    pub fn new(arguments: &Arguments) -> Result<Self, Problem> {
        Ok(Self {
            channel: arguments.text("channel")?,
            group: arguments.text("group").unwrap_or_default(),
            credit: arguments.number("credit")?,
            left: arguments.number("count")?,
            next: arguments.optional("from")?.unwrap_or(0),
            nack: arguments.optional("nack")?,
            unanswered: BTreeMap::new(),
            correlation: 0,
        })
    }

    fn alone(&self) -> bool {
        self.group.is_empty()
    }

    fn opening(&self) -> OpenSubscription {
        OpenSubscription {
            subscription_id: SUBSCRIPTION_ID,
            channel: self.channel.clone(),
            group: self.group.clone(),
            consumer: "rust".to_owned(),
            start: self.alone().then_some(Start { at: Some(start::At::Offset(self.next)) }),
            credit: Some(Credit { messages: self.credit, bytes: PLENTY }),
            heartbeat_interval_ms: HEARTBEAT_MS,
            ..Default::default()
        }
    }

    fn event(&mut self, open: &mut Open, response: SubscribeResponse, session: &mut Session) -> Result<(), Problem> {
        match response.event {
            Some(Event::Opened(_)) => session.worked = true,
            Some(Event::Deliver(deliver)) => {
                for batch in &deliver.batches {
                    self.deliver(open, batch)?;
                }
                self.grant(open);
            }
            Some(Event::Settled(settled)) => self.settled(settled)?,
            Some(Event::Gap(gap)) => self.next = gap.missing.map_or(self.next, |missing| missing.last + 1),
            Some(Event::Drain(_)) => return Err(Problem::Lost("the node is draining".to_owned())),
            Some(Event::Closed(closed)) => return Err(closed.failure.unwrap_or_default().into()),
            // A heartbeat, or news that this client does not know.
            Some(Event::Heartbeat(_)) | None => {}
        }
        Ok(())
    }

    fn deliver(&mut self, open: &mut Open, batch: &DeliveredBatch) -> Result<(), Problem> {
        let mut done = Vec::new();
        for (offset, message) in (batch.first_offset..).zip(unpack(batch)?) {
            if self.alone() && self.left == 0 {
                break;
            }
            print(offset, batch.attempt, &message);
            self.next = offset + 1;
            if self.alone() {
                self.left -= 1;
            } else if self.nack == Some(offset) {
                self.nack = None;
                let refused = vec![OffsetRange { first: offset, last: offset }];
                self.settle(open, refused, Action::Nack(Nack::default()));
            } else {
                add(&mut done, offset);
            }
        }
        open.delivered += u64::from(batch.count);
        if !done.is_empty() {
            self.settle(open, done.clone(), Action::Ack(Ack {}));
            self.unanswered.insert(self.correlation, done);
        }
        Ok(())
    }

    /// Everything delivered is done with: as much again may come. Not for every message a grant.
    fn grant(&self, open: &mut Open) {
        let total = open.delivered + self.credit;
        if total - open.granted >= self.credit.div_ceil(2) {
            open.granted = total;
            let credit = Some(Credit { messages: total, bytes: PLENTY });
            open.say(Command::Credit(GrantCredit { subscription_id: SUBSCRIPTION_ID, credit }));
        }
    }

    fn settle(&mut self, open: &Open, ranges: Vec<OffsetRange>, action: Action) {
        self.correlation += 1;
        open.say(Command::Settle(Settle {
            subscription_id: SUBSCRIPTION_ID,
            correlation: self.correlation,
            ranges,
            action: Some(action),
            ..Default::default()
        }));
    }

    fn settled(&mut self, settled: Settled) -> Result<(), Problem> {
        if let Some(failure) = settled.failure {
            return Err(failure.into());
        }
        if self.unanswered.remove(&settled.correlation).is_some() {
            self.count(&settled.results);
        }
        Ok(())
    }

    /// Notes what is settled for sure. Other outcomes mean: it was, or will be, delivered again.
    fn count(&mut self, results: &[SettledRange]) {
        for result in results.iter().filter(|one| matches!(one.outcome(), Outcome::Done | Outcome::Already)) {
            let OffsetRange { first, last } = result.range.unwrap_or_default();
            println!(r#"{{"acked": [{first}, {last}]}}"#);
            self.left = self.left.saturating_sub(last - first + 1);
        }
    }

    /// Confirms work that was done when a stream broke: through any node, whoever holds the messages now.
    async fn settle_unanswered(&mut self, session: &Session) -> Result<(), Problem> {
        let mut client = GroupServiceClient::new(session.channel.clone());
        while let Some(entry) = self.unanswered.first_entry() {
            let mut request = signed(SettleMessagesRequest {
                channel: self.channel.clone(),
                group: self.group.clone(),
                ranges: entry.get().clone(),
                action: Some(settle_messages_request::Action::Ack(Ack {})),
                ..Default::default()
            })?;
            request.set_timeout(ASK);
            let answer = client.settle(request).await?.into_inner();
            entry.remove();
            self.count(&answer.results);
        }
        Ok(())
    }
}

/// Checks that a batch came as it was sent.
fn unpack(delivered: &DeliveredBatch) -> Result<Vec<Message>, Problem> {
    let damaged = |what: &str| Problem::Definite(format!("the batch at offset {} {what}", delivered.first_offset));
    if crc32c::crc32c(&delivered.batch) != delivered.crc32c {
        return Err(damaged("does not match its CRC-32C"));
    }
    let batch = Batch::decode(delivered.batch.as_slice()).map_err(|_| damaged("does not parse"))?;
    if batch.messages.len() != delivered.count as usize {
        return Err(damaged("does not hold as many messages as announced"));
    }
    Ok(batch.messages)
}

/// One line, the message in protobuf's JSON form.
fn print(offset: u64, attempt: u32, message: &Message) {
    let content = json!({
        "key": BASE64_STANDARD.encode(&message.key),
        "data": BASE64_STANDARD.encode(&message.data),
        "headers": message.headers,
        "producerTimeUs": message.producer_time_us.to_string(),
        "messageId": message.message_id,
    });
    println!("{}", json!({"offset": offset, "attempt": attempt, "message": content}));
}

/// Adds an offset above all others to ascending ranges.
fn add(ranges: &mut Vec<OffsetRange>, offset: u64) {
    match ranges.last_mut() {
        Some(range) if range.last + 1 == offset => range.last = offset,
        _ => ranges.push(OffsetRange { first: offset, last: offset }),
    }
}

fn silent(_: tokio::time::error::Elapsed) -> Problem {
    Problem::Lost("the node is silent".to_owned())
}
