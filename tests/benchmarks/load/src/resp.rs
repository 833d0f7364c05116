//! Redis's protocol (RESP 2): commands out, replies in.
use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::Result;

/// A reply. Bulk and simple strings are the same here.
#[derive(Debug)]
pub enum Reply {
    Number(i64),
    Text(Vec<u8>),
    Array(Vec<Reply>),
    Nil,
}

/// Appends one command.
pub fn command(to: &mut Vec<u8>, words: &[&[u8]]) {
    to.extend(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        to.extend(format!("${}\r\n", word.len()).as_bytes());
        to.extend(*word);
        to.extend(b"\r\n");
    }
}

pub struct Connection {
    stream: TcpStream,
    input: BytesMut,
}

impl Connection {
    pub async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, input: BytesMut::with_capacity(1 << 20) })
    }

    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }

    /// One command and its reply, when nothing else is on its way.
    pub async fn ask(&mut self, words: &[&[u8]]) -> Result<Reply> {
        let mut bytes = Vec::new();
        command(&mut bytes, words);
        self.write(&bytes).await?;
        self.reply().await
    }

    /// The next reply. A reply that is an error is an error.
    pub async fn reply(&mut self) -> Result<Reply> {
        loop {
            let mut at = 0;
            if let Some(reply) = parse(&self.input, &mut at)? {
                self.input.advance(at);
                return Ok(reply);
            }
            self.input.reserve(256 << 10);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err("the connection was closed".into());
            }
        }
    }
}

fn line<'a>(input: &'a [u8], at: &mut usize) -> Option<&'a str> {
    let end = *at + input[*at..].windows(2).position(|pair| pair == b"\r\n")?;
    let text = std::str::from_utf8(&input[*at..end]).ok()?;
    *at = end + 2;
    Some(text)
}

/// One reply from `at` on, which is moved behind it; None: not all of it is there.
fn parse(input: &[u8], at: &mut usize) -> Result<Option<Reply>> {
    if *at >= input.len() {
        return Ok(None);
    }
    let Some(head) = line(input, at) else { return Ok(None) };
    let (kind, rest) = head.split_at(1);
    match kind {
        "+" => Ok(Some(Reply::Text(rest.as_bytes().to_vec()))),
        "-" => Err(format!("redis says: {rest}").into()),
        ":" => Ok(Some(Reply::Number(rest.parse()?))),
        "$" => text(input, at, rest.parse()?),
        "*" => {
            let count: i64 = rest.parse()?;
            let mut items = Vec::new();
            for _ in 0..count {
                let Some(item) = parse(input, at)? else { return Ok(None) };
                items.push(item);
            }
            Ok(Some(if count < 0 { Reply::Nil } else { Reply::Array(items) }))
        }
        _ => Err(format!("not a reply: {head}").into()),
    }
}

fn text(input: &[u8], at: &mut usize, length: i64) -> Result<Option<Reply>> {
    if length < 0 {
        return Ok(Some(Reply::Nil));
    }
    let end = *at + length as usize;
    if input.len() < end + 2 {
        return Ok(None);
    }
    let bytes = input[*at..end].to_vec();
    *at = end + 2;
    Ok(Some(Reply::Text(bytes)))
}
