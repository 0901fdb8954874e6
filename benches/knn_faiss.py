"""Compares `instdisc bench knn` with faiss.IndexFlatIP: the same vectors, threads, machine and run, in turns.

    pip install faiss-cpu numpy pyarrow
    cargo build --release --no-default-features
    python benches/knn_faiss.py --query-rows 1000 --shape uniform

Prints JSON: the seconds of every round, the medians, their ratio, and whether the neighbours are the same.
faiss is timed over `search` alone, with its index in memory; instdisc reads the bank's file meanwhile, checks
it and encodes it. Neighbours may differ from faiss's only where faiss's f32 rounding decides: `disagreements`
counts the others, and must be 0.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("--instdisc", default="target/release/instdisc")
parser.add_argument("--rows", type=int, default=1_281_167)
parser.add_argument("--query-rows", type=int, default=1000)
parser.add_argument("--dim", type=int, default=128)
parser.add_argument("--k", type=int, default=200)
parser.add_argument("--shape", default="uniform")
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--blas-kernel", default="", help="OPENBLAS_CORETYPE for faiss; its own choice if empty")
options = parser.parse_args()

# The peer chooses its own kernel, whatever the shell says.
for name in [name for name in os.environ if name.startswith("OPENBLAS_")]:
    del os.environ[name]
if options.blas_kernel:
    os.environ["OPENBLAS_CORETYPE"] = options.blas_kernel

import faiss  # noqa: E402
import numpy  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from threadpoolctl import threadpool_info  # noqa: E402

# Similarities this close may be in either order in f32 sums of 128 products.
ROUNDING = 2e-6


def vectors(path):
    table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["feature"].chunks]
    return numpy.concatenate(parts).reshape(table.num_rows, -1)


def instdisc(*arguments):
    call = [options.instdisc, "bench", "knn", "--threads", str(options.threads), "--k", str(options.k)]
    return json.loads(subprocess.run([*call, *arguments], check=True, stdout=subprocess.PIPE).stdout)


with tempfile.TemporaryDirectory() as folder:
    sizes = ["--rows", options.rows, "--query-rows", options.query_rows, "--dim", options.dim]
    subprocess.run(
        [options.instdisc, "bench", "knn", *map(str, sizes), "--shape", options.shape, "--k", "1"]
        + ["--repeat", "1", "--save", folder],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    files = [f"{folder}/bank.arrow", f"{folder}/queries.arrow", f"{folder}/neighbours.parquet"]
    bank, queries = vectors(files[0]), vectors(files[1])
    faiss.omp_set_num_threads(options.threads)
    index = faiss.IndexFlatIP(options.dim)
    index.add(bank)
    del bank

    ours, theirs, our_cpu, their_cpu = [], [], [], []
    for _ in range(options.rounds):
        report = instdisc("--repeat", "1", "--bank", files[0], "--queries", files[1], "--neighbours", files[2])
        ours += report["search_seconds"]
        our_cpu += report["cpu_seconds"]
        cpu, started = time.process_time(), time.perf_counter()
        similarities, rows = index.search(queries, options.k)
        theirs.append(time.perf_counter() - started)
        their_cpu.append(time.process_time() - cpu)

    found = pq.read_table(files[2])
    ids = numpy.array(found["neighbour_ids"].to_pylist())
    own = numpy.array(found["similarities"].to_pylist(), dtype=numpy.float32)
    largest = float(numpy.abs(own - similarities).max())
    # A row that only one of them has must lie within rounding of the last similarity.
    disagreements = boundary = 0
    for query in range(len(ids)):
        ours_only = set(ids[query]) - set(rows[query])
        boundary += len(ours_only)
        places = [place for place, row in enumerate(ids[query]) if row in ours_only]
        disagreements += sum(own[query][place] - own[query][-1] > ROUNDING for place in places)

blas = [info for info in threadpool_info() if "faiss" in info["filepath"] and info["user_api"] == "blas"]
median = statistics.median
json.dump(
    {
        "rows": options.rows,
        "queries": options.query_rows,
        "dim": options.dim,
        "k": options.k,
        "shape": options.shape,
        "threads": options.threads,
        "faiss": faiss.__version__,
        "faiss_blas": [f"OpenBLAS {info['version']} {info['architecture']}" for info in blas],
        "instdisc_seconds": ours,
        "faiss_seconds": theirs,
        "instdisc_cpu_seconds": our_cpu,
        "faiss_cpu_seconds": their_cpu,
        "ratio": median(theirs) / median(ours),
        "cpu_ratio": median(their_cpu) / median(our_cpu),
        "disagreements": int(disagreements),
        "rounding_swaps_at_the_end": boundary,
        "largest_difference_of_similarities": largest,
        "instdisc_peak_bytes": report["peak_bytes"],
    },
    sys.stdout,
    indent=1,
)
print()
