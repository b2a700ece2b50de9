"""Zips from strangers: members stay inside the archive, and their sizes are checked before they are unpacked."""

import io
import stat
import zipfile

import numpy as np
import pytest
from PIL import Image

from cacenet_jax.data.builders.reid_folder import ReidFolder
from cacenet_jax.data.builders.source import open_source
from cacenet_jax.errors import UserError


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 4, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def archive(folder, members, compression=zipfile.ZIP_STORED) -> str:
    path = folder / "data.zip"
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members:
            file.writestr(name, data)
    return str(path)


def images(*more):
    names = [f"{split}/000{pid}_c1_{split}.png" for split in ("train", "query", "gallery") for pid in (1, 2)]
    return [(name, png()) for name in names] + list(more)


def test_a_plain_zip_is_read(tmp_path):
    scan = ReidFolder.scan(archive(tmp_path, images()), dict(ReidFolder.OPTIONS))
    assert scan.counts() == {"train": 2, "query": 2, "gallery": 2}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "name",
    ["../0002_c1.png", "train/../../0002_c1.png", "/etc/0002_c1.png", "//0002_c1.png", "C:\\0002_c1.png", "..\\a.png",
     "train/../../../etc/passwd", ".."],
)  # fmt: skip
def test_a_member_outside_the_archive_is_told(tmp_path, name):
    path = archive(tmp_path, images((name, png())))
    with pytest.raises(UserError, match=r"data\.zip: found the member .*, expected names inside the archive"):
        ReidFolder.scan(path, dict(ReidFolder.OPTIONS))
    assert [file.name for file in tmp_path.iterdir()] == ["data.zip"]


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "secret.csv").write_text("path,pid\n")
    link = zipfile.ZipInfo("manifest.csv")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    path = archive(tmp_path, images((link, str(tmp_path / "secret.csv"))))
    with pytest.raises(UserError, match=r"manifest\.csv: found a symbolic link, expected a file"):
        ReidFolder.scan(path, dict(ReidFolder.OPTIONS))


def test_a_member_that_unpacks_to_too_much_is_told_before_it_is(tmp_path, monkeypatch):
    path = archive(tmp_path, images(("manifest.csv", bytes(257 << 20))), zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)  # nothing is unpacked
    with pytest.raises(UserError, match=r"manifest\.csv: found a member of 257 MiB, expected at most 256 MiB"):
        open_source(path).read("manifest.csv")


@pytest.mark.parametrize("path", ["../{0}/secret.png", "{1}/secret.png", "train/../../{0}/secret.png"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_manifest_names_no_image_outside_its_root(tmp_path, path, zipped):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir(), inside.mkdir()
    (outside / "secret.png").write_bytes(png())
    text = f"path,pid,split\n{path.format('outside', outside)},1,train\n"
    (inside / "manifest.csv").write_text(text)
    root = archive(tmp_path, [("manifest.csv", text)]) if zipped else str(inside)
    with pytest.raises(UserError, match=r"line 2: .*(does not exist|found the path .*secret.png)"):
        ReidFolder.scan(root, dict(ReidFolder.OPTIONS))


@pytest.mark.parametrize("data", [b"", b"PK\x05\x06" + b"\xff" * 18, b"PK\x03\x04" + bytes(90)])
def test_a_broken_zip_is_told(tmp_path, data):
    (tmp_path / "data.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"data\.zip: not a zip archive"):
        open_source(str(tmp_path / "data.zip"))
