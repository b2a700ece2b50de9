"""Small data sets of a user's own images, and their labels or the error of their preparation."""

import csv
import io
import os
import pathlib

import cv2
import numpy as np
import pytest

from cacenet_jax.data.builders import SPLITS, open_split, prepare
from cacenet_jax.errors import UserError

ROWS = [
    ("a/1.png", "3", "1", "train"), ("a/2.png", "4", "2", "train"), ("b, c.png", "5", "1", "query"),
    ("d.png", "5", "2", "gallery"), ("e.png", "-1", "2", "gallery"),
]  # fmt: skip
LABELS = {
    "train": [("a/1.png", 3, 1), ("a/2.png", 4, 2)], "query": [("b, c.png", 5, 1)], "gallery": [("d.png", 5, 2)],
}  # fmt: skip
PLAIN = {"train": ["0001_c1.png", "0002_c1.png"], "query": ["0007_c1.png"], "gallery": ["0007_c2.png"]}


def picture(name: str) -> bytes:
    """Return a tiny image that depends on the name."""
    pixels = np.random.default_rng(list(os.fsencode(name))).integers(0, 256, (8, 4, 3), np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def images(root: pathlib.Path, names) -> pathlib.Path:
    """Write images below a folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(name))
    return root


def load(root, tmp_path, *, needs=SPLITS, on_error="raise", name="reid_folder", progress=False, **options):
    """Return (name, pid, camid) of the records of each split."""
    root = None if root is None else str(root)
    prepared = prepare(
        name,
        root=root,
        data_dir=str(tmp_path / "out"),
        options=options,
        progress=progress,
        needs=needs,
        on_error=on_error,
    )
    splits = {split: open_split(prepared, split) for split in SPLITS}
    return {s: [(r["name"], r["pid"], r["camid"]) for r in split.records] for s, split in splits.items()}


def mistake(root, tmp_path, **arguments) -> str:
    """Return the error of a preparation."""
    with pytest.raises(UserError) as caught:
        load(root, tmp_path, **arguments)
    return str(caught.value)


def plain(root, splits=SPLITS, folder_of=lambda split: split):
    """Write the images of PLAIN."""
    return images(root, [f"{folder_of(split)}/{name}" for split in splits for name in PLAIN[split]])


def manifest(root, rows, separator=",", encoding="utf-8", before="", columns=("path", "pid", "camid", "split")):
    """Write images and a manifest with these rows."""
    images(root, [row[0] for row in rows])
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows([columns, *rows])
    (root / "manifest.csv").write_bytes((before + text.getvalue()).encode(encoding))
    return root
