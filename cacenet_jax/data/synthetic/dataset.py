"""The synthetic_pedestrians data set: groups of look-alikes, rendered from round cones and ellipsoids.

This is the default data set. It needs no download, is identical on every machine, and reproduces the main difficulties
of re-identification. The viewing direction depends on the camera, and cameras differ in colour, blur and noise.
Occluders and passers-by hide parts of the person, and detection boxes are misaligned. The members of a group wear the
same clothes and differ only in a few clues (such as a hat or a bag), some of which are visible from one side only.
Every image has part labels.

Each image is a pure function of (spec, pid, index) with its own random stream, so images can be rendered in any order
by any number of workers. The fields of SyntheticSpec control the difficulty.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cacenet_jax.data.synthetic import contact_sheet as sheet
from cacenet_jax.data.synthetic import scene
from cacenet_jax.data.synthetic.body import PART_NAMES, body_height, build_body
from cacenet_jax.data.synthetic.people import (
    SCHEDULE_STREAM,
    Appearance,
    appearance_of,
    describe,
    group_of,
    stream,
)
from cacenet_jax.data.synthetic.rendering import PlacedPerson, Raster, Window, rasterise, view_rotation
from cacenet_jax.data.synthetic.specification import MIN_CAMERAS_PER_ID, SyntheticSpec
from cacenet_jax.errors import UserError

__all__ = [
    "PART_NAMES",
    "SyntheticImage",
    "SyntheticSpec",
    "contact_sheet",
    "generate",
    "num_images",
    "render_clean",
    "render_one",
]

PERSON_SHARE = 0.9  # fraction of the image height, before jitter
LIGHT = (0.35, 0.75, 0.56)


class SyntheticImage(NamedTuple):
    """Rendered image with its labels.

    Attributes:
        image_HWC: uint8 RGB pixels.
        parts_HW: uint8 part labels, indices into PART_NAMES; 0 for the background, occluders and other people.
        pid: identity, counted from 1.
        camid: camera, counted from 1.
        group: index of the look-alike group, counted from 0.
        split: "train", "query" or "gallery".
        name: unique file name in the style of Market-1501, <pid>_c<camid>s1_<index>_00.png.
    """

    image_HWC: np.ndarray
    parts_HW: np.ndarray
    pid: int
    camid: int
    group: int
    split: str
    name: str


def num_images(spec: SyntheticSpec) -> dict[str, int]:
    """Return the number of images in each split."""
    queries = spec.num_test_ids * spec.queries_per_id
    return {
        "train": spec.num_train_ids * spec.images_per_id,
        "query": queries,
        "gallery": spec.num_test_ids * spec.images_per_id - queries,
    }


def generate(spec: SyntheticSpec) -> Iterator[SyntheticImage]:
    """Yield all images in ascending order of pid and index, training identities first."""
    for pid in range(1, spec.num_ids + 1):
        for index in range(spec.images_per_id):
            yield render_one(spec, pid, index)


def cameras_of_id(spec: SyntheticSpec, pid: int) -> list[int]:
    """Return the cameras (at least 3, counted from 1) that see an identity, in the order in which images use them."""
    rng = stream(spec.seed, pid, SCHEDULE_STREAM)
    count = int(rng.integers(MIN_CAMERAS_PER_ID, spec.num_cameras + 1))
    return [int(camid) + 1 for camid in rng.permutation(spec.num_cameras)[:count]]


def render_one(spec: SyntheticSpec, pid: int, index: int) -> SyntheticImage:
    """Render image `index` (from 0) of identity `pid` (from 1); a pure function of its arguments.

    Raises:
        UserError: `pid` or `index` is out of range.
    """
    for name, value, low, high in (
        ("pid", pid, 1, spec.num_ids),
        ("index", index, 0, spec.images_per_id - 1),
    ):
        if not low <= value <= high:
            raise UserError(f"synthetic_pedestrians: {name} is {value}, expected {low} to {high}; stay in range.")
    # Images cycle through the cameras, so an identity's queries come from different cameras, and every query has a
    # match in the gallery from another camera.
    cameras = cameras_of_id(spec, pid)
    camid = cameras[index % len(cameras)]
    if pid <= spec.num_train_ids:
        split = "train"
    else:
        split = "query" if index < spec.queries_per_id else "gallery"
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([spec.seed, pid, index])))
    image_HWC, parts_HW = _render(spec, pid, scene.camera_of(spec, camid), rng)
    name = f"{pid:04d}_c{camid}s1_{index:06d}_00.png"
    return SyntheticImage(image_HWC, parts_HW, pid, camid, group_of(spec, pid), split, name)


def _render(
    spec: SyntheticSpec, pid: int, camera: scene.Camera, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    height, width = spec.height, spec.width
    person = appearance_of(spec, pid)
    target = _place_walker(spec, person, camera, rng)
    window, feet_row = _draw_box(spec, person, camera.pitch, rng)
    people = [target]
    if rng.random() < spec.passer_by_rate:
        people.append(_place_bystander(spec, pid, camera, rng, in_front=True))
    if rng.random() < spec.crowd_rate:
        people.append(_place_bystander(spec, pid, camera, rng, in_front=False))
    raster = rasterise(people, window, height, width, spec.supersample, camera.light_3, camera.ambient)
    ground_HW3 = scene.background(rng, camera, height, width)
    scene.add_shadow(ground_HW3, -window.left * window.pixels_per_metre_x, feet_row, window.pixels_per_metre_x)
    rgb_HW3, parts_HW = scene.compose(ground_HW3, raster), raster.parts_HW
    if rng.random() < spec.occlusion_rate:
        scene.add_occluder(rng, camera, rgb_HW3, parts_HW, spec.occlusion_max)
    brightness = float(np.exp(spec.illumination_jitter * rng.normal()))
    return scene.expose(rng, camera, rgb_HW3, brightness), parts_HW


def _place_walker(
    spec: SyntheticSpec, person: Appearance, camera: scene.Camera, rng: np.random.Generator
) -> PlacedPerson:
    """Place a person at a random phase of the walk cycle.

    The heading is close to the camera's main direction or uniformly distributed.
    """
    phase, deviation, uniform_yaw = rng.uniform(0.0, 2.0 * np.pi), rng.normal(), rng.uniform(0.0, 2.0 * np.pi)
    is_uniform = rng.random() < spec.yaw_uniform_rate
    yaw = uniform_yaw if is_uniform else camera.yaw + np.radians(spec.yaw_spread) * deviation
    return PlacedPerson(build_body(person, phase), view_rotation(yaw, camera.pitch), np.zeros(3))


def _place_bystander(
    spec: SyntheticSpec, pid: int, camera: scene.Camera, rng: np.random.Generator, in_front: bool
) -> PlacedPerson:
    """Place another identity of the same split slightly to the side of the target, in front of it or behind it."""
    first, count = (1, spec.num_train_ids) if pid <= spec.num_train_ids else (spec.num_train_ids + 1, spec.num_test_ids)
    other = first + int(rng.integers(count))
    if group_of(spec, other) == group_of(spec, pid):  # a look-alike next to the target would make the label ambiguous
        other = first + (other - first + spec.group_size) % count
    walker = _place_walker(spec, appearance_of(spec, other), camera, rng)
    side = -1.0 if rng.random() < 0.5 else 1.0
    distance = rng.uniform(0.26, 0.45) if in_front else rng.uniform(0.25, 0.6)
    forward = rng.uniform(0.7, 1.0) if in_front else -rng.uniform(0.8, 2.5)
    floor_3 = view_rotation(0.0, camera.pitch) @ np.array([side * distance, 0.0, forward])
    return walker._replace(offset_3=floor_3)


def _draw_box(spec: SyntheticSpec, person: Appearance, pitch: float, rng: np.random.Generator) -> tuple[Window, float]:
    """Draw a random detection box, and return its window and the image row of the feet.

    The box does not depend on the clues that distinguish look-alikes.
    """
    zoom, stretch = (
        np.exp(rng.normal(0.0, spec.scale_jitter)),
        np.exp(rng.normal(0.0, 0.6 * spec.scale_jitter)),
    )
    shift_x, shift_y = rng.normal(0.0, spec.shift_jitter, 2)
    cut, keep = rng.random() < spec.truncation_rate, rng.uniform(0.5, 0.8)
    window, feet_row = _frame_person(person, pitch, spec.height, spec.width, zoom, zoom * stretch, shift_x, shift_y)
    if cut:  # the box ends at the hips or knees, so zoom in on the rest
        ppm_x, ppm_y = window.pixels_per_metre_x / keep**0.5, window.pixels_per_metre_y / keep
        window = Window(window.left * window.pixels_per_metre_x / ppm_x, window.top, ppm_x, ppm_y)
        feet_row = window.top * ppm_y
    return window, feet_row


def _frame_person(
    person: Appearance,
    pitch: float,
    height: int,
    width: int,
    zoom_y: float,
    zoom_x: float,
    shift_x: float,
    shift_y: float,
) -> tuple[Window, float]:
    """Return the window around a person at the origin, and the image row of the feet. Shifts are in box heights."""
    tall = body_height(person) * np.cos(pitch) + 0.22 * np.sin(pitch)
    ppm_y = PERSON_SHARE * height / tall * zoom_y
    ppm_x = PERSON_SHARE * height / tall * zoom_x * (width / height * 2.0)
    top = body_height(person) * np.cos(pitch) + 0.5 * (height / ppm_y - tall) + shift_y * height / ppm_y
    left = -0.5 * width / ppm_x + shift_x * height / ppm_y
    return Window(left, top, ppm_x, ppm_y), top * ppm_y


def render_clean(
    person: Appearance,
    yaw: float,
    pitch: float = 0.0,
    phase: float = 0.6,
    height: int = 128,
    width: int = 64,
    supersample: int = 2,
) -> Raster:
    """Render a single centred person under neutral lighting with no background, for tests and figures.

    Args:
        person: appearance to render.
        yaw: heading in radians; 0 faces the camera, pi shows the back.
        pitch: downward tilt of the camera in radians.
        phase: phase of the walk cycle in radians.
        height: image height in pixels.
        width: image width in pixels.
        supersample: samples per pixel along each axis.

    Returns:
        Colour, coverage and part labels of the person.
    """
    window, _ = _frame_person(person, pitch, height, width, 1.0, 1.0, 0.0, 0.0)
    placed = PlacedPerson(build_body(person, phase), view_rotation(yaw, pitch), np.zeros(3))
    light_3 = np.array(LIGHT) / np.sqrt(np.sum(np.square(LIGHT)))
    return rasterise([placed], window, height, width, supersample, light_3, 0.5)


def contact_sheet(spec: SyntheticSpec, path: str | Path | None = None, num_groups: int = 3) -> np.ndarray:
    """Draw an overview of the data set: look-alike groups, cameras, occlusions and part labels.

    Each member of the chosen groups gets one row: clean front and back views, then one image per camera for cameras 1
    to 6, with a gap if a camera has no image of the person. The last rows show images in which the person is least
    visible, and images with their part labels.

    Args:
        spec: specification of the data set.
        path: PNG file to write, or None.
        num_groups: number of groups to show, evenly spaced.

    Returns:
        uint8 RGB picture of shape (rows, columns, 3).
    """
    columns = 6
    total = spec.num_ids // spec.group_size
    groups = sorted({index * total // num_groups for index in range(num_groups)})
    pids = [group * spec.group_size + member + 1 for group in groups for member in range(spec.group_size)]
    rows: list[sheet.Heading | sheet.Row] = [sheet.Heading("clean front and back, then as the cameras see them")]
    sample: list[SyntheticImage] = []
    for pid in pids:
        if (pid - 1) % spec.group_size == 0:
            rows.append(sheet.Heading(f"look-alike group {group_of(spec, pid)}"))
        person = appearance_of(spec, pid)
        tiles: list[sheet.Tile | None] = [
            sheet.Tile(sheet.on_paper(render_clean(person, yaw, 0.15, height=spec.height, width=spec.width)), caption)
            for yaw, caption in ((0.35, "front"), (np.pi + 0.35, "back"))
        ]
        images = [render_one(spec, pid, index) for index in range(spec.images_per_id)]
        sample += images
        by_camera = {image.camid: image for image in reversed(images)}
        for camid in range(1, columns + 1):
            seen = by_camera.get(camid)
            tiles.append(None if seen is None else sheet.Tile(seen.image_HWC, f"camera {camid}"))
        rows.append(sheet.Row(f"pid {pid}", describe(person), tiles))
    by_visibility = sorted(sample, key=lambda image: int(np.count_nonzero(image.parts_HW)))
    width = columns + 2
    hidden = [sheet.Tile(image.image_HWC, f"pid {image.pid}") for image in by_visibility[: 2 * width : 2]]
    step = max(1, len(sample) // (width // 2))
    labelled = [
        tile
        for image in sample[step // 2 :: step][: width // 2]
        for tile in (
            sheet.Tile(image.image_HWC, f"pid {image.pid}"),
            sheet.Tile(sheet.coloured(image.parts_HW), "parts"),
        )
    ]
    rows += [
        sheet.Heading("least visible, and part labels"),
        sheet.Row("hidden", "occluders, passers-by, cut boxes", hidden),
    ]
    rows.append(sheet.Row("parts", ", ".join(PART_NAMES[1:]), labelled))
    picture = sheet.layout(rows, spec.height, spec.width, width)
    if path is not None:
        sheet.write_png(picture, path)
    return picture
