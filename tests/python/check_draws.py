"""Draws with torchvision what the loader drew, and prints the Kolmogorov-Smirnov distance of each quantity.

Usage: check_draws.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torchvision import transforms

DRAWS = 100_000
torch.manual_seed(11)


def distance(a, b):
    a, b = np.sort(a), np.sort(b)
    every = np.concatenate([a, b])
    share = lambda sample: np.searchsorted(sample, every, side="right") / len(sample)
    return float(abs(share(a) - share(b)).max())


def theirs(width, height):
    image = torch.empty(3, height, width, dtype=torch.uint8)
    rows = np.empty((DRAWS, 14))
    for row in rows:
        row[:4] = transforms.RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3))
        span = [0.6, 1.4]
        order, *factors = transforms.ColorJitter.get_params(span, span, span, [-0.4, 0.4])
        row[4:8] = factors
        row[8:12] = np.argsort(order.numpy())
        row[12] = torch.rand(1).item() < 0.2
        row[13] = torch.rand(1).item() < 0.5
    return rows


names = ["top", "left", "height", "width"]
names += [f"{name}{what}" for what in ("", " place") for name in ("brightness", "contrast", "saturation", "hue")]
names += ["grayscale", "flip"]
ours = np.fromfile(Path(sys.argv[1]) / "draws.f64").reshape(2, DRAWS, 14)
report = {}
for mine, (width, height) in zip(ours, [(500, 375), (300, 1000)]):
    other = theirs(width, height)
    for column, name in enumerate(names):
        report[f"{width}x{height} {name}"] = distance(mine[:, column], other[:, column])
    area = lambda rows: rows[:, 2] * rows[:, 3]
    ratio = lambda rows: rows[:, 3] / rows[:, 2]
    report[f"{width}x{height} area"] = distance(area(mine), area(other))
    report[f"{width}x{height} ratio"] = distance(ratio(mine), ratio(other))
print(json.dumps(report))
