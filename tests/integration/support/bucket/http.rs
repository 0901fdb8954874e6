//! Requests and answers of HTTP, as far as the program speaks it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;

pub(super) struct Request {
    pub(super) method: String,
    pub(super) key: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) head: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// The length that a HEAD tells.
    pub(super) told: Option<usize>,
}

impl Answer {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, head: Vec::new(), body: body.into(), told: None }
    }

    /// What a HEAD gets.
    pub(super) fn without_body(self) -> Self {
        Self { told: Some(self.body.len()), body: Vec::new(), ..self }
    }

    pub(super) fn error(status: u16, code: &str) -> Self {
        Self::new(status, format!("<Error><Code>{code}</Code><Message>as asked for</Message></Error>"))
    }
}

pub(super) fn read_request(reader: &mut BufReader<&TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let key = path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
    let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name.to_owned(), decoded(value))
    });
    let (method, key, query) = (method.to_owned(), decoded(key), query.collect());
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        head.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let request = Request { method, key, query, head, body: Vec::new() };
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Request { body, ..request }))
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        let byte = code.filter(|_| *first == b'%').and_then(|code| u8::from_str_radix(code, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn attributes(&self) -> Vec<(String, String)> {
        self.head.iter().filter(|(name, _)| name.starts_with("x-amz-meta-")).cloned().collect()
    }

    /// The bytes from and to which it wants.
    pub(super) fn range(&self, length: usize) -> Option<(usize, usize)> {
        let (from, to) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        if from.is_empty() {
            return Some((length.saturating_sub(to.parse().ok()?), length));
        }
        let to: usize = if to.is_empty() { length } else { to.parse::<usize>().ok()? + 1 };
        Some((from.parse().ok()?, to.min(length)))
    }
}
