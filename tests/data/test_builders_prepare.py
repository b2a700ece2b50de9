"""Prepared copies are written once and atomically, reused, and replaced when their source changes."""

import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cacenet_jax.data.builders import open_split, prepare
from cacenet_jax.errors import UserError

REPO = pathlib.Path(__file__).parents[2]
MARKET1501 = REPO / "data" / "Market-1501-v15.09.15"


def own_images(root: pathlib.Path, train: int = 6) -> pathlib.Path:
    """A folder in Market style with `train` training identities and one query."""
    names = [f"train/{pid:04d}_c1.jpg" for pid in range(1, train + 1)] + [
        "query/0900_c1.jpg",
        "gallery/0900_c2.jpg",
    ]
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), np.full((16, 8, 3), number % 256, np.uint8))
    return root


def prepared_at(root, out, **options):
    where = None if root is None else str(root)
    return prepare("reid_folder", root=where, data_dir=str(out), options=options, progress=False)


def copies(out: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in (out / "reid_folder").iterdir() if path.is_dir())


def test_second_call_writes_nothing(tmp_path):
    root = own_images(tmp_path / "mine")
    first = prepared_at(root, tmp_path / "out")
    written = {path: path.stat().st_mtime_ns for path in pathlib.Path(first.directory).rglob("*")}
    assert prepared_at(root, tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in pathlib.Path(first.directory).rglob("*")} == written


def test_changed_images_are_noticed(tmp_path):
    root, out = own_images(tmp_path / "mine"), tmp_path / "out"
    before = prepared_at(root, out)
    cv2.imwrite(str(root / "train" / "0001_c1.jpg"), np.full((20, 10, 3), 99, np.uint8))
    edited = prepared_at(root, out)
    image = cv2.imdecode(np.frombuffer(open_split(edited, "train").records[0]["image"], np.uint8), 1)
    assert image.shape == (20, 10, 3)
    (root / "train" / "0002_c1.jpg").rename(root / "train" / "0042_c1.jpg")
    relabelled = prepared_at(root, out)
    assert open_split(relabelled, "train").pids.tolist() == [1, 3, 4, 5, 6, 42]
    cv2.imwrite(str(root / "train" / "0050_c1.jpg"), np.zeros((16, 8, 3), np.uint8))
    grown = prepared_at(root, out)
    assert len({before, edited, relabelled, grown}) == 4
    assert len(open_split(before, "train")) == 6  # what others may still be reading stays


def test_changed_manifest_is_noticed_and_other_roots_are_kept_apart(tmp_path):
    root, out = own_images(tmp_path / "mine"), tmp_path / "out"
    lines = ["path,pid,camid", "train/0001_c1.jpg,1,1", "train/0002_c1.jpg,2,1", "query/0900_c1.jpg,9,1"]
    lines += ["gallery/0900_c2.jpg,9,2"]
    (root / "manifest.csv").write_text("\n".join(lines))
    before = prepared_at(root, out)
    (root / "manifest.csv").write_text("\n".join(lines).replace("0002_c1.jpg,2,1", "0002_c1.jpg,2,5"))
    after = prepared_at(root, out)
    assert open_split(before, "train").camids.tolist() == [1, 1]
    assert open_split(after, "train").camids.tolist() == [1, 5]
    assert prepared_at(own_images(tmp_path / "others", train=3), out) not in (before, after)


def test_synthetic_options_give_copies_of_their_own(tmp_path):
    from cacenet_jax.data.builders.prepare import builder_class

    builder = builder_class("synthetic_pedestrians")
    found = {}
    for options in ({}, {"seed": 1}, {"images_per_id": 8}, {"blur_max": 1}, {"blur_max": 1.0}):
        found[repr(options)] = builder.scan("", builder.complete_options(options)).fingerprint
    assert len(set(found.values())) == 4
    assert found["{'blur_max': 1}"] == found["{'blur_max': 1.0}"]
    with pytest.raises(UserError, match="num_trian_ids"):
        prepare("synthetic_pedestrians", root=None, data_dir=str(tmp_path), options={"num_trian_ids": 4})


def test_without_a_root_the_only_copy_is_taken(tmp_path):
    root, out = own_images(tmp_path / "mine"), tmp_path / "out"
    with pytest.raises(UserError, match="nothing prepared"):
        prepared_at(None, out)
    first = prepared_at(root, out)
    shutil.rmtree(root)
    assert prepared_at(None, out) == first
    with pytest.raises(UserError, match="nothing prepared"):
        prepared_at(None, out, manifest="other.csv")
    second = prepared_at(own_images(tmp_path / "more", train=3), out)
    with pytest.raises(UserError, match="several copies") as caught:
        prepared_at(None, out)
    assert first.directory in str(caught.value) and second.directory in str(caught.value)


def test_a_copied_directory_can_be_read_and_tfds_reads_it_too(tmp_path):
    first = prepared_at(own_images(tmp_path / "mine"), tmp_path / "out")
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    moved = prepared_at(None, tmp_path / "elsewhere")
    assert moved.directory != first.directory
    assert open_split(moved, "train").pids.tolist() == [1, 2, 3, 4, 5, 6]
    source = tfds.builder_from_directory(moved.directory).as_data_source("query")
    assert source[0]["image"].shape == (16, 8, 3)


def test_records_are_random_access_in_file_order_and_picklable(tmp_path, monkeypatch):
    monkeypatch.setattr("cacenet_jax.data.builders.base._SHARD_IMAGES", 4)  # several shards
    split = open_split(prepared_at(own_images(tmp_path / "mine", train=11), tmp_path / "out"), "train")
    assert split.names == [f"{pid:04d}_c1.jpg" for pid in range(1, 12)]
    again = pickle.loads(pickle.dumps(split.records))
    for index in (10, 0, 4, 3, -1, 7):
        assert again[index] == split.records[index]
        assert again[index]["pid"] == split.pids[index]
        assert again[index]["name"] == split.names[index]
    assert [record["name"] for record in again] == split.names
    with pytest.raises(IndexError):
        split.records[11]


@pytest.mark.parametrize("damage", ["absent", "cut", "of other records"])
def test_index_is_made_again(tmp_path, damage):
    prepared = prepared_at(own_images(tmp_path / "mine"), tmp_path / "out")
    expected = open_split(prepared, "train")
    path = pathlib.Path(prepared.directory) / "index-train.npz"
    assert path.is_file()
    if damage == "absent":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        open_split(prepared, "gallery")
        shutil.copy(path.with_name("index-gallery.npz"), path)
    found = open_split(prepared, "train")
    assert (found.names, found.pids.tolist()) == (expected.names, expected.pids.tolist())
    assert found.pids.dtype == found.camids.dtype == np.int64
    assert np.load(path)["names"].tolist() == expected.names
    assert list(path.parent.glob(".index-*")) == []


def test_index_saves_reading_the_records(tmp_path, monkeypatch):
    prepared = prepared_at(own_images(tmp_path / "mine"), tmp_path / "out")
    expected = open_split(prepared, "train").names
    monkeypatch.setattr("cacenet_jax.data.builders.split.Records.__getitem__", None)
    assert open_split(prepared, "train").names == expected


def test_damaged_copy_is_reported(tmp_path):
    prepared = prepared_at(own_images(tmp_path / "mine"), tmp_path / "out")
    shard = next(pathlib.Path(prepared.directory).glob("*train.array_record*"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        open_split(prepared, "train")
    with pytest.raises(UserError, match=r"test.*train, query, gallery"):
        open_split(prepared, "test")


SLOW = """
import sys, time
from cacenet_jax.data.builders import base, prepare, scan
quick, seen = scan.ordinary, []
def slow(data):
    seen.append(quick(data))
    if len(seen) > int(sys.argv[3]):
        print("in the middle", flush=True)
        time.sleep(float(sys.argv[4]))
    return seen[-1]
scan.ordinary, base._SHARD_IMAGES = slow, 2
prepare("reid_folder", root=sys.argv[1], data_dir=sys.argv[2], progress=False)
"""


def start_slow(root, out, images: int, seconds: float) -> subprocess.Popen:
    """Start a process that prepares and pauses after `images` images, and wait until it pauses."""
    command = [sys.executable, "-c", SLOW, str(root), str(out), str(images), str(seconds)]
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in the middle\n"
    return process


def test_killed_preparation_leaves_nothing_that_counts(tmp_path):
    root, out = own_images(tmp_path / "mine"), tmp_path / "out"
    process = start_slow(root, out, images=4, seconds=60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(out.rglob("*train.array_record*"))) >= 2  # it had begun to write
    with pytest.raises(UserError, match="nothing prepared"):
        prepared_at(None, out)
    prepared = prepared_at(root, out)
    assert open_split(prepared, "train").pids.tolist() == [1, 2, 3, 4, 5, 6]
    assert [len(open_split(prepared, split)) for split in ("query", "gallery")] == [1, 1]
    assert [path.name for path in copies(out)[0].iterdir()] == ["1.0.0"]  # the leftovers are gone


def test_two_processes_prepare_once(tmp_path):
    root, out = own_images(tmp_path / "mine"), tmp_path / "out"
    process = start_slow(root, out, images=7, seconds=1.0)
    started = time.monotonic()
    prepared = prepared_at(root, out)  # waits for the other
    assert time.monotonic() - started > 0.5
    assert process.wait() == 0
    assert len(copies(out)) == 1 and os.listdir(copies(out)[0]) == ["1.0.0"]
    assert len(open_split(prepared, "train")) == 6


def test_failed_preparation_can_be_mended(tmp_path):
    root, out = own_images(tmp_path / "mine"), tmp_path / "out"
    whole = (root / "gallery" / "0900_c2.jpg").read_bytes()
    (root / "gallery" / "0900_c2.jpg").write_bytes(whole[:-2])
    with pytest.raises(UserError, match=r"0900_c2\.jpg"):
        prepared_at(root, out)
    assert copies(out) == []
    (root / "gallery" / "0900_c2.jpg").write_bytes(whole)
    assert open_split(prepared_at(root, out), "gallery").records[0]["image"] == whole


def test_progress_lines_name_the_totals(tmp_path, capsys):
    root = own_images(tmp_path / "mine")
    prepare("reid_folder", root=str(root), data_dir=str(tmp_path / "out"))
    captured = capsys.readouterr()
    assert captured.out == ""  # TFDS is kept from talking about downloads
    assert "preparing reid_folder: 8 of 8 images" in captured.err


@pytest.mark.market1501
def test_real_market1501(tmp_path):
    if not MARKET1501.is_dir():
        pytest.skip(f"Market-1501 is not at {MARKET1501}")
    started = time.monotonic()
    prepared = prepare("market1501", root=str(MARKET1501.parent), data_dir=str(tmp_path))
    assert time.monotonic() - started < 60
    splits = [open_split(prepared, split) for split in ("train", "query", "gallery")]
    assert [len(split) for split in splits] == [12_936, 3_368, 15_913]
    assert [len(np.unique(split.pids)) for split in splits] == [751, 750, 751]  # the gallery's 0: distractors
    assert int((splits[2].pids == 0).sum()) == 2_798
    assert [np.unique(split.camids).tolist() for split in splits] == [[1, 2, 3, 4, 5, 6]] * 3
    name = splits[0].names[5000]
    assert splits[0].records[5000]["image"] == (MARKET1501 / "bounding_box_train" / name).read_bytes()
