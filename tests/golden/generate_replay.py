"""Writes replay.json: every objective and the bank update, in float64, by autograd.

The formulas of nce are those of lemniscate.pytorch's lib/NCEAverage.py and lib/NCECriterion.py (Z from the
first batch with its positives; the moving Z counts the positive once), those of softmax and infonce are torch.nn.functional.cross_entropy, the
proximal term is equation 9 of the paper. The bank's row becomes momentum * row + (1 - momentum) * feature,
renormalised. Run: python generate_replay.py > replay.json
(with a number as argument: another seed, for a live comparison).
"""

import json
import sys

import torch
from torch.nn.functional import cross_entropy

assert torch.__version__.startswith("2.11."), torch.__version__
SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 20180618
INSTANCES, DIM, BATCH, NEGATIVES, STEPS = 24, 8, 4, 6, 3
TEMPERATURE, MOMENTUM, DECAY = 0.07, 0.5, 0.9

CASES = [
    {"objective": "nce", "eps": 0.0},
    {"objective": "nce", "eps": 1e-7},
    {"objective": "nce", "partition": "ema"},
    {"objective": "nce", "partition": "50.5", "proximal_weight": 2.0},
    {"objective": "nce", "shared": True, "exclude_positive": True},
    {"objective": "softmax"},
    {"objective": "softmax", "proximal_weight": 30.0},
    {"objective": "infonce"},
    {"objective": "infonce", "exclude_positive": True, "proximal_weight": 0.5},
    {"objective": "infonce", "shared": True},
]


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def steps(bank, inputs, case):
    """Loss, gradient, bank and Z after each step."""
    partition = float(case["partition"]) if case.get("partition", "fixed") not in ("fixed", "ema") else None
    eps = case.get("eps", 0.0)
    for features, ids, negatives, shared in inputs:
        features = features.clone().requires_grad_(True)
        if case.get("shared"):
            negatives = shared.expand(len(ids), -1)
        kept = torch.ones_like(negatives, dtype=torch.bool)
        if case.get("exclude_positive"):
            kept = negatives != ids[:, None]
        expected = {}
        if case["objective"] == "softmax":
            loss = cross_entropy(features @ bank.T / TEMPERATURE, ids)
        else:
            index = torch.cat([ids[:, None], negatives], dim=1)
            kept = torch.cat([torch.ones_like(ids[:, None], dtype=torch.bool), kept], dim=1)
            logits = torch.einsum("bd,bkd->bk", features, bank[index]) / TEMPERATURE
        if case["objective"] == "infonce":
            loss = cross_entropy(logits.masked_fill(~kept, -torch.inf), torch.zeros_like(ids))
        if case["objective"] == "nce":
            exponentials = torch.exp(logits)
            estimate = exponentials.detach()[kept].mean().item() * INSTANCES
            if case.get("partition") == "ema":
                # Equation 8 of the paper estimates Z from random rows: the positive counts once.
                others = exponentials.detach()[:, 1:][kept[:, 1:]].mean().item() * (INSTANCES - 1)
                estimate = exponentials.detach()[:, 0].mean().item() + others
            partition = estimate if partition is None else partition
            model = exponentials / partition
            noise = NEGATIVES / INSTANCES
            data_term = torch.log(model[:, 0] / (model[:, 0] + noise + eps))
            noise_term = torch.log(noise / (model[:, 1:] + noise + eps))[kept[:, 1:]]
            loss = -(data_term.sum() + noise_term.sum()) / len(ids)
            expected["z"] = partition
            if case.get("partition") == "ema":
                partition = DECAY * partition + (1 - DECAY) * estimate
        proximal = (features - bank[ids]).square().sum(dim=1).mean()
        loss = loss + case.get("proximal_weight", 0.0) * proximal
        loss.backward()
        moved = MOMENTUM * bank[ids] + (1 - MOMENTUM) * features.detach()
        bank = bank.clone()
        bank[ids] = unit(moved)
        yield expected | {"loss": loss.item(), "gradient": features.grad.tolist(), "bank": bank.tolist()}


def main():
    torch.manual_seed(SEED)
    # Inputs are rounded to float32 first: that is what the program reads.
    bank = unit(torch.randn(INSTANCES, DIM, dtype=torch.float64)).float().double()
    inputs = []
    for _ in range(STEPS):
        features = unit(torch.randn(BATCH, DIM, dtype=torch.float64)).float().double()
        ids = torch.randperm(INSTANCES)[:BATCH]
        negatives = torch.randint(INSTANCES, (BATCH, NEGATIVES))
        shared = torch.randint(INSTANCES, (NEGATIVES,))
        # Own rows among the negatives, so that leaving them out makes a difference.
        negatives[0, 2], shared[1] = ids[0], ids[1]
        inputs.append((features, ids, negatives, shared))
    names = ("features", "ids", "negatives", "shared")
    golden = {
        "made_by": f"generate_replay.py, torch {torch.__version__}, seed {SEED}",
        "temperature": TEMPERATURE,
        "bank_momentum": MOMENTUM,
        "partition_decay": DECAY,
        "bank": bank.tolist(),
        "steps": [{name: tensor.tolist() for name, tensor in zip(names, step)} for step in inputs],
        "cases": [case | {"expected": list(steps(bank, inputs, case))} for case in CASES],
    }
    json.dump(golden, sys.stdout)
    print()


main()
