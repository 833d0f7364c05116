//! nats-server: core and JetStream, over its text protocol.
use std::{cell::Cell, collections::VecDeque, rc::Rc, time::Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::spawn_local,
    time::timeout,
};

use crate::{
    Result,
    fan::{self, Fan},
    job::{Found, Job, Moment, payload},
    open_loop::{self, Timing},
    run::{Tally, guarded, steady},
};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
const FETCH: u64 = 1000;

pub async fn run(job: Job) -> Result<Found> {
    if job.system == "jetstream" {
        make_stream(&job).await?;
    }
    match (job.load.as_str(), job.system.as_str()) {
        ("publish", "nats") => steady(&job, |_, tally| core_publish(job.clone(), tally)).await,
        ("publish", _) => {
            let mut found = steady(&job, |_, tally| stored_publish(job.clone(), tally)).await?;
            found.missing = found.acknowledged as i64 - stored(&job).await?;
            Ok(found)
        }
        ("consume", "jetstream") => consume(&job).await,
        ("fanout", _) => fan::measure(&job, |fan| listen(job.clone(), fan), |fan| talk(job.clone(), fan)).await,
        ("latency", _) => open_loop::measure(&job, |t| hear(job.clone(), t), |t| say(job.clone(), t)).await,
        (load, system) => Err(format!("no load {load} for {system}").into()),
    }
}

/// What the server sends.
enum Event {
    Message { reply: Option<String>, data: Bytes },
    Pong,
}

struct Connection {
    stream: TcpStream,
    input: BytesMut,
}

impl Connection {
    async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut connection = Self { stream, input: BytesMut::with_capacity(1 << 20) };
        let hello =
            "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\nPING\r\n";
        connection.write(hello.as_bytes()).await?;
        match connection.next().await? {
            Event::Pong => Ok(connection),
            Event::Message { .. } => Err("a message before the first pong".into()),
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }

    async fn next(&mut self) -> Result<Event> {
        loop {
            if let Some((event, used)) = self.parse()? {
                self.input.advance(used);
                match event {
                    Some(event) => return Ok(event),
                    None => continue,
                }
            }
            self.input.reserve(256 << 10);
            if timeout(PATIENCE, self.stream.read_buf(&mut self.input)).await?? == 0 {
                return Err("the connection was closed".into());
            }
        }
    }

    /// What stands at the beginning of the input and its length; no event for what needs no answer.
    fn parse(&self) -> Result<Option<(Option<Event>, usize)>> {
        let Some(end) = self.input.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let head = std::str::from_utf8(&self.input[..end])?.trim_end();
        let words: Vec<&str> = head.split(' ').collect();
        match words[0] {
            "MSG" | "HMSG" => {
                let headers: usize = if words[0] == "HMSG" { words[words.len() - 2].parse()? } else { 0 };
                let length: usize = words[words.len() - 1].parse()?;
                let begin = end + 1;
                if self.input.len() < begin + length + 2 {
                    return Ok(None);
                }
                let numbers = if words[0] == "HMSG" { 2 } else { 1 };
                let reply = (words.len() - numbers > 3).then(|| words[3].to_owned());
                let data = Bytes::copy_from_slice(&self.input[begin + headers..begin + length]);
                Ok(Some((Some(Event::Message { reply, data }), begin + length + 2)))
            }
            "PONG" => Ok(Some((Some(Event::Pong), end + 1))),
            "INFO" | "+OK" | "PING" => Ok(Some((None, end + 1))),
            _ => Err(format!("nats says: {head}").into()),
        }
    }

    async fn message(&mut self) -> Result<(Option<String>, Bytes)> {
        loop {
            if let Event::Message { reply, data } = self.next().await? {
                return Ok((reply, data));
            }
        }
    }

    /// One request and its answer, on a connection that is used for nothing else.
    async fn ask(&mut self, subject: &str, body: &str) -> Result<serde_json::Value> {
        self.write(format!("SUB _A 9\r\nPUB {subject} _A {}\r\n{body}\r\nUNSUB 9 1\r\n", body.len()).as_bytes())
            .await?;
        let answer: serde_json::Value = serde_json::from_slice(&self.message().await?.1)?;
        match answer.get("error") {
            Some(error) => Err(format!("{subject} answered {error}").into()),
            None => Ok(answer),
        }
    }

    /// Waits until the server has taken everything up to here.
    async fn flush(&mut self) -> Result<()> {
        self.write(b"PING\r\n").await?;
        while !matches!(self.next().await?, Event::Pong) {}
        Ok(())
    }
}

fn stream_name(job: &Job) -> String {
    job.channel.replace('.', "-")
}

async fn make_stream(job: &Job) -> Result<()> {
    let (name, subject, replicas) = (stream_name(job), &job.channel, job.replicas.max(1));
    let body = format!(
        "{{\"name\":\"{name}\",\"subjects\":[\"{subject}\"],\"storage\":\"file\",\"num_replicas\":{replicas},\
         \"retention\":\"limits\",\"max_consumers\":-1,\"max_msgs\":-1,\"max_bytes\":-1,\"max_age\":0,\
         \"discard\":\"old\"}}"
    );
    let subject = format!("$JS.API.STREAM.CREATE.{name}");
    Connection::open(&job.address).await?.ask(&subject, &body).await.map(|_| ())
}

async fn stored(job: &Job) -> Result<i64> {
    let subject = format!("$JS.API.STREAM.INFO.{}", stream_name(job));
    let info = Connection::open(&job.address).await?.ask(&subject, "").await?;
    info["state"]["messages"].as_i64().ok_or_else(|| "no count of messages".into())
}

fn publication(subject: &str, reply: &str, data: &[u8], to: &mut Vec<u8>) {
    to.extend(format!("PUB {subject} {reply}{}\r\n", data.len()).as_bytes());
    to.extend(data);
    to.extend(b"\r\n");
}

fn publications(job: &Job, reply: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for _ in 0..job.batch {
        publication(&job.channel, reply, &payload(job.size)?, &mut bytes);
    }
    Ok(bytes)
}

/// Core answers no publish: a ping behind each batch tells when the server has taken it.
async fn core_publish(job: Job, tally: Rc<Tally>) -> Result<()> {
    let mut connection = Connection::open(&job.address).await?;
    let mut bytes = publications(&job, "")?;
    bytes.extend(b"PING\r\n");
    let mut sent = VecDeque::new();
    loop {
        while !tally.stop.get() && sent.len() < job.window {
            sent.push_back(Instant::now());
            connection.write(&bytes).await?;
        }
        let Some(begin) = sent.pop_front() else { return Ok(()) };
        while !matches!(connection.next().await?, Event::Pong) {}
        tally.answered(job.batch as u64, begin);
    }
}

/// JetStream answers each message.
async fn stored_publish(job: Job, tally: Rc<Tally>) -> Result<()> {
    let mut connection = Connection::open(&job.address).await?;
    let inbox = format!("_I{:p}", Rc::as_ptr(&tally)).replace("0x", "") + &fresh();
    connection.write(format!("SUB {inbox} 1\r\n").as_bytes()).await?;
    let bytes = publications(&job, &format!("{inbox} "))?;
    let mut sent = VecDeque::new();
    loop {
        while !tally.stop.get() && sent.len() < job.window {
            sent.push_back(Instant::now());
            connection.write(&bytes).await?;
        }
        let Some(begin) = sent.pop_front() else { return Ok(()) };
        for _ in 0..job.batch {
            accepted(&connection.message().await?.1)?;
        }
        tally.answered(job.batch as u64, begin);
    }
}

fn accepted(answer: &[u8]) -> Result<()> {
    match answer.windows(6).any(|part| part == b"\"seq\":") {
        true => Ok(()),
        false => Err(format!("a publish was refused: {}", String::from_utf8_lossy(answer)).into()),
    }
}

fn fresh() -> String {
    payload(6).unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Stores `job.messages`, unmeasured; then `job.subscribers` pull them and acknowledge each one.
async fn consume(job: &Job) -> Result<Found> {
    let mut connection = Connection::open(&job.address).await?;
    let fill = publications(&Job { batch: 1000, ..job.clone() }, "_F ")?;
    connection.write(b"SUB _F 1\r\n").await?;
    let turns = job.messages.div_ceil(1000);
    for _ in 0..turns {
        connection.write(&fill).await?;
        for _ in 0..1000 {
            accepted(&connection.message().await?.1)?;
        }
    }
    let name = stream_name(job);
    let body = format!(
        "{{\"stream_name\":\"{name}\",\"config\":{{\"durable_name\":\"workers\",\"ack_policy\":\"explicit\",\
         \"deliver_policy\":\"all\",\"replay_policy\":\"instant\",\"max_ack_pending\":100000}}}}"
    );
    let mut control = Connection::open(&job.address).await?;
    control.ask(&format!("$JS.API.CONSUMER.DURABLE.CREATE.{name}.workers"), &body).await?;
    let left = Rc::new(Left { messages: Cell::new(turns * 1000), none: Notify::new() });
    let begin = Moment::now(job);
    let members: Vec<_> =
        (0..job.subscribers).map(|_| spawn_local(guarded(member(job.clone(), left.clone())))).collect();
    for member in members {
        member.await??;
    }
    // Acknowledgements are not answered: it is over when none is outstanding.
    let mut open = i64::MAX;
    for _ in 0..1000 {
        let info = control.ask(&format!("$JS.API.CONSUMER.INFO.{name}.workers"), "").await?;
        let count = |field: &str| info[field].as_i64().unwrap_or(i64::MAX);
        open = count("num_pending").saturating_add(count("num_ack_pending"));
        if open == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let mut found = begin.until(&Moment::now(job), turns * 1000)?;
    found.acknowledged = turns * 1000;
    found.missing = open;
    Ok(found)
}

/// What the members of a group have not got yet.
struct Left {
    messages: Cell<u64>,
    none: Notify,
}

/// Two fetches are on their way at a time; the acks of what came leave in one write.
async fn member(job: Job, left: Rc<Left>) -> Result<()> {
    let mut connection = Connection::open(&job.address).await?;
    let inbox = format!("_C{}", fresh());
    connection.write(format!("SUB {inbox} 1\r\n").as_bytes()).await?;
    let body = format!("{{\"batch\":{FETCH},\"no_wait\":false,\"expires\":2000000000}}");
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.workers", stream_name(&job));
    let fetch = format!("PUB {subject} {inbox} {}\r\n{body}\r\n", body.len());
    connection.write(fetch.repeat(2).as_bytes()).await?;
    let (mut acks, mut taken) = (Vec::new(), 0);
    while left.messages.get() > 0 {
        let message = tokio::select! {
            message = connection.message() => message?,
            () = left.none.notified() => break,
        };
        // Without a reply subject it is the word that a fetch has expired.
        let (Some(reply), _) = message else { continue };
        publication(&reply, "", b"+ACK", &mut acks);
        taken += 1;
        left.messages.set(left.messages.get().saturating_sub(1));
        if taken % FETCH == 0 {
            acks.extend(fetch.as_bytes());
        }
        if taken % 256 == 0 || taken % FETCH == 0 {
            connection.write(&acks).await?;
            acks.clear();
        }
    }
    left.none.notify_waiters();
    connection.write(&acks).await?;
    connection.flush().await
}

/// A subscriber of everything: of the subject itself, or a push consumer that acknowledges nothing.
async fn all(job: &Job, ready: impl FnOnce(), mut each: impl FnMut(&[u8])) -> Result<()> {
    let mut connection = Connection::open(&job.address).await?;
    if job.system == "nats" {
        connection.write(format!("SUB {} 1\r\n", job.channel).as_bytes()).await?;
    } else {
        let (name, inbox) = (stream_name(job), format!("_P{}", fresh()));
        connection.write(format!("SUB {inbox} 1\r\n").as_bytes()).await?;
        let body = format!(
            "{{\"stream_name\":\"{name}\",\"config\":{{\"deliver_subject\":\"{inbox}\",\"ack_policy\":\"none\",\
             \"deliver_policy\":\"all\",\"replay_policy\":\"instant\"}}}}"
        );
        Connection::open(&job.address).await?.ask(&format!("$JS.API.CONSUMER.CREATE.{name}"), &body).await?;
    }
    connection.flush().await?;
    ready();
    loop {
        each(&connection.message().await?.1);
    }
}

async fn listen(job: Job, fan: Rc<Fan>) -> Result<()> {
    let mut total = 0;
    let each = |_: &[u8]| {
        total += 1;
        fan.delivered(total, 1);
    };
    all(&job, || fan.ready(), each).await
}

async fn talk(job: Job, fan: Rc<Fan>) -> Result<u64> {
    let mut connection = Connection::open(&job.address).await?;
    let stored = job.system == "jetstream";
    let inbox = format!("_T{}", fresh());
    connection.write(format!("SUB {inbox} 1\r\n").as_bytes()).await?;
    let bytes = publications(&job, &if stored { format!("{inbox} ") } else { String::new() })?;
    while fan.may_send().await {
        fan.sent(job.batch as u64);
        connection.write(&bytes).await?;
        for _ in 0..if stored { job.batch } else { 0 } {
            accepted(&connection.message().await?.1)?;
        }
    }
    connection.flush().await?;
    Ok(fan.published())
}

async fn hear(job: Job, timing: Rc<Timing>) -> Result<()> {
    all(&job, || timing.ready(), |data| timing.delivered(data)).await
}

async fn say(job: Job, timing: Rc<Timing>) -> Result<u64> {
    let mut connection = Connection::open(&job.address).await?;
    let stored = job.system == "jetstream";
    let inbox = format!("_S{}", fresh());
    connection.write(format!("SUB {inbox} 1\r\n").as_bytes()).await?;
    let reply = if stored { format!("{inbox} ") } else { String::new() };
    let mut unanswered = 0;
    while let Some(due) = timing.due().await {
        let mut bytes = Vec::new();
        due.iter().for_each(|data| publication(&job.channel, &reply, data, &mut bytes));
        connection.write(&bytes).await?;
        unanswered += if stored { due.len() } else { 0 };
        while unanswered > job.window * job.batch {
            accepted(&connection.message().await?.1)?;
            unanswered -= 1;
        }
    }
    for _ in 0..unanswered {
        accepted(&connection.message().await?.1)?;
    }
    connection.flush().await?;
    Ok(timing.published())
}
