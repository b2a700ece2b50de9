"""Rules for image files: which are read, and how each kind becomes 8-bit RGB pixels.

Preparation, training and `cacenet_jax.load` share these rules, so a file has the same pixels in all of them:

- JPEG, PNG, BMP, WebP, GIF, TIFF and PPM are read, by content and not by suffix.
- Grey values are repeated, palettes are applied, CMYK is converted, and an alpha channel is dropped.
- Of 16 bits, the upper 8 are kept. Other depths, such as 32-bit or float TIFF, are refused.
- The first frame of an animation is used, and the EXIF orientation is applied.
- Any shape is accepted, from 1 x 1 to 64 megapixels. A larger image is refused by its header, before it is decoded.
- Empty and truncated files are refused, and so are files above 256 MiB, folders, pipes and devices, without reading them.
"""

import contextlib
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# Suffixes of images that are not read; they are reported rather than passed over.
OTHER_IMAGE_SUFFIXES = (
    ".arw", ".avif", ".cr2", ".cr3", ".dng", ".exr", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jif", ".jp2",
    ".jpe", ".jxl", ".nef", ".orf", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".psd", ".rw2", ".tga", ".tif", ".tiff",
)  # fmt: skip
MAX_PIXELS = 64_000_000
MAX_BYTES = 256 << 20  # of a file; images and manifests are far smaller
_WARNINGS_LOCK = threading.Lock()  # filters of warnings belong to the process, and several threads read images
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
_JPEG = ("JPEG", "MPO")  # MPO is a JPEG followed by previews, as some phones write it
_KINDS = "JPEG, PNG, BMP, WebP, GIF, TIFF or PPM"
# PIL modes of at most 8 bits per channel that convert to RGB.
_MODES_8 = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
_MODES_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 0x0112
_TURNS: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """An image that is refused. The message has the form `found X, expected Y; remedy`."""


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read a file whose size and kind are checked before it is opened.

    Raises:
        ImageError: it is larger than `MAX_BYTES`, or a folder, a pipe or a device.
        OSError: it cannot be read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise ImageError(f"found {kind}, expected a file; remove it")
    if status.st_size > MAX_BYTES:
        raise ImageError(
            f"found a file of {status.st_size / 2**20:,.0f} MiB, expected at most {MAX_BYTES >> 20} MiB; scale it down"
        )
    with open(path, "rb") as file:
        return file.read()


def convert(encoded: bytes) -> UInt8[np.ndarray, "h w 3"] | None:
    """Check that an image file decodes completely, and convert it to RGB unless OpenCV decodes it by the same rules.

    Pillow is used because, unlike OpenCV, it reports truncation and limits the size before decoding.

    Args:
        encoded: file contents.

    Returns:
        RGB pixels, or None for an ordinary JPEG, PNG or WebP, for which `cv2.imdecode` returns the right pixels.

    Raises:
        ImageError: the file is refused.
    """
    if not encoded:
        raise ImageError("found 0 bytes, expected an image; replace it with a complete copy")
    try:
        with _without_warnings():  # about large images, which are refused
            opened = Image.open(io.BytesIO(encoded), formats=_FORMATS)
        with opened as image:
            check_size(image.width * image.height)
            if _is_ordinary_jpeg(image):
                image.draft("L", (1, 1))  # reads all of the file, but computes few pixels
                image.load()
                return None
            image.load()
            if not _is_ordinary(image):
                return pil_rgb(image)
        if cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) is None:
            raise ValueError("its end is missing")  # of a PNG, without which Pillow reads all pixels
        return None
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # raised by Image.open
        pixels = re.search(r"\d+", str(error))
        check_size(int(pixels[0]) if pixels else 2 * MAX_PIXELS)
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"found {len(encoded):,} bytes that are not an image that can be read, expected {_KINDS}; convert it"
        ) from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, …
        reason = " ".join(str(error).split())
        raise ImageError(
            f"found a broken image of {len(encoded):,} bytes ({reason}), expected a complete one; "
            "replace it with a complete copy"
        ) from error


def ordinary(encoded: bytes) -> bytes:
    """Return the contents of an image file, as PNG if the file is not an ordinary JPEG, PNG or WebP.

    Raises:
        ImageError: the file is refused.
    """
    pixels = convert(encoded)
    return encoded if pixels is None else png(pixels)


def rgb(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image file to RGB pixels.

    Raises:
        ImageError: the file is refused.
    """
    pixels = convert(encoded)
    if pixels is None:
        decoded: Any = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        pixels = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return pixels


def png(pixels_hw3: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encode RGB pixels as PNG."""
    return cv2.imencode(".png", cv2.cvtColor(pixels_hw3, cv2.COLOR_RGB2BGR))[1].tobytes()


def pil_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Convert a loaded PIL image to RGB pixels.

    Raises:
        ImageError: its mode is refused.
    """
    is_png_16 = image.mode == "I" and image.format == "PNG"  # mode of a 16-bit PNG in older versions of Pillow
    if image.mode not in _MODES_8 + _MODES_16 and not is_png_16:
        raise ImageError(
            f"found an image of mode {image.mode}, expected 8 or 16 bits a channel, for example RGB; "
            "scale its values to 0 to 255 and convert it"
        )
    orientation = _orientation(image)
    if image.mode in _MODES_16 or is_png_16:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # without this step, Pillow warns about palettes with transparency
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    return np.array(image.convert("RGB"))


def check_size(pixels: int) -> None:
    """Raise ImageError if an image has too many pixels to be decoded."""
    if pixels > MAX_PIXELS:
        raise ImageError(f"found an image of {pixels:,} pixels, expected at most {MAX_PIXELS:,}; scale it down")


def _is_ordinary_jpeg(image: Image.Image) -> bool:
    return image.format in _JPEG and image.mode in ("RGB", "L") and _orientation(image) not in _TURNS


def _is_ordinary(image: Image.Image) -> bool:
    """Return True for a loaded PNG or WebP that needs no conversion."""
    return (
        image.format in ("PNG", "WEBP")
        and image.mode in ("RGB", "L")
        and "transparency" not in image.info
        and not getattr(image, "is_animated", False)
        and _orientation(image) not in _TURNS
    )


def _orientation(image: Image.Image) -> Any:
    """Return the EXIF orientation, or 1 if there is none that can be read."""
    try:
        with _without_warnings():  # about damaged EXIF
            return image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignore the warnings of Pillow, one thread at a time."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
