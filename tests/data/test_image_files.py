"""One set of rules for image files of every kind: the pixels of a prepared record and of a path that is embedded."""

import io
import os
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from cacenet_jax.data import image_files
from cacenet_jax.data.builders import open_split, prepare
from cacenet_jax.data.image_files import ImageError, convert, ordinary
from cacenet_jax.data.images import ListedImages, batches, decode, read, rgb
from cacenet_jax.data.pipeline import evaluation_batches
from cacenet_jax.data.subsets import all_records
from cacenet_jax.errors import UserError

HEIGHT, WIDTH = 12, 8
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
GREY = PIXELS[..., 0]
ALPHA = np.dstack([PIXELS, RNG.integers(0, 256, (HEIGHT, WIDTH), np.uint8)])


def saved(image, suffix: str = "PNG", **fields) -> bytes:
    """Return the bytes of an image file. `image` is an array or a PIL image."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, suffix, **fields)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


def frames(suffix: str, **fields) -> bytes:
    others = [Image.fromarray(255 - PIXELS)]
    return saved(Image.fromarray(PIXELS), suffix, save_all=True, append_images=others, **fields)


def palette(**fields) -> bytes:
    indices = (np.arange(HEIGHT * WIDTH, dtype=np.uint8) % 6).reshape(HEIGHT, WIDTH)
    image = Image.fromarray(indices, "L").convert("P")
    image.putpalette(COLOURS.reshape(-1).tolist())
    image.putdata(indices.reshape(-1).tolist())
    return saved(image, **fields)


COLOURS = RNG.integers(0, 256, (6, 3), np.uint8)
IN_PALETTE = COLOURS[(np.arange(HEIGHT * WIDTH) % 6).reshape(HEIGHT, WIDTH)]
CMYK = np.dstack([255 - PIXELS, np.zeros((HEIGHT, WIDTH), np.uint8)])  # no black
REPEATED = np.repeat(GREY[..., None], 3, axis=2)
DEEP = PIXELS.astype(np.uint16) * 256 + RNG.integers(0, 256, PIXELS.shape, np.uint16)


def png16(pixels) -> bytes:
    return cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


KINDS = {
    "PNG": (saved(PIXELS), PIXELS),
    "grey": (saved(GREY), REPEATED),
    "grey with alpha": (saved(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA[..., 3])])), REPEATED),
    "black and white": (saved(Image.fromarray(GREY > 99)), 255 * np.repeat((GREY > 99)[..., None], 3, axis=2)),
    "16-bit grey": (png16(DEEP[..., 0]), REPEATED),
    "16-bit colour": (png16(DEEP), PIXELS),
    "16-bit grey TIFF": (saved(Image.fromarray(DEEP[..., 0]), "TIFF"), REPEATED),
    "CMYK": (saved(Image.fromarray(CMYK, "CMYK"), "TIFF"), PIXELS),
    "alpha": (saved(ALPHA), PIXELS),
    "a transparent colour": (saved(PIXELS, transparency=tuple(map(int, PIXELS[0, 0]))), PIXELS),
    "palette": (palette(), IN_PALETTE),
    "palette with alpha": (palette(transparency=bytes([0, 50, 255, 0, 1, 2])), IN_PALETTE),
    "animated PNG": (frames("PNG"), PIXELS),
    "animated WebP": (frames("WEBP", lossless=True), PIXELS),
    "WebP": (saved(PIXELS, "WEBP", lossless=True), PIXELS),
    "WebP with alpha": (saved(ALPHA, "WEBP", lossless=True, exact=True), PIXELS),
    "BMP": (saved(PIXELS, "BMP"), PIXELS),
    "TIFF": (saved(PIXELS, "TIFF"), PIXELS),
    "TIFF of two pages": (frames("TIFF"), PIXELS),
    "1 x 1": (saved(PIXELS[:1, :1]), PIXELS[:1, :1]),
    "1 wide and 5,000 high": (saved(np.tile(PIXELS[:5, :1], (1000, 1, 1))), np.tile(PIXELS[:5, :1], (1000, 1, 1))),
    "40,000 wide and 1 high": (saved(np.tile(PIXELS[:1, :5], (1, 8000, 1))), np.tile(PIXELS[:1, :5], (1, 8000, 1))),
    "rotated PNG": (saved(PIXELS, exif=turned(6)), np.rot90(PIXELS, -1)),
    "rotated WebP": (saved(PIXELS, "WEBP", lossless=True, exif=turned(8)), np.rot90(PIXELS)),
    "rotated TIFF": (saved(PIXELS, "TIFF", exif=turned(3)), PIXELS[::-1, ::-1]),
    "damaged EXIF": (saved(PIXELS, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"), PIXELS),
}
TURNS = {
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}  # fmt: skip


def pixels_of_record(encoded: bytes, shape) -> np.ndarray:
    """The pixels that training decodes from the record of an image file."""
    return decode(ordinary(encoded), *shape[:2], "x")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_its_pixels_in_records_and_when_embedded(tmp_path, kind):
    encoded, expected = KINDS[kind]
    np.testing.assert_array_equal(pixels_of_record(encoded, expected.shape), expected)
    (tmp_path / "x.png").write_bytes(encoded)
    embedded = np.zeros(expected.shape, np.uint8)
    read(tmp_path / "x.png", embedded, "x")
    np.testing.assert_array_equal(embedded, expected)
    small = [np.zeros((6, 4, 3), np.uint8) for _ in range(3)]  # resized alike, also as an open PIL image
    decode(ordinary(encoded), 6, 4, "x", small[0])
    read(tmp_path / "x.png", small[1], "x")
    with Image.open(io.BytesIO(encoded)) as image:
        read(image, small[2], "x")
    np.testing.assert_array_equal(small[1], small[0])
    np.testing.assert_array_equal(small[2], small[0])


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_rotated_jpeg_is_shown_upright(orientation, mode):
    corner = np.zeros((32, 16, 3), np.uint8)
    corner[:16, :8] = 200, 60, 90  # blocks of a JPEG
    image = Image.fromarray(corner).convert(mode)
    sampling = {"subsampling": 0} if mode == "RGB" else {}
    encoded = saved(image, "JPEG", exif=turned(orientation), quality=95, **sampling)
    expected = TURNS[orientation](np.array(image.convert("RGB")))
    assert np.abs(pixels_of_record(encoded, expected.shape).astype(int) - expected).max() < 8
    assert (convert(encoded) is None) == (orientation == 1 and mode != "CMYK")


@pytest.mark.parametrize(
    "encoded",
    [
        saved(PIXELS, "JPEG"), saved(GREY, "JPEG"), saved(PIXELS, "JPEG", progressive=True), saved(PIXELS), saved(GREY),
        saved(PIXELS, "WEBP"),
    ],
    ids=["JPEG", "grey JPEG", "progressive JPEG", "PNG", "grey PNG", "WebP"],
)  # fmt: skip
def test_an_ordinary_image_keeps_its_bytes(encoded):
    assert ordinary(encoded) is encoded


REFUSED = {
    "no bytes": (b"", "found 0 bytes, expected an image"),
    "text": (b"<html>404</html>", r"found 16 bytes that are not an image.*expected JPEG, PNG, BMP"),
    "truncated JPEG": (saved(PIXELS, "JPEG")[:-2], "found a broken image of .*truncated.*; replace it"),
    "truncated progressive JPEG": (saved(PIXELS, "JPEG", progressive=True)[:-30], "broken.*truncated"),
    "truncated rotated JPEG": (saved(PIXELS, "JPEG", exif=turned(6))[:-30], "broken.*truncated"),
    "truncated PNG": (saved(PIXELS)[:-40], "found a broken image"),
    "truncated WebP": (saved(PIXELS, "WEBP")[:-10], "found a broken image|not an image"),
    "truncated BMP": (saved(PIXELS, "BMP")[:-10], "found a broken image"),
    "a header alone": (saved(PIXELS)[:60], "found a broken image"),
    "icon": (saved(PIXELS, "ICO"), "not an image that can be read"),
    "TGA": (saved(PIXELS, "TGA"), "not an image that can be read"),
    "float TIFF": (saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "mode F, expected 8 or 16 bits"),
    "2,000,000 wide": (saved(np.zeros((1, 2_000_000), np.uint8)), "found a broken image"),  # beyond OpenCV's limit
    "32-bit TIFF": (saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "mode I, expected 8 or 16 bits"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_refused_alike(tmp_path, kind):
    encoded, message = REFUSED[kind]
    with pytest.raises(ImageError, match=f"^{message}" if message.startswith("found") else message):
        ordinary(encoded)
    (tmp_path / "x.jpg").write_bytes(encoded)
    with pytest.raises(UserError, match=rf"^x\.jpg: found .*(?:{message.removeprefix('found ')}).* or leave it out"):
        read(tmp_path / "x.jpg", np.zeros((4, 2, 3), np.uint8), "x.jpg")


@pytest.mark.parametrize("suffix,fields", [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {})])
def test_no_cut_or_changed_file_is_accepted_that_training_cannot_decode(suffix, fields):
    encoded = saved(PIXELS, suffix, **fields)
    for length in range(len(encoded)):
        with pytest.raises(ImageError):
            ordinary(encoded[:length])
    changed = 0
    for place in RNG.integers(0, len(encoded), 150):
        other = bytearray(encoded)
        other[place] ^= 0x55
        try:
            accepted = ordinary(bytes(other))
        except ImageError:
            continue
        changed += 1
        assert cv2.imdecode(np.frombuffer(accepted, np.uint8), cv2.IMREAD_COLOR) is not None
    assert suffix == "PNG" or changed > 10  # checksums protect a PNG alone


def square(side: int) -> bytes:
    """Return a row of pixels under the header of a square PNG."""
    encoded = bytearray(saved(np.zeros((1, side), np.uint8)))
    encoded[20:24] = side.to_bytes(4, "big")
    encoded[29:33] = zlib.crc32(encoded[12:29]).to_bytes(4, "big")
    return bytes(encoded)


@pytest.mark.parametrize("side", [8_001, 10_000, 13_000, 20_000])
def test_a_huge_image_is_refused_before_it_is_decoded(monkeypatch, recwarn, side):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    monkeypatch.setattr(cv2, "imdecode", None)
    for filters in ("default", "error"):
        warnings.simplefilter(filters)
        with pytest.raises(ImageError, match=f"^found an image of {side**2:,} pixels, expected at most 64,000,000"):
            convert(square(side))
    assert not recwarn.list


def test_a_huge_image_that_is_open_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    image = Image.open(io.BytesIO(square(13_000)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(UserError, match=r"^image 0: found an image of 169,000,000 pixels, expected at most 64,000,000"):
        rgb(image, "image 0")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "kind,message",
    [
        ("pipe", "found a pipe or a device, expected a file; remove it"),
        ("device", "found a pipe or a device, expected a file; remove it"),
        ("folder", "found a folder, expected a file; remove it"),
        ("5 GiB", "found a file of 5,120 MiB, expected at most 256 MiB; scale it down"),
    ],
)
def test_what_is_no_file_of_an_image_is_not_opened(tmp_path, kind, message):
    root = tmp_path / "mine"
    for name in ("train/0001_c1.png", "train/0002_c1.png", "query/0007_c1.png", "gallery/0007_c2.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(saved(PIXELS))
    path = root / "train/0003_c1.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(5 << 30)
    with pytest.raises(UserError, match=f"^x: {message} or leave it out"):
        read(path, np.zeros((4, 2, 3), np.uint8), "x")
    fields = {"root": str(root), "data_dir": str(tmp_path / "out"), "progress": False}
    if kind != "folder":  # which is searched for images
        with pytest.raises(UserError, match=r"0003_c1\.png: (listed, but no such file|found a file of 5,120 MiB)"):
            prepare("reid_folder", **fields)
        reason = f"{message}".split(",")[0]
        ((name, told),) = prepare("reid_folder", on_error="skip", **fields).skipped
        assert name == "train/0003_c1.png" and told.startswith(reason)
    assert len(open_split(prepare("reid_folder", on_error="skip", **fields), "train")) == 2


def test_a_name_of_two_lines_is_told_in_one(tmp_path):
    path = tmp_path / "a\nb\udcff.png"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"a\\nb\\xff\.png: found 0 bytes"):
        list(batches(ListedImages.of([path], "image"), (4, 2), 1))


def test_the_largest_image_is_read(monkeypatch):
    monkeypatch.setattr(image_files, "MAX_PIXELS", HEIGHT * WIDTH)
    assert convert(saved(PIXELS)) is None
    monkeypatch.setattr(image_files, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(ImageError, match="scale it down"):
        convert(saved(PIXELS))


def test_a_path_may_start_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.png").write_bytes(saved(PIXELS))
    image = np.zeros_like(PIXELS)
    read("~/x.png", image, "x")
    np.testing.assert_array_equal(image, PIXELS)
    with pytest.raises(UserError, match=r"found no file that can be read"):
        read("x\0.png", image, "x")


JPEGS = {
    "JPEG": saved(PIXELS, "JPEG"), "grey JPEG": saved(GREY, "JPEG"),
    "CMYK JPEG": saved(Image.fromarray(CMYK, "CMYK"), "JPEG"), "progressive JPEG": saved(PIXELS, "JPEG", progressive=True),
    "JPEG of 4:2:0": saved(PIXELS, "JPEG", subsampling=2),
    **{f"JPEG, EXIF {turn}": saved(PIXELS, "JPEG", exif=turned(turn)) for turn in TURNS},
}  # fmt: skip


def test_a_data_set_of_every_kind_has_the_pixels_that_are_embedded(tmp_path):
    """Through both ways as a whole: prepared, read and batched, and listed by path and batched."""
    root, files = tmp_path / "mine", [*(encoded for encoded, _ in KINDS.values()), *JPEGS.values()]
    for number, encoded in enumerate(files):
        for name in (f"train/{number + 1:04d}_c1.png", f"query/{900 + number:04d}_c1.png", "gallery/0900_c2.png"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(encoded)
    prepared = prepare("reid_folder", root=str(root), data_dir=str(tmp_path / "out"), progress=False)
    split = open_split(prepared, "train")
    for record, encoded in zip(split.records, files, strict=True):
        assert record["image"] == ordinary(encoded)
        assert (record["image"] == encoded) == (convert(encoded) is None)
    for height, width in ((HEIGHT, WIDTH), (7, 5)):
        evaluated = evaluation_batches(all_records(split), height=height, width=width, batch_size=len(files))
        embedded = batches(ListedImages.of(sorted((root / "train").iterdir()), "image"), (height, width), len(files))
        (images, _), other = next(evaluated), next(embedded)
        assert len(np.unique(images.reshape(len(files), -1), axis=0)) > 15
        np.testing.assert_array_equal(images, other)
