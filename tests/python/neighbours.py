"""Checks neighbours and scores of `instdisc knn` against plain NumPy, exactly.

Usage: neighbours.py BANK.arrow QUERIES.arrow NEIGHBOURS.parquet REPORT.json
"""

import json
import sys

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score


def read(path):
    table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    dim = table.schema.field("feature").type.list_size
    features = numpy.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["feature"].chunks])
    labels = numpy.array([-1 if label is None else label for label in table["label"].to_pylist()])
    return table["instance_id"].to_numpy(), features.reshape(-1, dim).astype(numpy.float64), labels


bank_ids, bank, bank_labels = read(sys.argv[1])
query_ids, queries, labels = read(sys.argv[2])
written = pq.read_table(sys.argv[3])
report = json.load(open(sys.argv[4]))
classes = report["classes"]

similarities = (queries @ bank.T).astype(numpy.float32) + numpy.float32(0)
k = max(cell["k"] for cell in report["grid"])
# By similarity, the largest first; of equal ones the lower id.
order = numpy.stack([numpy.lexsort((bank_ids, -row)) for row in similarities])[:, :k]
found_ids = numpy.array(written["neighbour_ids"].to_pylist())
found = numpy.array(written["similarities"].to_pylist(), dtype=numpy.float32)
assert (written["query_id"].to_numpy() == query_ids).all()
nearest = numpy.take_along_axis(similarities, order, axis=1)
assert (found_ids == bank_ids[order]).all(), "other neighbours"
assert (found == nearest).all(), "other similarities"

scored = labels >= 0
for cell in report["grid"]:
    near, classes_near = nearest[:, : cell["k"]].astype(numpy.float64), bank_labels[order[:, : cell["k"]]]
    weights = numpy.exp((near - near[:, :1]) / cell["temperature"])
    scores = numpy.full((len(queries), classes), -1.0)
    for query in range(len(queries)):
        for weight, label in zip(weights[query], classes_near[query]):
            if label >= 0:
                scores[query, label] = max(scores[query, label], 0.0) + weight
    ranked = (-scores).argsort(axis=1, kind="stable")[:, :5]
    hit = (ranked == labels[:, None]) & (numpy.take_along_axis(scores, ranked, axis=1) >= 0)
    for name, hits in [("top1", hit[:, 0]), ("top5", hit.any(axis=1))]:
        expected = hits[scored].sum() / scored.sum()
        assert cell[name] == expected, (cell, name, expected)
        # Wilson's interval.
        low, high = cell[name + "_interval"]
        wilson = binomtest(int(hits[scored].sum()), int(scored.sum())).proportion_ci(method="wilson")
        assert low <= expected <= high
        assert abs(low - wilson.low) < 1e-9 and abs(high - wilson.high) < 1e-9, (cell, name, wilson)
# Recall and mean average precision, by a full ranking of the bank.
measured = report["retrieval"]
ranking = numpy.stack([numpy.lexsort((bank_ids, -row)) for row in similarities])
relevant = (bank_labels[ranking] == labels[:, None])[scored]
matching = relevant.sum(axis=1)
assert (measured["queries"], measured["without_relevant"]) == (scored.sum(), (matching == 0).sum())
for cell in measured["recall"]:
    assert cell["recall"] == relevant[:, : cell["k"]].any(axis=1).mean(), cell
precision = relevant.cumsum(axis=1) / numpy.arange(1, len(bank) + 1) * relevant
at_k = precision[:, :k].sum(axis=1) / numpy.minimum(matching, k).clip(1)
assert abs(measured["map"] - at_k.mean()) < 1e-12, (measured, at_k.mean())
at_r = [row[:count].sum() / max(count, 1) for row, count in zip(precision, matching)]
if (matching <= k).all():
    assert abs(measured["map_at_r"] - numpy.mean(at_r)) < 1e-12, (measured, numpy.mean(at_r))
else:
    assert measured["map_at_r"] is None
# scikit-learn's takes all rows that share a similarity as one rank, and the whole bank.
if k == len(bank) and all(len(set(row)) == len(bank) for row in similarities):
    pairs = zip(relevant, numpy.take_along_axis(similarities, ranking, axis=1)[scored])
    theirs = [average_precision_score(hits, near) if hits.any() else 0.0 for hits, near in pairs]
    assert abs(measured["map"] - numpy.mean(theirs)) < 1e-9, (measured, numpy.mean(theirs))
print(f"checked {len(queries)} queries and {len(report['grid'])} cells")
