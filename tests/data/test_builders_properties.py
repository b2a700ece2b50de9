"""Labels that builders read off names and manifests, for any names in the style of their benchmark."""

import csv
import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cacenet_jax.data.builders.base import NO_CAMERA, SPLITS
from cacenet_jax.data.builders.prepare import builder_class
from cacenet_jax.errors import UserError

FOLDERS = dict(zip(SPLITS, ("bounding_box_train", "query", "bounding_box_test"), strict=True))


def _picture():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = _picture()


def labels(name, files, options):
    """(name, pid, camid) of each record of each split, as the builder reads them from a zip."""
    builder = builder_class(name)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "data.zip")
        with zipfile.ZipFile(path, "w") as archive:
            for file, content in files.items():
                archive.writestr(file, content)
        scan = builder.scan(path, builder.complete_options(options))
        count = scan.counts()
        return {
            split: [(r["name"], r["pid"], r["camid"]) for r in scan.examples(split, 0, count[split])]
            for split in SPLITS
        }


def splits_of(entries):
    """Three non-empty lists of distinct entries; the training split has two identities."""
    listed = st.lists(entries, min_size=1, max_size=4, unique=True)
    train = st.lists(entries, min_size=2, max_size=5, unique=True).filter(lambda rows: len({r[0] for r in rows}) > 1)
    return st.tuples(train, listed, listed).map(lambda three: dict(zip(SPLITS, three, strict=True)))


suffixes = st.sampled_from([".jpg", ".jpeg", ".png", ".JPG"])
pids = st.integers(0, 9999)
market_names = st.tuples(pids, st.integers(1, 15), st.integers(1, 6), st.integers(0, 999999), suffixes)


@pytest.mark.parametrize("style", ["market1501", "dukemtmc_reid"])
@given(splits_of(market_names))
@settings(max_examples=30)
def test_market_and_duke_names(style, splits):
    """0002_c1s1_000451_03.jpg and 0005_c2_f0046985.jpg: identity, then camera; the suffix is any image's."""
    pattern = {"market1501": "{:04d}_c{}s{}_{:06d}_00{}", "dukemtmc_reid": "{:04d}_c{}_s{}f{:07d}{}"}[style]
    expected = {split: [(pattern.format(*row), *row[:2]) for row in rows] for split, rows in splits.items()}
    files = {f"{FOLDERS[split]}/{row[0]}": PICTURE for split, rows in expected.items() for row in rows}
    files["bounding_box_test/-1_c1s1_000001_00.jpg"] = PICTURE  # junk
    files["query/Thumbs.db"] = b""
    read = labels(style, files, {"check_counts": False})
    assert read == {split: sorted(rows) for split, rows in expected.items()}


msmt_names = st.tuples(st.integers(0, 4100), st.integers(0, 99), st.integers(1, 15), st.integers(0, 9999))


@given(splits_of(msmt_names), st.sampled_from([("train", "test"), ("mask_train_v2", "mask_test_v2")]))
@settings(max_examples=30)
def test_msmt17_lists(splits, folders):
    """0000/0000_000_01_0303morning_0008_0.jpg 0: the pid from the list, the camera from the third field."""
    name = "{:04d}/{:04d}_{:03d}_{:02d}_0303morning_{:04d}_0.jpg"
    expected = {
        split: [(name.format(pid, pid, number, camid, time), pid, camid) for pid, number, camid, time in rows]
        for split, rows in splits.items()
    }
    folder_of = dict(zip(SPLITS, (folders[0], folders[1], folders[1]), strict=True))
    files = {f"{folder_of[split]}/{row[0]}": PICTURE for split, rows in expected.items() for row in rows}
    for folder in folders:
        files.setdefault(f"{folder}/", b"")
    for split, rows in expected.items():
        files[f"list_{split}.txt"] = "".join(f"{name} {pid}\n" for name, pid, _ in rows)
    files["list_val.txt"] = ""
    assert labels("msmt17", files, {"check_counts": False}) == {split: sorted(rows) for split, rows in expected.items()}


words = st.text("abcdefghij ,'\"éß中-", min_size=1, max_size=6).map(str.strip).filter(lambda text: text)
manifest_rows = st.tuples(pids, st.one_of(st.none(), st.integers(0, 20)), words)


def manifest_of(rows, columns, newline="\n"):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=newline)
    writer.writerows([columns, *rows])
    return text.getvalue()


@given(splits_of(manifest_rows), st.sampled_from(["\n", "\r\n"]), st.booleans())
@settings(max_examples=40)
def test_manifest_round_trip(splits, newline, marked):
    """Any path, quoted where it must be; an empty camera is unknown; a byte order mark is no part of a column's name."""
    rows, expected, files = [], {split: [] for split in SPLITS}, {}
    for split, entries in splits.items():
        for number, (pid, camid, word) in enumerate(entries):
            path = f"images/{split} {number} {word}.jpg"
            files[path] = PICTURE
            rows.append((path, pid, "" if camid is None else camid, split))
            expected[split].append((path, pid, NO_CAMERA if camid is None else camid))
    text = manifest_of(rows, ("path", "pid", "camid", "split"), newline)
    files["manifest.csv"] = text.encode("utf-8-sig" if marked else "utf-8")
    assert labels("reid_folder", files, {}) == {split: sorted(read) for split, read in expected.items()}


@given(st.lists(words, min_size=2, max_size=6, unique=True), st.lists(words, min_size=1, max_size=3, unique=True))
@settings(max_examples=40)
def test_names_in_a_manifest_are_numbered_in_sorted_order(people, cameras):
    rows = [
        (f"{split}/{i}.jpg", person, cameras[i % len(cameras)]) for split in SPLITS for i, person in enumerate(people)
    ]
    files = {row[0]: PICTURE for row in rows} | {"manifest.csv": manifest_of(rows, ("path", "pid", "camid")).encode()}
    read = labels("reid_folder", files, {})
    used = sorted(set(cameras[: len(people)]))
    numbers = {row[0]: (sorted(people).index(row[1]), used.index(row[2])) for row in rows}
    assert {name: (pid, camid) for split in SPLITS for name, pid, camid in read[split]} == numbers


@given(st.lists(pids, min_size=2, max_size=5), words.filter(lambda text: not text.lstrip("-").isdecimal()), st.data())
@settings(max_examples=30)
def test_a_name_among_integers_is_an_error_with_its_line(integers, name, data):
    place = data.draw(st.integers(0, len(integers)))
    column = [*integers[:place], name, *integers[place:]]
    rows = [(f"train/{i}.jpg", pid) for i, pid in enumerate(column)]
    files = {row[0]: PICTURE for row in rows} | {"manifest.csv": manifest_of(rows, ("path", "pid")).encode()}
    with pytest.raises(UserError, match=rf"line {place + 2}: pid .* but other lines have integers"):
        labels("reid_folder", files, {})
