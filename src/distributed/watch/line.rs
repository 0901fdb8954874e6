//! What the ranks' watchers tell each other: one JSON object a line.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::distributed::error::LostRank;
use crate::failure::Failure;

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Line {
    /// The first line of a rank; the token shows that it read the store.
    Hello { token: String, rank: usize },
    /// A sign of life, with the collectives begun so far. Rank 0's number is not looked at.
    Beat { begun: u64 },
    /// A rank's collective failed. `waited` in seconds where it waited in vain.
    Failed { collective: u64, waited: Option<u64> },
    /// A rank is about to end with an error of its own.
    Ends { failure: Failure },
    /// Rank 0's verdict.
    Lost { lost: Vec<LostRank> },
    /// An orderly end.
    Bye,
}

/// What reading gave.
#[derive(Debug)]
pub(super) enum Heard {
    Line(Line),
    /// Nothing within the time.
    Nothing,
    /// The connection ended.
    End,
}

/// One side of a connection, for reading.
#[derive(Debug)]
pub(super) struct Lines {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// No line is longer: a verdict names every rank of a large job.
const LONGEST: usize = 1 << 20;

impl Lines {
    /// `patience`: how long one read waits.
    pub(super) fn new(stream: TcpStream, patience: Duration) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(patience))?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    pub(super) fn next(&mut self) -> Heard {
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

/// Writes a line. Whoever cannot be written to is found out by reading.
pub(super) fn tell(mut stream: &TcpStream, line: &Line) {
    let mut bytes = serde_json::to_vec(line).expect("a line has no unserialisable part");
    bytes.push(b'\n');
    let _ = stream.write_all(&bytes);
}

/// Settings of either side's connection.
pub(super) fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(Duration::from_secs(1)))
}
