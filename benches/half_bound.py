"""Measures what a bound on similarities after half of the numbers decides, with and without a rotation, as JSON.

    python benches/half_bound.py BANK.arrow QUERIES.arrow K

The rotation brings the largest variances of the bank to the front. A pair is undecided if the inner product of the first
halves, and the lengths of the second ones, allow it the query's K-th similarity. The search computes tiles of 16 rows and
16 queries, and could leave out the second half of a tile without an undecided pair.
"""

import json
import sys

import numpy as np
import pyarrow as pa

TILE = 16
QUERIES = 1024


def read(path):
    column = pa.ipc.open_file(pa.memory_map(path)).read_all()["feature"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), -1)


def undecided(bank, queries, k):
    """Returns the fractions of pairs and of tiles."""
    similarities = queries @ bank.T
    kth = np.partition(similarities, -k, axis=1)[:, -k, None]
    half = bank.shape[1] // 2
    rest = [np.linalg.norm(vectors[:, half:], axis=1) for vectors in (queries, bank)]
    open_pairs = queries[:, :half] @ bank[:, :half].T + np.outer(*rest) >= kth
    rows, columns = (length // TILE for length in open_pairs.shape)
    tiles = open_pairs[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE).any(axis=(1, 3))
    return {"pairs": float(open_pairs.mean()), "tiles": float(tiles.mean())}


def main():
    bank, queries, k = read(sys.argv[1]), read(sys.argv[2])[:QUERIES], int(sys.argv[3])
    variances, directions = np.linalg.eigh(bank.T @ bank)
    rotation = directions[:, ::-1]
    first = variances[::-1][: bank.shape[1] // 2].sum() / variances.sum()
    result = {"rows": len(bank), "numbers": bank.shape[1], "queries": len(queries), "k": k, "first_half": float(first)}
    result["as_stored"] = undecided(bank, queries, k)
    result["rotated"] = undecided(bank @ rotation, queries @ rotation, k)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
