"""Writes images.json: small files of every kind that is decoded, each with the pixels that Pillow gives it.

    python generate_images.py images.json      # Pillow 13.0, NumPy, tifffile, imagecodecs

The pixels are those of `Image.open(file).convert("RGB")`, or of `ImageOps.exif_transpose` of it where `upright` is set.
"""

import base64
import io
import json
import struct
import sys
import zlib

import numpy as np
import tifffile
from PIL import Image, ImageOps

WIDTH, HEIGHT = 13, 9
FILES = {}


def noise(*shape, seed=1, below=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, below, shape).astype(dtype)


def smooth(seed, width=WIDTH, height=HEIGHT):
    small = Image.fromarray(noise(3, 4, 3, seed=seed))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x112] = orientation
    return tags


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits, colour, samples, interlaced=0, extra=b""):
    """A PNG of noise, from its raw values."""
    values = noise(HEIGHT, WIDTH, samples, below=2**bits, dtype=np.int64)
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    raw = b""
    for left, top, across, down in passes:
        for row in values[top::down, left::across]:
            text = "".join(format(int(value), f"0{bits}b") for value in row.reshape(-1))
            text = text.ljust(-(-len(text) // 8) * 8, "0")
            raw += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(name, values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    FILES[f"tiff {name}"] = file.getvalue()


def make_jpegs():
    base = saved(smooth(1, 40, 30), "JPEG", quality=90)
    for name, image, options in [
        ("4:4:4", smooth(2), {"subsampling": "4:4:4"}),
        ("4:2:0", smooth(2, 40, 30), {"subsampling": "4:2:0"}),
        ("progressive", smooth(3, 40, 30), {"progressive": True}),
        ("grey", smooth(4).convert("L"), {}),
        ("inks", smooth(5).convert("CMYK"), {}),
    ]:
        FILES[f"jpeg {name}"] = saved(image, "JPEG", **options)
    tables = base.find(b"\xff\xdb")
    scan = base.find(b"\xff\xda")
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x07"
    FILES["jpeg of another JFIF revision"] = base.replace(b"JFIF\0\x01\x01", b"JFIF\0\x03\x07", 1)
    FILES["jpeg with bytes between segments"] = base[:tables] + b"\1\2\3" + base[tables:]
    FILES["jpeg with bytes before its end"] = base[:-2] + b"\x12\x34\x56" + base[-2:]
    FILES["jpeg with a bad ICC marker"] = base[:2] + b"\xff\xe2\0\x12ICC_PROFILE\0\5\3ab" + base[2:]
    FILES["jpeg of an unknown transform"] = base[:2] + adobe + base[2:]
    FILES["jpeg with odd parameters of its scan"] = base[: scan + 11] + b"\0\0\0" + base[scan + 14 :]
    restarts = saved(smooth(6, 40, 30), "JPEG", restart_marker_blocks=2)
    second = restarts.find(b"\xff\xd1")
    FILES["jpeg with bytes before a restart marker"] = restarts[:second] + b"\x11\x22" + restarts[second:]
    FILES["jpeg with bytes behind its end"] = base + b"\0" * 9 + base
    tables = base.find(b"\xff\xc4")
    FILES["jpeg without Huffman tables"] = base[:tables] + base[scan:]


def make_pngs():
    kinds = [(1, 0, 1), (2, 0, 1), (4, 0, 1), (8, 0, 1), (16, 0, 1), (8, 2, 3), (16, 2, 3), (8, 4, 2), (16, 4, 2)]
    for bits, colour, samples in [*kinds, (8, 6, 4), (16, 6, 4)]:
        for interlaced in (0, 1):
            FILES[f"png {bits} {colour} {interlaced}"] = png(bits, colour, samples, interlaced)
    for bits in (1, 2, 4, 8):
        palette = chunk(b"PLTE", noise(2**bits, 3, seed=bits).tobytes())
        FILES[f"png palette {bits}"] = png(bits, 3, 1, 0, palette)
        FILES[f"png palette {bits} interlaced"] = png(bits, 3, 1, 1, palette + chunk(b"tRNS", b"\0\x80"))
    FILES["png short palette"] = png(8, 3, 1, 0, chunk(b"PLTE", noise(100, 3).tobytes()))
    file = png(8, 2, 3)
    FILES["png wrong checksum of data"] = file[:-13] + bytes([file[-13] ^ 1]) + file[-12:]
    FILES["png without end"] = file[:-12]
    FILES["png unknown chunk"] = file[:33] + chunk(b"CgBI", b"0000") + file[33:]
    FILES["png bad profile"] = file[:33] + chunk(b"iCCP", b"ICC\0\0no") + file[33:]


def make_gifs():
    indexed = smooth(7).quantize(16)
    file = saved(indexed, "GIF", interlace=0)
    FILES["gif"] = file
    FILES["gif interlaced"] = saved(indexed, "GIF", interlace=1)
    screen = 13 + (3 << ((file[10] & 7) + 1))
    assert file[screen : screen + 1] == b","
    for name, size, extension in [
        ("on a canvas", (20, 16), b""),
        ("on a transparent canvas", (20, 16), b"!\xf9\4\1\0\0\5\0"),
        ("beyond its canvas", (3, 3), b""),
    ]:
        head = b"GIF89a" + struct.pack("<HH", *size) + file[10:screen]
        FILES[f"gif {name}"] = head + extension + b"," + struct.pack("<HH", 3, 4) + file[screen + 5 :]
    FILES["gif without palette"] = b"GIF89a" + file[6:10] + bytes([file[10] & 0x7F]) + file[11:13] + file[screen:]
    FILES["gif without trailer"] = file[:-1]


def make_webps():
    alpha = Image.fromarray(np.dstack([np.asarray(smooth(8)), noise(HEIGHT, WIDTH)]))
    FILES["webp lossy"] = saved(smooth(9, 40, 30), "WEBP", quality=60)
    FILES["webp lossless"] = saved(smooth(9), "WEBP", lossless=True)
    FILES["webp alpha"] = saved(alpha, "WEBP", quality=80)
    FILES["webp alpha lossless"] = saved(alpha, "WEBP", lossless=True, exact=True)
    large = Image.new("RGBA", (30, 24), (0, 0, 0, 0))
    large.paste(alpha, (10, 8))
    moving = {"save_all": True, "append_images": [smooth(2, 30, 24).convert("RGBA")], "minimize_size": True}
    FILES["webp moving"] = saved(large, "WEBP", **moving)
    FILES["webp moving lossless"] = saved(large, "WEBP", lossless=True, **moving)


def bitmap(bits, compression, data, height=HEIGHT, extra=b"", colours=0):
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, height, 1, bits, compression, 0, 0, 0, colours, 0)
    start = 14 + len(header) + len(extra)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + extra + data


def rows(values):
    return b"".join(row.tobytes() + b"\0" * (-row.nbytes % 4) for row in values)


def make_bmps():
    sixteen, palette = noise(HEIGHT, WIDTH, below=65536, dtype="<u2"), noise(256, 4).tobytes()
    FILES["bmp 555"] = bitmap(16, 0, rows(sixteen))
    FILES["bmp 565"] = bitmap(16, 3, rows(sixteen), extra=struct.pack("<III", 0xF800, 0x7E0, 0x1F))
    FILES["bmp 24"] = bitmap(24, 0, rows(noise(HEIGHT, WIDTH, 3)))
    FILES["bmp from the top"] = bitmap(24, 0, rows(noise(HEIGHT, WIDTH, 3)), height=-HEIGHT)
    FILES["bmp 32"] = bitmap(32, 0, rows(noise(HEIGHT, WIDTH, 4)))
    for bits in (1, 4, 8):
        packed = noise(HEIGHT, -(-WIDTH * bits // 8), seed=bits)
        FILES[f"bmp palette {bits}"] = bitmap(bits, 0, rows(packed), extra=palette[: 4 << bits])
    lines = b"".join(bytes([WIDTH, 20 * line]) + b"\0\0" for line in range(HEIGHT - 2))
    first = b"\0\x0d" + bytes(range(13)) + b"\0\0\0" + b"\3\x09\0\2\2\1\5\7\0\0"
    FILES["bmp runs of 8"] = bitmap(8, 1, first + lines + b"\0\1", extra=palette)
    FILES["bmp runs of 4"] = bitmap(4, 2, b"\0\x0d" + bytes(range(7)) + b"\0\0\0" + b"\x0d\x12\0\0" + lines + b"\0\1", extra=palette[:64])


def make_pnms():
    FILES["pnm 1"] = b"P1\n# a comment\n5 3\n10101 0 1 0 1 0\n11111"
    FILES["pnm 2"] = b"P2 4 2 15\n0 1 2 3 # more\n4 15 14 13"
    FILES["pnm 2 deep"] = b"P2\n4 2\n1000\n0 1 2 3 400 500 900 1000\n"
    FILES["pnm 3"] = b"P3\n2 2\n9\n1 2 3 4 5 6 7 8 9 0 0 0"
    FILES["pnm 4"] = b"P4 13 3\n" + noise(6).tobytes()
    for largest in (7, 100, 255):
        FILES[f"pnm 5 to {largest}"] = b"P5 8 8 %d\n" % largest + noise(64, below=largest + 1).tobytes()
        FILES[f"pnm 6 to {largest}"] = b"P6 8 8 %d\n" % largest + noise(192, below=largest + 1).tobytes()
    for largest in (4095, 65535):
        FILES[f"pnm 5 to {largest}"] = b"P5 8 8 %d\n" % largest + noise(64, below=400, dtype=">u2").tobytes()
        FILES[f"pnm 6 to {largest}"] = b"P6 8 8 %d\n" % largest + noise(192, below=largest + 1, dtype=">u2").tobytes()


def make_tiffs():
    grey, rgb, four = noise(HEIGHT, WIDTH), noise(HEIGHT, WIDTH, 3), noise(HEIGHT, WIDTH, 4)
    large = noise(40, 50, 3, seed=3)
    planes = np.moveaxis(large, 2, 0).copy()
    for alpha in ("unassalpha", "assocalpha", "unspecified"):
        tiff(f"rgba {alpha}", four, photometric="rgb", extrasamples=[alpha])
    tiff("la", noise(HEIGHT, WIDTH, 2), photometric="minisblack", extrasamples=["unassalpha"], planarconfig="contig")
    tiff("white is zero", grey, photometric="miniswhite")
    tiff("bits", grey > 100)
    for order in "<>":
        tiff(f"16 bits {order}", (grey * 3.0).astype(order + "u2"), byteorder=order)
        tiff(f"signed {order}", (grey * 3.0 - 200).astype(order + "i2"), byteorder=order)
        tiff(f"floats {order}", (grey * 1.7 - 50).astype(order + "f4"), byteorder=order)
        tiff(f"rgb 16 bits {order}", rgb.astype(order + "u2") * 257, photometric="rgb", byteorder=order)
        differences = {"photometric": "rgb", "compression": "zlib", "predictor": 2, "byteorder": order}
        tiff(f"differences {order}", rgb.astype(order + "u2") * 257, **differences)
    tiff("differences of floats", grey.astype("f4"), compression="zlib", predictor=3)
    tiff("inks", four, photometric="separated")
    tiff("palette", grey, photometric="palette", colormap=noise(3, 256, below=65536, dtype=np.uint16))
    tiff("big", rgb, photometric="rgb", bigtiff=True)
    tiff("ycbcr", rgb, photometric="ycbcr", subsampling=(1, 1))
    for packing in ("lzw", "zlib", "packbits", "zstd"):
        tiff(f"tiles {packing}", large[:20, :20].copy(), photometric="rgb", tile=(16, 16), compression=packing)
        tiff(f"strips {packing}", rgb, photometric="rgb", rowsperstrip=4, compression=packing)
    tiff("planes in tiles", planes[:, :20, :20].copy(), photometric="rgb", planarconfig="separate", tile=(16, 16))
    tiff("planes lzw", planes[:, :9, :9].copy(), photometric="rgb", planarconfig="separate", compression="lzw")
    smooth_values = np.asarray(smooth(6, 40, 30))
    tiff("jpeg ycbcr", smooth_values, photometric="ycbcr", compression="jpeg", subsampling=(2, 2))
    tiff("jpeg rgb", smooth_values, photometric="rgb", compression="jpeg", rowsperstrip=16)
    FILES["tiff fax"] = saved(smooth(5, 40, 30).convert("1"), "TIFF", compression="group4")
    for orientation in range(2, 9):
        FILES[f"tiff orientation {orientation}"] = saved(smooth(3), "TIFF", tiffinfo={274: orientation})


def main():
    for make in (make_jpegs, make_pngs, make_gifs, make_webps, make_bmps, make_pnms, make_tiffs):
        make()
    upright = {}
    for orientation in range(1, 9):
        for form in ("JPEG", "PNG", "WEBP"):
            options = {"exif": exif(orientation), **({"lossless": True} if form == "WEBP" else {})}
            upright[f"{form.lower()} orientation {orientation}"] = saved(smooth(4, 37, 21), form, **options)
    text = lambda data: base64.b64encode(data).decode()
    cases = []
    for is_upright, files in ((False, FILES), (True, upright)):
        for name, file in files.items():
            image = Image.open(io.BytesIO(file))
            image = ImageOps.exif_transpose(image) if is_upright else image
            pixels = image.convert("RGB")
            size = {"width": pixels.width, "height": pixels.height}
            case = {"name": name, "upright": is_upright, "file": text(file), **size, "rgb": text(zlib.compress(pixels.tobytes(), 9))}
            cases.append(case)
    with open(sys.argv[1], "w", encoding="ascii") as out:
        out.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
