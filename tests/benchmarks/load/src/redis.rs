//! redis-server: streams (`XADD`, `XREADGROUP`, `XACK`) and pub/sub, pipelined.
use std::{collections::VecDeque, rc::Rc, time::Instant};

use tokio::{task::spawn_local, time::timeout};

use crate::{
    Result,
    fan::{self, Fan},
    job::{Found, Job, Moment, payload},
    open_loop::{self, Timing},
    resp::{Connection, Reply, command},
    run::{Tally, guarded, steady},
};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
const READ_COUNT: &[u8] = b"1000";

pub async fn run(job: Job) -> Result<Found> {
    match job.load.as_str() {
        "publish" => {
            let mut found = steady(&job, |_, tally| publish(job.clone(), tally)).await?;
            if job.system == "streams" {
                found.missing = found.acknowledged as i64 - length(&job).await?;
            }
            Ok(found)
        }
        "consume" => consume(&job).await,
        "fanout" => fan::measure(&job, |fan| listen(job.clone(), fan), |fan| talk(job.clone(), fan)).await,
        "latency" => open_loop::measure(&job, |t| hear(job.clone(), t), |t| say(job.clone(), t)).await,
        other => Err(format!("no load {other} for Redis").into()),
    }
}

async fn length(job: &Job) -> Result<i64> {
    match Connection::open(&job.address).await?.ask(&[b"XLEN", job.channel.as_bytes()]).await? {
        Reply::Number(count) => Ok(count),
        reply => Err(format!("XLEN answered {reply:?}").into()),
    }
}

fn one(job: &Job, to: &mut Vec<u8>, data: &[u8]) {
    match job.system.as_str() {
        "streams" => command(to, &[b"XADD", job.channel.as_bytes(), b"*", b"d", data]),
        _ => command(to, &[b"PUBLISH", job.channel.as_bytes(), data]),
    }
}

fn pipeline(job: &Job) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for _ in 0..job.batch {
        one(job, &mut bytes, &payload(job.size)?);
    }
    Ok(bytes)
}

async fn publish(job: Job, tally: Rc<Tally>) -> Result<()> {
    let mut connection = Connection::open(&job.address).await?;
    let bytes = pipeline(&job)?;
    let mut sent = VecDeque::new();
    loop {
        while !tally.stop.get() && sent.len() < job.window {
            sent.push_back(Instant::now());
            connection.write(&bytes).await?;
        }
        let Some(begin) = sent.pop_front() else { return Ok(()) };
        for _ in 0..job.batch {
            timeout(PATIENCE, connection.reply()).await??;
        }
        tally.answered(job.batch as u64, begin);
    }
}

/// Stores `job.messages`, unmeasured, then measures how fast a group of `job.subscribers` reads and acknowledges them.
async fn consume(job: &Job) -> Result<Found> {
    let mut connection = Connection::open(&job.address).await?;
    let stream = job.channel.as_bytes();
    let fill = pipeline(&Job { batch: 1000, ..job.clone() })?;
    let turns = job.messages.div_ceil(1000);
    for _ in 0..turns {
        connection.write(&fill).await?;
        for _ in 0..1000 {
            connection.reply().await?;
        }
    }
    connection.ask(&[b"XGROUP", b"CREATE", stream, b"workers", b"0"]).await?;
    let begin = Moment::now(job);
    let members: Vec<_> = (0..job.subscribers).map(|n| spawn_local(guarded(member(job.clone(), n)))).collect();
    let mut delivered = 0;
    for member in members {
        delivered += member.await??;
    }
    let mut found = begin.until(&Moment::now(job), turns * 1000)?;
    found.acknowledged = turns * 1000;
    let pending = connection.ask(&[b"XPENDING", stream, b"workers"]).await?;
    let Reply::Array(fields) = pending else { return Err("XPENDING answered no array".into()) };
    let Some(Reply::Number(unsettled)) = fields.first() else { return Err("XPENDING without a count".into()) };
    found.missing = found.acknowledged as i64 - delivered + unsettled;
    Ok(found)
}

/// Reads until the stream is empty, acknowledging each read by one `XACK` of many ids; the messages it got.
async fn member(job: Job, number: usize) -> Result<i64> {
    let mut connection = Connection::open(&job.address).await?;
    let (name, stream) = (format!("w{number}"), job.channel.as_bytes());
    let mut read = Vec::new();
    let words: [&[u8]; 9] =
        [b"XREADGROUP", b"GROUP", b"workers", name.as_bytes(), b"COUNT", READ_COUNT, b"STREAMS", stream, b">"];
    command(&mut read, &words);
    connection.write(&read).await?;
    let mut count = 0;
    loop {
        let reply = timeout(PATIENCE, connection.reply()).await??;
        let entries = entries(reply);
        if entries.is_empty() {
            return Ok(count);
        }
        count += entries.len() as i64;
        let mut bytes = Vec::new();
        let ids: Vec<&[u8]> = entries.iter().map(|(id, _)| id.as_slice()).collect();
        for part in ids.chunks(if job.single_acks { 1 } else { 1000 }) {
            command(&mut bytes, &[&[b"XACK".as_slice(), stream, b"workers"], part].concat());
        }
        let acks = ids.chunks(if job.single_acks { 1 } else { 1000 }).count();
        bytes.extend(&read);
        connection.write(&bytes).await?;
        for _ in 0..acks {
            connection.reply().await?;
        }
    }
}

/// Ids and data of what `XREAD` or `XREADGROUP` answered of one stream.
fn entries(reply: Reply) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    let Reply::Array(mut streams) = reply else { return found };
    let Some(Reply::Array(mut stream)) = streams.pop() else { return found };
    let Some(Reply::Array(entries)) = stream.pop() else { return found };
    for entry in entries {
        let Reply::Array(mut parts) = entry else { continue };
        let (Some(Reply::Array(mut fields)), Some(Reply::Text(id))) = (parts.pop(), parts.pop()) else { continue };
        if let Some(Reply::Text(data)) = fields.pop() {
            found.push((id, data));
        }
    }
    found
}

/// A subscriber of everything, by pub/sub or by `XREAD BLOCK`; each payload is handed to `each`.
async fn all(job: &Job, ready: impl FnOnce(), mut each: impl FnMut(&[Vec<u8>])) -> Result<()> {
    let mut connection = Connection::open(&job.address).await?;
    if job.system != "streams" {
        connection.ask(&[b"SUBSCRIBE", job.channel.as_bytes()]).await?;
        ready();
        loop {
            let Reply::Array(mut parts) = connection.reply().await? else { continue };
            if let Some(Reply::Text(data)) = parts.pop() {
                each(&[data]);
            }
        }
    }
    ready();
    let mut last = b"0".to_vec();
    loop {
        let words: [&[u8]; 8] =
            [b"XREAD", b"COUNT", READ_COUNT, b"BLOCK", b"20000", b"STREAMS", job.channel.as_bytes(), &last];
        let (ids, data): (Vec<_>, Vec<_>) = entries(connection.ask(&words).await?).into_iter().unzip();
        if let Some(id) = ids.into_iter().next_back() {
            last = id;
        }
        each(&data);
    }
}

async fn listen(job: Job, fan: Rc<Fan>) -> Result<()> {
    let mut total = 0;
    let each = |data: &[Vec<u8>]| {
        total += data.len() as u64;
        fan.delivered(total, data.len() as u64);
    };
    all(&job, || fan.ready(), each).await
}

async fn talk(job: Job, fan: Rc<Fan>) -> Result<u64> {
    let mut connection = Connection::open(&job.address).await?;
    let bytes = pipeline(&job)?;
    while fan.may_send().await {
        fan.sent(job.batch as u64);
        connection.write(&bytes).await?;
        for _ in 0..job.batch {
            connection.reply().await?;
        }
    }
    Ok(fan.published())
}

async fn hear(job: Job, timing: Rc<Timing>) -> Result<()> {
    all(&job, || timing.ready(), |data| data.iter().for_each(|data| timing.delivered(data))).await
}

async fn say(job: Job, timing: Rc<Timing>) -> Result<u64> {
    let mut connection = Connection::open(&job.address).await?;
    let mut unanswered = 0;
    while let Some(due) = timing.due().await {
        let mut bytes = Vec::new();
        due.iter().for_each(|data| one(&job, &mut bytes, data));
        connection.write(&bytes).await?;
        unanswered += due.len();
        while unanswered > job.window * job.batch {
            connection.reply().await?;
            unanswered -= 1;
        }
    }
    for _ in 0..unanswered {
        connection.reply().await?;
    }
    Ok(timing.published())
}
