"""Writes meta_plain.mat and meta_compressed.mat: what the ImageNet development kit's meta.mat looks like.

Four synsets of our own, with the fields that the kit's file has, in its order and types. Needs scipy.
"""

from pathlib import Path

import numpy as np
import scipy.io

FIELDS = [
    "ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images",
]
ROWS = [
    (1, "n00000020", "red square", "a drawn square", 0, [], 0, 3),
    (2, "n00000010", "blue disc", "a drawn disc", 0, [], 0, 3),
    (3, "n00000030", "star, asterisk", "a drawn star", 0, [], 0, 3),
    (4, "n00000001", "shape", "what is drawn", 3, [1, 2, 3], 1, 0),
]

synsets = np.zeros((len(ROWS), 1), dtype=[(field, object) for field in FIELDS])
for place, row in enumerate(ROWS):
    values = [np.array([[v]], dtype=np.float64) if isinstance(v, int) else v for v in row]
    values[5] = np.array([row[5]], dtype=np.float64)
    synsets[place, 0] = tuple(values)

here = Path(__file__).parent
for name, compress in [("meta_plain.mat", False), ("meta_compressed.mat", True)]:
    scipy.io.savemat(here / name, {"other": np.arange(3), "synsets": synsets}, do_compression=compress)
    print(name, (here / name).stat().st_size, "bytes, scipy", scipy.__version__)
