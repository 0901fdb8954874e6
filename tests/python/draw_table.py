"""Draws a feature table of any size, batch by batch: ROWS vectors of DIM numbers around the centres of 100 classes.

    python tests/python/draw_table.py ROWS DIM {float16,float32} SPLIT OUTPUT [CLASSES]
"""

import json
import sys

import numpy as np
import pyarrow as pa

CLASSES = int(sys.argv[6]) if len(sys.argv) > 6 else 100
BATCH = 2048


def main():
    rows, dim, kind, split, output = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]
    value = {"float16": pa.float16(), "float32": pa.float32()}[kind]
    metadata = {
        "format_version": "1", "kind": "embedding", "layer": "pooled", "dim": str(dim), "dataset_digest": "drawn",
        "split": split, "step": "1", "unit_length": "false",
        "classes": json.dumps([f"class {number}" for number in range(CLASSES)]),
    }
    schema = pa.schema([
        pa.field("instance_id", pa.int64(), False),
        pa.field("feature", pa.list_(pa.field("item", value, False), dim), False),
        pa.field("label", pa.int64(), True),
        pa.field("updated_step", pa.int64(), True),
    ]).with_metadata({f"instdisc.{name}": text for name, text in metadata.items()})
    centres = np.random.default_rng(1).standard_normal((CLASSES, dim), dtype=np.float32)
    random = np.random.default_rng(2 if split == "train" else 3)
    with pa.OSFile(output, "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(0, rows, BATCH):
            count = min(BATCH, rows - start)
            labels = random.integers(0, CLASSES, count)
            vectors = random.standard_normal((count, dim), dtype=np.float32) + 0.1 * centres[labels]
            numbers = pa.array(vectors.astype(kind).reshape(-1), value)
            columns = [
                pa.array(np.arange(start, start + count), pa.int64()),
                pa.FixedSizeListArray.from_arrays(numbers, type=schema.field("feature").type),
                pa.array(labels, pa.int64()),
                pa.nulls(count, pa.int64()),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


if __name__ == "__main__":
    main()
