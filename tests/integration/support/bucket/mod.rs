//! An object store with faults: a small S3 server in the test's process, on a port of its own.
//!
//! It knows what the program asks for (ranges, conditional creates, multipart uploads, lists in pages, deletes) and
//! answers as Ceph's gateway does. Faults are drawn from a seed, in the order of the requests. Signatures are not
//! checked; that is for the real servers of `make test-cluster`.

mod http;
mod objects;

use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use instdisc::rng::{Purpose, Stream};

use http::{Answer, read_request};
use objects::State;

use super::Call;

/// What goes wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Share of requests that are answered 503 and not done.
    pub(crate) refused: f64,
    /// Share of bodies that end in the middle, with a reset connection.
    pub(crate) cut: f64,
    /// Share of requests that are done, and whose connection is closed instead of an answer.
    pub(crate) lost: f64,
    /// Share of requests that are done and answered 503.
    pub(crate) late: f64,
    /// A create replaces what is there.
    pub(crate) overwrites: bool,
    /// Every request is refused for its signature, as by stores that repeat the request in their answer.
    pub(crate) denies: bool,
    /// Requests with another session token than this are refused.
    pub(crate) token: Option<&'static str>,
    /// The bucket is not there.
    pub(crate) absent: bool,
    /// So many reads of a key that ends so give wrong bytes.
    pub(crate) damaged: Option<(&'static str, usize)>,
}

/// The server; it stops when it is dropped.
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
                // A client that went away is no matter.
                std::thread::spawn(move || connection.and_then(|stream| serve(&stream, &state, &stopped)));
            }
        });
        bucket
    }

    /// The URL of a key.
    pub(crate) fn url(&self, key: &str) -> String {
        format!("s3://bucket/{key}")
    }

    /// Gives a call what it needs to find the server.
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

    /// From the given number of requests on, all are refused.
    pub(crate) fn refuse_after(&self, requests: usize) {
        self.state().refuse_after = Some(requests);
    }

    /// From the given number of requests on, all are forbidden.
    pub(crate) fn deny_after(&self, requests: usize) {
        self.state().deny_after = Some(requests);
    }

    /// Puts an object under a key, whatever the key.
    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        self.state().store(key, bytes.to_vec(), Vec::new());
    }

    /// The server's address.
    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends the server: nobody listens on its port any more.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts, which then closes the port.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        while TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Everything in the bucket below a folder, by name.
    pub(crate) fn contents(&self, folder: &str) -> Vec<(String, Vec<u8>)> {
        let prefix = format!("{folder}/");
        let state = self.state();
        let below = state
            .objects
            .iter()
            .filter_map(|(key, object)| Some((key.strip_prefix(&prefix)?.to_owned(), object.bytes.to_vec())));
        below.collect()
    }

    /// The requests so far, as `GET key`.
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
        let enough = state.refuse_after.is_some_and(|limit| state.log.len() > limit);
        let refused = draw.unit() < faults.refused || enough;
        let forbidden = state.deny_after.is_some_and(|limit| state.log.len() > limit);
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
