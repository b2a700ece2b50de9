"""Odd files among a user's own images: names, links, copies, formats that are not read, and broken images left out."""

import json
import os
import pathlib
import zipfile

import pytest
from own_images import LABELS, PLAIN, ROWS, images, load, manifest, mistake, picture, plain

from cacenet_jax.data.builders import SPLITS, TEST_SPLITS, open_split, prepare
from cacenet_jax.data.builders.prepare import find_prepared
from cacenet_jax.errors import UserError

# -- Names ------------------------------------------------------------------------------------------------------------

NAMES = [
    "0001_c1 a b.png",
    "0001_c1_'q' \"q\".png",
    "0001_c1_\n2.png",
    "0001_c1_日本 é.png",
    "0001_c1_;,&%.PNG",
    "0002_c2_\t.JPEG",
]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_any_name_is_read(tmp_path, kind):
    root = images(plain(tmp_path / "mine", TEST_SPLITS), [f"train/{name}" for name in NAMES])
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
            for path in root.rglob("*.*"):
                archive.write(path, path.relative_to(root))
        root = tmp_path / "mine.zip"
    assert [name for name, _, _ in load(root, tmp_path)["train"]] == sorted(NAMES)


def test_a_mistake_in_a_name_of_two_lines_is_one_line(tmp_path):
    root = images(plain(tmp_path / "mine"), ["train/some\none.png"])
    text = mistake(root, tmp_path)
    assert "\n" not in text and r"some\none.png" in text
    (root / "train/some\none.png").rename(root / "train/0003_c1_\n.png")
    (root / "train/0003_c1_\n.png").write_bytes(b"")
    text = mistake(root, tmp_path)
    assert "\n" not in text and r"0003_c1_\n.png: found 0 bytes" in text


def test_names_that_are_no_utf8_are_escaped(tmp_path):
    root = plain(tmp_path / "mine")
    name = os.fsdecode(b"0003_c1_\xff\xe9.png")
    try:
        (root / "train" / name).write_bytes(picture("x"))
    except OSError:
        pytest.skip("the file system accepts UTF-8 alone")
    assert load(root, tmp_path)["train"][-1] == (r"0003_c1_\xff\xe9.png", 3, 1)
    (root / "train" / name).write_bytes(b"")
    text = mistake(root, tmp_path)
    text.encode()  # can be printed
    assert r"0003_c1_\xff\xe9.png: found 0 bytes" in text


# -- Links and copies -------------------------------------------------------------------------------------------------


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    root = plain(tmp_path / "mine")
    images(tmp_path / "elsewhere", ["0005_c1.png", "deep/0006_c1.png"])
    (root / "train" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "again").symlink_to(root / "train")
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to(tmp_path / "elsewhere")
    (root / "query" / "loop").symlink_to("loop")
    names = ["0001_c1.png", "0002_c1.png", "more/0005_c1.png", "more/deep/0006_c1.png"]
    assert [name for name, _, _ in load(root, tmp_path)["train"]] == names


def test_a_link_that_leads_nowhere_is_named_or_skipped(tmp_path):
    root = plain(tmp_path / "mine")
    (root / "train" / "0003_c1.png").symlink_to(tmp_path / "gone.png")
    (root / "train" / "0004_c1.png").symlink_to("0004_c1.png")
    lines = mistake(root, tmp_path).splitlines()
    assert len(lines) == 2 and all("no such file; add it or remove its line or link" in line for line in lines)
    assert [pid for _, pid, _ in load(root, tmp_path, on_error="skip")["train"]] == [1, 2]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_to_a_file_of_another_identity_is_told(tmp_path, link):
    root = plain(tmp_path / "mine")
    link(root / "train" / "0001_c1.png", root / "train" / "0003_c1.png")
    text = mistake(root, tmp_path)
    assert "train/0003_c1.png (the same file as 0001_c1.png): found under the identities 1 and 3" in text
    (root / "train" / "0003_c1.png").unlink()
    link(root / "train" / "0001_c1.png", root / "train" / "0001_c2.png")
    assert len(load(root, tmp_path)["train"]) == 3  # of the same identity


def test_a_path_under_two_identities_in_a_manifest_is_told(tmp_path):
    root = manifest(tmp_path / "mine", [*ROWS, ("a/1.png", "9", "1", "gallery")])
    text = mistake(root, tmp_path)
    assert "a/1.png: found under the identities 3 and 9, expected one" in text
    root = manifest(tmp_path / "more", [*ROWS, ("./a/1.png", "3", "1", "gallery")])
    assert ("a/1.png", 3, 1) in load(root, tmp_path)["gallery"]


def test_copies_under_two_identities_are_noted(tmp_path, capsys):
    root = plain(tmp_path / "mine")
    for name in ("0003_c1.png", "0004_c1.png", "0001_c5.png"):
        (root / "train" / name).write_bytes((root / "train" / "0001_c1.png").read_bytes())
    (root / "gallery" / "0009_c1.png").write_bytes((root / "train" / "0001_c1.png").read_bytes())
    load(root, tmp_path, progress=True)
    told = capsys.readouterr().err
    assert "2 images are copies of an image of another identity, first 0003_c1.png of 0001_c" in told
    (metadata,) = (tmp_path / "out").rglob("metadata.json")
    assert [second for _, second in json.loads(metadata.read_text())["copies"]] == ["0003_c1.png", "0004_c1.png"]
    load(root, tmp_path, progress=True)
    assert "copies" not in capsys.readouterr().err  # told once


# -- Formats that are not read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_in_other_formats_are_named_and_counted(tmp_path, capsys, kind):
    names = ["a.heic", "b.HEIC", "c.tif", "d.jfif", "readme.txt", "Thumbs.db", ".e.heic"]
    root = images(plain(tmp_path / "mine"), [f"train/{name}" for name in names])
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
            for path in root.rglob("*.*"):
                archive.write(path, path.relative_to(root))
        root = tmp_path / "mine.zip"
    for _ in range(2):  # also where nothing is prepared
        assert len(load(root, tmp_path, progress=True)["train"]) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("note:"))
        assert "train: found 4 images that are not read (2 .heic, 1 .jfif, 1 .tif; first " in line
        assert "expected .jpg, .jpeg, .png, .bmp, .webp; rename .jfif to .jpg, convert the others" in line


def test_a_data_set_in_another_format_alone_is_an_error(tmp_path):
    root = images(tmp_path / "mine", [f"{split}/{name[:-4]}.tif" for split in SPLITS for name in PLAIN[split]])
    lines = mistake(root, tmp_path).splitlines()
    assert len(lines) == 3 and "train: found 2 images that are not read (2 .tif; first" in lines[0]


def test_a_benchmark_in_another_format_is_told(tmp_path, capsys):
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    root = images(plain(tmp_path / "mine", SPLITS, folders.get), ["bounding_box_test/0007_c3.tif"])
    load(root, tmp_path, name="market1501", check_counts=False, progress=True)
    assert "bounding_box_test: found 1 images that are not read (1 .tif" in capsys.readouterr().err


# -- Broken images ----------------------------------------------------------------------------------------------------


def broken(root: pathlib.Path) -> pathlib.Path:
    plain(root)
    (root / "train" / "0003_c1.png").write_bytes(b"")
    (root / "train" / "0004_c1.png").write_bytes(picture("x")[:-20])
    (root / "gallery" / "0008_c1.jpg").write_bytes(b"<html>")
    return root


def test_a_broken_image_is_named_with_the_way_around_it(tmp_path):
    text = mistake(broken(tmp_path / "mine"), tmp_path)
    assert (
        "train/0003_c1.png: found 0 bytes, expected an image; replace it" in text
        and "config.data.on_error=skip" in text
    )


def test_broken_images_are_left_out_and_listed(tmp_path, capsys):
    root, out = broken(tmp_path / "mine"), str(tmp_path / "out")
    prepared = prepare("reid_folder", root=str(root), data_dir=out, on_error="skip")
    told = capsys.readouterr().err
    assert "note: 3 broken images are left out, first train/0003_c1.png (found 0 bytes" in told
    names = [name for name, _ in prepared.skipped]
    assert names == ["train/0003_c1.png", "train/0004_c1.png", "gallery/0008_c1.jpg"]
    for (_, reason), words in zip(prepared.skipped, ("0 bytes", "broken image", "not an image")):
        assert words in reason and str(root) not in reason
    stored = json.loads((pathlib.Path(prepared.directory) / "metadata.json").read_text())
    assert [tuple(row) for row in stored["skipped"]] == list(prepared.skipped) and stored["on_error"] == "skip"
    assert [open_split(prepared, split).pids.tolist() for split in SPLITS] == [[1, 2], [7], [7]]
    again = prepare("reid_folder", root=str(root), data_dir=out, on_error="skip")
    assert again == prepared and "3 broken images are left out" in capsys.readouterr().err
    assert prepare("reid_folder", root=None, data_dir=out, on_error="skip", progress=False) == prepared
    assert find_prepared("reid_folder", root=str(root), data_dir=out, on_error="skip") == prepared.directory
    with pytest.raises(UserError, match="nothing prepared"):
        prepare("reid_folder", root=None, data_dir=out)
    mistake(root, tmp_path)  # a copy without the broken images does not stand for one with all of them


def test_without_broken_images_nothing_is_left_out(tmp_path):
    root, out = plain(tmp_path / "mine"), str(tmp_path / "out")
    skipping, raising = (prepare("reid_folder", root=str(root), data_dir=out, on_error=x) for x in ("skip", "raise"))
    assert skipping.skipped == raising.skipped == () and skipping.directory != raising.directory
    with pytest.raises(UserError, match="found 'ignore', expected one of raise, skip"):
        prepare("reid_folder", root=str(root), data_dir=out, on_error="ignore")


def test_a_split_of_broken_images_alone_is_an_error(tmp_path):
    root = broken(tmp_path / "mine")
    (root / "gallery" / "0007_c2.png").write_bytes(b"")
    text = mistake(root, tmp_path, on_error="skip")
    assert "all 2 images of split gallery are broken" in text
    assert list((tmp_path / "out" / "reid_folder").glob("*/*")) == []


def test_counts_of_a_benchmark_are_those_before_skipping(tmp_path, monkeypatch):
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    root = plain(tmp_path / "mine", SPLITS, folders.get)
    (root / "bounding_box_train" / "0003_c1.png").write_bytes(b"")
    counts = {"train": 3, "query": 1, "gallery": 1}
    monkeypatch.setattr("cacenet_jax.data.builders.market1501.Market1501.COUNTS", counts)
    assert len(load(root, tmp_path, name="market1501", on_error="skip")["train"]) == 2
    assert len(load(None, tmp_path, name="market1501", on_error="skip")["train"]) == 2


def test_a_manifest_may_skip_too(tmp_path):
    root = manifest(tmp_path / "mine", [*ROWS, ("z.png", "8", "1", "train")])
    (root / "z.png").write_bytes(b"")
    assert "z.png: found 0 bytes" in mistake(root, tmp_path)
    assert load(root, tmp_path, on_error="skip") == LABELS


def test_an_unreadable_file_is_told_or_skipped(tmp_path, monkeypatch):
    root = plain(tmp_path / "mine")
    images(root, ["train/0003_c1.png"])
    whole = open

    def guarded(path, *rest, **fields):
        if str(path).endswith("0003_c1.png"):
            raise PermissionError(13, "Permission denied", path)
        return whole(path, *rest, **fields)

    monkeypatch.setattr("builtins.open", guarded)
    assert "cannot be read (Permission denied)" in mistake(root, tmp_path)
    assert [pid for _, pid, _ in load(root, tmp_path, on_error="skip")["train"]] == [1, 2]


def test_a_copy_that_is_older_than_an_option_is_still_read(tmp_path):
    root, out = plain(tmp_path / "mine"), str(tmp_path / "out")
    prepared = prepare("reid_folder", root=str(root), data_dir=out, progress=False)
    path = pathlib.Path(prepared.directory) / "metadata.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({"origin": stored["origin"], "options": {"manifest": "manifest.csv"}}))
    assert prepare("reid_folder", root=None, data_dir=out) == prepared
    with pytest.raises(UserError, match="nothing prepared"):
        prepare("reid_folder", root=None, data_dir=out, options={"test_ids": 1})
