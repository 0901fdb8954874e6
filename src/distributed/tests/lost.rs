//! Ranks that are killed, stopped, late or done. A rank that dies is a separate process: this test program,
//! started for the one test that only runs a rank.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;

const PLACE: &str = "INSTDISC_TEST_PLACE";
const READY: &str = "ready to join";

/// Not a test itself, but a rank that joins one barrier and then sleeps.
#[test]
#[ignore = "started by the other tests here, as a rank"]
fn rank_of_its_own() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let mut parts = place.split(' ');
    let mut number = || parts.next().and_then(|part| part.parse::<u32>().ok()).expect("a number");
    let (rank, world, port) = (number() as usize, number() as usize, number() as u16);
    // Only now do the others start to wait for this rank.
    writeln!(std::io::stdout(), "{READY}").expect("heard");
    let group = ProcessGroup::join(&rank_of(rank, world, port), Device::Cpu, LONG).expect("all come");
    barrier(&group).expect("all come");
    std::thread::sleep(LONG);
}

struct Rank(Child);

impl Rank {
    fn start(rank: usize, world: usize, port: u16) -> Self {
        let test = "distributed::tests::lost::rank_of_its_own";
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", test, "--ignored", "--nocapture"]);
        command.env(PLACE, format!("{rank} {world} {port}"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("started");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let is_ready = |line: std::io::Result<String>| line.is_ok_and(|line| line.ends_with(READY));
        assert!(lines.into_iter().any(is_ready), "it becomes a rank");
        Self(child)
    }

    fn kill(&self) {
        // `sh` has `kill` built in; a minimal system has no separate program.
        let status = Command::new("sh").args(["-c", &format!("kill -KILL {}", self.0.id())]).status();
        assert!(status.expect("sh runs").success());
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ranks 0 and 1 wait in a collective, rank 2 does something else, and rank 3 is killed. Tests with whole programs
/// cover a rank that hangs, and the loss of rank 0.
#[test]
fn a_killed_rank_is_named_by_all_others_within_five_seconds() {
    let listener = listener();
    let port = listener.local_addr().expect("bound").port();
    let victim = Rank::start(3, 4, port);
    let signalled = std::sync::Mutex::new(None);
    let all_came = std::sync::Barrier::new(3);
    let run = |rank: usize| {
        let group =
            ProcessGroup::join(&Rendezvous::at(&listener, rank, 4), Device::Cpu, LONG).expect("all come");
        barrier(&group).expect("all come");
        all_came.wait();
        if rank == 0 {
            *signalled.lock().expect("no panic") = Some(Instant::now());
            victim.kill();
        }
        let error = loop {
            let still_well = if rank == 2 { group.store().check() } else { barrier(&group) };
            match still_well {
                Ok(()) => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => break error,
            }
        };
        (error, Instant::now())
    };
    let ended: Vec<_> = std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..3).map(|rank| scope.spawn(move || run(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    });
    let since = signalled.lock().expect("no panic").expect("signalled");
    for (error, at) in ended {
        assert_eq!(error.to_string(), "rank 3 was lost: its connection ended");
        assert_eq!(error.failure(), Failure::Unavailable);
        let time = at.duration_since(since);
        assert!(time < Duration::from_secs(5), "{time:?}");
    }
}

#[test]
fn a_rank_that_does_not_come_to_a_collective_is_named() {
    let done = std::sync::Barrier::new(3);
    let errors = each_of(3, Duration::from_secs(6), |group| {
        barrier(&group).expect("all come");
        let error = (group.rank() != 2).then(|| barrier(&group).expect_err("rank 2 does something else"));
        done.wait();
        error
    });
    for error in errors.into_iter().flatten() {
        let text = "rank 2 did not come to collective 2 within 6 s (it is at 1)";
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn ranks_that_end_at_different_moments_alarm_nobody() {
    let order = std::sync::Barrier::new(3);
    each_of(3, LONG, |group| {
        barrier(&group).expect("all come");
        group.leave();
        let rank = group.rank();
        let kept = (rank != 1).then_some(group);
        order.wait();
        std::thread::sleep(Duration::from_millis(300));
        if let Some(group) = kept {
            group.store().check().expect("a rank that left is not lost");
        }
    });
}

#[test]
fn a_rank_that_ends_without_leaving_is_lost_to_the_others() {
    let order = std::sync::Barrier::new(3);
    let errors = each_of(3, LONG, |group| {
        barrier(&group).expect("all come");
        let kept = (group.rank() != 1).then_some(group);
        order.wait();
        let began = Instant::now();
        let lost = |group: ProcessGroup| loop {
            match group.store().check() {
                Ok(()) if began.elapsed() < LONG => std::thread::sleep(Duration::from_millis(5)),
                checked => return checked.expect_err("rank 1 has ended"),
            }
        };
        kept.map(lost)
    });
    for error in errors.into_iter().flatten() {
        assert_eq!(error.to_string(), "rank 1 was lost: its connection ended");
    }
}

#[test]
fn an_error_of_one_rank_is_that_of_all() {
    for failing in [0, 1] {
        let errors = each_of(3, LONG, |group| {
            barrier(&group).expect("all come");
            if group.rank() == failing {
                group.fail(Failure::Data);
                return None;
            }
            Some(barrier(&group).expect_err("one rank has failed"))
        });
        for error in errors.into_iter().flatten() {
            let text = format!("rank {failing} failed with exit code 65; its own log says why");
            assert_eq!(error.to_string(), text);
            assert_eq!(error.failure(), Failure::Data);
        }
    }
}

#[test]
fn a_rank_that_left_is_named_by_those_who_still_need_it() {
    let errors = each_of(3, LONG, |group| {
        barrier(&group).expect("all come");
        if group.rank() == 1 {
            group.leave();
            return None;
        }
        Some(barrier(&group).expect_err("rank 1 has left"))
    });
    for error in errors.into_iter().flatten() {
        assert_eq!(error.to_string(), "rank 1 was lost: it ended before the others");
    }
}

#[test]
fn a_loss_reaches_a_rank_that_asks_for_nothing() {
    let listener = listener();
    let port = listener.local_addr().expect("bound").port();
    let victim = Rank::start(1, 2, port);
    let group = ProcessGroup::join(&Rendezvous::at(&listener, 0, 2), Device::Cpu, LONG).expect("both come");
    let (sender, receiver) = std::sync::mpsc::channel();
    group.when_lost(Duration::from_millis(100), move |error| sender.send(error.to_string()).expect("heard"));
    barrier(&group).expect("both come");
    victim.kill();
    let told = receiver.recv_timeout(LONG).expect("told in time");
    assert_eq!(told, "rank 1 was lost: its connection ended");
}
