"""Pixel normalisation; each backbone defines its mean and standard deviation.

Legend: B images, H x W pixels.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

# ImageNet mean and standard deviation, for pixels scaled to [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise_images(
    images_BHWC: UInt8[Array, "*B H W 3"],
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Float[Array, "*B H W 3"]:
    """Normalise uint8 pixels for a backbone by subtracting the mean and dividing by the standard deviation.

    Args:
        images_BHWC: uint8 pixels.
        mean: mean of red, green and blue on a 0-1 scale; a backbone's `pixel_mean`.
        std: standard deviation on the same scale; a backbone's `pixel_std`.
    """
    mean_3, std_3 = jnp.asarray(mean, jnp.float32) * 255, jnp.asarray(std, jnp.float32) * 255
    return (images_BHWC.astype(jnp.float32) - mean_3) / std_3
