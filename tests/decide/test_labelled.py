"""Labelled images of a manifest, and its mistakes, told together."""

import cv2
import numpy as np
import pytest

from cacenet_jax.decide.labelled import read_manifest
from cacenet_jax.errors import UserError


def write(folder, text):
    (folder / "m.csv").write_text(text)
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(b"")
    return folder / "m.csv"


def test_columns_and_their_other_names(tmp_path):
    labelled = read_manifest(
        write(tmp_path, "camid; PID; path; weather\n7; x; a.png; rain\n; y; b.png; sun\n7; ; c.png;\n")
    )
    assert [str(image) for image in labelled.images] == [str(tmp_path / name) for name in ("a.png", "b.png")]
    assert labelled.pids_n.tolist() == [0, 1] and labelled.camids_n.tolist() == [0, -1]
    assert labelled.name == "m.csv" and labelled.is_cross_camera
    unknown = read_manifest(write(tmp_path, "path,identity\na.png,1\nb.png,1\n"))
    assert unknown.camids_n.tolist() == [-1, -1] and not unknown.is_cross_camera


def test_some_of_the_images_keep_their_labels(tmp_path):
    labelled = read_manifest(write(tmp_path, "path,identity,camera\na.png,1,1\nb.png,2,2\nc.png,3,1\n"))
    some = labelled.take(np.array([2, 0])).take(np.array([0]))
    assert some.images[0] == tmp_path / "c.png" and len(some.images) == 1 and some.names == [str(tmp_path / "c.png")]
    assert (some.pids_n.tolist(), some.camids_n.tolist()) == ([2], [0])


def test_crops_are_cut_while_reading(tmp_path):
    file = write(tmp_path, "path,identity,x1,y1,x2,y2\na.png,1,0,0,2,3\na.png,2,2,0,4,3\nb.png,2,,,,\n")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels[..., ::-1])
    labelled = read_manifest(file)
    assert labelled.pids_n.tolist() == [0, 1, 1] and labelled.images[2] == tmp_path / "b.png"
    for crop, expected in zip(labelled.images[:2], (pixels[:3, :2], pixels[:3, 2:])):
        np.testing.assert_array_equal(crop, expected)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a.png#0,0,2,3: found 0 bytes"):
        labelled.images[0]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ["m.csv: found nothing in the first line, without path and identity, expected path,identity[,camera]"]),
        ("path,name\na.png,1\n", ["found path,name in the first line, without identity"]),
        ("path,identity\na.png\n", ["m.csv line 2: found 1 cells, expected 2"]),
        (
            "path,identity\nno.png,1\na.png,1\na.png,2\n",
            ["line 2: found no file", "line 4: found the image of line 3 again"],
        ),
        ('path,identity,box\na.png,1,"3,2,1,4"\n', ["line 2: found the box 3,2,1,4, expected x1 < x2 and y1 < y2"]),
        ("path,identity\na.png,\n", ["found no row with an identity"]),
    ],
)
def test_mistakes_are_told_together(tmp_path, text, messages):
    with pytest.raises(UserError) as caught:
        read_manifest(write(tmp_path, text))
    for message in messages:
        assert message in str(caught.value)


def test_a_file_that_is_no_table_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^--images=.*nowhere.csv: cannot be read \(No such file or directory\)"):
        read_manifest(tmp_path / "nowhere.csv")
    (tmp_path / "binary").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(UserError, match=r"cannot be read .not UTF-8 text"):
        read_manifest(tmp_path / "binary")
