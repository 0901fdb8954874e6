//! Ranks as threads of one process, each with its own connections.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use tch::{Device, Kind, Tensor};

use super::*;
use crate::failure::Failure;

mod lost;

const LONG: Duration = Duration::from_secs(60);

/// Returns the result of each rank's thread, ordered by rank.
fn each_of<T: Send>(world: usize, timeout: Duration, body: impl Fn(ProcessGroup) -> T + Sync) -> Vec<T> {
    let listener = listener();
    let run = |rank: usize| {
        let group = ProcessGroup::join(&Rendezvous::at(&listener, rank, world), Device::Cpu, timeout);
        body(group.expect("all come"))
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world).map(|rank| scope.spawn(move || run(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}

/// Returns once all ranks have called it.
fn barrier(group: &ProcessGroup) -> Result<(), DistributedError> {
    group.all_reduce(&Tensor::zeros([1], (Kind::Int, Device::Cpu)), Reduce::Sum)
}

fn listener() -> Arc<TcpListener> {
    Arc::new(TcpListener::bind("127.0.0.1:0").expect("a free port"))
}

/// Returns a port that is currently free, below the system's ephemeral ports.
fn free_port() -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16 % 8000;
    loop {
        let port = 15000 + (first + TRIED.fetch_add(1, Ordering::Relaxed)) % 16000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).contiguous().view([-1])).expect("numbers")
}

/// Returns six small numbers that differ between ranks and are exact in every kind.
fn sample(rank: usize, kind: Kind) -> Tensor {
    let values: Vec<i64> = (0..6).map(|i| (i * (rank as i64 + 1) + 3 * rank as i64) % 11).collect();
    Tensor::from_slice(&values).to_kind(kind)
}

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
    // A stop of all ranks at once, such as a job's signal, is not the failure of any rank.
    std::thread::scope(|scope| {
        let ranks = [0, 1].map(|rank| scope.spawn(move || join(rank, &AtomicBool::new(true))));
        for rank in ranks {
            assert!(matches!(rank.join().expect("no panic"), DistributedError::Stopped));
        }
    });
}

/// Returns the rendezvous of a rank that is set by flags.
fn rank_of(rank: usize, world: usize, port: u16) -> Rendezvous {
    let master = Some(format!("127.0.0.1:{port}"));
    let flags = RendezvousFlags { rank: Some(rank), world_size: Some(world), master };
    Rendezvous::find(&flags, &|_| None).expect("complete")
}

#[test]
fn who_waits_for_rank_0_can_be_stopped_and_names_it_where_it_does_not_come() {
    let free = free_port();
    let join = |timeout, stop| {
        let stop = AtomicBool::new(stop);
        let joined = ProcessGroup::join_unless_stopped(&rank_of(1, 2, free), Device::Cpu, timeout, &stop);
        joined.expect_err("nobody listens")
    };
    assert!(matches!(join(LONG, true), DistributedError::Stopped));
    let error = join(Duration::from_millis(300), false).to_string();
    assert!(error.starts_with(&format!("rank 0 did not listen at 127.0.0.1:{free}")), "{error}");
}

#[test]
fn a_port_in_use_is_named() {
    let taker = listener();
    let taken = taker.local_addr().expect("bound").port();
    let error = ProcessGroup::join(&rank_of(0, 2, taken), Device::Cpu, LONG).expect_err("taken");
    let reason = format!("rank 0 cannot listen at 127.0.0.1:{taken}: the port is in use; choose another");
    assert!(error.to_string().starts_with(&reason), "{error}");
    assert_eq!(error.failure(), Failure::Unavailable);
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

const KINDS: [Kind; 10] = [
    Kind::Float,
    Kind::Double,
    Kind::Half,
    Kind::BFloat16,
    Kind::Int64,
    Kind::Int,
    Kind::Int16,
    Kind::Int8,
    Kind::Uint8,
    Kind::Bool,
];

#[test]
fn all_reduce_is_the_sum_or_the_greatest() {
    for world in [1, 2, 3, 4] {
        each_of(world, LONG, |group| {
            for kind in KINDS {
                let samples: Vec<_> = (0..world).map(|rank| numbers(&sample(rank, kind))).collect();
                for how in [Reduce::Sum, Reduce::Max] {
                    let expected: Vec<f64> = (0..6)
                        .map(|i| {
                            let column = samples.iter().map(|values| values[i]);
                            match how {
                                Reduce::Sum if kind == Kind::Bool => column.fold(0.0, f64::max),
                                Reduce::Sum => column.sum(),
                                Reduce::Max => column.fold(f64::MIN, f64::max),
                            }
                        })
                        .collect();
                    let own = sample(group.rank(), kind);
                    group.all_reduce(&own, how).expect("reduced");
                    assert_eq!(numbers(&own), expected, "{kind:?} {how:?} of {world}");
                }
            }
        });
    }
}

#[test]
fn all_reduce_takes_views_and_parameters() {
    each_of(3, LONG, |group| {
        let base = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        let turned = base.transpose(0, 1);
        turned.shallow_clone().copy_(&sample(group.rank(), Kind::Float).view([3, 2]));
        group.all_reduce(&turned, Reduce::Sum).expect("reduced");
        let expected = (0..3).map(|rank| sample(rank, Kind::Float)).reduce(|a, b| a + b).expect("three");
        assert_eq!(numbers(&base.transpose(0, 1)), numbers(&expected));
        let leaf = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        group.all_reduce(&leaf, Reduce::Sum).expect("reduced");
        assert_eq!(numbers(&leaf), [3.0, 3.0]);
        assert!(leaf.requires_grad() && leaf.is_leaf());
    });
}

#[test]
fn broadcast_gives_everybody_one_ranks_tensors_of_any_kind() {
    for (world, from) in [(2, 0), (3, 2), (4, 1)] {
        each_of(world, LONG, |group| {
            let of = |rank: usize| -> Vec<Tensor> {
                let mut tensors: Vec<_> = KINDS.map(|kind| sample(rank, kind)).into();
                tensors.push(sample(rank, Kind::Uint8).narrow(0, 0, 5));
                tensors.push(sample(rank, Kind::Float).view([2, 3]).transpose(0, 1));
                tensors.push(Tensor::from(rank as f32 + 0.5));
                tensors.push(Tensor::zeros([0, 4], (Kind::Half, Device::Cpu)));
                tensors.push(sample(rank, Kind::Double).set_requires_grad(true));
                tensors
            };
            let own = of(group.rank());
            group.broadcast(&own, from).expect("sent");
            for (own, expected) in own.iter().zip(of(from)) {
                assert_eq!((own.kind(), own.size()), (expected.kind(), expected.size()));
                assert_eq!(numbers(own), numbers(&expected));
            }
        });
    }
}

#[test]
fn all_gather_stacks_the_ranks_rows() {
    for world in [1, 2, 3, 4] {
        each_of(world, LONG, |group| {
            for kind in KINDS {
                let turned = sample(group.rank(), kind).view([3, 2]).transpose(0, 1);
                let all = group.all_gather(&turned).expect("gathered");
                assert_eq!((all.size(), all.kind()), (vec![2 * world as i64, 3], kind));
                let expected: Vec<f64> = (0..world)
                    .flat_map(|rank| numbers(&sample(rank, kind).view([3, 2]).transpose(0, 1)))
                    .collect();
                assert_eq!(numbers(&all), expected, "{kind:?}");
            }
        });
    }
}

#[test]
fn bytes_of_any_length_are_gathered() {
    for lens in [vec![3, 0, 7], vec![0, 0], vec![1]] {
        let of = |rank: usize| vec![rank as u8 + 1; lens[rank]];
        let expected: Vec<_> = (0..lens.len()).map(of).collect();
        for gathered in each_of(lens.len(), LONG, |group| group.gather_bytes(&of(group.rank()))) {
            assert_eq!(gathered.expect("gathered"), expected);
        }
    }
}

#[test]
fn every_rank_learns_who_disagrees() {
    let value = |rank: usize| if rank == 2 { "beta" } else { "alpha" };
    let told = each_of(4, LONG, |group| {
        group.agree("seed", "7").expect("the same");
        group.agree("dataset", value(group.rank())).expect_err("not the same")
    });
    for error in told {
        assert_eq!(error.to_string(), "dataset differs: rank 2 has beta, rank 0 has alpha");
        assert_eq!(error.failure(), Failure::Config);
    }
}

#[test]
fn gradients_through_a_sum_are_those_of_the_summed_function() {
    let world = 3;
    let own = |rank: usize| (sample(rank, Kind::Double) / 3.0).set_requires_grad(true);
    let loss = |sum: &Tensor, rank: usize| ((sum * (rank as f64 + 1.0)).sin() * sum).sum(Kind::Double);
    // Single process: all inputs, one sum, all losses.
    let inputs: Vec<_> = (0..world).map(own).collect();
    let sum = inputs.iter().map(Tensor::shallow_clone).reduce(|a, b| a + b).expect("three");
    (0..world).map(|rank| loss(&sum, rank)).reduce(|a, b| a + b).expect("three").backward();
    let gradients = each_of(world, LONG, |group| {
        let input = own(group.rank());
        let sum = group.sum_with_gradient(&input).expect("summed");
        loss(&sum, group.rank()).f_backward().expect("differentiable");
        (numbers(&sum.detach()), numbers(&input.grad()))
    });
    for (input, (value, gradient)) in inputs.iter().zip(gradients) {
        assert!(close(&value, &numbers(&sum.detach())), "{value:?}");
        assert!(close(&gradient, &numbers(&input.grad())), "{gradient:?}");
    }
}

/// Results of a batch norm: output and input gradient, ordered by rank; sums of the gradients of weight and
/// bias; running mean and variance of each rank.
fn normalised(shares: &[i64], channels_last: bool) -> Vec<[Tensor; 6]> {
    let images = shares.iter().sum();
    let float = |shape: &[i64], phase: f64| waves(shape, phase).to_kind(Kind::Float);
    each_of(shares.len(), LONG, |group| {
        let rank = group.rank();
        let mine = |all: Tensor| {
            let own = all.narrow(0, shares[..rank].iter().sum(), shares[rank]);
            if channels_last {
                own.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
            } else {
                own.transpose(2, 3).contiguous().transpose(2, 3)
            }
        };
        let input = mine(float(&[images, 3, 4, 5], 0.3) * 3.0 + 2.0).set_requires_grad(true);
        let [weight, bias] = [0.1, 0.2].map(|phase| float(&[3], phase).set_requires_grad(true));
        let [mean, variance] = [0.4, 0.5].map(|phase| float(&[3], phase).abs());
        let output = if shares.len() == 1 {
            let statistics = (Some(&mean), Some(&variance));
            input.batch_norm(Some(&weight), Some(&bias), statistics.0, statistics.1, true, 0.1, 1e-5, false)
        } else {
            group.batch_norm(&input, [&weight, &bias, &mean, &variance], 0.1, 1e-5).expect("normalised")
        };
        (&output * mine(float(&[images, 3, 4, 5], 0.9))).sum(Kind::Float).backward();
        [output.detach(), input.grad(), weight.grad(), bias.grad(), mean, variance]
    })
}

#[test]
fn batch_norm_over_uneven_ranks_is_that_of_all_their_images() {
    let nothing = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    let input = Tensor::ones([1, 1, 2, 2], (Kind::Float, Device::Cpu));
    let on_cpu = ProcessGroup::alone().batch_norm(&input, [&nothing; 4], 0.1, 1e-5);
    // Another test may have registered the kernels before.
    assert!(on_cpu.map_or_else(|error| error.to_string().contains("batch_norm_stats"), |_| true));
    emulate_kernels();
    for shares in [&[3, 1][..], &[0, 4], &[2, 0, 2], &[0, 0, 3, 1]] {
        for channels_last in [false, true] {
            let whole = normalised(&[shares.iter().sum()], channels_last).remove(0);
            let ranks = normalised(shares, channels_last);
            let all = |part: usize| ranks.iter().map(move |rank| &rank[part]);
            let close =
                |a: &Tensor, b: &Tensor| assert!(a.allclose(b, 1e-4, 1e-5, false), "{shares:?} {a} {b}");
            for part in [0, 1] {
                close(&Tensor::cat(&all(part).collect::<Vec<_>>(), 0), &whole[part]);
            }
            for part in [2, 3] {
                close(
                    &all(part).map(Tensor::shallow_clone).reduce(|a, b| a + b).expect("ranks"),
                    &whole[part],
                );
            }
            for part in [4, 5] {
                all(part).for_each(|rank| close(rank, &whole[part]));
            }
        }
    }
}

#[test]
fn alone_every_collective_is_the_identity() {
    let group = ProcessGroup::join(&Rendezvous::alone(), Device::Cpu, LONG).expect("alone");
    assert_eq!((group.rank(), group.world(), group.is_first()), (0, 1, true));
    let tensor = sample(4, Kind::Float);
    group.all_reduce(&tensor, Reduce::Sum).expect("nothing to do");
    group.broadcast(std::slice::from_ref(&tensor), 0).expect("nothing to do");
    barrier(&group).and_then(|()| group.store().check()).expect("nothing to do");
    assert_eq!(numbers(&group.sum_with_gradient(&tensor).expect("itself")), numbers(&tensor));
    assert_eq!(numbers(&tensor), numbers(&sample(4, Kind::Float)));
    let store = group.store();
    store.set("key", b"value").expect("a map");
    assert_eq!(store.wait_for("key").expect("set"), b"value");
    assert_eq!(store.try_get("other").expect("a map"), None);
}

#[test]
fn the_store_is_used_from_another_thread_while_a_collective_runs() {
    each_of(2, LONG, |group| {
        let store = group.store();
        assert_eq!(store.try_get("go").expect("reachable"), None, "before both have come");
        barrier(&group).expect("both");
        if group.is_first() {
            // Rank 1 joins the barrier only after the other thread has set the key.
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(50));
                    store.set("go", &[0, 1, 255]).expect("reachable");
                });
                barrier(&group).expect("both");
            });
        } else {
            assert_eq!(store.wait_for("go").expect("set"), [0, 1, 255]);
            barrier(&group).expect("both");
        }
    });
}

const SAMPLES: i64 = 24;

/// Small network and its data, equal on all ranks.
struct Mlp {
    parameters: Vec<Tensor>,
    inputs: Tensor,
    targets: Tensor,
}

fn waves(shape: &[i64], phase: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 0.7 + phase).sin().view(shape)
}

impl Mlp {
    fn new() -> Self {
        let parameters = [waves(&[5, 7], 0.1), waves(&[7], 0.2), waves(&[7, 3], 0.3), waves(&[3], 0.4)];
        let parameters = parameters.map(|parameter| parameter.set_requires_grad(true));
        Self {
            parameters: parameters.into(),
            inputs: waves(&[SAMPLES, 5], 0.5),
            targets: waves(&[SAMPLES, 3], 0.6),
        }
    }

    /// Returns the mean loss of a range of samples.
    fn loss(&self, begin: i64, len: i64) -> Tensor {
        let [w1, b1, w2, b2] = &self.parameters[..] else { panic!("four") };
        let hidden = (self.inputs.narrow(0, begin, len).matmul(w1) + b1).tanh();
        let errors = hidden.matmul(w2) + b2 - self.targets.narrow(0, begin, len);
        errors.square().sum(Kind::Double) / len
    }

    fn gradients(&self) -> Vec<f64> {
        self.parameters.iter().flat_map(|parameter| numbers(&parameter.grad())).collect()
    }
}

fn close(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12 * (1.0 + a.abs()))
}

#[test]
fn three_parts_of_a_batch_give_the_gradient_of_the_whole() {
    let whole = Mlp::new();
    whole.loss(0, SAMPLES).backward();
    let parts = each_of(2, LONG, |group| {
        let mlp = Mlp::new();
        let reducer = GradientReducer::new(&group, &mlp.parameters).expect("equal parameters");
        let len = SAMPLES / 6;
        let mut steps = Vec::new();
        for _ in 0..2 {
            for part in 0..3 {
                let begin = group.rank() as i64 * SAMPLES / 2 + part * len;
                reducer.backward(&(mlp.loss(begin, len) / 3.0), part == 2).expect("reduced");
            }
            steps.push(mlp.gradients());
            mlp.parameters.iter().for_each(|parameter| drop(parameter.grad().zero_()));
        }
        steps
    });
    for gradients in parts.concat() {
        assert!(close(&gradients, &whole.gradients()), "{gradients:?}");
    }
}

#[test]
fn a_parameter_without_gradient_is_an_error_at_once() {
    let told = each_of(2, LONG, |group| {
        let mut mlp = Mlp::new();
        let unused = waves(&[2], 0.0).set_requires_grad(true);
        let parameters: Vec<_> = mlp.parameters.drain(..).chain([unused]).collect();
        mlp.parameters = parameters.iter().take(4).map(Tensor::shallow_clone).collect();
        let reducer = GradientReducer::new(&group, &parameters).expect("equal parameters");
        reducer.backward(&mlp.loss(0, 4), true).expect_err("one got none").to_string()
    });
    for error in told {
        assert!(error.contains("finished reduction"), "{error}");
    }
}

#[test]
fn ranks_with_other_parameters_are_refused() {
    let told = each_of(2, Duration::from_secs(5), |group| {
        let shape = [3 + group.rank() as i64];
        let parameters = [waves(&shape, 0.0).set_requires_grad(true)];
        GradientReducer::new(&group, &parameters).map(drop)
    });
    assert!(told.iter().any(Result::is_err), "{told:?}");
}

#[test]
fn of_many_lost_ranks_eight_are_named() {
    let many = (0..64).map(|rank| LostRank { rank, reason: LossReason::Ended }).collect();
    let error = DistributedError::PeerLost { lost: many };
    assert!(
        error.to_string().ends_with("rank 7 was lost: its connection ended; and 56 more ranks"),
        "{error}"
    );
    assert_eq!(error.failure().exit_code(), 69);
}

#[test]
fn messages_of_libtorch_are_told_apart() {
    let cases = [
        ("Timed out waiting 3000ms for recv operation to complete", Cause::Timeout),
        ("wait timeout after 5000ms, keys: /pg0/gloo/0/1", Cause::Timeout),
        ("Read error [127.0.0.1]:4: Connection reset by peer", Cause::Connection),
        ("Failed to recv, got 0 bytes. Connection was likely closed.", Cause::Connection),
        ("Application timeout caused pair closure", Cause::Connection),
        ("Invalid scalar type", Cause::Other),
    ];
    for (message, expected) in cases {
        assert_eq!(cause(message), expected, "{message}");
    }
    assert_eq!(first_line("reset by peer. This may indicate that\nat frame 3"), "reset by peer");
}
