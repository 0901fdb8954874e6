//! Watcher that finds lost ranks, since libtorch's errors do not name them.
//!
//! Every rank keeps one TCP connection to rank 0 and sends a sign of life each second, with the number of
//! collectives that it has begun. Rank 0 sees which ranks end without a goodbye or fall silent and, if a
//! collective timed out, which did not begin it. It then sends this verdict to all. Every rank notices the
//! loss of rank 0 itself. The watcher's threads only observe: callers decide what follows from a verdict.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::DistributedError;
use super::{Cause, LossReason, LostRank, cause, first_line};
use crate::failure::Failure;

mod hub;

use hub::Hub;

/// Interval between signs of life.
const BEAT: Duration = Duration::from_secs(1);
/// Longest wait of a thread before it checks everything.
const TICK: Duration = Duration::from_millis(50);
/// Pause of a watcher's own thread beyond which it no longer trusts its clock.
const GAP: Duration = Duration::from_secs(2);
/// Time that a failed collective waits for the verdict.
const PATIENCE: Duration = Duration::from_secs(2);

/// State shared by the threads of one rank.
#[derive(Debug)]
struct Shared {
    world: usize,
    /// Time without a sign of life after which a rank counts as lost.
    silence: Duration,
    /// Time that others may wait for a rank in a collective.
    timeout: Duration,
    begun: AtomicU64,
    /// Set once this rank's end will not alarm the others.
    leaving: AtomicBool,
    closing: AtomicBool,
    hub_left: AtomicBool,
    verdict: Mutex<Option<Vec<LostRank>>>,
    changed: Condvar,
}

impl Shared {
    fn new(world: usize, timeout: Duration) -> Self {
        // Half the timeout, so that a rank that timed out learns why; at least three missed signs.
        let silence = (timeout / 2).clamp(Duration::from_secs(3), Duration::from_secs(60));
        Self {
            world,
            silence,
            timeout,
            begun: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            hub_left: AtomicBool::new(false),
            verdict: Mutex::new(None),
            changed: Condvar::new(),
        }
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Returns whether rank 0 said goodbye; rank 0 itself keeps account of the others.
    fn hub_has_left(&self) -> bool {
        self.hub_left.load(Ordering::SeqCst)
    }

    fn locked(&self) -> MutexGuard<'_, Option<Vec<LostRank>>> {
        self.verdict.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn verdict(&self) -> Option<Vec<LostRank>> {
        self.locked().clone()
    }

    /// Keeps only the first verdict.
    fn decide(&self, lost: Vec<LostRank>) {
        self.locked().get_or_insert(lost);
        self.changed.notify_all();
    }

    fn wait_for_verdict(&self, patience: Duration) -> Option<Vec<LostRank>> {
        let until = Instant::now() + patience;
        let mut verdict = self.locked();
        while verdict.is_none() && Instant::now() < until && !self.hub_has_left() {
            let left = until.saturating_duration_since(Instant::now());
            let waited = self.changed.wait_timeout(verdict, left.min(TICK));
            verdict = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        verdict.clone()
    }
}

#[derive(Debug)]
enum Side {
    Hub(Arc<Hub>),
    /// Connection to rank 0.
    Member(TcpStream),
}

/// Watcher of one rank.
#[derive(Debug)]
pub(super) struct Watch {
    shared: Arc<Shared>,
    side: Side,
}

impl Watch {
    /// Starts the watcher of rank 0. Returns the port that it listens on.
    pub(super) fn lead(
        world: usize,
        at: IpAddr,
        token: String,
        timeout: Duration,
    ) -> std::io::Result<(Self, u16)> {
        let shared = Arc::new(Shared::new(world, timeout));
        let (hub, port) = Hub::start(&shared, at, token)?;
        Ok((Self { shared, side: Side::Hub(hub) }, port))
    }

    /// Starts the watcher of another rank, which sends signs of life to rank 0 and receives its verdict.
    pub(super) fn follow(
        (rank, world): (usize, usize),
        (host, port): (&str, u16),
        token: String,
        timeout: Duration,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new(world, timeout));
        let stream = connect(host, port, timeout)?;
        prepare(&stream)?;
        tell(&stream, &Line::Hello { token, rank });
        let lines = Lines::new(stream.try_clone()?, TICK)?;
        let (of_thread, writer) = (shared.clone(), stream.try_clone()?);
        let watch = move || watch(&of_thread, &writer, lines);
        std::thread::Builder::new().name("watch".into()).spawn(watch)?;
        Ok(Self { shared, side: Side::Member(stream) })
    }

    /// Returns the ranks that have not connected to rank 0.
    pub(super) fn absent(&self) -> Vec<usize> {
        match &self.side {
            Side::Hub(hub) => hub.absent(),
            Side::Member(_) => Vec::new(),
        }
    }

    /// Counts the start of a collective. Returns its number.
    pub(super) fn begin(&self) -> u64 {
        self.shared.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Fails with the verdict, if there is one.
    pub(super) fn check(&self) -> Result<(), DistributedError> {
        self.shared.verdict().map_or(Ok(()), |lost| Err(DistributedError::PeerLost { lost }))
    }

    /// Calls `then` from another thread, once, if ranks are lost and this watcher still exists `grace` later.
    pub(super) fn when_lost(&self, grace: Duration, then: impl FnOnce(DistributedError) + Send + 'static) {
        let shared = self.shared.clone();
        let wait = move || {
            let mut verdict = shared.locked();
            let lost = loop {
                if shared.is_closing() {
                    return;
                }
                if let Some(lost) = verdict.clone() {
                    break lost;
                }
                let waited = shared.changed.wait_timeout(verdict, BEAT);
                verdict = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
            };
            drop(verdict);
            let until = Instant::now() + grace;
            while Instant::now() < until {
                if shared.is_closing() {
                    return;
                }
                std::thread::sleep(TICK);
            }
            then(DistributedError::PeerLost { lost });
        };
        // Without the thread the ranks still notice a loss in their collectives.
        let _ = std::thread::Builder::new().name("watch".into()).spawn(wait);
    }

    /// Reports that this rank is about to end with its own error, which causes the failures of the others.
    pub(super) fn fail(&self, failure: Failure) {
        match &self.side {
            Side::Hub(hub) => hub.tell_failure(failure),
            Side::Member(stream) => tell(stream, &Line::Ends { failure }),
        }
    }

    /// Marks this rank as leaving: its work is done, so its end does not alarm the others.
    pub(super) fn leave(&self) {
        self.shared.leaving.store(true, Ordering::SeqCst);
    }

    /// Says goodbye if this rank is leaving; otherwise the others see its connection end.
    pub(super) fn say_goodbye(&self) {
        if !self.shared.leaving.load(Ordering::SeqCst) {
            return;
        }
        match &self.side {
            Side::Hub(hub) => hub.say_goodbye(),
            Side::Member(stream) => {
                tell(stream, &Line::Beat { begun: self.shared.begun() });
                tell(stream, &Line::Bye);
            }
        }
    }

    /// Waits at rank 0, up to `patience`, until the others have left, as they may still use the store.
    pub(super) fn let_others_leave(&self, patience: Duration) {
        let until = Instant::now() + patience;
        if let Side::Hub(hub) = &self.side {
            while Instant::now() < until && self.shared.verdict().is_none() && hub.has_members() {
                std::thread::sleep(TICK / 10);
            }
        }
    }

    /// Stops the threads.
    pub(super) fn close(&self) {
        if self.shared.closing.swap(true, Ordering::SeqCst) {
            return;
        }
        self.say_goodbye();
        match &self.side {
            Side::Hub(hub) => hub.hang_up(),
            Side::Member(stream) => {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        }
        self.shared.changed.notify_all();
    }

    /// Explains an error of libtorch by the lost ranks, if they are found within two seconds.
    pub(super) fn explain(&self, what: &str, collective: u64, message: &str) -> DistributedError {
        let cause = cause(message);
        if cause == Cause::Other && self.shared.verdict().is_none() {
            return DistributedError::Backend { what: what.into(), message: first_line(message) };
        }
        let waited = (cause == Cause::Timeout).then_some(self.shared.timeout.as_secs());
        match &self.side {
            Side::Hub(hub) => hub.note_failure(collective, waited),
            Side::Member(stream) => {
                tell(stream, &Line::Beat { begun: self.shared.begun() });
                tell(stream, &Line::Failed { collective, waited });
            }
        }
        let verdict = self.shared.wait_for_verdict(PATIENCE);
        let left =
            || self.shared.hub_has_left().then(|| vec![LostRank { rank: 0, reason: LossReason::Left }]);
        match (verdict.or_else(left), cause) {
            (Some(lost), _) => DistributedError::PeerLost { lost },
            (None, Cause::Timeout) => DistributedError::Timeout {
                what: what.into(),
                after: self.shared.timeout,
                message: first_line(message),
            },
            (None, _) => DistributedError::Backend { what: what.into(), message: first_line(message) },
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.close();
    }
}

/// Connects to the first address of the host that accepts.
pub(super) fn connect(host: &str, port: u16, patience: Duration) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::other(format!("{host} has no address"));
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn watch(shared: &Shared, writer: &TcpStream, mut lines: Lines) {
    let lost = |reason| shared.decide(vec![LostRank { rank: 0, reason }]);
    let (mut told, mut heard, mut round) = (Instant::now(), Instant::now(), Instant::now());
    tell(writer, &Line::Beat { begun: shared.begun() });
    while !shared.is_closing() {
        match lines.next() {
            Heard::Line(Line::Lost { lost }) => shared.decide(lost),
            Heard::Line(Line::Bye) => shared.hub_left.store(true, Ordering::SeqCst),
            Heard::Line(_) => heard = Instant::now(),
            Heard::Nothing => {}
            Heard::End => {
                // Rank 0 may end after a goodbye or a verdict.
                if !shared.hub_has_left() {
                    lost(LossReason::Ended);
                }
                return;
            }
        }
        // After a stop of this process itself, received signs are late; other ranks decide.
        if round.elapsed() > GAP {
            heard = Instant::now();
        }
        round = Instant::now();
        if heard.elapsed() > shared.silence && !shared.hub_has_left() {
            lost(LossReason::Silent { seconds: heard.elapsed().as_secs() });
        }
        if told.elapsed() >= BEAT {
            told = Instant::now();
            tell(writer, &Line::Beat { begun: shared.begun() });
        }
    }
}

/// Line of the watchers' protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Line {
    /// First line of a rank; the token proves that it read the store.
    Hello { token: String, rank: usize },
    /// Sign of life, with the number of collectives begun so far; rank 0's number is ignored.
    Beat { begun: u64 },
    /// Failure of a rank's collective; `waited` is set, in seconds, after a timeout.
    Failed { collective: u64, waited: Option<u64> },
    /// Announcement that a rank ends with its own error.
    Ends { failure: Failure },
    /// Verdict of rank 0.
    Lost { lost: Vec<LostRank> },
    /// Announcement of a normal end.
    Bye,
}

/// Result of a read.
#[derive(Debug)]
enum Heard {
    Line(Line),
    /// No line within the time limit.
    Nothing,
    /// End of the connection.
    End,
}

/// Reader of one side of a connection.
#[derive(Debug)]
struct Lines {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// Maximum length of a line, as a verdict may name every rank of a large job.
const LONGEST: usize = 1 << 20;

impl Lines {
    /// Creates a reader; `patience` limits each read.
    fn new(stream: TcpStream, patience: Duration) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(patience))?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    fn next(&mut self) -> Heard {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map_or(Heard::End, Heard::Line);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Heard::End,
                Ok(len) => self.buffer.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Heard::Nothing;
                }
                Err(_) => return Heard::End,
            }
            if self.buffer.len() > LONGEST {
                return Heard::End;
            }
        }
    }
}

/// Writes a line. Ignores errors, which the reader notices.
fn tell(mut stream: &TcpStream, line: &Line) {
    let mut bytes = serde_json::to_vec(line).expect("a line has no unserialisable part");
    bytes.push(b'\n');
    let _ = stream.write_all(&bytes);
}

/// Configures either side's connection.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(Duration::from_secs(1)))
}
