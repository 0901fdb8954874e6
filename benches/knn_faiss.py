"""Compares `instdisc bench knn` with faiss's exact indices: the same vectors, threads, machine and run, in turns.

    pip install faiss-cpu numpy pyarrow threadpoolctl
    cargo build --release --no-default-features
    python benches/knn_faiss.py --query-rows 100,1000,10000 --shape uniform --panorama

Prints JSON: for each number of queries the seconds of every round, the medians, their ratio, and whether the
neighbours are the same. faiss is timed over `search` alone, with its index in memory; instdisc reads the bank's file
meanwhile, checks it and encodes it. Neighbours may differ from those of IndexFlatIP only where faiss's f32 rounding
decides: `disagreements` counts the others, and must be 0. `--panorama` times IndexFlatIPPanorama too, which looks at
fewer components where a rotation (PCA, not timed) gathers the vectors' length in a few.
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
parser.add_argument("--query-rows", default="1000", help="numbers of queries, with commas between them")
parser.add_argument("--dim", type=int, default=128)
parser.add_argument("--k", type=int, default=200)
parser.add_argument("--shape", default="uniform")
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--panorama", action="store_true", help="time IndexFlatIPPanorama as well")
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
# Parts of a vector after which Panorama may stop.
LEVELS = 8


def vectors(path):
    table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["feature"].chunks]
    return numpy.concatenate(parts).reshape(table.num_rows, -1)


def instdisc(*arguments):
    call = [options.instdisc, "bench", "knn", "--threads", str(options.threads), "--k", str(options.k)]
    return json.loads(subprocess.run([*call, *arguments], check=True, stdout=subprocess.PIPE).stdout)


def timed(work, *arguments):
    """Returns the result, wall seconds, and CPU seconds of all processors."""
    cpu, started = time.process_time(), time.perf_counter()
    result = work(*arguments)
    return result, time.perf_counter() - started, time.process_time() - cpu


def differences(found, similarities, rows):
    """Describes how the neighbours in a file of instdisc differ from those of faiss."""
    table = pq.read_table(found)
    ids = numpy.array(table["neighbour_ids"].to_pylist())
    own = numpy.array(table["similarities"].to_pylist(), dtype=numpy.float32)
    # A row that only one of them has must lie within rounding of the last similarity.
    disagreements = boundary = 0
    for query in range(len(ids)):
        ours_only = set(ids[query]) - set(rows[query])
        boundary += len(ours_only)
        places = [place for place, row in enumerate(ids[query]) if row in ours_only]
        disagreements += sum(own[query][place] - own[query][-1] > ROUNDING for place in places)
    return {
        "disagreements": int(disagreements),
        "rounding_swaps_at_the_end": boundary,
        "largest_difference_of_similarities": float(numpy.abs(own - similarities).max()),
    }


def compare(folder, files, flat, panorama):
    """Takes turns at the queries of a file; `panorama` is none, or the rotation and the index."""
    queries = vectors(files["queries"])
    names = ["instdisc", "faiss", *(["panorama"] if panorama else [])]
    seconds, cpu = {name: [] for name in names}, {name: [] for name in names}
    neighbours = f"{folder}/neighbours.parquet"
    for _ in range(options.rounds):
        where = ["--bank", files["bank"], "--queries", files["queries"], "--neighbours", neighbours]
        report = instdisc("--repeat", "1", *where)
        found, clock, processors = timed(flat.search, queries, options.k)
        results = {"instdisc": (report["search_seconds"][0], report["cpu_seconds"][0]), "faiss": (clock, processors)}
        if panorama:
            rotation, index = panorama
            rotated = rotation.apply(queries)
            results["panorama"] = timed(index.search, rotated, options.k)[1:]
        for name, (clock, processors) in results.items():
            seconds[name].append(clock)
            cpu[name].append(processors)
    ratio = lambda times, name: statistics.median(times[name]) / statistics.median(times["instdisc"])  # noqa: E731
    return {
        "queries": len(queries),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "ratios": {name: ratio(seconds, name) for name in names[1:]},
        "cpu_ratios": {name: ratio(cpu, name) for name in names[1:]},
        **differences(neighbours, *found),
        "instdisc_peak_bytes": report["peak_bytes"],
    }


faiss.omp_set_num_threads(options.threads)
results = []
for count in options.query_rows.split(","):
    with tempfile.TemporaryDirectory() as folder:
        sizes = ["--rows", str(options.rows), "--query-rows", count, "--dim", str(options.dim), "--shape", options.shape]
        command = [options.instdisc, "bench", "knn", *sizes, "--k", "1", "--repeat", "1", "--save", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        files = {name: f"{folder}/{name}.arrow" for name in ["bank", "queries"]}
        bank = vectors(files["bank"])
        flat = faiss.IndexFlatIP(options.dim)
        flat.add(bank)
        panorama = None
        if options.panorama:
            rotation = faiss.PCAMatrix(options.dim, options.dim)
            rotation.train(bank)
            # Without the mean, which inner products do not leave alone.
            rotation.have_bias = False
            index = faiss.IndexFlatIPPanorama(options.dim, LEVELS)
            index.add(rotation.apply(bank))
            panorama = rotation, index
        del bank
        results.append(compare(folder, files, flat, panorama))

blas = [info for info in threadpool_info() if "faiss" in info["filepath"] and info["user_api"] == "blas"]
json.dump(
    {
        "rows": options.rows,
        "dim": options.dim,
        "k": options.k,
        "shape": options.shape,
        "threads": options.threads,
        "faiss": faiss.__version__,
        "faiss_blas": [f"OpenBLAS {info['version']} {info['architecture']}" for info in blas],
        "results": results,
    },
    sys.stdout,
    indent=1,
)
print()
