"""Measures time and memory of each command that needs no libtorch, on minimal inputs; prints JSON.

    python benches/start.py --instdisc target/release/instdisc

Times are the least and the median of --repeats runs, in milliseconds; memory is the largest resident set, in MB.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--instdisc", default="target/release/instdisc")
parser.add_argument("--repeats", type=int, default=20)
args = parser.parse_args()
program = os.path.abspath(args.instdisc)


def run(words):
    """Returns milliseconds and MB of one run."""
    began = time.perf_counter()
    process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, (words, status)
    return 1e3 * (time.perf_counter() - began), usage.ru_maxrss / 1024


with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    train = "--arch resnet20-cifar --image-size 16 --recipe cifar --epochs 1 --device cpu".split()
    run("synth --dest images --train-per-class 12 --val-per-class 4 --image-size 32".split())
    run("ingest --source images --dest dataset".split())
    run(["train", "--dataset", "dataset", "--run", "run", *train])
    run("embed --checkpoint run --dataset dataset --split val --output val.arrow".split())
    commands = {
        "--version": ["--version"],
        "--help": ["--help"],
        "train --help": ["train", "--help"],
        "completions": ["completions", "bash"],
        "synth (20 images)": "synth --dest drawn{} --train-per-class 1 --val-per-class 1 --image-size 32".split(),
        "ingest (160 images)": "ingest --source images --dest dataset{}".split(),
        "inspect": ["inspect", "dataset"],
        "render": "render --dataset dataset --instance 1 --image-size 32 --output 1.png".split(),
        "export parquet": "export parquet --table val.arrow --output val.parquet".split(),
        "knn (40 queries, 120 rows)": "knn --bank run --queries val.arrow".split(),
        "knn with page": "knn --bank run --queries val.arrow --dataset dataset --output knn.json".split(),
    }
    measured = {}
    for name, words in commands.items():
        runs = [run([word.format(number) for word in words]) for number in range(args.repeats)]
        times, memory = zip(*runs)
        measured[name] = {
            "least_ms": round(min(times), 1),
            "median_ms": round(statistics.median(times), 1),
            "memory_mb": round(max(memory), 1),
        }
print(json.dumps({"program": args.instdisc, "repeats": args.repeats, "commands": measured}, indent=2))
