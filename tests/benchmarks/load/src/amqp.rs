//! RabbitMQ: AMQP 0-9-1, publisher confirms and acknowledgements of many at once.
use std::{
    collections::{BTreeSet, VecDeque},
    rc::Rc,
    time::Instant,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    Result,
    job::{Found, Job, Moment, payload},
    run::{Tally, steady},
};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
const PREFETCH: u16 = 1000;
const ACK_EVERY: u64 = 100;

/// Class and method numbers.
type Method = (u16, u16);
const PUBLISH: Method = (60, 40);
const DELIVER: Method = (60, 60);
const ACK: Method = (60, 80);

pub async fn run(job: Job) -> Result<Found> {
    let mut connection = Connection::open(&job.address).await?;
    connection.declare(&job, false).await?;
    let found = match job.load.as_str() {
        "publish" => {
            let mut found = steady(&job, |_, tally| publish(job.clone(), tally)).await?;
            found.missing = found.acknowledged as i64;
            // The broker's count of a queue comes late.
            for _ in 0..100 {
                found.missing = found.acknowledged as i64 - connection.declare(&job, true).await?;
                if found.missing == 0 {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            found
        }
        "consume" => consume(&job, &mut connection).await?,
        other => return Err(format!("no load {other} for RabbitMQ").into()),
    };
    connection.ask((50, 40), &[&[0, 0][..], &short(&job.channel), &[0]].concat(), (50, 41)).await?;
    Ok(found)
}

fn short(text: &str) -> Vec<u8> {
    let mut bytes = vec![text.len() as u8];
    bytes.extend(text.as_bytes());
    bytes
}

fn long(text: &[u8]) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text);
    bytes
}

fn frame(kind: u8, channel: u16, body: &[u8], to: &mut Vec<u8>) {
    to.put_u8(kind);
    to.put_u16(channel);
    to.put_u32(body.len() as u32);
    to.put_slice(body);
    to.put_u8(0xCE);
}

fn method(channel: u16, of: Method, arguments: &[u8], to: &mut Vec<u8>) {
    let mut body = Vec::with_capacity(4 + arguments.len());
    body.put_u16(of.0);
    body.put_u16(of.1);
    body.put_slice(arguments);
    frame(1, channel, &body, to);
}

/// One persistent message to the job's queue.
fn publication(job: &Job, data: &[u8], to: &mut Vec<u8>) {
    method(1, PUBLISH, &[&[0, 0][..], &short(""), &short(&job.channel), &[0]].concat(), to);
    let mut header = Vec::new();
    header.put_u16(60);
    header.put_u16(0);
    header.put_u64(data.len() as u64);
    header.put_u16(0x1000); // only the delivery mode is set
    header.put_u8(2);
    frame(2, 1, &header, to);
    frame(3, 1, data, to);
}

fn publications(job: &Job, count: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for _ in 0..count {
        publication(job, &payload(job.size)?, &mut bytes);
    }
    Ok(bytes)
}

struct Connection {
    stream: TcpStream,
    input: BytesMut,
}

impl Connection {
    /// With one channel, number 1, on which publishes are confirmed.
    async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut connection = Self { stream, input: BytesMut::with_capacity(1 << 20) };
        connection.stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
        connection.expect((10, 10)).await?;
        let hello = [&[0; 4][..], &short("PLAIN"), &long(b"\0guest\0guest"), &short("en_US")].concat();
        let tune = connection.call(0, (10, 11), &hello, (10, 30)).await?;
        let mut agreed = tune[..6].to_vec();
        agreed.put_u16(0); // no heartbeats
        let mut bytes = Vec::new();
        method(0, (10, 31), &agreed, &mut bytes);
        connection.stream.write_all(&bytes).await?;
        connection.call(0, (10, 40), &[&short("/")[..], &short(""), &[0]].concat(), (10, 41)).await?;
        connection.ask((20, 10), &short(""), (20, 11)).await?;
        connection.ask((85, 10), &[0], (85, 11)).await?;
        Ok(connection)
    }

    /// The next method and its arguments; contents are passed over.
    async fn next(&mut self) -> Result<(Method, Bytes)> {
        loop {
            if self.input.len() >= 7 {
                let size = u32::from_be_bytes([self.input[3], self.input[4], self.input[5], self.input[6]]) as usize;
                if self.input.len() >= size + 8 {
                    let mut whole = self.input.split_to(size + 8).freeze();
                    let kind = whole.get_u8();
                    whole.advance(6);
                    if kind == 1 {
                        let of = (whole.get_u16(), whole.get_u16());
                        return Ok((of, whole.slice(..size - 4)));
                    }
                    continue;
                }
            }
            self.input.reserve(256 << 10);
            if timeout(PATIENCE, self.stream.read_buf(&mut self.input)).await?? == 0 {
                return Err("the connection was closed".into());
            }
        }
    }

    async fn expect(&mut self, wanted: Method) -> Result<Bytes> {
        match self.next().await? {
            (got, arguments) if got == wanted => Ok(arguments),
            (got, arguments) => {
                Err(format!("{got:?} came, not {wanted:?}: {}", String::from_utf8_lossy(&arguments)).into())
            }
        }
    }

    async fn call(&mut self, channel: u16, of: Method, arguments: &[u8], answer: Method) -> Result<Bytes> {
        let mut bytes = Vec::new();
        method(channel, of, arguments, &mut bytes);
        self.stream.write_all(&bytes).await?;
        self.expect(answer).await
    }

    async fn ask(&mut self, of: Method, arguments: &[u8], answer: Method) -> Result<Bytes> {
        self.call(1, of, arguments, answer).await
    }

    /// Makes the durable queue, of the kind that the job's system says, or only looks at it; messages that it holds.
    async fn declare(&mut self, job: &Job, passive: bool) -> Result<i64> {
        let mut kind = short("x-queue-type");
        kind.push(b'S');
        kind.extend(long(job.system.as_bytes()));
        let flags = if passive { 1 } else { 2 };
        let arguments = [&[0, 0][..], &short(&job.channel), &[flags], &long(&kind)].concat();
        let mut answer = self.ask((50, 10), &arguments, (50, 11)).await?;
        let name = answer.get_u8() as usize;
        answer.advance(name);
        Ok(i64::from(answer.get_u32()))
    }

    /// The next answer; how many messages more it confirms.
    async fn confirmed(&mut self, confirms: &mut Confirms) -> Result<u64> {
        let mut arguments = self.expect(ACK).await?;
        let (tag, multiple) = (arguments.get_u64(), arguments.get_u8() & 1 == 1);
        Ok(confirms.take(tag, multiple))
    }
}

/// Which publishes of a channel are confirmed: all up to `low`, and those of `beyond`.
#[derive(Default)]
struct Confirms {
    low: u64,
    beyond: BTreeSet<u64>,
}

impl Confirms {
    fn take(&mut self, tag: u64, multiple: bool) -> u64 {
        let before = self.low + self.beyond.len() as u64;
        if multiple {
            self.low = self.low.max(tag);
            self.beyond = self.beyond.split_off(&(self.low + 1));
        } else if tag > self.low {
            self.beyond.insert(tag);
        }
        while self.beyond.remove(&(self.low + 1)) {
            self.low += 1;
        }
        self.low + self.beyond.len() as u64 - before
    }
}

async fn publish(job: Job, tally: Rc<Tally>) -> Result<()> {
    let mut connection = Connection::open(&job.address).await?;
    let bytes = publications(&job, job.batch)?;
    let mut sent = VecDeque::new();
    let (mut confirms, mut open) = (Confirms::default(), 0);
    loop {
        while !tally.stop.get() && sent.len() < job.window {
            sent.push_back(Instant::now());
            connection.stream.write_all(&bytes).await?;
        }
        let Some(begin) = sent.front().copied() else { return Ok(()) };
        open += connection.confirmed(&mut confirms).await?;
        while open >= job.batch as u64 {
            open -= job.batch as u64;
            sent.pop_front();
            tally.answered(job.batch as u64, begin);
        }
    }
}

/// Stores `job.messages`, unmeasured, then one worker takes them and acknowledges a hundred at a time.
async fn consume(job: &Job, connection: &mut Connection) -> Result<Found> {
    let fill = publications(job, 1000)?;
    let (turns, mut confirms, mut done) = (job.messages.div_ceil(1000), Confirms::default(), 0);
    for turn in 1..=turns {
        connection.stream.write_all(&fill).await?;
        while done < turn * 1000 {
            done += connection.confirmed(&mut confirms).await?;
        }
    }
    let mut worker = Connection::open(&job.address).await?;
    let limit = [&0u32.to_be_bytes()[..], &PREFETCH.to_be_bytes(), &[0]].concat();
    worker.ask((60, 10), &limit, (60, 11)).await?;
    let begin = Moment::now(job);
    let start = [&[0, 0][..], &short(&job.channel), &short(""), &[0], &[0; 4]].concat();
    worker.ask((60, 20), &start, (60, 21)).await?;
    let wanted = turns * 1000;
    for number in 1..=wanted {
        let arguments = worker.expect(DELIVER).await?;
        let name = arguments[0] as usize;
        let tag = &arguments[1 + name..9 + name];
        if number % ACK_EVERY == 0 || number == wanted {
            let mut bytes = Vec::new();
            method(1, ACK, &[tag, &[1]].concat(), &mut bytes);
            worker.stream.write_all(&bytes).await?;
        }
    }
    // Closing the channel is answered when everything before it was taken.
    let bye = [&0u16.to_be_bytes()[..], &short(""), &[0; 4]].concat();
    worker.ask((20, 40), &bye, (20, 41)).await?;
    let mut found = begin.until(&Moment::now(job), wanted)?;
    found.acknowledged = wanted;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    found.missing = connection.declare(job, true).await?;
    Ok(found)
}
