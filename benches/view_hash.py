"""Measures how far an image's view hash moves by re-encoding or resizing, and how far apart images are.

The hash is that of src/ingest/near_duplicates.rs, written again in NumPy. Needs numpy and pillow.
Usage: view_hash.py IMAGES.tar
"""

import io
import sys
import tarfile

import numpy as np
from PIL import Image

GRID, FREQUENCIES = 64, 16
COSINES = np.array(
    [[round(np.cos(np.pi / GRID * (cell + 0.5) * f) * 16384) for cell in range(GRID)] for f in range(1, FREQUENCIES + 1)],
    dtype=np.int64,
)


def sums(values):
    """Returns sums over the first axis in GRID cells, and the cells' lengths."""
    size = len(values)
    bounds = [(i * size // GRID, max((i + 1) * size // GRID, i * size // GRID + 1)) for i in range(GRID)]
    running = np.concatenate([np.zeros((1, values.shape[1]), np.int64), np.cumsum(values, 0)])
    return np.array([running[end] - running[start] for start, end in bounds]), np.array([e - s for s, e in bounds])


def view_hash(image):
    grey = np.asarray(image.convert("L")).astype(np.int64)
    rows, heights = sums(grey)
    cells, widths = sums(rows.T)
    cells = cells.T * 256 // (heights[:, None] * widths[None, :])
    if cells.std() / 256 < 4:
        return None
    spectrum = (((COSINES @ cells) >> 8) @ COSINES.T).ravel()
    return spectrum > np.sort(spectrum)[128]


def encoded(image, quality):
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def short(image, side):
    factor = side / min(image.size)
    return image.resize([max(1, round(length * factor)) for length in image.size], Image.BILINEAR)


CHANGES = {
    "JPEG quality 30": lambda image: encoded(image, 30),
    "JPEG quality 75": lambda image: encoded(image, 75),
    "shorter side 256": lambda image: short(image, 256),
    "shorter side 128": lambda image: short(image, 128),
    "224 by 224, quality 75": lambda image: encoded(image.resize((224, 224), Image.BILINEAR), 75),
}

hashes, moved = [], {name: [] for name in CHANGES}
archive = tarfile.open(sys.argv[1])
for member in archive:
    if not member.isfile():
        continue
    image = Image.open(archive.extractfile(member))
    own = view_hash(image)
    hashes.append(own)
    for name, change in CHANGES.items():
        moved[name].append(int((view_hash(change(image)) != own).sum()))
for name, bits in moved.items():
    print(f"{name:24} median {np.median(bits):.0f}, most {max(bits)}")
stacked = np.array(hashes)
between = (stacked[:, None, :] != stacked[None, :, :]).sum(-1)[np.triu_indices(len(stacked), 1)]
print(f"{len(stacked)} images, {len(between)} pairs: least {between.min()}, mean {between.mean():.0f}")
