"""Top-1 and top-5 of scikit-learn's LogisticRegression. Usage: check_linear.py TRAIN.arrow TEST.arrow DECAY

Exit code 3 where there is no scikit-learn.
"""

import json
import sys

import numpy
import pyarrow as pa

try:
    from sklearn.linear_model import LogisticRegression
except ImportError:
    sys.exit(3)


def read(path):
    table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    dim = table.schema.field("feature").type.list_size
    features = numpy.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["feature"].chunks])
    return features.reshape(-1, dim).astype(numpy.float64), numpy.array(table["label"].to_pylist())


features, labels = read(sys.argv[1])
queries, truth = read(sys.argv[2])
decay = float(sys.argv[3])
model = LogisticRegression(C=1 / (decay * len(labels)), tol=1e-6, max_iter=10_000).fit(features, labels)
scores = model.decision_function(queries)
ranked = model.classes_[(-scores).argsort(axis=1, kind="stable")[:, :5]]
hits = ranked == truth[:, None]
print(json.dumps({"top1": hits[:, 0].mean(), "top5": hits.any(axis=1).mean()}))
