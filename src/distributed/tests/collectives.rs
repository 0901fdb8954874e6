//! What each collective gives, for each kind of tensor and number of ranks.

use super::*;

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
    // One process: all inputs, one sum, all losses.
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
        let close =
            |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12 * (1.0 + a.abs()));
        assert!(close(&value, &numbers(&sum.detach())), "{value:?}");
        assert!(close(&gradient, &numbers(&input.grad())), "{gradient:?}");
    }
}

#[test]
fn alone_every_collective_is_the_identity() {
    let group = ProcessGroup::join(&Rendezvous::alone(), Device::Cpu, LONG).expect("alone");
    assert_eq!((group.rank(), group.world(), group.is_first()), (0, 1, true));
    let tensor = sample(4, Kind::Float);
    group.all_reduce(&tensor, Reduce::Sum).expect("nothing to do");
    group.broadcast(std::slice::from_ref(&tensor), 0).expect("nothing to do");
    barrier(&group).and_then(|()| group.check()).expect("nothing to do");
    assert_eq!(numbers(&group.sum_with_gradient(&tensor).expect("itself")), numbers(&tensor));
    assert_eq!(numbers(&tensor), numbers(&sample(4, Kind::Float)));
    let store = group.store();
    store.set("key", b"value").expect("a map");
    assert_eq!(store.get("key").expect("set"), b"value");
    assert_eq!(store.try_get("other").expect("a map"), None);
    assert_eq!((store.add("n", 2).expect("new"), store.add("n", 3).expect("a number")), (2, 5));
}

#[test]
fn the_store_is_used_from_another_thread_while_a_collective_runs() {
    each_of(2, LONG, |group| {
        let store = group.store();
        assert_eq!(store.try_get("go").expect("reachable"), None, "before both have come");
        barrier(&group).expect("both");
        if group.is_first() {
            // Rank 1 comes to the barrier only when the other thread has told it to.
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(50));
                    assert_eq!(store.add("count", 4).expect("reachable"), 4);
                    store.set("go", &[0, 1, 255]).expect("reachable");
                });
                barrier(&group).expect("both");
            });
        } else {
            assert_eq!(store.get("go").expect("set"), [0, 1, 255]);
            assert_eq!(store.add("count", -1).expect("reachable"), 3);
            barrier(&group).expect("both");
        }
    });
}
