//! Ringpost: publish streams, unary publishes, subscriptions with and without a group.
use std::{
    cell::Cell,
    collections::VecDeque,
    rc::Rc,
    time::{Duration, Instant},
};

use prost::Message as _;
use tokio::{sync::mpsc, task::spawn_local, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    Result,
    api::{
        Batch, Credit, DeliveredBatch, Durability, GetChannelRequest, Message, OffsetRange, OpenSubscription, Outcome,
        PublishRequest, PublishStreamRequest, PublishStreamResponse, Settle, Start, SubscribeRequest,
        SubscribeResponse, channel_service_client::ChannelServiceClient, publish_result,
        publish_stream_request::Command, publisher_service_client::PublisherServiceClient, settle, start,
        subscribe_request, subscribe_response::Event, subscriber_service_client::SubscriberServiceClient,
    },
    fan::{self, Fan},
    job::{Found, Job, Moment, payload},
    open_loop::{self, Timing},
    run::{Tally, guarded, steady},
};

const PATIENCE: Duration = Duration::from_secs(20);
const UNLIMITED: Credit = Credit { messages: 1 << 62, bytes: 1 << 62 };
const FILL_BATCH: usize = 1000;

pub async fn run(job: Job) -> Result<Found> {
    match job.load.as_str() {
        "publish" => checked(&job, steady(&job, |_, tally| publish(job.clone(), tally)).await?).await,
        "unary" => checked(&job, steady(&job, |_, tally| calls(job.clone(), tally)).await?).await,
        "consume" => consume(&job).await,
        "fanout" => fan::measure(&job, |fan| listen(job.clone(), fan), |fan| talk(job.clone(), fan)).await,
        "latency" => open_loop::measure(&job, |t| hear(job.clone(), t), |t| say(job.clone(), t)).await,
        other => Err(format!("no load {other} for Ringpost").into()),
    }
}

pub async fn connect(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .tcp_nodelay(true);
    Ok(timeout(PATIENCE, endpoint.connect()).await??)
}

/// What is missing of the messages that were acknowledged. At T0 the answer comes before the message can be seen.
async fn checked(job: &Job, mut found: Found) -> Result<Found> {
    let mut client = ChannelServiceClient::new(connect(&job.address).await?);
    for _ in 0..200 {
        let request = GetChannelRequest { name: job.channel.clone() };
        let info = client.get_channel(request).await?.into_inner();
        found.missing = found.acknowledged as i64 - info.channel.ok_or("no channel")?.end_offset as i64;
        if found.missing == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(found)
}

fn durability(job: &Job) -> Result<i32> {
    match job.durability.as_str() {
        "memory" => Ok(Durability::Memory as i32),
        "leader" => Ok(Durability::Leader as i32),
        "quorum" => Ok(Durability::Quorum as i32),
        other => Err(format!("unknown durability {other}").into()),
    }
}

fn request(job: &Job, messages: Vec<Message>) -> Result<PublishRequest> {
    let count = messages.len() as u32;
    let batch = Batch { messages }.encode_to_vec();
    Ok(PublishRequest {
        channel: job.channel.clone(),
        crc32c: Some(crc32c::crc32c(&batch)),
        batch,
        count,
        durability: durability(job)?,
        ..Default::default()
    })
}

/// `count` messages of random bytes.
fn random(job: &Job, count: usize) -> Result<PublishRequest> {
    let messages = (0..count).map(|_| Ok(Message { data: payload(job.size)?, ..Default::default() }));
    request(job, messages.collect::<Result<_>>()?)
}

/// One publish stream; answers come in the order of the batches.
struct Producer {
    requests: mpsc::Sender<PublishStreamRequest>,
    responses: Streaming<PublishStreamResponse>,
    sent: VecDeque<(u64, Instant)>,
}

impl Producer {
    async fn open(job: &Job) -> Result<Self> {
        let (requests, queue) = mpsc::channel(job.window.max(16));
        let mut client = PublisherServiceClient::new(connect(&job.address).await?).max_decoding_message_size(64 << 20);
        let mut responses = timeout(PATIENCE, client.publish_stream(ReceiverStream::new(queue))).await??.into_inner();
        let first = timeout(PATIENCE, responses.message()).await??.ok_or("the stream ended at once")?;
        first.opened.ok_or("`opened` was not the first message")?;
        Ok(Self { requests, responses, sent: VecDeque::new() })
    }

    async fn send(&mut self, publish: PublishRequest) -> Result<()> {
        self.sent.push_back((u64::from(publish.count), Instant::now()));
        let command = Some(Command::Publish(publish));
        Ok(self.requests.send(PublishStreamRequest { correlation: 0, command }).await?)
    }

    /// Waits for answers and tells each one's messages and time of sending.
    async fn answers(&mut self, mut each: impl FnMut(u64, Instant)) -> Result<()> {
        let response = timeout(PATIENCE, self.responses.message()).await??.ok_or("the stream ended early")?;
        for result in response.results {
            let Some(publish_result::Outcome::Stored(_)) = result.outcome else {
                return Err(format!("a batch was refused: {result:?}").into());
            };
            let (messages, begin) = self.sent.pop_front().ok_or("an answer too many")?;
            each(messages, begin);
        }
        Ok(())
    }
}

async fn publish(job: Job, tally: Rc<Tally>) -> Result<()> {
    let mut producer = Producer::open(&job).await?;
    let template = random(&job, job.batch)?;
    loop {
        while !tally.stop.get() && producer.sent.len() < job.window {
            producer.send(template.clone()).await?;
        }
        if producer.sent.is_empty() {
            return Ok(());
        }
        producer.answers(|messages, begin| tally.answered(messages, begin)).await?;
    }
}

async fn calls(job: Job, tally: Rc<Tally>) -> Result<()> {
    let mut client = PublisherServiceClient::new(connect(&job.address).await?);
    let template = random(&job, 1)?;
    while !tally.stop.get() {
        let begin = Instant::now();
        client.publish(template.clone()).await?;
        tally.answered(1, begin);
    }
    Ok(())
}

/// One subscription on a stream of its own.
struct Subscriber {
    requests: mpsc::Sender<SubscribeRequest>,
    responses: Streaming<SubscribeResponse>,
    settlements: u64,
}

impl Subscriber {
    /// Without a group it begins at the end; a group begins where it is.
    async fn open(job: &Job, group: &str) -> Result<Self> {
        let (requests, queue) = mpsc::channel(1024);
        let open = OpenSubscription {
            subscription_id: 1,
            channel: job.channel.clone(),
            start: group.is_empty().then_some(Start { at: Some(start::At::Latest(true)) }),
            group: group.to_owned(),
            credit: Some(UNLIMITED),
            ..Default::default()
        };
        requests.send(SubscribeRequest { command: Some(subscribe_request::Command::Open(open)) }).await?;
        let mut client = SubscriberServiceClient::new(connect(&job.address).await?).max_decoding_message_size(64 << 20);
        let responses = timeout(PATIENCE, client.subscribe(ReceiverStream::new(queue))).await??.into_inner();
        let mut subscriber = Self { requests, responses, settlements: 0 };
        match subscriber.next().await? {
            Event::Opened(_) => Ok(subscriber),
            event => Err(format!("expected `opened`, got {event:?}").into()),
        }
    }

    async fn next(&mut self) -> Result<Event> {
        let response: SubscribeResponse = self.responses.message().await?.ok_or("the stream ended early")?;
        response.event.ok_or_else(|| "a response without event".into())
    }

    /// The next batches.
    async fn batches(&mut self) -> Result<Vec<DeliveredBatch>> {
        loop {
            match self.next().await? {
                Event::Deliver(deliver) => return Ok(deliver.batches),
                Event::Heartbeat(_) => {}
                event => return Err(format!("expected `deliver`, got {event:?}").into()),
            }
        }
    }

    async fn settle(&mut self, ranges: Vec<OffsetRange>, action: settle::Action) -> Result<()> {
        self.settlements += 1;
        let settle = Settle {
            subscription_id: 1,
            correlation: self.settlements,
            ranges,
            action: Some(action),
            ..Default::default()
        };
        Ok(self.requests.send(SubscribeRequest { command: Some(subscribe_request::Command::Settle(settle)) }).await?)
    }

    /// Acknowledges what came, in ranges or each by itself, and first returns the share that the job says.
    async fn acknowledge(&mut self, job: &Job, batches: &[DeliveredBatch]) -> Result<()> {
        let (mut done, mut returned) = (Vec::new(), Vec::new());
        for batch in batches {
            let last = batch.first_offset + u64::from(batch.count) - 1;
            let mut first = batch.first_offset;
            for offset in batch.first_offset..=last {
                let back = batch.attempt == 1 && offset % 100 < job.returned_percent;
                if back {
                    returned.push(OffsetRange { first: offset, last: offset });
                }
                if back && offset > first {
                    done.push(OffsetRange { first, last: offset - 1 });
                } else if job.single_acks && !back {
                    done.push(OffsetRange { first: offset, last: offset });
                }
                if back || job.single_acks {
                    first = offset + 1;
                }
            }
            if first <= last {
                done.push(OffsetRange { first, last });
            }
        }
        let step = if job.single_acks { 1 } else { 1000 };
        for ranges in done.chunks(step) {
            self.settle(ranges.to_vec(), settle::Action::Ack(crate::api::Ack {})).await?;
        }
        for ranges in returned.chunks(1000) {
            self.settle(ranges.to_vec(), settle::Action::Nack(crate::api::Nack::default())).await?;
        }
        Ok(())
    }
}

/// What the members of a group share.
#[derive(Default)]
struct Work {
    delivered: Cell<u64>,
    settled: Cell<u64>,
    redelivered: Cell<u64>,
}

/// Stores `job.messages` in batches of `job.batch` (1: of 1,000), unmeasured, then measures how fast a group of `job.subscribers` members gets them settled.
async fn consume(job: &Job) -> Result<Found> {
    let mut producer = Producer::open(job).await?;
    let fill = if job.batch > 1 { job.batch } else { FILL_BATCH };
    let template = random(job, fill)?;
    for _ in 0..job.messages.div_ceil(fill as u64) {
        producer.send(template.clone()).await?;
        while producer.sent.len() > 8 {
            producer.answers(|_, _| {}).await?;
        }
    }
    while !producer.sent.is_empty() {
        producer.answers(|_, _| {}).await?;
    }
    let wanted = job.messages.div_ceil(fill as u64) * fill as u64;
    let work = Rc::new(Work::default());
    let begin = Moment::now(job);
    let mut tasks: Vec<_> =
        (0..job.subscribers).map(|_| spawn_local(guarded(member(job.clone(), work.clone(), wanted)))).collect();
    while work.settled.get() < wanted {
        if let Some(at) = tasks.iter().position(|task| task.is_finished()) {
            tasks.swap_remove(at).await??;
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    let end = Moment::now(job);
    tasks.iter().for_each(|task| task.abort());
    let mut found = begin.until(&end, wanted)?;
    found.acknowledged = wanted;
    found.redelivered = work.redelivered.get();
    found.missing = (wanted + found.redelivered) as i64 - work.delivered.get() as i64;
    Ok(found)
}

async fn member(job: Job, work: Rc<Work>, wanted: u64) -> Result<()> {
    let mut subscriber = Subscriber::open(&job, "workers").await?;
    while work.settled.get() < wanted {
        match timeout(PATIENCE, subscriber.next()).await?? {
            Event::Deliver(deliver) => {
                for batch in &deliver.batches {
                    work.delivered.set(work.delivered.get() + u64::from(batch.count));
                    if batch.attempt > 1 {
                        work.redelivered.set(work.redelivered.get() + u64::from(batch.count));
                    }
                }
                subscriber.acknowledge(&job, &deliver.batches).await?;
            }
            Event::Settled(settled) => work.settled.set(work.settled.get() + done(&settled)?),
            Event::Heartbeat(_) => {}
            event => return Err(format!("expected `deliver` or `settled`, got {event:?}").into()),
        }
    }
    std::future::pending().await
}

/// Messages that an answer says are acknowledged for good.
fn done(settled: &crate::api::Settled) -> Result<u64> {
    if let Some(failure) = &settled.failure {
        return Err(format!("a settlement failed: {failure:?}").into());
    }
    let done = settled.results.iter().filter(|result| result.outcome() == Outcome::Done);
    Ok(done.filter_map(|result| result.range).map(|range| range.last - range.first + 1).sum())
}

/// A subscriber of everything; fails on a gap in the offsets.
async fn listen(job: Job, fan: Rc<Fan>) -> Result<()> {
    let mut subscriber = Subscriber::open(&job, "").await?;
    fan.ready();
    let mut total = 0;
    loop {
        for batch in subscriber.batches().await? {
            if batch.first_offset != total {
                return Err(format!("offset {} came, {total} was to come", batch.first_offset).into());
            }
            total += u64::from(batch.count);
            fan.delivered(total, u64::from(batch.count));
        }
    }
}

async fn talk(job: Job, fan: Rc<Fan>) -> Result<u64> {
    let mut producer = Producer::open(&job).await?;
    let template = random(&job, job.batch)?;
    while fan.may_send().await {
        fan.sent(job.batch as u64);
        producer.send(template.clone()).await?;
        while producer.sent.len() > job.window {
            producer.answers(|_, _| {}).await?;
        }
    }
    while !producer.sent.is_empty() {
        producer.answers(|_, _| {}).await?;
    }
    Ok(fan.published())
}

async fn hear(job: Job, timing: Rc<Timing>) -> Result<()> {
    let mut subscriber = Subscriber::open(&job, "").await?;
    timing.ready();
    loop {
        for batch in subscriber.batches().await? {
            let messages = Batch::decode(batch.batch.as_slice())?.messages;
            messages.iter().for_each(|message| timing.delivered(&message.data));
        }
    }
}

async fn say(job: Job, timing: Rc<Timing>) -> Result<u64> {
    let mut producer = Producer::open(&job).await?;
    while let Some(due) = timing.due().await {
        for part in due.chunks(job.batch) {
            let messages = part.iter().map(|data| Message { data: data.clone(), ..Default::default() }).collect();
            producer.send(request(&job, messages)?).await?;
        }
        while producer.sent.len() > job.window {
            producer.answers(|_, _| {}).await?;
        }
    }
    while !producer.sent.is_empty() {
        producer.answers(|_, _| {}).await?;
    }
    Ok(timing.published())
}
