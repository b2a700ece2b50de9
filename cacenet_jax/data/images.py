"""Conversion of image files, arrays and PIL images to uint8 RGB pixels at the network's input size.

Training, evaluation and `cacenet_jax.load` share this code, so an image has the same pixels in all of them.
"""

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from cacenet_jax.data.image_files import ImageError, check_size, convert, pil_rgb, read_file
from cacenet_jax.errors import UserError, printable

_READERS = 4  # threads; decoding and resizing release the GIL
_PIL_LOCK = threading.Lock()  # several batches may contain the same lazily opened image
_EXPECTED = "uint8 pixels (height, width, 3) in the order red, green, blue, or (height, width) for grey"


def decode(
    encoded: bytes,
    height: int,
    width: int,
    name: str,
    out_HW3: UInt8[np.ndarray, "H W 3"] | None = None,
    remedy: str = "prepare the data set again",
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode a JPEG or PNG to RGB pixels of size H x W.

    Args:
        encoded: file contents.
        height: H, output rows.
        width: W, output columns.
        name: name of the image, for the error message.
        out_HW3: array to write to; None allocates a new one.
        remedy: end of the error message.

    Returns:
        The pixels, in `out_HW3` if it is given.

    Raises:
        UserError: the bytes are not an image.
    """
    # OpenCV returns None for invalid bytes, but raises its own exception for empty input.
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded else None
    if image is None:
        raise UserError(f"{name}: found bytes that are no image, expected a JPEG or PNG; {remedy}")
    if out_HW3 is None:
        out_HW3 = np.empty((height, width, 3), np.uint8)
    if image.shape[:2] == (height, width):
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=out_HW3)
    # Swap the channels before resizing, because the stored image is usually smaller.
    return resize(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image), out_HW3)


def resize(image: UInt8[np.ndarray, "h w 3"], out_HW3: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Resize an image bilinearly into `out_HW3`, ignoring its aspect ratio, and return it."""
    height, width = out_HW3.shape[:2]
    return cv2.resize(image, (width, height), dst=out_HW3, interpolation=cv2.INTER_LINEAR)


def read(image: Any, out_HW3: UInt8[np.ndarray, "H W 3"], name: str) -> None:
    """Read an image of any supported kind, resize it and write it to `out_HW3`.

    Args:
        image: path, or an array or PIL image as accepted by `rgb`.
        out_HW3: array to write the pixels to.
        name: name of the image, for error messages.

    Raises:
        UserError: the file is unreadable or not an image, or `rgb` does not accept the array or PIL image.
    """
    if not isinstance(image, str | os.PathLike):
        resize(rgb(image, name), out_HW3)
        return
    try:
        encoded = read_file(os.path.expanduser(image))
        pixels = convert(encoded)
    except ImageError as error:
        raise UserError(f"{name}: {error} or leave it out") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{name}: found no file that can be read ({reason}), expected a JPEG or PNG; correct the path"
        ) from error
    if pixels is not None:
        resize(pixels, out_HW3)
        return
    height, width = out_HW3.shape[:2]
    decode(encoded, height, width, name, out_HW3, remedy="leave it out or convert it")


def rgb(image: Any, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Convert an array or a PIL image to RGB pixels without resizing.

    The rules are those for image files, `cacenet_jax.data.image_files`: grey values are repeated, an alpha channel is
    dropped and the EXIF orientation is applied.

    Args:
        image: uint8 array of shape (h, w, 3), (h, w, 4), (h, w, 1) or (h, w), or a PIL image with 8 or 16 bits per channel.
        name: name of the image, for error messages.

    Raises:
        UserError: `image` is anything else.
    """
    if isinstance(image, Image.Image):
        try:
            check_size(image.width * image.height)
            with _PIL_LOCK:
                image.load()
            return pil_rgb(image)
        except ImageError as error:
            raise UserError(f"{name}: {error}") from error
        except OSError as error:  # a truncated file that was opened lazily
            raise UserError(
                f"{name}: found a PIL image that cannot be loaded ({error}), expected a complete one; replace its file"
            ) from error
    if not hasattr(image, "__array__"):
        raise UserError(
            f"{name}: found a value of type {type(image).__name__}, expected the path of an image file, a PIL image or an "
            f"array of {_EXPECTED}; convert it"
        )
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        remedy = "scale them to 0 to 255 and convert them with .astype(np.uint8)"
        raise UserError(f"{name}: found values of type {pixels.dtype}, expected {_EXPECTED}; {remedy}")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or not pixels.size:
        raise UserError(
            f"{name}: found an array of shape {np.shape(image)}, expected {_EXPECTED}; move the channels to the last axis"
        )
    pixels = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]
    return np.ascontiguousarray(pixels)


class ListedImages(NamedTuple):
    """Sequence of images with display names.

    Attributes:
        images: paths, arrays and PIL images.
        names: display name of each image.
    """

    images: Sequence[Any]
    names: Sequence[str]

    @classmethod
    def of(cls, images: Any, role: str) -> "ListedImages":
        """List one or more images. Those without a path are named by `role` and their index."""
        if hasattr(images, "__array__") and not isinstance(
            images, Image.Image
        ):  # in some Pillow versions, images define it too
            array = np.asarray(images)
            images = list(array) if array.ndim == 4 else [array]
        elif isinstance(images, str | bytes | os.PathLike | Image.Image) or not isinstance(images, Iterable):
            images = [images]
        else:
            images = list(images)

        def name(i: int, image: Any) -> str:
            if isinstance(image, Image.Image):
                image = getattr(image, "filename", "")
            return os.fspath(image) if isinstance(image, str | os.PathLike) and image else f"{role} {i}"

        return cls(images, [name(i, image) for i, image in enumerate(images)])

    def take(self, places: Int[np.ndarray, "n"]) -> "ListedImages":
        """Return the images at the given indices."""
        return ListedImages([self.images[i] for i in places], [self.names[i] for i in places])


def batches(listed: ListedImages, image_size: tuple[int, int], batch_size: int) -> Iterator[np.ndarray]:
    """Yield uint8 batches (batch_size, H, W, 3), prefetched. The last one is padded with copies of its last image."""

    def load_batch(start: int) -> np.ndarray:
        images_BHW3 = np.empty((batch_size, *image_size, 3), np.uint8)
        part = slice(start, start + batch_size)
        images, names = listed.images[part], listed.names[part]
        for image, name, out_HW3 in zip(images, names, images_BHW3):
            read(image, out_HW3, printable(name))
        images_BHW3[len(images) :] = images_BHW3[len(images) - 1]
        return images_BHW3

    with ThreadPoolExecutor(_READERS) as pool:
        waiting: deque[Future[np.ndarray]] = deque()
        for start in range(0, len(listed.images), batch_size):
            waiting.append(pool.submit(load_batch, start))
            if len(waiting) > _READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
