"""Writes animated.webp: two frames, the first red, the second blue. Needs Pillow."""

from pathlib import Path

import PIL
from PIL import Image

frames = [Image.new("RGB", (12, 10), colour) for colour in [(255, 0, 0), (0, 0, 255)]]
path = Path(__file__).with_name("animated.webp")
frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True)
print(path.name, path.stat().st_size, "bytes, Pillow", PIL.__version__)
