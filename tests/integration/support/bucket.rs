//! Object store with faults: a small S3 server in the test's process, on a free port.
//!
//! It implements the requests of the program (ranges, conditional creates, multipart uploads, paged lists,
//! deletes) and answers like Ceph's gateway. Faults are drawn from a seed, in the order of the requests.
//! Signatures are not checked; the real servers of `make test-cluster` do that.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use instdisc::rng::{Purpose, Stream};

use super::Call;

/// Faults of the store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Fraction of requests that are answered 503 and not done.
    pub(crate) refused: f64,
    /// Fraction of bodies that are cut in the middle by a connection reset.
    pub(crate) cut: f64,
    /// Fraction of requests that are done, but whose connection is closed without an answer.
    pub(crate) lost: f64,
    /// Fraction of requests that are done but answered 503.
    pub(crate) late: f64,
    /// Whether a create replaces an existing object.
    pub(crate) overwrites: bool,
    /// Whether every request is rejected for its signature, with the request repeated in the answer as some stores do.
    pub(crate) denies: bool,
    /// Session token that requests must have.
    pub(crate) token: Option<&'static str>,
    /// Whether the bucket is missing.
    pub(crate) absent: bool,
    /// Suffix of the keys whose first reads return wrong bytes, and the number of these reads.
    pub(crate) damaged: Option<(&'static str, usize)>,
    /// After this many requests all are refused.
    pub(crate) refused_after: Option<usize>,
    /// After this many requests all are forbidden.
    pub(crate) denied_after: Option<usize>,
}

/// Server that stops when it is dropped.
pub(crate) struct Bucket {
    port: u16,
    state: Arc<Mutex<State>>,
    stopped: Arc<AtomicBool>,
}

impl Bucket {
    /// Starts a server.
    pub(crate) fn start(faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::new(Mutex::new(State { faults, ..State::default() }));
        let stopped = Arc::new(AtomicBool::new(false));
        let bucket = Self { port, state: Arc::clone(&state), stopped: Arc::clone(&stopped) };
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (state, stopped) = (Arc::clone(&state), Arc::clone(&stopped));
                // Clients that disconnect are ignored.
                std::thread::spawn(move || connection.and_then(|stream| serve(&stream, &state, &stopped)));
            }
        });
        bucket
    }

    /// Returns the URL of a key.
    pub(crate) fn url(&self, key: &str) -> String {
        format!("s3://bucket/{key}")
    }

    /// Sets the environment of a call so that it finds the server.
    pub(crate) fn of(&self, call: Call) -> Call {
        let mut command = call.command();
        self.set(&mut command);
        Call::from(command)
    }

    fn set(&self, command: &mut Command) {
        command
            .env("AWS_ENDPOINT", self.address())
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "a-planted-secret");
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Stores an object under any key.
    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        self.state().store(key, bytes.to_vec(), Vec::new());
    }

    /// Returns the server's address.
    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Stops the server and closes its port.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then closes the port.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        while TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Returns the contents of the bucket below a folder, by name.
    pub(crate) fn contents(&self, folder: &str) -> Vec<(String, Vec<u8>)> {
        let prefix = format!("{folder}/");
        let state = self.state();
        let below = state
            .objects
            .iter()
            .filter_map(|(key, object)| Some((key.strip_prefix(&prefix)?.to_owned(), object.bytes.to_vec())));
        below.collect()
    }

    /// Returns the requests so far, as `GET key`.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state().log.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no handler panics")
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(stream: &TcpStream, state: &Mutex<State>, stopped: &AtomicBool) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        if stopped.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut state = state.lock().expect("no handler panics");
        state.log.push(format!("{} {}", request.method, request.key));
        let faults = state.faults.clone();
        let mut draw = Stream::new(7, Purpose::Test, 0, state.drawn);
        state.drawn += 1;
        let is_after = |limit: Option<usize>| limit.is_some_and(|limit| state.log.len() > limit);
        let refused = draw.unit() < faults.refused || is_after(faults.refused_after);
        let forbidden = is_after(faults.denied_after);
        let answer = match refused {
            true => Answer::error(503, "SlowDown"),
            false if forbidden => Answer::error(403, "AccessDenied"),
            false => state.answer(&request),
        };
        drop(state);
        if !refused && draw.unit() < faults.lost {
            return Ok(());
        }
        let answer = if !refused && draw.unit() < faults.late { Answer::error(503, "Late") } else { answer };
        let answer = if request.method == "HEAD" { answer.without_body() } else { answer };
        let length = answer.told.unwrap_or(answer.body.len());
        let cut = draw.unit() < faults.cut && answer.body.len() > 1;
        let mut out = format!("HTTP/1.1 {} Status\r\nContent-Length: {length}\r\n", answer.status);
        for (name, value) in &answer.head {
            out += &format!("{name}: {value}\r\n");
        }
        let mut out = (out + "\r\n").into_bytes();
        out.extend(if cut { &answer.body[..answer.body.len() / 2] } else { &answer.body });
        (&*stream).write_all(&out)?;
        if cut {
            return Ok(());
        }
    }
    Ok(())
}

/// Keys in one page of a list: few, so that tests need several pages.
const PAGE: usize = 7;

#[derive(Clone)]
struct Object {
    bytes: Arc<Vec<u8>>,
    tag: String,
    attributes: Vec<(String, String)>,
}

/// Upload in progress: its attributes, and its parts by number.
type Uploading = (Vec<(String, String)>, BTreeMap<usize, Vec<u8>>);

/// Contents and configuration of the bucket.
#[derive(Default)]
struct State {
    faults: Faults,
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Uploading>,
    log: Vec<String>,
    drawn: u64,
}

impl State {
    fn answer(&mut self, request: &Request) -> Answer {
        if self.faults.denies {
            let head: Vec<_> = request.head.iter().map(|(name, value)| format!("{name}:{value}")).collect();
            let text = head.join("\n");
            return Answer::new(
                403,
                format!(
                    "<Error><Code>SignatureDoesNotMatch</Code><Message>The signature is wrong.</Message>\
                     <CanonicalRequest>{text}</CanonicalRequest></Error>"
                ),
            );
        }
        if self.faults.absent {
            return Answer::error(404, "NoSuchBucket");
        }
        if self.faults.token.is_some_and(|token| request.header("x-amz-security-token") != Some(token)) {
            return Answer::error(400, "ExpiredToken");
        }
        let has = |name: &str| request.query.contains_key(name);
        match request.method.as_str() {
            "GET" if has("list-type") => self.list(&request.query),
            "GET" | "HEAD" => self.get(request),
            "PUT" if has("partNumber") => self.put_part(request),
            "PUT" => self.put(request),
            "POST" if has("uploads") => self.start_upload(request),
            "POST" if has("delete") => self.delete(request),
            "POST" => self.finish_upload(request),
            "DELETE" => {
                self.uploads.remove(request.query.get("uploadId").map_or("", String::as_str));
                Answer::new(204, "")
            }
            _ => Answer::error(501, "NotImplemented"),
        }
    }

    fn get(&mut self, request: &Request) -> Answer {
        let Some(object) = self.objects.get(&request.key).cloned() else {
            return Answer::error(404, "NoSuchKey");
        };
        let length = object.bytes.len();
        let (from, to) = request.range(length).unwrap_or((0, length));
        if from > to || (from == length && length > 0) {
            return Answer::error(416, "InvalidRange");
        }
        let ranged = request.header("range").is_some();
        let mut answer = Answer::new(if ranged { 206 } else { 200 }, &object.bytes[from..to]);
        if let Some((ending, left)) = &mut self.faults.damaged
            && request.key.ends_with(*ending)
            && *left > 0
            && request.method == "GET"
        {
            *left -= 1;
            let middle = answer.body.len() / 2;
            answer.body[middle] ^= 0x40;
        }
        answer.head = object.attributes.clone();
        answer.head.push(("ETag".into(), object.tag.clone()));
        answer.head.push(("Last-Modified".into(), "Mon, 01 Jan 2024 00:00:00 GMT".into()));
        if ranged {
            answer.head.push(("Content-Range".into(), format!("bytes {from}-{}/{length}", to.max(1) - 1)));
        }
        answer
    }

    fn store(&mut self, key: &str, bytes: Vec<u8>, attributes: Vec<(String, String)>) -> Answer {
        let tag = format!("\"{}\"", &blake3::hash(&bytes).to_hex()[..32]);
        let mut answer = Answer::new(200, "");
        answer.head.push(("ETag".into(), tag.clone()));
        self.objects.insert(key.to_owned(), Object { bytes: Arc::new(bytes), tag, attributes });
        answer
    }

    fn put(&mut self, request: &Request) -> Answer {
        let create = request.header("if-none-match") == Some("*") && !self.faults.overwrites;
        if create && self.objects.contains_key(&request.key) {
            return Answer::error(412, "PreconditionFailed");
        }
        self.store(&request.key, request.body.clone(), request.attributes())
    }

    fn start_upload(&mut self, request: &Request) -> Answer {
        let id = format!("upload-{}", self.drawn);
        self.uploads.insert(id.clone(), (request.attributes(), BTreeMap::new()));
        let text = format!(
            "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
        );
        Answer::new(200, text)
    }

    fn put_part(&mut self, request: &Request) -> Answer {
        let number = request.query["partNumber"].parse().expect("a number");
        let Some((_, parts)) = self.uploads.get_mut(&request.query["uploadId"]) else {
            return Answer::error(404, "NoSuchUpload");
        };
        parts.insert(number, request.body.clone());
        let mut answer = Answer::new(200, "");
        answer.head.push(("ETag".into(), format!("\"part-{number}\"")));
        answer
    }

    fn finish_upload(&mut self, request: &Request) -> Answer {
        let Some((attributes, parts)) = self.uploads.remove(&request.query["uploadId"]) else {
            return Answer::error(404, "NoSuchUpload");
        };
        let bytes = parts.into_values().flatten().collect();
        self.store(&request.key, bytes, attributes);
        let tag = &self.objects[&request.key].tag;
        let text =
            format!("<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>");
        Answer::new(200, text)
    }

    fn delete(&mut self, request: &Request) -> Answer {
        let text = String::from_utf8_lossy(&request.body).into_owned();
        let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
        let mut done = String::new();
        for key in keys {
            self.objects.remove(key);
            done += &format!("<Deleted><Key>{key}</Key></Deleted>");
        }
        Answer::new(200, format!("<DeleteResult>{done}</DeleteResult>"))
    }

    fn list(&self, query: &BTreeMap<String, String>) -> Answer {
        let asked = |name: &str| query.get(name).map_or("", String::as_str);
        let (prefix, delimiter) = (asked("prefix"), asked("delimiter"));
        let after = asked("continuation-token").max(asked("start-after"));
        let (mut files, mut folders, mut last, mut more) = (String::new(), Vec::new(), "", false);
        let mut given = 0;
        for (key, object) in self.objects.range(after.to_owned()..) {
            let Some(rest) = key.strip_prefix(prefix).filter(|_| key != after) else { continue };
            if given == PAGE {
                more = true;
                break;
            }
            (last, given) = (key, given + 1);
            match rest.split_once(delimiter).filter(|_| !delimiter.is_empty()) {
                Some((folder, _)) => folders.push(format!("{prefix}{folder}{delimiter}")),
                None => {
                    let (bytes, tag) = (object.bytes.len(), &object.tag);
                    files += &format!(
                        "<Contents><Key>{key}</Key><Size>{bytes}</Size><ETag>{tag}</ETag>\
                         <LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
                    );
                }
            }
        }
        folders.dedup();
        let folders: String = folders
            .iter()
            .map(|folder| format!("<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"))
            .collect();
        let next = match more {
            true => format!("<NextContinuationToken>{last}</NextContinuationToken>"),
            false => String::new(),
        };
        Answer::new(
            200,
            format!(
                "<ListBucketResult><IsTruncated>{more}</IsTruncated>{files}{folders}{next}</ListBucketResult>"
            ),
        )
    }
}

/// Parts of an HTTP request that the program uses.
struct Request {
    method: String,
    key: String,
    query: BTreeMap<String, String>,
    head: Vec<(String, String)>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    head: Vec<(String, String)>,
    body: Vec<u8>,
    /// Length that the answer to a HEAD states.
    told: Option<usize>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, head: Vec::new(), body: body.into(), told: None }
    }

    /// Returns the answer to a HEAD.
    fn without_body(self) -> Self {
        Self { told: Some(self.body.len()), body: Vec::new(), ..self }
    }

    fn error(status: u16, code: &str) -> Self {
        Self::new(status, format!("<Error><Code>{code}</Code><Message>as asked for</Message></Error>"))
    }
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> std::io::Result<Option<Request>> {
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
    fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    fn attributes(&self) -> Vec<(String, String)> {
        self.head.iter().filter(|(name, _)| name.starts_with("x-amz-meta-")).cloned().collect()
    }

    /// Returns the requested byte range.
    fn range(&self, length: usize) -> Option<(usize, usize)> {
        let (from, to) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        if from.is_empty() {
            return Some((length.saturating_sub(to.parse().ok()?), length));
        }
        let to: usize = if to.is_empty() { length } else { to.parse::<usize>().ok()? + 1 };
        Some((from.parse().ok()?, to.min(length)))
    }
}
