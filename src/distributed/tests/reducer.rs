use super::*;

const SAMPLES: i64 = 24;

/// A small network and its data, the same everywhere.
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

    /// The mean loss of a run of samples.
    fn loss(&self, begin: i64, len: i64) -> Tensor {
        let [w1, b1, w2, b2] = &self.parameters[..] else { panic!("four") };
        let hidden = (self.inputs.narrow(0, begin, len).matmul(w1) + b1).tanh();
        let errors = hidden.matmul(w2) + b2 - self.targets.narrow(0, begin, len);
        errors.square().sum(Kind::Double) / len
    }

    fn gradients(&self) -> Vec<f64> {
        self.parameters.iter().flat_map(|parameter| numbers(&parameter.grad())).collect()
    }

    /// A step of plain descent, after which there are no gradients.
    fn descend(&self) {
        tch::no_grad(|| {
            for parameter in &self.parameters {
                let mut gradient = parameter.grad();
                let _ = parameter.shallow_clone().subtract_(&(&gradient * 0.1));
                let _ = gradient.zero_();
            }
        });
    }
}

fn close(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12 * (1.0 + a.abs()))
}

#[test]
fn any_number_of_ranks_descends_alike() {
    let descended = |world: usize| {
        each_of(world, LONG, |group| {
            let mlp = Mlp::new();
            let reducer = GradientReducer::new(&group, &mlp.parameters).expect("equal parameters");
            let len = SAMPLES / world as i64;
            for _ in 0..5 {
                reducer.backward(&mlp.loss(group.rank() as i64 * len, len), true).expect("reduced");
                mlp.descend();
            }
            mlp.parameters.iter().flat_map(|parameter| numbers(&parameter.detach())).collect::<Vec<f64>>()
        })
    };
    let alone = descended(1).remove(0);
    assert!(
        alone.iter().zip(numbers(&Mlp::new().parameters[0])).any(|(a, b)| (a - b).abs() > 0.01),
        "it moves"
    );
    for world in [2, 4] {
        for weights in descended(world) {
            assert!(close(&weights, &alone), "{world}: {weights:?} {alone:?}");
        }
    }
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
