"""Writes replay_nce.json: objective and bank update by the reference's formulas, in float64, by autograd.

The formulas are those of lemniscate.pytorch's lib/NCEAverage.py and lib/NCECriterion.py: Z from the first
batch with its positives, the bank's row as momentum * row + (1 - momentum) * feature, renormalised. Two
cases: eps = 0, and the reference's eps = 1e-7. Run: python generate_replay.py > replay_nce.json
(with a number as argument: another seed, for a live comparison).
"""

import json
import sys

import torch

assert torch.__version__.startswith("2.11."), torch.__version__
SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 20180618
INSTANCES, DIM, BATCH, NEGATIVES, STEPS = 24, 8, 4, 6, 3
TEMPERATURE, MOMENTUM = 0.07, 0.5


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def steps(bank, inputs, eps):
    """Loss, gradient, bank and Z after each step."""
    partition = None
    for features, ids, negatives in inputs:
        features = features.clone().requires_grad_(True)
        index = torch.cat([ids[:, None], negatives], dim=1)
        exponentials = torch.exp(torch.einsum("bd,bkd->bk", features, bank[index]) / TEMPERATURE)
        if partition is None:
            partition = exponentials.detach().mean() * INSTANCES
        model = exponentials / partition
        noise = NEGATIVES / INSTANCES
        data_term = torch.log(model[:, 0] / (model[:, 0] + noise + eps))
        noise_term = torch.log(noise / (model[:, 1:] + noise + eps))
        loss = -(data_term.sum() + noise_term.sum()) / len(ids)
        loss.backward()
        moved = MOMENTUM * bank[ids] + (1 - MOMENTUM) * features.detach()
        bank = bank.clone()
        bank[ids] = unit(moved)
        yield {
            "loss": loss.item(),
            "gradient": features.grad.tolist(),
            "bank": bank.tolist(),
            "z": partition.item(),
        }


def main():
    torch.manual_seed(SEED)
    # Inputs are rounded to float32 first: that is what the program reads.
    bank = unit(torch.randn(INSTANCES, DIM, dtype=torch.float64)).float().double()
    inputs = []
    for _ in range(STEPS):
        features = unit(torch.randn(BATCH, DIM, dtype=torch.float64)).float().double()
        ids = torch.randperm(INSTANCES)[:BATCH]
        negatives = torch.randint(INSTANCES, (BATCH, NEGATIVES))
        inputs.append((features, ids, negatives))
    golden = {
        "made_by": f"generate_replay.py, torch {torch.__version__}, seed {SEED}",
        "temperature": TEMPERATURE,
        "bank_momentum": MOMENTUM,
        "bank": bank.tolist(),
        "steps": [{"features": f.tolist(), "ids": i.tolist(), "negatives": n.tolist()} for f, i, n in inputs],
        "cases": [{"eps": eps, "expected": list(steps(bank, inputs, eps))} for eps in (0.0, 1e-7)],
    }
    json.dump(golden, sys.stdout)
    print()


main()
