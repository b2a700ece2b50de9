"""Settings of synthetic_pedestrians: sizes, seed and sources of difficulty, validated on construction."""

import dataclasses

from cacenet_jax.errors import UserError

MIN_CAMERAS_PER_ID = 3
MAX_CLUE_VALUES = 4


@dataclasses.dataclass(frozen=True)
class SyntheticSpec:
    """Specification of a synthetic data set. Equal specifications produce identical images on every machine.

    Sizes:
        num_train_ids: number of training identities, a multiple of group_size; their pids are 1 .. num_train_ids.
        num_test_ids: number of test identities, a multiple of group_size; their pids follow the training pids.
        images_per_id: number of images per identity, at least queries_per_id + 2.
        queries_per_id: number of query images per test identity, 1 to 3, each from a different camera.
        num_cameras: number of cameras, 3 to 99; each identity is seen by at least 3 of them.
        group_size: number of identities per look-alike group, at most 4 ** clues_per_group; 1 disables look-alikes.
        height, width: image size in pixels, at least 32 x 16.
        seed: random seed, 0 to 2**32 - 1.
        supersample: samples per pixel along each axis when rendering people, 1 to 4; the cost grows with its square.

    Similarity of identities (larger values are harder unless noted otherwise):
        clues_per_group: number of clues in which the members of a group may differ, 1 to 3 (more is easier).
        one_sided_rate: probability that a group's first clue is a logo or bag, often visible from one side only.
        palette_size: number of clothing colours to draw from, 3 to 12 (fewer is harder).

    Variation between views of an identity:
        yaw_spread: standard deviation of the heading around the camera's main direction, in degrees.
        yaw_uniform_rate: probability that the heading is drawn uniformly from all directions, ignoring the camera.
        pitch_max: steepest downward tilt of a camera, in degrees, 0 to 45.
        colour_shift: amount by which the colour responses of cameras differ; 0 for identical responses.
        illumination_jitter: standard deviation of the per-image log brightness.
        scale_jitter: standard deviation of the log box size.
        shift_jitter: standard deviation of the box position, in box heights.
        truncation_rate: probability that the box cuts the person off at the knees or hips.
        blur_max: largest camera blur, as a standard deviation in pixels at image height 128.
        noise_max: largest camera noise, as a standard deviation in grey levels (0 to 255).

    Occlusion:
        occlusion_rate: probability of an occluder (pole, wall, panel, box or bush) in front of the person.
        occlusion_max: largest fraction of the image height or width that an occluder may hide, 0 to 0.8.
        passer_by_rate: probability of another pedestrian partly in front of the person.
        crowd_rate: probability of another pedestrian behind the person.
    """

    num_train_ids: int = 160
    num_test_ids: int = 80
    images_per_id: int = 16
    num_cameras: int = 6
    group_size: int = 4
    height: int = 128
    width: int = 64
    seed: int = 0
    queries_per_id: int = 2
    supersample: int = 2
    clues_per_group: int = 2
    one_sided_rate: float = 0.25
    palette_size: int = 9
    yaw_spread: float = 25.0
    yaw_uniform_rate: float = 0.15
    pitch_max: float = 22.0
    colour_shift: float = 0.18
    illumination_jitter: float = 0.12
    scale_jitter: float = 0.07
    shift_jitter: float = 0.03
    truncation_rate: float = 0.05
    blur_max: float = 0.6
    noise_max: float = 5.0
    occlusion_rate: float = 0.22
    occlusion_max: float = 0.4
    passer_by_rate: float = 0.08
    crowd_rate: float = 0.1

    def __post_init__(self):
        """Validate all fields and raise UserError for the first invalid one."""
        for field in dataclasses.fields(self):
            check_field(field.name, getattr(self, field.name))
        most = MAX_CLUE_VALUES**self.clues_per_group
        if self.group_size > most:
            remedy = "lower group_size or raise clues_per_group"
            raise _error(
                "group_size",
                self.group_size,
                f"at most {most} for clues_per_group={self.clues_per_group}",
                remedy,
            )
        for name in ("num_train_ids", "num_test_ids"):
            value = getattr(self, name)
            if value % self.group_size:
                remedy = f"use {value - value % self.group_size + self.group_size} or change group_size"
                raise _error(name, value, f"a multiple of group_size={self.group_size}", remedy)
        least = self.queries_per_id + 2
        if self.images_per_id < least:
            expected = f"at least queries_per_id + 2 = {least}, so that every query has a match in another camera"
            raise _error("images_per_id", self.images_per_id, expected, f"use {least} or more")

    @property
    def num_ids(self) -> int:
        """Number of identities; pids are 1 .. num_ids."""
        return self.num_train_ids + self.num_test_ids


_RANGES = {
    "num_train_ids": (0, 10**6),
    "num_test_ids": (0, 10**6),
    "images_per_id": (3, 10**5),
    "num_cameras": (MIN_CAMERAS_PER_ID, 99),
    "group_size": (1, MAX_CLUE_VALUES**3),
    "height": (32, 2048),
    "width": (16, 1024),
    "seed": (0, 2**32 - 1),
    "queries_per_id": (1, MIN_CAMERAS_PER_ID),
    "supersample": (1, 4),
    "clues_per_group": (1, 3),
    "one_sided_rate": (0.0, 1.0),
    "palette_size": (3, 12),
    "yaw_spread": (0.0, 180.0),
    "yaw_uniform_rate": (0.0, 1.0),
    "pitch_max": (0.0, 45.0),
    "colour_shift": (0.0, 1.0),
    "illumination_jitter": (0.0, 1.0),
    "scale_jitter": (0.0, 0.5),
    "shift_jitter": (0.0, 0.5),
    "truncation_rate": (0.0, 1.0),
    "blur_max": (0.0, 8.0),
    "noise_max": (0.0, 64.0),
    "occlusion_rate": (0.0, 1.0),
    "occlusion_max": (0.0, 0.8),
    "passer_by_rate": (0.0, 1.0),
    "crowd_rate": (0.0, 1.0),
}


def check_field(name: str, value: object) -> None:
    """Raise UserError unless `value` has the right type and range for the field `name`."""
    low, high = _RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _error(name, value, "a number", "write a plain number")
    if isinstance(low, int) and not isinstance(value, int):
        raise _error(name, value, "a whole number", "write it without a decimal point")
    if not low <= value <= high:  # also catches NaN
        raise _error(name, value, f"a value from {low} to {high}", "choose one in that range")


def _error(name: str, value_given: object, expected: str, remedy: str) -> UserError:
    return UserError(f"synthetic_pedestrians: {name} is {value_given!r}, expected {expected}; {remedy}.")
