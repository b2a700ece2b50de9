"""Cameras of synthetic_pedestrians: light, colour response, background, occluders and sensor.

Colours are float64 display values in [0, 1]. They are rounded only once, by the sensor model at the end.
"""

import functools
from typing import NamedTuple

import numpy as np

from cacenet_jax.data.synthetic.people import CAMERA_STREAM, stream
from cacenet_jax.data.synthetic.rendering import Raster
from cacenet_jax.data.synthetic.specification import SyntheticSpec

PANORAMA_WIDTHS = 6  # width of a camera's panorama in image widths; each image shows a random window of it
OCCLUDER_KINDS = ("pole", "wall", "panel", "bush", "box")


class Camera(NamedTuple):
    """Camera and its scene.

    Attributes:
        yaw: main heading of pedestrians, in radians.
        pitch: downward tilt, in radians.
        response_33: colour matrix, rgb_out = response_33 @ rgb_in.
        gamma: exponent applied after the colour matrix.
        blur: standard deviation of the blur, in pixels at image height 128.
        noise: standard deviation of the noise, in grey levels.
        light_3: unit vector towards the light, in camera space.
        ambient: fraction of ambient light.
        panorama_HP3: background panorama.
        occluder_rgb_K3: colours of the occluders.
    """

    yaw: float
    pitch: float
    response_33: np.ndarray
    gamma: float
    blur: float
    noise: float
    light_3: np.ndarray
    ambient: float
    panorama_HP3: np.ndarray
    occluder_rgb_K3: np.ndarray


@functools.lru_cache(maxsize=128)
def camera_of(spec: SyntheticSpec, camid: int) -> Camera:
    """Return the camera `camid` (counted from 1) of a data set."""
    rng = stream(spec.seed, camid, CAMERA_STREAM)
    # Spread the headings evenly, so that different cameras see different sides of a person.
    first = stream(spec.seed, 0, CAMERA_STREAM).uniform(0.0, 2.0 * np.pi)
    yaw = first + 2.0 * np.pi * (camid - 1) / spec.num_cameras + np.radians(rng.normal(0.0, 8.0))
    shift = spec.colour_shift
    gains = np.exp(shift * rng.normal(0.0, 0.6, 3))
    saturation = 1.0 - shift * rng.uniform(0.0, 2.0)
    mixing = saturation * np.eye(3) + (1.0 - saturation) / 3.0
    gamma = float(np.exp(shift * rng.normal(0.0, 0.8)))
    side = rng.uniform(-1.0, 1.0)
    light_3 = np.array([side, 0.8, rng.uniform(0.4, 1.0)])
    return Camera(
        yaw=float(yaw),
        pitch=float(np.radians(spec.pitch_max * rng.uniform(0.2, 1.0))),
        response_33=gains[:, None] * mixing,
        gamma=gamma,
        blur=float(spec.blur_max * rng.uniform(0.3, 1.0)),
        noise=float(spec.noise_max * rng.uniform(0.25, 1.0)),
        light_3=light_3 / np.sqrt(np.sum(light_3**2)),
        ambient=float(rng.uniform(0.4, 0.65)),
        panorama_HP3=_panorama(rng, spec.height, spec.width * PANORAMA_WIDTHS),
        occluder_rgb_K3=rng.uniform(0.12, 0.75, (3, 1)) + rng.normal(0.0, 0.1, (3, 3)),
    )


def background(rng: np.random.Generator, camera: Camera, height: int, width: int) -> np.ndarray:
    """Draw a random window of the camera's panorama, shape (height, width, 3)."""
    left = int(rng.integers(camera.panorama_HP3.shape[1] - width + 1))
    return camera.panorama_HP3[:, left : left + width].copy()


def add_shadow(rgb_HW3: np.ndarray, x: float, y: float, pixels_per_metre: float) -> None:
    """Darken the ground below a person, modifying the image in place; (x, y) is the pixel between the feet."""
    height, width = rgb_HW3.shape[:2]
    dx = (np.arange(width) + 0.5 - x) / (0.3 * pixels_per_metre)
    dy = (np.arange(height) + 0.5 - y) / (0.09 * pixels_per_metre)
    rgb_HW3 *= (1.0 - 0.5 * np.exp(-0.5 * dy**2)[:, None] * np.exp(-0.5 * dx**2)[None, :])[:, :, None]


def compose(background_HW3: np.ndarray, raster: Raster) -> np.ndarray:
    """Composite people over the background, shape (H, W, 3)."""
    return background_HW3 * (1.0 - raster.coverage_HW)[:, :, None] + raster.rgb_HW3


def add_occluder(
    rng: np.random.Generator, camera: Camera, rgb_HW3: np.ndarray, parts_HW: np.ndarray, largest: float
) -> str:
    """Draw a random occluder into the image, and clear the part labels that it covers.

    Args:
        rng: random generator for the kind, position and texture.
        camera: camera whose occluder colours are used.
        rgb_HW3: image, modified in place.
        parts_HW: part labels, modified in place; 0 behind the occluder.
        largest: largest fraction of the image height or width to hide.

    Returns:
        Kind of occluder, one of OCCLUDER_KINDS.
    """
    height, width = parts_HW.shape
    kind = OCCLUDER_KINDS[rng.integers(len(OCCLUDER_KINDS))]
    share = largest * rng.uniform(0.4, 1.0)
    column_W, row_H = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    at_left, place = rng.random() < 0.5, rng.uniform(0.2, 0.8)
    rgb_3 = np.clip(camera.occluder_rgb_K3[rng.integers(3)] + rng.normal(0.0, 0.03, 3), 0.03, 0.95)
    grain_HW = _smooth_noise(rng, height, width, 24, 12)
    shade_HW = np.ones((height, width))
    if kind == "pole":
        half = 0.5 * min(share, 0.28)
        across_W = (column_W - place) / half
        mask_HW = np.broadcast_to(np.abs(across_W) < 1.0, (height, width))
        shade_HW = shade_HW * (0.45 + 0.55 * np.sqrt(np.maximum(1.0 - across_W**2, 0.0)))
    elif kind == "wall":
        mask_HW = np.broadcast_to((row_H > 1.0 - share)[:, None], (height, width))
        # Planks, because a regular texture is not easily mistaken for clothing.
        shade_HW = shade_HW * np.where(np.floor(row_H * 16.0) % 2 == 0, 1.0, 0.82)[:, None]
    elif kind == "panel":
        hidden_W = column_W < share if at_left else column_W > 1.0 - share
        mask_HW = np.broadcast_to(hidden_W, (height, width))
        shade_HW = shade_HW * (0.75 + 0.35 * column_W)
    elif kind == "bush":
        rgb_3 = np.array([0.2, 0.34, 0.14]) + 0.15 * (rgb_3 - 0.5)
        edge_W = 1.0 - share * (0.75 + 0.3 * _smooth_noise(rng, 1, width, 1, 7)[0])
        mask_HW = row_H[:, None] > edge_W[None, :]
        shade_HW = 0.85 + 0.6 * _smooth_noise(rng, height, width, 42, 21)
    else:
        low = 1.0 - 0.6 * share * rng.uniform(0.5, 1.0)
        half = 0.5 * min(1.4 * share, 0.6)
        mask_HW = (
            (row_H > low - 0.25)[:, None] & (row_H < low + 0.2)[:, None] & (np.abs(column_W - place) < half)[None, :]
        )
        shade_HW = shade_HW * np.where(row_H < low - 0.19, 1.3, 0.9)[:, None]  # brighter lid
    colour_HW3 = rgb_3 * (shade_HW + 0.12 * grain_HW)[:, :, None]
    rgb_HW3[mask_HW] = colour_HW3[mask_HW]
    parts_HW[mask_HW] = 0
    return kind


def expose(rng: np.random.Generator, camera: Camera, rgb_HW3: np.ndarray, brightness: float) -> np.ndarray:
    """Apply the brightness and the camera's colour response, blur and noise, and round to uint8 (H, W, 3)."""
    height = rgb_HW3.shape[0]
    seen_HW3 = np.clip(brightness * np.clip(rgb_HW3, 0.0, 1.0) @ camera.response_33.T, 0.0, 1.0) ** camera.gamma
    seen_HW3 = _blur(seen_HW3, camera.blur * height / 128.0)
    noise_HW3 = rng.normal(0.0, 1.0, seen_HW3.shape) * camera.noise
    return np.clip(np.rint(255.0 * seen_HW3 + noise_HW3), 0, 255).astype(np.uint8)


def _blur(rgb_HW3: np.ndarray, sigma: float) -> np.ndarray:
    """Apply a Gaussian blur with replicated edges.

    Implemented in NumPy, because image libraries may round differently on different platforms.
    """
    if sigma < 0.05:
        return rgb_HW3
    radius = int(np.ceil(2.5 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        pads = [(radius, radius) if i == axis else (0, 0) for i in range(3)]
        padded = np.pad(rgb_HW3, pads, mode="edge")
        size = rgb_HW3.shape[axis]
        moved = (padded[i : i + size] if axis == 0 else padded[:, i : i + size] for i in range(2 * radius + 1))
        rgb_HW3 = sum(tap * part for tap, part in zip(taps, moved))
    return rgb_HW3


def _smooth_noise(rng: np.random.Generator, height: int, width: int, rows: int, columns: int) -> np.ndarray:
    """Draw bilinearly interpolated noise in [-1, 1], shape (height, width), on a grid of rows x columns cells."""
    grid = rng.uniform(-1.0, 1.0, (rows + 1, columns + 1))
    y, x = np.arange(height) / height * rows, np.arange(width) / width * columns
    y0, x0 = y.astype(np.int64), x.astype(np.int64)
    fy, fx = (y - y0)[:, None], (x - x0)[None, :]
    across = grid[:, x0] * (1.0 - fx) + grid[:, x0 + 1] * fx
    return across[y0] * (1.0 - fy) + across[y0 + 1] * fy


def _panorama(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a patterned wall above a patterned floor, shape (height, width, 3), values in [0, 1]."""
    wall_3, floor_3, second_3 = (rng.uniform(0.25, 0.75) + rng.normal(0.0, tint, 3) for tint in (0.08, 0.04, 0.08))
    horizon = int(height * rng.uniform(0.3, 0.62))
    y, x = np.arange(height)[:, None] / height, np.arange(width)[None, :] / height
    kind = rng.integers(5)
    step, phase = rng.uniform(0.14, 0.4), rng.random()
    column = np.floor(x / step + phase)
    if kind == 0:  # bricks
        row = np.floor(y / 0.06)
        joint = ((y / 0.06) % 1.0 < 0.16) | ((x / 0.14 + 0.5 * (row % 2)) % 1.0 < 0.08)
        mix = np.where(joint, 0.7, 0.0)
    elif kind == 1:  # boards
        mix = np.where((x / step + phase) % 1.0 < 0.5, 0.0, 0.55) + 0.0 * y
    elif kind == 2:  # windows
        mix = np.where(((x / step + phase) % 1.0 < 0.6) & (y % 0.34 > 0.08), 0.9, 0.0)
    elif kind == 3:  # leaves
        wall_3 = np.array([0.24, 0.4, 0.2]) + 0.1 * (wall_3 - 0.5)
        mix = np.clip(0.35 + 0.5 * _smooth_noise(rng, height, width, 16, 48), 0.0, 1.0)
    else:  # shop fronts, one colour each
        shops = rng.random(int(column.max()) + 2)
        mix = shops[column.astype(np.int64) - int(column.min())] * np.where(y < 0.12, 0.3, 1.0)
    wall_HP3 = wall_3 + mix[:, :, None] * (second_3 - wall_3)
    depth = np.maximum(np.arange(height) - horizon, 0)[:, None] / height
    tiles = ((np.sqrt(depth) * rng.uniform(8.0, 14.0)) % 1.0 < 0.12) * rng.uniform(0.0, 0.2)
    floor_HP3 = floor_3 * (0.85 + 0.3 * depth - tiles)[:, :, None] + np.zeros((1, width, 1))
    is_wall = (np.arange(height) < horizon)[:, None, None]
    light_HP = 1.0 + 0.12 * _smooth_noise(rng, height, width, 4, 14) + 0.06 * _smooth_noise(rng, height, width, 40, 120)
    return np.clip(np.where(is_wall, wall_HP3, floor_HP3) * light_HP[:, :, None], 0.02, 1.0)
