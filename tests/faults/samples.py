"""Valid files of each kind, and the mutations that make faulty ones of them."""

import csv
import functools
import hashlib
import io
import json
import pickle
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from safetensors.numpy import save

from . import weights

EXTREME = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1]
EXPORTED = b"content of every file of the export"
HEADER = 64  # bytes at the beginning that header edits change
NAMES = [
    "../x.png",
    "/etc/passwd",
    "C:\\x.png",
    "a/../../x.png",
    "\x00.png",
    "x" * 5000 + ".png",
    "\u202e.png",
    ".",
    "",
]
VALUES = ["-1", "1e9", "9" * 30, "nan", "", "0x1F", "=1+1", '"', "\r\n", "\x00", "\ufeff", "é", "٣", "train", "none"]


# -- Valid files -------------------------------------------------------------------------------------------------------


def images(rng: np.random.Generator) -> list[bytes]:
    """One small image in each format and several modes."""
    pixels = rng.integers(0, 256, (24, 12, 3), np.uint8)
    rgb = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [
        (rgb, "JPEG", {"exif": exif}), (rgb, "JPEG", {"progressive": True}), (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "PNG", {}), (rgb.convert("P"), "PNG", {}), (rgb.convert("RGBA"), "PNG", {}),
        (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG", {}), (rgb.convert("1"), "PNG", {}),
        (rgb, "BMP", {}), (rgb.convert("L"), "BMP", {}), (rgb, "WEBP", {}), (rgb, "WEBP", {"lossless": True}),
    ]  # fmt: skip
    return [_encoded(image, name, more) for image, name, more in kinds]


def _encoded(image: Image.Image, name: str, more: dict) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **more)
    return file.getvalue()


def manifests(rng: np.random.Generator) -> list[bytes]:
    """CSV manifests of four images a.png to d.png, and the JSON manifest of an export."""
    rows = [
        ["a.png", "1", "1", "train"], ["b.png", "2", "2", "train"], ["c.png", "1", "1", "query"],
        ["d.png", "1", "2", "gallery"],
    ]  # fmt: skip
    files = []
    for delimiter, end in ((",", "\n"), (",", "\r\n"), (";", "\n"), ("\t", "\n")):
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, lineterminator=end).writerows([["path", "pid", "camid", "split"], *rows])
        files.append(text.getvalue().encode())
    recorded = {"bytes": len(EXPORTED), "sha256": hashlib.sha256(EXPORTED).hexdigest()}
    listed = dict.fromkeys(("extractor.jaxexport", "check.npz"), recorded)
    files.append(
        json.dumps({"format": 1, "files": listed, "dtype": "float32", "config": {"eval": {"top_k": 100}}}).encode()
    )
    return files


def _contents(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], bytes, bytes, dict[str, bytes]]:
    """Arrays; the opcodes of their state dict, alone and in a checkpoint; their storages."""
    arrays = {
        "conv1.weight": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "bn1.weight": rng.normal(size=4).astype(np.float32),
        "fc.weight": rng.normal(size=(3, 4)).astype(np.float32),
    }
    content, storages = weights.state_dict(arrays)
    checkpoint = weights.mapping({"epoch": weights.value(3), "state_dict": content, "args": weights.value("x")})
    return arrays, content, checkpoint, storages


def state_dicts(rng: np.random.Generator) -> list[bytes]:
    """Weights in every format, alone and in a checkpoint."""
    arrays, content, checkpoint, storages = _contents(rng)
    return [
        weights.torch_zip(content, storages), weights.torch_zip(checkpoint, storages),
        weights.torch_zip(content, storages, zipfile.ZIP_DEFLATED),
        weights.torch_legacy(content, storages), weights.torch_legacy(checkpoint, storages),
        save(arrays), save({name: x.astype(np.float16) for name, x in arrays.items()}, {"format": "pt"}),
        pickle.dumps({"a": [1, 2.5, "x", None, (True, b"y")]}, protocol=4),
    ]  # fmt: skip


def weights_inside(rng: np.random.Generator) -> bytes:
    """Weights whose pickle is faulty, in an archive with right sizes and checksums or in the older format."""
    _, content, checkpoint, storages = _contents(rng)
    faulty = mutate((content, checkpoint)[rng.integers(2)], GENERAL, rng)
    return weights.torch_legacy(faulty, storages) if rng.integers(3) == 0 else weights.torch_zip(faulty, storages)


def _members(rng: np.random.Generator) -> tuple[list[tuple[str, bytes]], tuple[str, bytes]]:
    """Images of a data set, and their manifest."""
    pixels = rng.integers(0, 256, (24, 12, 3), np.uint8)
    image = _encoded(Image.fromarray(pixels), "PNG", {})
    plain = [(f"{split}/000{pid}_c1_{split}.png", image) for split in ("train", "query", "gallery") for pid in (1, 2)]
    rows = "".join(f"{name},{name.split('/')[1][:4]},1,{name.split('/')[0]}\n" for name, _ in plain)
    return plain, ("manifest.csv", f"path,pid,camid,split\n{rows}".encode())


def zips(rng: np.random.Generator) -> list[bytes]:
    """Data sets with a manifest and as folders, plain and with members that no data set has."""
    plain, manifest = _members(rng)
    image, listed = plain[0][1], [*plain, manifest]
    link = zipfile.ZipInfo("train/0003_c1_x.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    bomb = ("train/0004_c1_x.png", bytes(1 << 20))
    stored, deflated = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    return [
        _zipped(plain, stored), _zipped(plain, deflated), _zipped(listed, stored), _zipped(listed, deflated),
        _zipped([*plain, (link, b"../../../etc/passwd")], stored), _zipped([*plain, bomb], deflated),
    ] + [_zipped([*plain, (name, image)], stored) for name in NAMES if name[:1] > "\x00"]  # fmt: skip


def zip_inside(rng: np.random.Generator) -> bytes:
    """A data set with a faulty manifest or image, in an archive with right sizes and checksums."""
    plain, (name, manifest) = _members(rng)
    if rng.integers(2):
        return _zipped([*plain, (name, mutate(manifest, MUTATIONS["manifests"], rng))], zipfile.ZIP_STORED)
    broken = ("train/0003_c1_x.png", mutate(plain[0][1], MUTATIONS["images"], rng))
    return _zipped([*plain, broken], zipfile.ZIP_DEFLATED)


def _zipped(members: list, compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


# -- Mutations ---------------------------------------------------------------------------------------------------------


def flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip up to sixteen bits."""
    edited = np.frombuffer(data, np.uint8).copy()
    for place in rng.integers(0, len(edited), rng.integers(1, 17)):
        edited[place] ^= 1 << rng.integers(8)
    return edited.tobytes()


def truncate(data: bytes, rng: np.random.Generator) -> bytes:
    """Leave out the end."""
    return data[: rng.integers(len(data))]


def duplicate(data: bytes, rng: np.random.Generator) -> bytes:
    """Repeat a slice somewhere else."""
    start, stop = np.sort(rng.integers(0, len(data) + 1, 2))
    place = int(rng.integers(len(data) + 1))
    return data[:place] + data[start:stop] * int(rng.integers(1, 4)) + data[place:]


def insert_extreme(data: bytes, rng: np.random.Generator) -> bytes:
    """Write an extreme integer over some bytes, or between them."""
    number = EXTREME[rng.integers(len(EXTREME))]
    size = int(rng.choice([1, 2, 4, 8]))
    order = "little" if rng.integers(2) else "big"
    packed = (number & (256**size - 1)).to_bytes(size, order)
    place = int(rng.integers(len(data) + 1))
    return data[:place] + packed + data[place + size * int(rng.integers(2)) :]


def edit_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Write extreme integers into the first bytes, where sizes are."""
    head = insert_extreme(insert_extreme(data[:HEADER], rng), rng)
    return head + data[HEADER:]


def edit_text(data: bytes, rng: np.random.Generator) -> bytes:
    """Replace a word by an unusual name or value."""
    words = data.replace(b"\r\n", b"\n").split(b",")
    texts = NAMES + VALUES
    words[rng.integers(len(words))] = texts[rng.integers(len(texts))].encode("utf-8", "replace")
    return b",".join(words)


def edit_sizes(data: bytes, rng: np.random.Generator) -> bytes:
    """Write an extreme size into a local or central header of a zip."""
    places = [i for mark in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06") for i in _occurrences(data, mark)]
    if not places:
        return edit_header(data, rng)
    place = places[rng.integers(len(places))] + int(rng.choice([6, 8, 10, 12, 16, 18, 20, 22, 24, 26, 28, 30, 38, 42]))
    number = EXTREME[rng.integers(len(EXTREME))] & 0xFFFFFFFF
    return data[:place] + struct.pack("<I", number) + data[place + 4 :]


def _occurrences(data: bytes, mark: bytes) -> list[int]:
    places, place = [], data.find(mark)
    while place >= 0:
        places.append(place)
        place = data.find(mark, place + 1)
    return places


def edit_dimensions(data: bytes, rng: np.random.Generator) -> bytes:
    """Claim another width and height, with a right checksum."""
    width, height = (int(rng.choice([0, 1, 255, 4096, 30_000, 65_535, 2**31 - 1])) for _ in range(2))
    if data[:4] == b"\x89PNG":
        chunk = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    if data[:2] == b"BM":
        return data[:18] + struct.pack("<II", width, height) + data[26:]
    frames = _occurrences(data, b"\xff\xc0") + _occurrences(data, b"\xff\xc2")
    if data[:2] != b"\xff\xd8" or not frames:
        return edit_header(data, rng)
    place = frames[0] + 5
    return data[:place] + struct.pack(">HH", height & 0xFFFF, width & 0xFFFF) + data[place + 4 :]


def mutate(data: bytes, mutations: Sequence["Mutation"], rng: np.random.Generator) -> bytes:
    """Apply one of the mutations."""
    return mutations[rng.integers(len(mutations))](data, rng) if data else data


Mutation = Callable[[bytes, np.random.Generator], bytes]
GENERAL: list[Mutation] = [flip_bits, truncate, duplicate, insert_extreme, edit_header]
MUTATIONS: dict[str, list[Mutation]] = {
    "images": [*GENERAL, edit_dimensions],
    "manifests": [*GENERAL, edit_text, edit_text, edit_text],
    "weights": [*GENERAL, edit_sizes],
    "zips": [*GENERAL, edit_sizes],
}
VALID: dict[str, Callable[[np.random.Generator], list[bytes]]] = {
    "images": images, "manifests": manifests, "weights": state_dicts, "zips": zips,
}  # fmt: skip


INSIDE: dict[str, Callable[[np.random.Generator], bytes]] = {"weights": weights_inside, "zips": zip_inside}


@functools.cache
def valid(kind: str) -> list[bytes]:
    """Files of a kind without a fault, the same on every call."""
    return VALID[kind](np.random.default_rng(0))


def sample(kind: str, seed: int, index: int) -> bytes:
    """File `index` of a kind, the same on every machine; one of twenty is valid, the others have one to three faults."""
    rng = np.random.default_rng([seed, sorted(VALID).index(kind), index])
    if kind in INSIDE and rng.integers(3) == 0:
        return INSIDE[kind](rng)
    files = valid(kind)
    data = files[index % len(files)]
    for _ in range(rng.integers(1, 4) if rng.integers(20) else 0):
        data = mutate(data, MUTATIONS[kind], rng)
    return data
