//! Watcher of rank 0: hears all other ranks, finds the lost ones, and reports them to all.
//!
//! The first loss counts, with all that follow within a moment: a machine that dies takes several ranks with
//! it, and ranks that end because of the first loss are not lost themselves.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::{BEAT, GAP, Heard, Line, Lines, Shared, TICK, prepare, tell};
use crate::distributed::{LossReason, LostRank};
use crate::failure::Failure;

/// Time after a first loss in which further losses join its verdict.
const MOMENT: Duration = Duration::from_millis(100);
/// Time after a reported failure in which a connection may still end, before other ranks are suspected.
const SUSPICION: Duration = Duration::from_millis(500);
/// Silence that makes a rank suspect after another timed out waiting for it.
const QUIET: Duration = Duration::from_millis(2500);

/// State of rank 0's watcher.
#[derive(Debug)]
pub(super) struct Hub {
    ranks: Mutex<Ranks>,
    shared: Arc<Shared>,
    token: String,
}

#[derive(Debug)]
struct Ranks {
    /// Members by rank; rank 0's entry is `None`.
    members: Vec<Option<Seen>>,
    losses: Vec<LostRank>,
    first_loss: Option<Instant>,
    failure: Option<(Instant, u64, Option<u64>)>,
    /// Time since when others have begun more collectives than rank 0.
    behind_here: Option<Instant>,
}

#[derive(Debug)]
struct Seen {
    stream: TcpStream,
    last: Instant,
    begun: u64,
    /// Time since when others have begun more collectives than this rank.
    behind: Option<Instant>,
    left: bool,
}

impl Hub {
    /// Listens on a free port of the address and starts the thread. Returns the port.
    pub(super) fn start(
        shared: &Arc<Shared>,
        at: IpAddr,
        token: String,
    ) -> std::io::Result<(Arc<Self>, u16)> {
        let listener = TcpListener::bind((at, 0))?;
        let port = listener.local_addr()?.port();
        listener.set_nonblocking(true)?;
        let members = (0..shared.world).map(|_| None).collect();
        let ranks = Ranks { members, losses: Vec::new(), first_loss: None, failure: None, behind_here: None };
        let hub = Arc::new(Self { ranks: Mutex::new(ranks), shared: shared.clone(), token });
        let own = hub.clone();
        std::thread::Builder::new().name("watch".into()).spawn(move || own.run(&listener))?;
        Ok((hub, port))
    }

    /// Returns the ranks that have not connected.
    pub(super) fn absent(&self) -> Vec<usize> {
        let ranks = self.ranks();
        (1..self.shared.world).filter(|rank| ranks.members[*rank].is_none()).collect()
    }

    pub(super) fn note_failure(&self, collective: u64, waited: Option<u64>) {
        let mut ranks = self.ranks();
        // A timeout tells more than a broken connection.
        let says_more = |old: Option<u64>| old.is_none() && waited.is_some();
        if ranks.failure.is_none_or(|(_, _, old)| says_more(old)) {
            let since = ranks.failure.map_or_else(Instant::now, |(since, _, _)| since);
            ranks.failure = Some((since, collective, waited));
        }
    }

    /// Reports that rank 0 is about to end with its own error.
    pub(super) fn tell_failure(&self, failure: Failure) {
        self.ranks().lose(0, LossReason::Failed { failure });
        self.conclude();
    }

    pub(super) fn say_goodbye(&self) {
        // Send a verdict that is still being collected first.
        if self.ranks().first_loss.is_some() {
            self.conclude();
        }
        self.tell_all(&Line::Bye);
    }

    /// Returns whether some rank is still connected.
    pub(super) fn has_members(&self) -> bool {
        self.ranks().members.iter().flatten().any(|seen| !seen.left)
    }

    pub(super) fn hang_up(&self) {
        for seen in self.ranks().members.iter().flatten() {
            let _ = seen.stream.shutdown(std::net::Shutdown::Both);
        }
    }

    fn ranks(&self) -> MutexGuard<'_, Ranks> {
        self.ranks.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn tell_all(&self, line: &Line) {
        // Use copies, so that a slow connection does not block the others.
        let streams: Vec<_> = {
            let ranks = self.ranks();
            let present = ranks.members.iter().flatten().filter(|seen| !seen.left);
            present.filter_map(|seen| seen.stream.try_clone().ok()).collect()
        };
        for stream in streams {
            tell(&stream, line);
        }
    }

    fn run(self: &Arc<Self>, listener: &TcpListener) {
        let (mut told, mut round) = (Instant::now(), Instant::now());
        while !self.shared.is_closing() {
            while let Ok((stream, _)) = listener.accept() {
                let hub = self.clone();
                let _ = std::thread::Builder::new().name("watch".into()).spawn(move || hub.hear(stream));
            }
            if round.elapsed() > GAP {
                // This process itself was stopped, so missing signs prove nothing.
                self.ranks().members.iter_mut().flatten().for_each(|seen| seen.last = Instant::now());
            }
            round = Instant::now();
            self.decide();
            if told.elapsed() >= BEAT {
                told = Instant::now();
                self.tell_all(&Line::Beat { begun: 0 });
            }
            std::thread::sleep(TICK);
        }
    }

    /// Reads one connection to its end.
    fn hear(&self, stream: TcpStream) {
        let lines = prepare(&stream).and_then(|()| Lines::new(stream.try_clone()?, self.shared.silence));
        let Ok(mut lines) = lines else { return };
        let rank = match lines.next() {
            Heard::Line(Line::Hello { token, rank }) if token == self.token && rank < self.shared.world => {
                rank
            }
            // Not a rank of this run.
            _ => return,
        };
        {
            let mut ranks = self.ranks();
            // Rank 0 may leave once all are connected, so send an existing verdict before registering the rank.
            if let Some(lost) = self.shared.verdict() {
                tell(&stream, &Line::Lost { lost });
            }
            ranks.members[rank] =
                Some(Seen { stream, last: Instant::now(), begun: 0, behind: None, left: false });
        }
        loop {
            let heard = lines.next();
            let mut ranks = self.ranks();
            let Some(seen) = ranks.members[rank].as_mut() else { return };
            match heard {
                Heard::Line(Line::Beat { begun }) => {
                    if seen.begun != begun {
                        seen.behind = None;
                    }
                    (seen.last, seen.begun) = (Instant::now(), begun);
                }
                Heard::Line(Line::Bye) => seen.left = true,
                Heard::Line(Line::Ends { failure }) => ranks.lose(rank, LossReason::Failed { failure }),
                Heard::Line(Line::Failed { collective, waited }) => {
                    drop(ranks);
                    self.note_failure(collective, waited);
                }
                Heard::Line(_) | Heard::Nothing => {}
                Heard::End => {
                    if !seen.left {
                        seen.left = true;
                        ranks.lose(rank, LossReason::Ended);
                    }
                    return;
                }
            }
        }
    }

    fn decide(&self) {
        if self.shared.verdict().is_some() {
            return;
        }
        let mut ranks = self.ranks();
        for rank in 1..self.shared.world {
            let silent =
                ranks.members[rank].as_ref().filter(|seen| !seen.left).map(|seen| seen.last.elapsed());
            if let Some(silent) = silent.filter(|silent| *silent > self.shared.silence) {
                ranks.lose(rank, LossReason::Silent { seconds: silent.as_secs() });
            }
        }
        ranks.look_for_missed(self.shared.begun(), self.shared.timeout);
        if let Some((since, collective, waited)) = ranks.failure
            && ranks.first_loss.is_none()
            && since.elapsed() > SUSPICION
        {
            let suspects = ranks.suspects(self.shared.begun(), collective, waited);
            for suspect in suspects {
                ranks.lose(suspect.rank, suspect.reason);
            }
        }
        if ranks.first_loss.is_some_and(|first| first.elapsed() > MOMENT) {
            drop(ranks);
            self.conclude();
        }
    }

    fn conclude(&self) {
        let lost = self.ranks().losses.clone();
        self.shared.decide(lost.clone());
        self.tell_all(&Line::Lost { lost });
    }
}

impl Ranks {
    fn lose(&mut self, rank: usize, reason: LossReason) {
        if !self.losses.iter().any(|known| known.rank == rank) {
            self.first_loss.get_or_insert_with(Instant::now);
            self.losses.push(LostRank { rank, reason });
        }
    }

    /// Marks ranks as lost that said goodbye while others continue, and ranks that miss a collective for the
    /// whole timeout: a device's queue may block all others without an error.
    fn look_for_missed(&mut self, begun_here: u64, timeout: Duration) {
        let begun = self.members.iter().flatten().map(|seen| seen.begun);
        let most = begun.max().unwrap_or(0).max(begun_here);
        let mut missed = Vec::new();
        let late = |at: u64| LossReason::Late { collective: at + 1, at, seconds: timeout.as_secs() };
        if begun_here >= most {
            self.behind_here = None;
        } else if self.behind_here.get_or_insert_with(Instant::now).elapsed() > timeout {
            missed.push((0, late(begun_here)));
        }
        for (rank, seen) in self.members.iter_mut().enumerate() {
            let Some(seen) = seen else { continue };
            if seen.begun >= most {
                seen.behind = None;
                continue;
            }
            let behind = seen.behind.get_or_insert_with(Instant::now).elapsed();
            if seen.left && behind > SUSPICION {
                missed.push((rank, LossReason::Left));
            } else if !seen.left && behind > timeout {
                missed.push((rank, late(seen.begun)));
            }
        }
        // A rank whose connection ended is already recorded as lost.
        missed.into_iter().for_each(|(rank, reason)| self.lose(rank, reason));
    }

    /// Returns the ranks that may have caused a failed collective: quiet ones, else those that have not begun
    /// it, else those that said goodbye. Quiet and late ranks are suspects only after a timeout.
    fn suspects(&self, begun_here: u64, collective: u64, waited: Option<u64>) -> Vec<LostRank> {
        let members =
            || self.members.iter().enumerate().filter_map(|(rank, seen)| Some((rank, seen.as_ref()?)));
        let present = || members().filter(|(_, seen)| !seen.left);
        let mut found = Vec::new();
        if let Some(seconds) = waited {
            let quiet = present().filter(|(_, seen)| seen.last.elapsed() > QUIET);
            found.extend(quiet.map(|(rank, seen)| LostRank {
                rank,
                reason: LossReason::Silent { seconds: seen.last.elapsed().as_secs() },
            }));
            if found.is_empty() {
                let own = std::iter::once((0, begun_here));
                let counts = own.chain(present().map(|(rank, seen)| (rank, seen.begun)));
                let late = counts.filter(|(_, begun)| *begun < collective);
                found.extend(late.map(|(rank, at)| LostRank {
                    rank,
                    reason: LossReason::Late { collective, at, seconds },
                }));
            }
        }
        if found.is_empty() {
            let left = members().filter(|(_, seen)| seen.left);
            found.extend(left.map(|(rank, _)| LostRank { rank, reason: LossReason::Left }));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::Watch;
    use super::*;

    /// A rank may fail while another is still joining.
    #[test]
    fn a_rank_that_comes_after_the_verdict_hears_it() {
        let timeout = Duration::from_secs(30);
        let (first, port) = Watch::lead(3, [127, 0, 0, 1].into(), "t".into(), timeout).expect("it listens");
        let follow =
            |rank| Watch::follow((rank, 3), ("127.0.0.1", port), "t".into(), timeout).expect("it is reached");
        let failing = follow(1);
        failing.fail(Failure::Data);
        let lost = vec![LostRank { rank: 1, reason: LossReason::Failed { failure: Failure::Data } }];
        assert_eq!(first.shared.wait_for_verdict(timeout), Some(lost.clone()));
        let late = follow(2);
        assert_eq!(late.shared.wait_for_verdict(timeout), Some(lost));
        for watch in [late, failing, first] {
            watch.close();
        }
    }

    /// If a collective waits in a device's queue, no rank has an error to report.
    #[test]
    fn rank_0_is_late_like_any_other_rank() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let seen = Seen { stream, last: Instant::now(), begun: 3, behind: None, left: false };
        let members = vec![None, Some(seen)];
        let mut ranks =
            Ranks { members, losses: Vec::new(), first_loss: None, failure: None, behind_here: None };
        ranks.look_for_missed(3, Duration::ZERO);
        ranks.look_for_missed(2, Duration::from_secs(600));
        assert_eq!(ranks.losses, [], "it may still come");
        std::thread::sleep(TICK);
        ranks.look_for_missed(2, Duration::ZERO);
        let reason = LossReason::Late { collective: 3, at: 2, seconds: 0 };
        assert_eq!(ranks.losses, [LostRank { rank: 0, reason }]);
    }
}
