"""Measures loaders on the same images in the same run and prints a table in Markdown.

    apt install ffmpeg
    pip install torch torchvision torchcodec spdl litdata pillow albumentations tensorflow-cpu nvidia-dali-cuda120
    instdisc ingest --source FOLDER|TAR --dest dataset --split train
    python benches/loader_peers.py --images FOLDER|TAR --dataset dataset --instdisc target/release/instdisc

A peer that is not installed is left out. Of instdisc there are two rows: the files, as the peers read them, and the
same images from a dataset, whose entry points were found once by ingest. Each does the work in its own fastest usual way on one thread, from JPEG bytes
in memory to uint8 pixels: whole decode; random resized crop and flip; the whole recipe. Rounds of all peers
alternate. Figures are images per second of CPU time of the whole process, so threads that a peer starts count too.
"""

import argparse
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

SIDE, SCALE, RATIO, JITTER = 224, (0.2, 1.0), (3 / 4, 4 / 3), 0.4
STAGES = ("decode", "crop", "full")


def read(path):
    path = Path(path)
    if path.is_dir():
        return [file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()]
    with tarfile.open(path) as archive:
        return [archive.extractfile(entry).read() for entry in archive if entry.isfile()]


def torchvision_pillow(images):
    from PIL import Image
    from torchvision import transforms as T
    import torchvision
    import torch

    torch.set_num_threads(1)
    crop = [T.RandomResizedCrop(SIDE, SCALE, RATIO), T.RandomHorizontalFlip(), T.PILToTensor()]
    full = [crop[0], T.RandomGrayscale(0.2), T.ColorJitter(*[JITTER] * 4), *crop[1:]]
    steps = {"decode": lambda p: p.load(), "crop": T.Compose(crop), "full": T.Compose(full)}

    def run(stage):
        for bytes in images:
            steps[stage](Image.open(io.BytesIO(bytes)).convert("RGB"))

    return f"torchvision {torchvision.__version__} on Pillow", run


def on_tensors():
    """Returns the recipe of each stage for a decoded tensor."""
    import torch
    from torchvision.transforms import v2 as T

    torch.set_num_threads(1)
    crop = [T.RandomResizedCrop(SIDE, SCALE, RATIO, antialias=True), T.RandomHorizontalFlip()]
    full = [crop[0], T.RandomGrayscale(0.2), T.ColorJitter(*[JITTER] * 4), crop[1]]
    return {"decode": lambda p: p, "crop": T.Compose(crop), "full": T.Compose(full)}


def as_tensor(bytes):
    import torch

    return torch.frombuffer(bytearray(bytes), dtype=torch.uint8)


def torchvision_tensors(images):
    import torchvision

    steps, tensors = on_tensors(), [as_tensor(bytes) for bytes in images]
    rgb = torchvision.io.ImageReadMode.RGB

    def run(stage):
        for tensor in tensors:
            steps[stage](torchvision.io.decode_jpeg(tensor, mode=rgb))

    return f"torchvision {torchvision.__version__} v2 on tensors", run


def torchcodec(images):
    import torchcodec
    from torchcodec.decoders import decode_jpeg

    steps, tensors = on_tensors(), [as_tensor(bytes) for bytes in images]

    def run(stage):
        for tensor in tensors:
            steps[stage](decode_jpeg(tensor))

    return f"torchcodec {torchcodec.__version__}, torchvision v2", run


def litdata(images):
    """litdata's streaming dataset over local chunks. Its figures include reading, unlike the other peers'."""
    import litdata
    import torchvision

    steps = on_tensors()
    rgb = torchvision.io.ImageReadMode.RGB
    folder = tempfile.TemporaryDirectory()
    writer = litdata.streaming.cache.Cache(folder.name, chunk_bytes="64MB")
    for index, bytes in enumerate(images):
        writer[index] = bytes
    writer.done()
    writer.merge()
    dataset = litdata.StreamingDataset(folder.name, shuffle=False)

    def run(stage):
        assert folder
        for bytes in dataset:
            steps[stage](torchvision.io.decode_jpeg(as_tensor(bytes), mode=rgb))

    return f"litData {litdata.__version__}, torchvision v2", run


def spdl(images):
    import random
    from importlib.metadata import version

    import spdl.io

    one_thread = spdl.io.decode_config(decoder_options={"threads": "1"})

    def filters(stage):
        if stage == "decode":
            return "format=rgb24"
        side = random.uniform(*SCALE), math.exp(random.uniform(*map(math.log, RATIO)))
        area, ratio = f"{side[0]}*iw*ih", side[1]
        chain = [
            f"crop=w='min(iw,sqrt({area}*{ratio}))':h='min(ih,sqrt({area}/{ratio}))'"
            f":x='(iw-ow)*{random.random()}':y='(ih-oh)*{random.random()}':exact=1",
            f"scale={SIDE}:{SIDE}:flags=bilinear",
        ]
        if stage == "full":
            draw = lambda: random.uniform(1 - JITTER, 1 + JITTER)
            saturation = 0 if random.random() < 0.2 else draw()
            chain.append(f"eq=brightness={draw() - 1}:contrast={draw()}:saturation={saturation}")
            chain.append(f"hue=h={random.uniform(-360 * JITTER, 360 * JITTER)}")
        if random.random() < 0.5:
            chain.append("hflip")
        return ",".join([*chain, "format=rgb24"])

    def run(stage):
        for bytes in images:
            spdl.io.to_numpy(spdl.io.load_image(bytes, decode_config=one_thread, filter_desc=filters(stage)))

    return f"SPDL {version('spdl')} (resize and colour in YCbCr by FFmpeg)", run


def albumentations(images):
    import albumentations as A
    import cv2
    import numpy as np

    cv2.setNumThreads(0)
    arrays = [np.frombuffer(bytes, np.uint8) for bytes in images]
    crop = [A.RandomResizedCrop((SIDE, SIDE), SCALE, RATIO), A.HorizontalFlip(p=0.5)]
    span = (1 - JITTER, 1 + JITTER)
    jitter = A.ColorJitter(span, span, span, (-JITTER, JITTER), p=1)
    full = [crop[0], A.ToGray(p=0.2), jitter, crop[1]]
    steps = {"decode": lambda image: image, "crop": A.Compose(crop), "full": A.Compose(full)}

    def run(stage):
        for array in arrays:
            steps[stage](image=cv2.imdecode(array, cv2.IMREAD_COLOR_RGB))

    return f"albumentations {A.__version__} on OpenCV {cv2.__version__}", run


def dali(images):
    import numpy as np
    import nvidia.dali as dali
    from nvidia.dali import fn, types

    arrays = [np.frombuffer(bytes, np.uint8) for bytes in images]
    batch = 50
    exact = dict(jpeg_fancy_upsampling=True, use_fast_idct=False)

    @dali.pipeline_def(batch_size=batch, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def pipeline(stage):
        encoded = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
        if stage == "decode":
            return fn.decoders.image(encoded, device="cpu", **exact)
        image = fn.decoders.image_random_crop(
            encoded, device="cpu", random_area=SCALE, random_aspect_ratio=RATIO, **exact
        )
        image = fn.resize(image, size=(SIDE, SIDE), interp_type=types.INTERP_TRIANGULAR, antialias=True)
        if stage == "full":
            grey = fn.cast(fn.random.coin_flip(probability=0.2), dtype=types.FLOAT)
            image = fn.saturation(image, saturation=1.0 - grey)
            span = (1 - JITTER, 1 + JITTER)
            image = fn.color_twist(
                image,
                brightness=fn.random.uniform(range=span),
                contrast=fn.random.uniform(range=span),
                saturation=fn.random.uniform(range=span),
                hue=fn.random.uniform(range=(-360 * JITTER, 360 * JITTER)),
            )
        mirror = fn.random.coin_flip(probability=0.5)
        return fn.crop_mirror_normalize(image, dtype=types.UINT8, output_layout="CHW", mirror=mirror)

    built = {}

    def run(stage):
        if stage not in built:
            built[stage] = pipeline(stage)
            built[stage].build()
        for start in range(0, len(arrays) - batch + 1, batch):
            built[stage].feed_input("files", arrays[start : start + batch])
            built[stage].run()

    return f"DALI {dali.__version__} CPU (hue in YIQ)", run


def tf_data(images):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def decode(bytes):
        return tf.io.decode_jpeg(bytes, channels=3, dct_method="INTEGER_ACCURATE")

    def crop(bytes):
        shape = tf.io.extract_jpeg_shape(bytes)
        no_boxes = tf.zeros([1, 0, 4])
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            no_boxes,
            aspect_ratio_range=RATIO,
            area_range=SCALE,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.io.decode_and_crop_jpeg(bytes, window, channels=3, dct_method="INTEGER_ACCURATE")
        image = tf.image.resize(image, [SIDE, SIDE], antialias=True)
        return tf.image.random_flip_left_right(image)

    def full(bytes):
        image = crop(bytes) / 255.0
        grey = lambda: tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image))
        image = tf.cond(tf.random.uniform([]) < 0.2, grey, lambda: image)
        image = image * tf.random.uniform([], 1 - JITTER, 1 + JITTER)
        image = tf.image.random_contrast(image, 1 - JITTER, 1 + JITTER)
        image = tf.image.random_saturation(tf.clip_by_value(image, 0, 1), 1 - JITTER, 1 + JITTER)
        return tf.image.random_hue(tf.clip_by_value(image, 0, 1), JITTER)

    to_byte = lambda image: tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8)
    steps = {
        "decode": decode,
        "crop": lambda bytes: to_byte(crop(bytes)),
        "full": lambda bytes: to_byte(full(bytes) * 255),
    }
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    sets = {}

    def run(stage):
        if stage not in sets:
            source = tf.data.Dataset.from_tensor_slices(images)
            sets[stage] = source.map(steps[stage]).with_options(options)
        for _ in sets[stage]:
            pass

    return f"tf.data {tf.__version__}", run


def instdisc(binary, source, limit):
    """Returns images per second of CPU time by stage, and of plain decoding, for one round."""
    seen = {}
    for stage in STAGES:
        command = [binary, "bench", "loader", *source, "--rounds", "1", "--stage", stage]
        if limit:
            command += ["--limit", str(limit)]
        report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        seen[stage] = 1e3 / sum(report["milliseconds_per_image"].values())
        seen.setdefault("plain", []).append(1e3 / report["plain_decode_milliseconds_per_image"])
    seen["plain"] = sum(seen["plain"]) / len(seen["plain"])
    return seen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="JPEG files: a folder or a tar")
    parser.add_argument("--dataset", required=True, help="a dataset of these images by `instdisc ingest`")
    parser.add_argument("--instdisc", default="target/release/instdisc")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=0, help="images to take; 0 for all")
    args = parser.parse_args()
    images = read(args.images)[: args.limit or None]
    peers = []
    for make in (torchvision_pillow, torchvision_tensors, torchcodec, litdata, spdl, albumentations, dali, tf_data):
        try:
            peers.append(make(images))
        except ImportError as error:
            print(f"{make.__name__} is left out: {error}", file=sys.stderr)
    for name, run in peers:
        for stage in STAGES:
            run(stage)
    spent = {(name, stage): [] for name, _ in peers for stage in STAGES}
    sources = {"instdisc, a dataset": ["--dataset", args.dataset], "instdisc, files": ["--images", args.images]}
    own = {name: [] for name in sources}
    for _ in range(args.rounds):
        for name, source in sources.items():
            own[name].append(instdisc(args.instdisc, source, args.limit))
        for name, run in peers:
            for stage in STAGES:
                began = time.process_time()
                run(stage)
                spent[name, stage].append(time.process_time() - began)
    mean = lambda values: sum(values) / len(values)
    plain = mean([one["plain"] for rounds in own.values() for one in rounds])
    print("| images/s of CPU time | decode whole | crop, resize, flip | whole recipe | recipe / plain decode |")
    print("|---|---|---|---|---|")
    print(f"| libjpeg-turbo, plain decode | {plain:.0f} | | | |")
    rates = {name: [mean([seen[stage] for seen in rounds]) for stage in STAGES] for name, rounds in own.items()}
    rates |= {name: [len(images) / mean(spent[name, stage]) for stage in STAGES] for name, _ in peers}
    for name, rates in rates.items():
        print(f"| {name} | " + " | ".join(f"{rate:.0f}" for rate in rates) + f" | {rates[2] / plain:.2f} |")


main()
