"""Draws docs/images/training.png: a run that learns beside one that collapses, from their metrics.jsonl.

    pip install matplotlib
    python docs/images/training.py LEARNS/metrics.jsonl COLLAPSES/metrics.jsonl docs/images/training.png
"""

import json
import math
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

IMAGES = 500
NAMES = ["learns: the defaults", "collapses: nce, fixed Z, random rows"]
COLOURS = ["#1b6ca8", "#c0392b"]


def read(path):
    with open(path) as file:
        lines = [json.loads(line) for line in file]
    start = [line for line in lines if line["scope"] == "start"]
    return start[0], [line for line in lines if line["scope"] == "epoch"]


def main(paths, output):
    figure, (loss, knn, rank) = plt.subplots(1, 3, figsize=(10, 3), dpi=110)
    for path, name, colour in zip(paths, NAMES, COLOURS):
        start, epochs = read(path)
        at = [line["epoch"] + 1 for line in epochs]
        loss.plot(at, [line["loss"] for line in epochs], color=colour, label=name)
        scores = [start["knn_sample_top1"]] + [line["knn_sample_top1"] for line in epochs]
        knn.plot([0] + at, [100 * score for score in scores], color=colour)
        rank.plot(at, [line["bank"]["effective_rank"] for line in epochs], color=colour)
    loss.axhline(math.log(IMAGES), color="grey", linestyle=":", label=f"ln n = {math.log(IMAGES):.2f}")
    loss.set(yscale="log", title="loss in nats (log scale)", xlabel="epoch")
    loss.legend(fontsize=7, loc="center right")
    knn.axhline(100 * start["knn_sample_top1"], color="grey", linestyle=":", label="untrained encoder")
    knn.axhline(100 * start["knn_chance"], color="grey", linestyle="--", label="chance")
    knn.set(title="kNN among the queries, top-1 in %", xlabel="epoch", ylim=(0, None))
    knn.legend(fontsize=7, loc="lower right")
    rank.set(title="effective_rank of the bank (of 128)", xlabel="epoch", ylim=(0, None))
    for axes in (loss, knn, rank):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(output)


if __name__ == "__main__":
    main(sys.argv[1:3], sys.argv[3])
