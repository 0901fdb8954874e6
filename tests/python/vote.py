"""Top-1 and top-5 of a weighted kNN vote in plain PyTorch. Usage: vote.py BANK.arrow QUERIES.arrow K TAU"""

import json
import sys

import numpy
import pyarrow as pa
import torch


def read(path):
    table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    dim = table.schema.field("feature").type.list_size
    features = numpy.concatenate(
        [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["feature"].chunks]
    )
    classes = json.loads(table.schema.metadata[b"instdisc.classes"])
    labels = torch.tensor(table["label"].to_pylist())
    return torch.from_numpy(features.reshape(-1, dim).copy()).double(), labels, len(classes)


bank, bank_labels, classes = read(sys.argv[1])
queries, labels, _ = read(sys.argv[2])
k, temperature = int(sys.argv[3]), float(sys.argv[4])
assert torch.allclose(bank.norm(dim=1), torch.ones(len(bank), dtype=torch.float64), atol=1e-5)

similarities, rows = (queries @ bank.T).topk(k, dim=1)
weights = torch.exp(similarities / temperature)
scores = torch.zeros(len(queries), classes, dtype=torch.float64).scatter_add_(1, bank_labels[rows], weights)
ranked = scores.argsort(dim=1, descending=True, stable=True)[:, :5]
# A class that no neighbour has is no answer.
hit = (ranked == labels[:, None]) & (scores.gather(1, ranked) > 0)
top1 = hit[:, 0].sum().item() / len(queries)
top5 = hit.any(dim=1).sum().item() / len(queries)
print(json.dumps({"top1": top1, "top5": top5}))
