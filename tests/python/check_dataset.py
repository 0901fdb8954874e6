"""Reads a dataset's train split with pyarrow, Hugging Face datasets and DuckDB. Usage: check_dataset.py DATASET"""

import io
import sys
import tempfile
from pathlib import Path

import datasets
import duckdb
import PIL.Image
import pyarrow.parquet as pq

folder = Path(sys.argv[1])
shards = sorted(str(path) for path in (folder / "train").glob("*.parquet"))

table = pq.read_table(shards[0])
assert table.column_names == ["instance_id", "image", "label", "width", "height", "entry_points"], table.column_names
first = table.slice(0, 1).to_pylist()[0]
image = PIL.Image.open(io.BytesIO(first["image"]["bytes"]))
assert image.size == (first["width"], first["height"])

with tempfile.TemporaryDirectory() as cache:
    rows = datasets.load_dataset("parquet", data_files=shards, split="train", cache_dir=cache)
    names = rows.features["label"].names
    for row in rows:
        assert isinstance(row["image"], PIL.Image.Image) and row["image"].size == (row["width"], row["height"])
    assert sorted(rows["instance_id"]) == list(range(len(rows)))

# The label is the class folder in the path, by name.
query = f"select label, image.path from read_parquet({shards!r})"
pairs = duckdb.sql(query).fetchall()
assert all(path.split("/")[0] == names[label] for label, path in pairs)
# Ids follow the order of a sorted ImageFolder.
paths = duckdb.sql(f"select image.path from read_parquet({shards!r}) order by instance_id").fetchall()
assert paths == sorted(paths)
print(f"read {len(rows)} rows and {len(names)} classes")
