"""Writes augment.json: torchvision's own results for each step of the recipe on small random images.

Operations on uint8 tensors are torchvision.transforms.v2.functional's; resizing is Pillow's antialiased
bilinear filter with a box, which is what torchvision does to PIL images. A JPEG with 4:2:0 chroma goes the whole
way, with grayscale before and after the jitter.
Run: python generate_augment.py > augment.json
"""

import base64
import io
import json
import sys

import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional as F

assert torch.__version__.startswith("2.11."), torch.__version__
assert torchvision.__version__.startswith("0.26."), torchvision.__version__
SEED, WIDTH, HEIGHT, SIDE = 7, 24, 18, 12


def b64(tensor):
    return base64.b64encode(tensor.contiguous().numpy().tobytes()).decode()


def image(generator):
    """Random colours over a smooth ground, so that hue has both saturated and nearly grey pixels."""
    noise = torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=generator).float()
    ground = torch.linspace(0, 255, WIDTH).expand(3, HEIGHT, WIDTH)
    weight = torch.linspace(0, 1, HEIGHT)[None, :, None]
    return (noise * weight + ground * (1 - weight)).to(torch.uint8)


def resized(chw, box, size):
    left, top, width, height = box
    pil = Image.fromarray(chw.permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
    out = pil.resize(size, Image.Resampling.BILINEAR)
    return torch.frombuffer(bytearray(out.tobytes()), dtype=torch.uint8).view(size[1], size[0], 3).permute(2, 0, 1)


STEPS = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


def main():
    generator = torch.Generator().manual_seed(SEED)
    source = image(generator)
    box = (3, 2, 17, 13)
    colour = [
        {"name": name, "factor": factor, "pixels": b64(step(source, factor))}
        for name, step in STEPS.items()
        for factor in ([-0.4, -0.13, 0.05, 0.4] if name == "hue" else [0.6, 0.93, 1.4])
    ]
    composed = resized(source, box, (SIDE, SIDE))
    order = [("hue", -0.21), ("brightness", 1.3), ("saturation", 0.7), ("contrast", 1.25)]
    for name, factor in order:
        composed = STEPS[name](composed, factor)
    composed = F.horizontal_flip(composed)
    jpeg = io.BytesIO()
    smooth = F.gaussian_blur(source, 5)
    Image.fromarray(smooth.permute(1, 2, 0).numpy()).save(jpeg, "JPEG", quality=92, subsampling="4:2:0")
    decoded = F.pil_to_tensor(Image.open(io.BytesIO(jpeg.getvalue())).convert("RGB"))
    grey_first = F.rgb_to_grayscale(resized(decoded, box, (SIDE, SIDE)), num_output_channels=3)
    jitter_first = resized(decoded, box, (SIDE, SIDE))
    for name, factor in order:
        grey_first = STEPS[name](grey_first, factor)
        jitter_first = STEPS[name](jitter_first, factor)
    jitter_first = F.rgb_to_grayscale(jitter_first, num_output_channels=3)
    evaluated = Image.fromarray(source.permute(1, 2, 0).numpy())
    evaluated = F.center_crop(F.resize(evaluated, [14], antialias=True), [SIDE, SIDE])
    golden = {
        "made_by": f"generate_augment.py, torchvision {torchvision.__version__}, seed {SEED}",
        "width": WIDTH,
        "height": HEIGHT,
        "side": SIDE,
        "source": b64(source),
        "grayscale": b64(F.rgb_to_grayscale(source, num_output_channels=3)),
        "colour": colour,
        "crop": box,
        "resized": b64(resized(source, box, (SIDE, SIDE))),
        "enlarged": b64(resized(source, (4, 4, 7, 5), (SIDE, SIDE))),
        "order": [{"name": name, "factor": factor} for name, factor in order],
        "composed": b64(composed),
        "jpeg": base64.b64encode(jpeg.getvalue()).decode(),
        "jpeg_resized": b64(resized(decoded, box, (SIDE, SIDE))),
        "jpeg_grey_first": b64(grey_first),
        "jpeg_jitter_first": b64(jitter_first),
        "evaluated": b64(F.pil_to_tensor(evaluated)),
        "evaluation_resize": 14,
    }
    json.dump(golden, sys.stdout)
    print()


main()
