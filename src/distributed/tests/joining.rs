//! How ranks come together, and what is told where they do not.

use std::sync::atomic::AtomicBool;

use super::*;

#[test]
fn ranks_that_do_not_come_are_named_everywhere() {
    let listener = listener();
    let (world, timeout) = (4, Duration::from_millis(1200));
    let join = |rank| ProcessGroup::join(&Rendezvous::at(&listener, rank, world), Device::Cpu, timeout);
    std::thread::scope(|scope| {
        let ranks: Vec<_> =
            [0, 2].into_iter().map(|rank| scope.spawn(move || join(rank).map(drop))).collect();
        for rank in ranks {
            let error = rank.join().expect("no panic").expect_err("two are missing");
            assert_eq!(error.to_string(), "ranks 1, 3 did not come within 1 s; 2 of 4 ranks came");
            assert_eq!(error.failure(), Failure::Unavailable);
        }
    });
}

#[test]
fn one_that_is_stopped_while_it_waits_keeps_nobody_waiting() {
    let listener = listener();
    let join = |rank, stop: &AtomicBool| {
        let rendezvous = Rendezvous::at(&listener, rank, 3);
        let joined = ProcessGroup::join_unless_stopped(&rendezvous, Device::Cpu, LONG, stop);
        joined.map(drop).expect_err("rank 2 is missing")
    };
    let (stop, stay) = (AtomicBool::new(true), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| join(0, &stay));
        let stopped = join(1, &stop);
        assert!(matches!(stopped, DistributedError::Stopped) && stopped.failure() == Failure::Stopped);
        let first = first.join().expect("no panic");
        assert_eq!(first.to_string(), "rank 1 was stopped before all had come");
        assert_eq!(first.failure(), Failure::Unavailable);
    });
    assert!(matches!(join(0, &stop), DistributedError::Stopped));
    // Told to all at once, as a job's signal is, it is nobody's failure.
    std::thread::scope(|scope| {
        let ranks = [0, 1].map(|rank| scope.spawn(move || join(rank, &AtomicBool::new(true))));
        for rank in ranks {
            assert!(matches!(rank.join().expect("no panic"), DistributedError::Stopped));
        }
    });
}

#[test]
fn who_waits_for_rank_0_can_be_stopped() {
    let free = free_port();
    let flags =
        RendezvousFlags { rank: Some(1), world_size: Some(2), master: Some(format!("127.0.0.1:{free}")) };
    let rendezvous = Rendezvous::find(&flags, &|_| None).expect("complete");
    let stop = AtomicBool::new(true);
    let joined = ProcessGroup::join_unless_stopped(&rendezvous, Device::Cpu, LONG, &stop);
    assert!(matches!(joined.expect_err("stopped"), DistributedError::Stopped));
}

#[test]
fn rank_0_that_does_not_come_is_named() {
    let free = free_port();
    let flags =
        RendezvousFlags { rank: Some(1), world_size: Some(2), master: Some(format!("127.0.0.1:{free}")) };
    let rendezvous = Rendezvous::find(&flags, &|_| None).expect("complete");
    let error = ProcessGroup::join(&rendezvous, Device::Cpu, Duration::from_millis(300)).expect_err("nobody");
    assert!(error.to_string().starts_with(&format!("rank 0 did not listen at 127.0.0.1:{free}")), "{error}");
}

#[test]
fn a_port_in_use_is_named() {
    let taker = listener();
    let taken = taker.local_addr().expect("bound").port();
    let master = Some(format!("127.0.0.1:{taken}"));
    let flags = RendezvousFlags { rank: Some(0), world_size: Some(2), master };
    let rendezvous = Rendezvous::find(&flags, &|_| None).expect("complete");
    let error = ProcessGroup::join(&rendezvous, Device::Cpu, LONG).expect_err("taken");
    assert!(
        matches!(&error, DistributedError::PortInUse { address } if address.ends_with(&taken.to_string()))
    );
}

#[test]
fn two_processes_with_one_rank_are_refused() {
    let listener = listener();
    let first = || Rendezvous::at(&listener, 0, 3);
    let again = Rendezvous::at(&listener, 1, 3);
    let join = |rendezvous: &Rendezvous| {
        ProcessGroup::join(rendezvous, Device::Cpu, Duration::from_secs(5))
            .map(drop)
            .expect_err("three needed")
    };
    std::thread::scope(|scope| {
        scope.spawn(|| join(&first()));
        let both = [scope.spawn(|| join(&again)), scope.spawn(|| join(&again))];
        let refused = both.map(|rank| rank.join().expect("no panic").to_string());
        let is_double = |text: &&String| *text == "two processes say that they are rank 1";
        assert_eq!(refused.iter().filter(is_double).count(), 1, "{refused:?}");
    });
}

#[test]
fn ranks_on_gpus_that_are_not_there_are_refused() {
    if std::path::Path::new("/dev/nvidia0").exists() {
        return;
    }
    let error =
        ProcessGroup::join(&Rendezvous::at(&listener(), 0, 2), Device::Cuda(0), LONG).expect_err("no GPU");
    assert!(matches!(error, DistributedError::NoNccl { .. }), "{error}");
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
}
