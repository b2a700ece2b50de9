"""Pixel normalisation; each backbone states its own mean and standard deviation.

Legend: B images, H x W pixels.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

# Mean and standard deviation of ImageNet, in units of 255.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise_images(
    images_BHWC: UInt8[Array, "*B H W 3"],
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Float[Array, "*B H W 3"]:
    """uint8 pixels to what a backbone expects: less the mean, divided by the standard deviation.

    Args:
        images_BHWC: pixels.
        mean: of red, green and blue, in units of 255; a backbone's `pixel_mean`.
        std: likewise, `pixel_std`.
    """
    mean_3, std_3 = jnp.asarray(mean, jnp.float32) * 255, jnp.asarray(std, jnp.float32) * 255
    return (images_BHWC.astype(jnp.float32) - mean_3) / std_3
