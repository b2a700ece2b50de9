"""An index: equal to its images whatever happened before."""

import os
import subprocess
import sys

import cv2
import lancedb
import numpy as np
import pytest
from command import ROOT
from own_images import images, picture
from tiny_index import COLUMNS, NAMES, assert_same, content

import cacenet_jax as cace
from cacenet_jax.errors import UserError
from cacenet_jax.index.opening import make_index


def test_it_holds_all_images_with_the_embeddings_of_the_network(reid, index, photographs):
    assert len(index) == len(NAMES) and sorted(content(index)) == sorted(NAMES)
    assert index.columns == COLUMNS
    ids = index.images(columns=["id"])["id"].to_pylist()
    expected = reid.embed([photographs / name for name in ids])
    np.testing.assert_allclose(index.embeddings(), expected, atol=1e-6)
    np.testing.assert_allclose(index.embeddings(ids[3:5]), expected[3:5], atol=1e-6)
    pixels = np.asarray(index.read_image("ä ö/ü.png"))
    np.testing.assert_array_equal(
        pixels, cv2.imdecode(np.frombuffer(picture("ä ö/ü.png"), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    )


def test_exactly_what_changed_is_touched_and_the_index_equals_a_new_one(reid, index, photographs, tmp_path):
    before = content(index)
    images(photographs, ["new/1.png", "new/2.png"])
    os.remove(photographs / NAMES[0])
    (photographs / NAMES[1]).write_bytes(picture("another"))
    (photographs / "broken.jpg").write_bytes(b"no image")
    described = []
    describe = reid.describe
    reid.describe = lambda listed: described.extend(listed.names) or describe(listed)
    try:
        _, changes = make_index(reid, photographs, index.place)
    finally:
        del reid.describe
    assert sorted(described) == sorted([NAMES[1], "new/1.png", "new/2.png"])
    assert changes[:4] == (2, 1, 1, len(NAMES) - 2) and [name for name, _ in changes.broken] == ["broken.jpg"]
    index = reid.open_index(index.place)
    assert_same(index, reid.index(photographs, tmp_path / "anew.lance"))
    after = content(index)
    assert after[NAMES[1]]["embedding"] != before[NAMES[1]]["embedding"]
    assert after[NAMES[2]]["embedding"] == before[NAMES[2]]["embedding"]
    _, changes = make_index(reid, photographs, index.place)
    assert changes[:4] == (0, 0, 0, len(NAMES) + 1)


@pytest.mark.slow
def test_an_interrupted_update_goes_on_where_it_stopped(network, reid, photographs, tmp_path, monkeypatch):
    """kill -9 after the first version of eight images."""
    place = tmp_path / "killed.lance"
    program = (
        "import os, sys; sys.path[:0] = [sys.argv[1]]\n"
        "import cacenet_jax\n"
        "from cacenet_jax.index import table, update\n"
        "update._ROWS = 8\n"
        "upsert = table.Table.upsert\n"
        "table.Table.upsert = lambda self, rows: (upsert(self, rows), os.kill(os.getpid(), 9))\n"
        "cacenet_jax.load(sys.argv[2], batch_size=8).index(sys.argv[3], sys.argv[4])\n"
    )
    words = [sys.executable, "-c", program, str(ROOT), str(network.workdir), str(photographs), str(place)]
    assert subprocess.run(words, capture_output=True, timeout=600).returncode == -9
    stopped = reid.open_index(place)
    assert len(stopped) == 8
    first = content(stopped)
    index, changes = make_index(reid, photographs, place)
    assert changes[:4] == (len(NAMES) - 8, 0, 0, 8)
    assert all(content(index)[name]["embedding"] == row["embedding"] for name, row in first.items())
    assert_same(index, reid.index(photographs, tmp_path / "anew.lance"))


def test_a_manifest_brings_columns_boxes_and_filters(reid, tmp_path):
    images(tmp_path, ["a.png", "b.png", "c.png"])
    big = np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "street.png"), big)
    (tmp_path / "manifest.csv").write_text(
        "path;camid;time;shop;box\na.png;1;10.5;north;\nb.png;2;11;south;\nc.png;2;;south;\n"
        "street.png;3;12;north;5,2,15,18\nstreet.png;3;13;;0,0,8,16\n"
    )
    index = reid.index(tmp_path / "manifest.csv", tmp_path / "m.lance")
    assert len(index) == 5 and "shop" in index.columns
    names = lambda where: index.images(where, ["id"])["id"].to_pylist()
    assert names("camera = 2 AND time > 10") == ["b.png"]
    assert names("shop = 'north'") == ["a.png", "street.png#5,2,15,18"]
    assert names("time IS NULL") == ["c.png"]
    np.testing.assert_array_equal(np.asarray(index.read_image("street.png#5,2,15,18")), big[2:18, 5:15, ::-1])
    crop = np.ascontiguousarray(big[2:18, 5:15, ::-1])
    np.testing.assert_allclose(index.embeddings(["street.png#5,2,15,18"]), reid.embed(crop), atol=1e-6)
    result = index.search(tmp_path / "a.png", 5, where="camera != 1")
    assert result.searched == 4 and "a.png" not in [match.id for match in result]
    assert {match.row["shop"] for match in result} == {"south", "north", None}
    with pytest.raises(UserError, match=r"--where=shopp = 1: not understood .*expected a condition on id, .*shop"):
        index.search(tmp_path / "a.png", where="shopp = 1")
    (tmp_path / "manifest.csv").write_text("path,camera\na.png,left\n")
    with pytest.raises(UserError, match=r"column camera: found 'left', expected numbers as in the index"):
        index.update(tmp_path / "manifest.csv")


def test_mistakes_of_a_manifest_are_told_together(reid, tmp_path):
    images(tmp_path, ["a.png"])
    (tmp_path / "film.mp4").write_bytes(b"")
    (tmp_path / "m.csv").write_text(
        "path,x1,y1,x2,y2,frame\na.png,,,,,\na.png,,,,,\nno.png,,,,,\na.png,5,5,5,9,\na.png,1,2,3,,\nfilm.mp4,,,,,\n"
        "a.png,,,,,-1\n"
    )
    with pytest.raises(UserError) as caught:
        reid.index(tmp_path / "m.csv", tmp_path / "m.lance")
    lines = str(caught.value).splitlines()
    for line, text in zip(lines, ("image of line 2 again", "found no file", "the box 5,5,5,9", "found a box of", "a video "
                                  "without a frame", "found frame '-1'"), strict=True):  # fmt: skip
        assert text in line and "m.csv line " in line
    assert not (tmp_path / "m.lance").exists()
    (tmp_path / "m.csv").write_text("file name\na.png\n")
    with pytest.raises(UserError, match="in the first line, without path"):
        reid.index(tmp_path / "m.csv", tmp_path / "m.lance")


def test_another_network_other_images_and_other_folders_are_refused(network, reid, index, photographs, tmp_path):
    with pytest.raises(UserError, match=r"found an index of other weights .* make a new index"):
        cace.load(network.other).open_index(index.place)
    images(tmp_path / "others", ["x.png"])
    with pytest.raises(UserError, match=r"found an index of 25 other images"):
        reid.index(tmp_path / "others", index.place)
    with pytest.raises(UserError, match="found something else there"):
        reid.index(photographs, photographs)
    with pytest.raises(UserError, match="found no index, expected one"):
        reid.open_index(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"found no images \(.jpg"):
        reid.index(tmp_path / "empty", tmp_path / "e.lance")
    assert len(reid.open_index(index.place)) == len(NAMES)


def test_an_interrupted_creation_is_no_index_yet(reid, photographs, tmp_path):
    place = tmp_path / "begun.lance"
    lancedb.connect(place).create_table("photographs", data=[{"id": "a"}])  # killed before the settings
    assert len(reid.index(photographs, place)) == len(NAMES)


def test_a_second_update_at_the_same_time_is_refused(reid, index, photographs):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); "
         "f.write('process 7 on here'); f.flush(); print('held', flush=True); time.sleep(60)", f"{index.place}/.lock"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        holder.stdout.readline()
        with pytest.raises(UserError, match=r"another update in progress \(process"):
            index.update(photographs)
        assert index.search(photographs / NAMES[0], 1)[0].id == NAMES[0]  # searches go on
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert index.update(photographs).unchanged == len(NAMES)


def test_a_moved_folder_is_the_same(reid, index, photographs, tmp_path):
    moved = photographs.rename(tmp_path / "moved")
    _, changes = make_index(reid, moved, index.place)
    assert changes.unchanged == len(NAMES)
    assert reid.open_index(index.place).root == moved.resolve()
    assert np.asarray(reid.open_index(index.place).read_image(NAMES[3])).shape == (8, 4, 3)
