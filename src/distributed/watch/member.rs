//! The watcher of every rank but rank 0: tells its signs of life, hears the verdict.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::line::{Heard, Line, Lines, prepare, tell};
use super::{BEAT, GAP, Shared, TICK};
use crate::distributed::error::{LossReason, LostRank};
use crate::failure::Failure;

/// The connection to rank 0.
#[derive(Debug)]
pub(super) struct Member {
    stream: TcpStream,
}

impl Member {
    /// Connects to rank 0 and starts the thread.
    pub(super) fn start(
        shared: &Arc<Shared>,
        host: &str,
        port: u16,
        token: String,
        patience: Duration,
    ) -> std::io::Result<Self> {
        let stream = connect(host, port, patience)?;
        prepare(&stream)?;
        tell(&stream, &Line::Hello { token, rank: shared.rank });
        let lines = Lines::new(stream.try_clone()?, TICK)?;
        let (shared, writer) = (shared.clone(), stream.try_clone()?);
        let watch = move || watch(&shared, &writer, lines);
        std::thread::Builder::new().name("watch".into()).spawn(watch)?;
        Ok(Self { stream })
    }

    pub(super) fn tell_failure(&self, begun: u64, collective: u64, waited: Option<u64>) {
        tell(&self.stream, &Line::Beat { begun });
        tell(&self.stream, &Line::Failed { collective, waited });
    }

    /// This rank is about to end with an error of its own.
    pub(super) fn tell_end(&self, failure: Failure) {
        tell(&self.stream, &Line::Ends { failure });
    }

    pub(super) fn say_goodbye(&self, begun: u64) {
        tell(&self.stream, &Line::Beat { begun });
        tell(&self.stream, &Line::Bye);
    }

    pub(super) fn hang_up(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

fn connect(host: &str, port: u16, patience: Duration) -> std::io::Result<TcpStream> {
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
    let lost = |fate| shared.decide(vec![LostRank { rank: 0, fate }]);
    let (mut told, mut heard, mut round) = (Instant::now(), Instant::now(), Instant::now());
    tell(writer, &Line::Beat { begun: shared.begun() });
    while !shared.is_closing() {
        match lines.next() {
            Heard::Line(Line::Lost { lost }) => shared.decide(lost),
            Heard::Line(Line::Bye) => shared.note_left(0),
            Heard::Line(_) => heard = Instant::now(),
            Heard::Nothing => {}
            Heard::End => {
                // After a goodbye or a verdict rank 0 may go.
                if !shared.has_left(0) {
                    lost(LossReason::Ended);
                }
                return;
            }
        }
        // Who was stopped itself hears late; others decide.
        if round.elapsed() > GAP {
            heard = Instant::now();
        }
        round = Instant::now();
        if heard.elapsed() > shared.silence && !shared.has_left(0) {
            lost(LossReason::Silent { seconds: heard.elapsed().as_secs() });
        }
        if told.elapsed() >= BEAT {
            told = Instant::now();
            tell(writer, &Line::Beat { begun: shared.begun() });
        }
    }
}
