"""Writes optimizers.json: PyTorch's own optimisers on given gradients, in float32.

Each case has a matrix and a vector whose gradients are given for some steps; expected are the values after
each step. LARS has no PyTorch original: its case is the class LARS of facebookresearch/barlowtwins, written
out (momentum buffer without the rate, trust ratio on matrices only).
Run: python generate_optimizers.py > optimizers.json (with a number: another seed, for a live comparison).
"""

import json
import sys

import torch

assert torch.__version__.startswith("2.11."), torch.__version__
SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 20180618
STEPS, RATE, DECAY = 6, 0.1, 0.01

CASES = [
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
    {"optimizer": "sgd", "momentum": 0.0, "decay_matrices_only": True},
    {"optimizer": "sgd", "momentum": 0.9, "clip_norm": 0.5},
    {"optimizer": "adamw"},
    {"optimizer": "adamw", "adam_beta1": 0.8, "adam_beta2": 0.95, "decay_matrices_only": True},
    {"optimizer": "lars", "momentum": 0.9, "decay_matrices_only": True},
]


class Lars(torch.optim.Optimizer):
    def __init__(self, groups, lr, momentum, trust=0.001):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                update = p.grad.add(p, alpha=group["weight_decay"])
                if p.ndim > 1:
                    weight, length = torch.norm(p), torch.norm(update)
                    one = torch.ones_like(weight)
                    ratio = torch.where(
                        weight > 0.0, torch.where(length > 0, group["trust"] * weight / length, one), one
                    )
                    update = update.mul(ratio)
                state = self.state[p]
                buffer = state.setdefault("mu", torch.zeros_like(p))
                buffer.mul_(group["momentum"]).add_(update)
                p.add_(buffer, alpha=-group["lr"])


def optimizer(case, matrix, vector):
    vector_decay = 0.0 if case.get("decay_matrices_only") else DECAY
    groups = [{"params": [matrix], "weight_decay": DECAY}, {"params": [vector], "weight_decay": vector_decay}]
    if case["optimizer"] == "sgd":
        return torch.optim.SGD(groups, lr=RATE, momentum=case["momentum"], nesterov=case.get("nesterov", False))
    if case["optimizer"] == "adamw":
        betas = (case.get("adam_beta1", 0.9), case.get("adam_beta2", 0.999))
        return torch.optim.AdamW(groups, lr=RATE, betas=betas)
    return Lars(groups, RATE, case["momentum"])


def run(case, start, gradients):
    matrix, vector = (part.clone().requires_grad_(True) for part in start)
    optim = optimizer(case, matrix, vector)
    for of_matrix, of_vector in gradients:
        matrix.grad, vector.grad = of_matrix.clone(), of_vector.clone()
        if "clip_norm" in case:
            torch.nn.utils.clip_grad_norm_([matrix, vector], case["clip_norm"])
        optim.step()
        yield {"matrix": matrix.tolist(), "vector": vector.tolist()}


def main():
    torch.manual_seed(SEED)
    draw = lambda: (torch.randn(3, 4), torch.randn(5))
    start, gradients = draw(), [draw() for _ in range(STEPS)]
    both = lambda pair: {"matrix": pair[0].tolist(), "vector": pair[1].tolist()}
    golden = {
        "made_by": f"generate_optimizers.py, torch {torch.__version__}, seed {SEED}",
        "lr": RATE,
        "weight_decay": DECAY,
        "start": both(start),
        "gradients": [both(pair) for pair in gradients],
        "cases": [case | {"expected": list(run(case, start, gradients))} for case in CASES],
    }
    json.dump(golden, sys.stdout)
    print()


main()
