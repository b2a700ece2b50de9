"""Rasteriser of synthetic_pedestrians.

Round cones and ellipsoids are rendered by parallel rays with a z-buffer and Lambert shading.

Camera space is in metres, with x to the right of the image, y up and z towards the viewer. Rays run along -z, so the
surface with the largest z is visible. A person is built in person space (x towards the left hand, y up from the
ground, z straight ahead) and placed by camera = rotation @ person + offset. Paints are functions of points in person
space, which makes stripes and logos turn with the person.

Legend: H x W image; N visible pixels of one primitive; 3 spatial or RGB components. All computations are in float64.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Paint = Callable[[np.ndarray], np.ndarray]  # points_N3 in person space -> rgb_N3 in [0, 1]
NOTHING = -1


class RoundCone(NamedTuple):
    """Convex hull of two spheres, in metres in person space. `paint` overrides the flat colour `rgb`."""

    part: int
    rgb: tuple[float, float, float]
    start_3: np.ndarray
    end_3: np.ndarray
    start_radius: float
    end_radius: float
    paint: Paint | None = None


class Ellipsoid(NamedTuple):
    """Ellipsoid given by its centre and semi-axis vectors (the columns of axes_33), in metres in person space."""

    part: int
    rgb: tuple[float, float, float]
    centre_3: np.ndarray
    axes_33: np.ndarray
    paint: Paint | None = None


class PlacedPerson(NamedTuple):
    """Person placed in camera space by camera = rotation_33 @ person + offset_3."""

    primitives: Sequence[RoundCone | Ellipsoid]
    rotation_33: np.ndarray
    offset_3: np.ndarray


class Window(NamedTuple):
    """Image window in camera space: top left corner in metres, and resolution in pixels per metre."""

    left: float
    top: float
    pixels_per_metre_x: float
    pixels_per_metre_y: float


class Raster(NamedTuple):
    """Rendered people without background.

    Colours are premultiplied by coverage. The part label is 0 for the background and for bystanders.
    """

    rgb_HW3: np.ndarray
    coverage_HW: np.ndarray
    parts_HW: np.ndarray


def view_rotation(yaw: float, pitch: float) -> np.ndarray:
    """Return the (3, 3) rotation from person to camera space; angles in radians.

    A person faces the camera at yaw 0, the right edge of the image at yaw pi/2, and away from the camera at yaw pi. The
    camera looks down if the pitch is positive.
    """
    sin_y, cos_y, sin_p, cos_p = np.sin(yaw), np.cos(yaw), np.sin(pitch), np.cos(pitch)
    turn = np.array([[cos_y, 0.0, sin_y], [0.0, 1.0, 0.0], [-sin_y, 0.0, cos_y]])
    tilt = np.array([[1.0, 0.0, 0.0], [0.0, cos_p, -sin_p], [0.0, sin_p, cos_p]])
    return tilt @ turn


def rasterise(
    people: Sequence[PlacedPerson],
    window: Window,
    height: int,
    width: int,
    supersample: int,
    light_3: np.ndarray,
    ambient: float,
) -> Raster:
    """Render people with a z-buffer.

    Args:
        people: people to render, the target first; only the target gets part labels, and everyone else gets label 0.
        window: image window in camera space.
        height: image height in pixels.
        width: image width in pixels.
        supersample: samples per pixel along each axis.
        light_3: unit vector towards the light, in camera space.
        ambient: fraction of ambient light, 0 to 1.

    Returns:
        Raster of shape (height, width), with float64 colours and coverage in [0, 1] and uint8 labels.
    """
    fine_h, fine_w = height * supersample, width * supersample
    x_W = window.left + (np.arange(fine_w) + 0.5) / (window.pixels_per_metre_x * supersample)
    y_H = window.top - (np.arange(fine_h) + 0.5) / (window.pixels_per_metre_y * supersample)
    depth_HW = np.full((fine_h, fine_w), -np.inf)
    index_HW = np.full((fine_h, fine_w), NOTHING, dtype=np.int16)
    shapes = [
        (_to_camera_space(primitive, person), person, which == 0)
        for which, person in enumerate(people)
        for primitive in person.primitives
    ]
    boxes = []
    for index, (shape, _, _) in enumerate(shapes):
        box = _bounding_box(shape, x_W, y_H)
        boxes.append(box)
        if box is None:
            continue
        z_hw = _surface(shape, x_W[box[1]][None, :], y_H[box[0]][:, None])
        nearer_hw = z_hw > depth_HW[box]
        np.copyto(depth_HW[box], z_hw, where=nearer_hw)
        np.copyto(index_HW[box], index, where=nearer_hw)

    rgb_HW3 = np.zeros((fine_h, fine_w, 3))
    labels_HW = np.zeros((fine_h, fine_w), dtype=np.uint8)
    for index, ((shape, person, is_target), box) in enumerate(zip(shapes, boxes)):
        if box is None:
            continue
        rows_N, columns_N = np.nonzero(index_HW[box] == index)
        if not rows_N.size:
            continue
        rows_N, columns_N = rows_N + box[0].start, columns_N + box[1].start
        points_N3 = np.stack([x_W[columns_N], y_H[rows_N], depth_HW[rows_N, columns_N]], axis=1)
        lit_N = ambient + (1.0 - ambient) * np.maximum(_normals(shape, points_N3) @ light_3, 0.0)
        if shape.paint is None:
            colour_N3 = np.asarray(shape.rgb)[None, :]
        else:
            colour_N3 = shape.paint((points_N3 - person.offset_3) @ person.rotation_33)
        rgb_HW3[rows_N, columns_N] = colour_N3 * lit_N[:, None]
        if is_target:
            labels_HW[rows_N, columns_N] = shape.part

    def pooled(array: np.ndarray) -> np.ndarray:
        shifts = [(i, j) for i in range(supersample) for j in range(supersample)]
        return np.add.reduce([array[i::supersample, j::supersample] for i, j in shifts])

    samples = supersample**2
    coverage_HW = pooled((index_HW != NOTHING).astype(np.float64)) / samples
    # Labels cannot be averaged, so each pixel takes the label of its middle sample.
    middle = supersample // 2
    return Raster(pooled(rgb_HW3) / samples, coverage_HW, labels_HW[middle::supersample, middle::supersample].copy())


def _to_camera_space(primitive: RoundCone | Ellipsoid, person: PlacedPerson) -> RoundCone | Ellipsoid:
    rotation, offset = person.rotation_33, person.offset_3
    if isinstance(primitive, Ellipsoid):
        return primitive._replace(centre_3=rotation @ primitive.centre_3 + offset, axes_33=rotation @ primitive.axes_33)
    return primitive._replace(start_3=rotation @ primitive.start_3 + offset, end_3=rotation @ primitive.end_3 + offset)


def _bounding_box(shape: RoundCone | Ellipsoid, x_W: np.ndarray, y_H: np.ndarray) -> tuple[slice, slice] | None:
    """Return the rows and columns of samples that the shape may cover, or None if it lies outside the image."""
    if isinstance(shape, Ellipsoid):
        reach_3 = np.sqrt(np.sum(shape.axes_33**2, axis=1))
        low_3, high_3 = shape.centre_3 - reach_3, shape.centre_3 + reach_3
    else:
        low_3 = np.minimum(shape.start_3 - shape.start_radius, shape.end_3 - shape.end_radius)
        high_3 = np.maximum(shape.start_3 + shape.start_radius, shape.end_3 + shape.end_radius)
    left, right = np.searchsorted(x_W, (low_3[0], high_3[0]))
    above, below = np.searchsorted(-y_H, (-high_3[1], -low_3[1]))
    return None if left == right or above == below else (slice(above, below), slice(left, right))


def _surface(shape: RoundCone | Ellipsoid, x_1w: np.ndarray, y_h1: np.ndarray) -> np.ndarray:
    """Return the z, shape (h, w), at which the rays at (x, y) first hit the shape; -inf for rays that miss."""
    return _ellipsoid_surface(shape, x_1w, y_h1) if isinstance(shape, Ellipsoid) else _cone_surface(shape, x_1w, y_h1)


def _ellipsoid_surface(shape: Ellipsoid, x_1w: np.ndarray, y_h1: np.ndarray) -> np.ndarray:
    q = np.linalg.inv(shape.axes_33 @ shape.axes_33.T)
    dx, dy = x_1w - shape.centre_3[0], y_h1 - shape.centre_3[1]
    # Solve q22 z^2 + 2 b z + c = 0, with b and c from the ray's position.
    b = q[0, 2] * dx + q[1, 2] * dy
    c = (q[0, 0] * dx**2 - 1.0) + q[1, 1] * dy**2 + (2.0 * q[0, 1] * dy) * dx
    under_root = b * b - q[2, 2] * c
    z = (np.sqrt(np.maximum(under_root, 0.0)) - b) / q[2, 2] + shape.centre_3[2]
    return np.where(under_root > 0.0, z, -np.inf)


def _cone_surface(shape: RoundCone, x_1w: np.ndarray, y_h1: np.ndarray) -> np.ndarray:
    """Return the front surface of a round cone: the largest z of its two spheres and their tangent cone."""
    (ax, ay, az), (bx, by, bz) = shape.start_3, shape.end_3
    ra, rb = shape.start_radius, shape.end_radius
    dx, dy = x_1w - ax, y_h1 - ay
    square = dx**2 + dy**2
    z = _sphere(square, ra, az)
    np.maximum(z, _sphere((x_1w - bx) ** 2 + (y_h1 - by) ** 2, rb, bz), out=z)
    ux, uy, uz, dr = bx - ax, by - ay, bz - az, ra - rb
    length2 = ux * ux + uy * uy + uz * uz
    d2 = length2 - dr * dr
    k2 = d2 - uz * uz
    if k2 <= 1e-12:  # only the spheres are visible: seen along the axis, or one contains the other
        return z
    along = ux * dx + uy * dy
    k1 = uz * (along - dr * ra)
    k0 = d2 * square - along * along + (2.0 * dr * ra) * along - length2 * ra * ra
    under_root = k1 * k1 - k0 * k2
    t = (np.sqrt(np.maximum(under_root, 0.0)) + k1) / k2  # z relative to the start
    place = along - dr * ra + t * uz
    on_side = (under_root > 0.0) & (place > 0.0) & (place < d2)
    return np.where(on_side, np.maximum(z, az + t), z)


def _sphere(square_hw: np.ndarray, radius: float, centre_z: float) -> np.ndarray:
    under_root = radius * radius - square_hw
    return np.where(under_root > 0.0, centre_z + np.sqrt(np.maximum(under_root, 0.0)), -np.inf)


def _normals(shape: RoundCone | Ellipsoid, points_N3: np.ndarray) -> np.ndarray:
    """Return the outward unit normals, shape (N, 3), at points on the shape in camera space."""
    if isinstance(shape, Ellipsoid):
        outward_N3 = (points_N3 - shape.centre_3) @ np.linalg.inv(shape.axes_33 @ shape.axes_33.T)
    else:
        axis_3, dr = shape.end_3 - shape.start_3, shape.start_radius - shape.end_radius
        from_start_N3 = points_N3 - shape.start_3
        d2 = max(axis_3 @ axis_3 - dr * dr, 1e-12)
        fraction_N = np.clip((from_start_N3 @ axis_3 - shape.start_radius * dr) / d2, 0.0, 1.0)
        outward_N3 = from_start_N3 - fraction_N[:, None] * axis_3
    return outward_N3 / np.sqrt(np.sum(outward_N3**2, axis=1, keepdims=True))
