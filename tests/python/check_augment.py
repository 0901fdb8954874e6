"""Does with torchvision what the loader did, and prints how far apart the pixels are. Usage: check_augment.py FOLDER

The reference is Pillow's decoder and antialiased bilinear filter, then torchvision.transforms.v2.functional, once on
uint8 tensors and once on PIL images.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

SIDE = 224
STEPS = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}
folder = Path(sys.argv[1])


def done(image, drawn):
    grey = lambda p: F.rgb_to_grayscale(p, num_output_channels=3)
    if drawn["grayscale"] and drawn["order"] == "grayscale_first":
        image = grey(image)
    for step in drawn["jitter"]:
        ((name, factor),) = step.items()
        image = STEPS[name](image, factor)
    if drawn["grayscale"] and drawn["order"] == "jitter_first":
        image = grey(image)
    return F.horizontal_flip(image) if drawn["flip"] else image


differences = {}
for case in json.loads((folder / "cases.json").read_text()):
    drawn = case["augmentation"]
    box = drawn["crop"]
    corners = (box["left"], box["top"], box["left"] + box["width"], box["top"] + box["height"])
    image = Image.open(folder / f"{case['name']}.image").convert("RGB").crop(corners)
    image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    ours = np.fromfile(folder / f"{case['name']}.pixels", np.uint8).reshape(3, SIDE, SIDE).astype(int)
    theirs = done(F.pil_to_tensor(image), drawn).numpy().astype(int)
    pil = F.pil_to_tensor(done(image, drawn)).numpy().astype(int)
    kind = case["kind"]
    if kind == "composition":
        luma = drawn["grayscale"] and drawn["order"] == "grayscale_first"
        differences.setdefault("composition_luma" if luma else "composition_colour", []).append(abs(ours - theirs))
    differences.setdefault(kind, []).append(abs(ours - theirs))
    differences.setdefault(kind + "_pil", []).append(abs(ours - pil))

report = {
    kind: {
        "largest": int(max(d.max() for d in all)),
        "mean": float(np.mean([d.mean() for d in all])),
        "worst_mean": float(max(d.mean() for d in all)),
        "share_over_2": float(np.mean([(d > 2).mean() for d in all])),
        "images": len(all),
    }
    for kind, all in differences.items()
}
print(json.dumps(report))
