"""Every builder on its real layout, in a folder and in a zip, and its error for a broken one."""

import io
import itertools
import os
import pathlib
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

from cacenet_jax.data.builders import available, open_split, prepare
from cacenet_jax.data.synthetic import dataset
from cacenet_jax.errors import UserError

SUBSET = {"check_counts": False}
MARKET = {
    "bounding_box_train": [
        "0002_c1s1_000451_03.jpg",
        "0007_c3s2_000551_01.jpg",
        "0002_c2s1_000301_02.jpg.jpg",
    ],
    "query": ["0001_c1s1_001051_00.jpg"],
    "bounding_box_test": ["-1_c1s1_000401_03.jpg", "0000_c4s1_000151_01.jpg", "0001_c6s4_002051_01.jpg"],
}
DUKE = {
    "bounding_box_train": ["0005_c2_f0046985.jpg", "0001_c8_f0046302.jpg"],
    "query": ["0008_c1_f0000001.jpg"],
    "bounding_box_test": ["0008_c5_f0000002.jpg"],
}
MSMT = {
    "train": ["0000/0000_000_01_0303morning_0008_0.jpg 0", "0001/0001_003_12_0113noon_0042_1.jpg 1"],
    "val": ["0001/0001_004_15_0113noon_0043_1.jpg 1"],
    "query": ["0000/0000_000_02_0303morning_0032_0.jpg 0"],
    "gallery": ["0000/0000_001_05_0303morning_0033_0.jpg 0", "0003/0003_001_07_0303noon_0001_0.jpg 3"],
}


def jpeg(key: str) -> bytes:
    """Return a tiny image that depends on the key."""
    pixels = np.random.default_rng(list(key.encode())).integers(0, 256, (16, 8, 3), np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def put(folder: pathlib.Path, files: dict[str, bytes | str]) -> pathlib.Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def market_files(layout: dict[str, list[str]] = MARKET) -> dict[str, bytes | str]:
    files = {f"{folder}/{name}": jpeg(name) for folder, names in layout.items() for name in names}
    return files | {"readme.txt": "about", "query/Thumbs.db": b"\0", "query/._0001_c1s1_001051_00.jpg": b"\0"}


def msmt_files(train: str, test: str) -> dict[str, bytes | str]:
    files = {f"list_{kind}.txt": "\n".join(lines) + "\n" for kind, lines in MSMT.items()}
    for kind, lines in MSMT.items():
        folder = train if kind in ("train", "val") else test
        files |= {f"{folder}/{line.split()[0]}": jpeg(folder + line) for line in lines}
    return files


def zipped(folder: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
        archive.writestr("__MACOSX/bounding_box_train/0002_c1.jpg", b"\0")
    return target


def load(tmp_path, name, root, options=SUBSET) -> dict[str, list[dict]]:
    prepared = prepare(
        name,
        root=None if root is None else str(root),
        data_dir=str(tmp_path / "out"),
        options=options,
        progress=False,
    )
    return {split: list(open_split(prepared, split).records) for split in ("train", "query", "gallery")}


def labels(records: list[dict]) -> list[tuple[str, int, int]]:
    return [(record["name"], record["pid"], record["camid"]) for record in records]


def message(tmp_path, name, root, options=SUBSET) -> str:
    """Return the error of a preparation, which must be one line and leave no files."""
    with pytest.raises(UserError) as caught:
        load(tmp_path, name, root, options)
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != ".lock"]
    assert left == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_market_drops_junk_keeps_distractors_and_bytes(tmp_path):
    root = put(tmp_path / "data" / "Market-1501-v15.09.15", market_files())
    splits = load(tmp_path, "market1501", root)
    assert labels(splits["train"]) == [
        ("0002_c1s1_000451_03.jpg", 2, 1),
        ("0002_c2s1_000301_02.jpg.jpg", 2, 2),
        ("0007_c3s2_000551_01.jpg", 7, 3),
    ]
    assert labels(splits["query"]) == [("0001_c1s1_001051_00.jpg", 1, 1)]
    assert labels(splits["gallery"]) == [("0000_c4s1_000151_01.jpg", 0, 4), ("0001_c6s4_002051_01.jpg", 1, 6)]
    for record in itertools.chain(*splits.values()):
        assert record["image"] == jpeg(record["name"])
        assert record["parts"] == b""


@pytest.mark.parametrize("where", ["parent", "zip", "beside another data set"])
def test_market_found_through_other_roots(tmp_path, where):
    folder = put(tmp_path / "data" / "Market-1501-v15.09.15", market_files())
    direct = load(tmp_path, "market1501", folder)
    root = folder.parent
    if where == "zip":
        root = zipped(folder, tmp_path / "Market.zip")
    elif where == "beside another data set":
        put(folder.parent / "DukeMTMC-reID", market_files(DUKE))
    assert load(tmp_path, "market1501", root) == direct
    copies = [path for path in (tmp_path / "out" / "market1501").iterdir() if path.is_dir()]
    assert len(copies) == (2 if where == "zip" else 1)  # the same files through another path: the same copy


@pytest.mark.parametrize("name", ["dukemtmc_reid", "occluded_dukemtmc"])
def test_duke(tmp_path, name):
    splits = load(tmp_path, name, put(tmp_path / "Any_Duke", market_files(DUKE)))
    assert labels(splits["train"]) == [("0001_c8_f0046302.jpg", 1, 8), ("0005_c2_f0046985.jpg", 5, 2)]
    assert labels(splits["gallery"]) == [("0008_c5_f0000002.jpg", 8, 5)]


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_msmt17(tmp_path, folders, kind):
    root = put(tmp_path / "MSMT17", msmt_files(*folders))
    root = zipped(root, tmp_path / "MSMT17.zip") if kind == "zip" else root
    splits = load(tmp_path, "msmt17", root)
    assert labels(splits["train"]) == [
        ("0000/0000_000_01_0303morning_0008_0.jpg", 0, 1),
        ("0001/0001_003_12_0113noon_0042_1.jpg", 1, 12),
    ]
    assert labels(splits["query"]) == [("0000/0000_000_02_0303morning_0032_0.jpg", 0, 2)]
    assert [record["pid"] for record in splits["gallery"]] == [0, 3]
    assert splits["query"][0]["image"] == jpeg(folders[1] + MSMT["query"][0])  # from the test folder, not train
    with_val = load(tmp_path, "msmt17", root, {**SUBSET, "train_val": True})
    assert [record["camid"] for record in with_val["train"]] == [1, 12, 15]
    assert with_val["gallery"] == splits["gallery"]


def test_counts_message_and_its_remedy(tmp_path):
    root = put(tmp_path / "Market", market_files())
    text = message(tmp_path, "market1501", root, {})
    for part in ("split train", str(root), "3 images", "12,936", "check_counts=False"):
        assert part in text
    text = message(tmp_path, "msmt17", put(tmp_path / "MSMT", msmt_files("train", "test")), {"train_val": True})
    assert "32,621" in text


MANIFEST = "\ufeffPath, pid, camid, split\na\\1.png,ann,,train\na/2.jpg,bob,hall,train\nq.jpg,cid,gate,query\n"
MANIFEST += '"g, 1.jpg",cid,hall,gallery\n'
MANIFEST_IMAGES = ["a/1.png", "a/2.jpg", "q.jpg", "g, 1.jpg"]


@pytest.mark.parametrize("kind", ["folder", "zip", "csv"])
def test_folder_with_manifest(tmp_path, kind):
    root = put(tmp_path / "mine", {name: jpeg(name) for name in MANIFEST_IMAGES} | {"manifest.csv": MANIFEST})
    root = {"folder": root, "zip": None, "csv": root / "manifest.csv"}[kind] or zipped(root, tmp_path / "mine.zip")
    splits = load(tmp_path, "reid_folder", root, {"check_counts": True})  # as it comes with a benchmark's config
    assert labels(splits["train"]) == [("a/1.png", 0, -1), ("a/2.jpg", 1, 1)]  # ann, bob; gate 0, hall 1
    assert labels(splits["query"]) == [("q.jpg", 2, 0)]
    assert labels(splits["gallery"]) == [("g, 1.jpg", 2, 1)]


def test_folder_with_manifest_of_another_name_and_splits_by_folder(tmp_path):
    names = [
        "train/x.jpg",
        "train/y.jpg",
        "query/z.jpg",
        "bounding_box_test/z.jpg",
        "bounding_box_test/junk.jpg",
    ]
    lines = [f"{name},{pid}" for name, pid in zip(names, (30, 4, 5, 5, -1))]
    root = put(
        tmp_path / "mine",
        {name: jpeg(name) for name in names} | {"people.csv": "\n".join(["path,pid", *lines])},
    )
    splits = load(tmp_path, "reid_folder", root, {"manifest": "people.csv"})
    assert labels(splits["train"]) == [("train/x.jpg", 30, -1), ("train/y.jpg", 4, -1)]
    assert labels(splits["gallery"]) == [("bounding_box_test/z.jpg", 5, -1)]


@pytest.mark.parametrize("gallery", ["gallery", "bounding_box_test"])
def test_folder_in_market_style_camera_optional(tmp_path, gallery):
    train = "train" if gallery == "gallery" else "bounding_box_train"
    names = [f"{train}/0001_c3.jpg", f"{train}/0002_a.jpg", "query/0007.jpg", f"{gallery}/sub/0007_cap.jpg"]
    splits = load(tmp_path, "reid_folder", put(tmp_path / "mine", {name: jpeg(name) for name in names}), {})
    assert labels(splits["train"]) == [("0001_c3.jpg", 1, 3), ("0002_a.jpg", 2, -1)]
    assert labels(splits["query"]) == [("0007.jpg", 7, -1)]
    assert labels(splits["gallery"]) == [("sub/0007_cap.jpg", 7, -1)]


def test_synthetic_images_and_parts_survive(tmp_path):
    options = {
        "num_train_ids": 4,
        "num_test_ids": 4,
        "images_per_id": 5,
        "height": 32,
        "width": 16,
        "seed": 7,
    }
    splits = load(tmp_path, "synthetic_pedestrians", None, options)
    rendered = {image.name: image for image in dataset.generate(dataset.SyntheticSpec(**options))}
    assert sum(map(len, splits.values())) == len(rendered) == 40
    for split, records in splits.items():
        for record in records:
            image = rendered[record["name"]]
            pixels = cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_COLOR)
            parts = np.asarray(Image.open(io.BytesIO(record["parts"])))
            np.testing.assert_array_equal(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), image.image_HWC)
            np.testing.assert_array_equal(parts, image.parts_HW)
            assert (record["pid"], record["camid"], split) == (image.pid, image.camid, image.split)


def without(files: dict, *names: str) -> dict:
    return {key: value for key, value in files.items() if key not in names}


MARKET_TRAIN = f"bounding_box_train/{MARKET['bounding_box_train'][1]}"
BROKEN_MARKET = {
    "truncated": ({MARKET_TRAIN: jpeg("t")[:-2]}, (), ["0007_c3s2_000551_01.jpg", "truncated", "replace"]),
    "empty file": ({MARKET_TRAIN: b""}, (), ["0007_c3s2_000551_01.jpg", "0 bytes"]),
    "not an image": ({MARKET_TRAIN: b"<html>404</html>"}, (), ["0007_c3s2_000551_01.jpg", "not an image"]),
    "bad name": ({"query/someone.jpg": jpeg("s")}, (), ["query/someone.jpg", "<pid>_c<camera>", "rename"]),
    "empty split": (
        {"query/readme.txt": "-"},
        ("query/0001_c1s1_001051_00.jpg",),
        ["split query", "no images"],
    ),
    "missing folder": ({}, ("query",), ["lacks query", "bounding_box_test", "zheng-lab"]),
    "one identity": ({}, (MARKET_TRAIN,), ["split train", "a single identity", "pid 2"]),
}


@pytest.mark.parametrize("case", BROKEN_MARKET)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_broken_market(tmp_path, case, kind):
    changed, removed, parts = BROKEN_MARKET[case]
    files = {key: value for key, value in market_files().items() if not key.startswith(removed or ("-",))} | changed
    root = put(tmp_path / "Market", files)
    text = message(tmp_path, "market1501", zipped(root, tmp_path / "m.zip") if kind == "zip" else root)
    for part in [*parts, str(tmp_path)]:
        assert part in text


BROKEN_MANIFEST = {
    "no pid column": ("path#pid\na.jpg#1\n", ["manifest.csv", "path#pid", "path,pid"]),
    "no such file": (
        "path,pid,split\na.jpg,1,train\nnone.jpg,2,train\n",
        ["line 3", "none.jpg", "does not exist"],
    ),
    "mixed pids": (
        "path,pid,split\na.jpg,1,train\nb.jpg,2,train\nc.jpg,1O,query\n",
        ["line 4", "'1O'", "integers"],
    ),
    "empty pid": ("path,pid,split\na.jpg,,train\n", ["line 2", "empty pid"]),
    "bad split": ("path,pid,split\na.jpg,1,test\n", ["line 2", "'test'", "train, query or gallery"]),
    "no split": ("path,pid\na.jpg,1\n", ["line 2", "first folder", "'a.jpg'"]),
    "not an image": ("path,pid,split\nmanifest.csv,1,train\n", ["line 2", "no image"]),
    "twice": (
        "path,pid,split\na.jpg,1,train\nb.jpg,2,train\na.jpg,2,train\n",
        ["a.jpg", "twice", "split train"],
    ),
    "not text": (b"path,pid\n\xff\xfe", ["manifest.csv", "UTF-8"]),
    "empty": ("", ["manifest.csv", "without path and pid"]),
}


@pytest.mark.parametrize("case", BROKEN_MANIFEST)
def test_broken_manifest(tmp_path, case):
    content, parts = BROKEN_MANIFEST[case]
    files = {name: jpeg(name) for name in ("a.jpg", "b.jpg", "c.jpg")}
    text = message(tmp_path, "reid_folder", put(tmp_path / "mine", files | {"manifest.csv": content}), {})
    for part in parts:
        assert part in text


def test_broken_msmt17(tmp_path):
    files = msmt_files("train", "test")
    root = put(tmp_path / "a", files | {"list_query.txt": "0000/whoever.jpg 0\n"})
    assert all(part in message(tmp_path, "msmt17", root) for part in ("list_query.txt line 1", "whoever", "expected"))
    missing = f"test/{MSMT['gallery'][1].split()[0]}"
    text = message(tmp_path, "msmt17", put(tmp_path / "b", without(files, missing)))
    assert missing in text and "no such file" in text
    assert "lacks list_val.txt" in message(tmp_path, "msmt17", put(tmp_path / "c", without(files, "list_val.txt")))


def test_broken_roots_and_options(tmp_path):
    assert "does not exist" in message(tmp_path, "market1501", tmp_path / "nowhere")
    fake = put(tmp_path, {"fake.zip": "not a zip at all"}) / "fake.zip"
    assert "not a zip" in message(tmp_path, "market1501", fake)
    os.mkdir(tmp_path / "empty")
    assert "withdrawn" in message(tmp_path, "dukemtmc_reid", tmp_path / "empty")
    assert "train_vall" in message(tmp_path, "msmt17", tmp_path, {"train_vall": True})
    assert "expected bool" in message(tmp_path, "msmt17", tmp_path, {"train_val": "yes"})
    assert all(name in message(tmp_path, "cuhk03", tmp_path) for name in available())
    put(tmp_path / "two" / "first", market_files())
    put(tmp_path / "two" / "second", market_files())
    assert "several folders fit" in message(tmp_path, "market1501", tmp_path / "two")


def test_damaged_member_of_a_zip(tmp_path):
    root = zipped(put(tmp_path / "Market", market_files()), tmp_path / "m.zip")
    with zipfile.ZipFile(root) as archive:
        member = archive.getinfo(f"Market/{MARKET_TRAIN}")
    content = bytearray(root.read_bytes())
    middle = member.header_offset + 30 + len(member.filename) + member.compress_size // 2
    content[middle] ^= 0xFF
    root.write_bytes(content)
    assert MARKET_TRAIN in message(tmp_path, "market1501", root)
