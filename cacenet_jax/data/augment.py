"""Augmentation on the device: flip, pad and crop, normalise and erase.

All functions are pure and use one random key per image.

Legend: B images, H x W pixels, C channels (3 colours, then L optional label channels), A attempts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from cacenet_jax.models.pixels import MEAN, STD, normalise_images

_ATTEMPTS = 16  # candidate rectangles for random erasing; the first one that fits is used


class Augment(NamedTuple):
    """Augmentation settings.

    Attributes:
        flip: probability of a horizontal flip.
        pad: black pixels added on each side before a random crop to the original size.
        erase: probability of random erasing.
        erase_area: range of the erased area, as a fraction of the image.
        erase_aspect: smallest aspect ratio (height over width) of the erased rectangle; the largest is its reciprocal.
        mean: mean of red, green and blue, as in `normalise_images`.
        std: standard deviation of red, green and blue, as in `normalise_images`.
    """

    flip: float = 0.5
    pad: int = 10
    erase: float = 0.5
    erase_area: tuple[float, float] = (0.02, 0.4)
    erase_aspect: float = 0.3
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD


def _erase(key: Array, image_HWC: Array, erase: float, area: tuple[float, float], aspect: float) -> Array:
    """Set a random rectangle to 0, the mean colour after normalisation, with probability `erase`.

    Source: Zhong et al., "Random Erasing Data Augmentation", AAAI 2020.
    """
    height, width = image_HWC.shape[:2]
    key_use, key_area, key_aspect, key_top, key_left = jax.random.split(key, 5)
    share_A = jax.random.uniform(key_area, (_ATTEMPTS,), minval=area[0], maxval=area[1]) * height * width
    ratio_A = jax.random.uniform(key_aspect, (_ATTEMPTS,), minval=aspect, maxval=1 / aspect)
    heights_A, widths_A = jnp.round(jnp.sqrt(share_A * ratio_A)), jnp.round(jnp.sqrt(share_A / ratio_A))
    fits_A = (heights_A < height) & (widths_A < width)
    first = jnp.argmax(fits_A)
    rows, columns = heights_A[first], widths_A[first]
    top = jnp.floor(jax.random.uniform(key_top) * (height - rows + 1))
    left = jnp.floor(jax.random.uniform(key_left) * (width - columns + 1))
    row_H1, column_1W = jnp.arange(height)[:, None], jnp.arange(width)[None]
    inside_HW = (row_H1 >= top) & (row_H1 < top + rows) & (column_1W >= left) & (column_1W < left + columns)
    use = fits_A[first] & (jax.random.uniform(key_use) < erase)
    return jnp.where((inside_HW & use)[..., None], 0, image_HWC)


def augment_one(key: Array, image_HWC: UInt8[Array, "H W C"], settings: Augment) -> Float[Array, "H W C"]:
    """Flip, pad and crop, normalise and erase one image.

    Label channels undergo the same geometric transforms but are not normalised. They are 0 in the padding and in the
    erased rectangle.

    Args:
        key: random key of the image.
        image_HWC: uint8 image with three colour channels, then optional label channels.
        settings: augmentation settings.

    Returns:
        float32 image with normalised colours.
    """
    key_flip, key_top, key_left, key_erase = jax.random.split(key, 4)
    mirrored = jax.random.uniform(key_flip) < settings.flip
    image_HWC = jnp.where(mirrored, image_HWC[:, ::-1], image_HWC)
    pad = settings.pad
    if pad:
        padded = jnp.pad(image_HWC, ((pad, pad), (pad, pad), (0, 0)))
        top = jax.random.randint(key_top, (), 0, 2 * pad + 1)
        left = jax.random.randint(key_left, (), 0, 2 * pad + 1)
        image_HWC = jax.lax.dynamic_slice(padded, (top, left, 0), image_HWC.shape)
    pixels_HW3 = normalise_images(image_HWC[..., :3], settings.mean, settings.std)
    labels_HWL = image_HWC[..., 3:].astype(jnp.float32)
    normalised_HWC = jnp.concatenate([pixels_HW3, labels_HWL], axis=-1)
    return _erase(key_erase, normalised_HWC, settings.erase, settings.erase_area, settings.erase_aspect)


def augment(
    key: Array, index_B: Array, images_BHWC: UInt8[Array, "B H W C"], settings: Augment
) -> Float[Array, "B H W C"]:
    """Augment a batch with one key per image.

    Args:
        key: random key of the step.
        index_B: index of each image in the global batch. It is folded into `key`, which makes the result independent of
            how the batch is sharded over devices.
        images_BHWC: uint8 images with three colour channels, then optional label channels.
        settings: augmentation settings.

    Returns:
        float32 images with normalised colours.
    """
    keys_B = jax.vmap(lambda i: jax.random.fold_in(key, i))(index_B)
    return jax.vmap(lambda k, image: augment_one(k, image, settings))(keys_B, images_BHWC)
