"""Body of a synthetic pedestrian, built from painted primitives and posed by the phase of the walk cycle.

Coordinates are in person space, as in rendering.py: x towards the left hand, y up from the ground, z straight ahead, in
metres.
"""

import numpy as np

from cacenet_jax.data.synthetic.people import RGB, Appearance
from cacenet_jax.data.synthetic.rendering import Ellipsoid, Paint, RoundCone

PART_NAMES = ("background", "head", "torso", "arms", "legs", "feet", "carried")
HEAD, TORSO, ARMS, LEGS, FEET, CARRIED = range(1, 7)
HIP_HEIGHT = 0.92
Vector = tuple | np.ndarray
EYE = (0.12, 0.09, 0.08)


def body_height(appearance: Appearance) -> float:
    """Return the standing height in metres, excluding the hat."""
    return HIP_HEIGHT * appearance.leg_ratio + 0.83


def build_body(appearance: Appearance, phase: float) -> list[RoundCone | Ellipsoid]:
    """Build the primitives of a person at `phase` (radians) of the walk cycle, standing on the ground."""
    legs, feet_low = _legs(appearance, phase)
    arms, right_hand_3 = _arms(appearance, phase)
    parts = legs + arms + _torso(appearance) + _head(appearance) + _carried(appearance, right_hand_3)
    # The stride lifts the feet, so move the body down until the lower foot touches the ground.
    return [_translate(part, np.array([0.0, -feet_low, 0.0])) for part in parts]


def _translate(part: RoundCone | Ellipsoid, by_3: np.ndarray) -> RoundCone | Ellipsoid:
    paint = None if part.paint is None else (lambda points_N3, paint=part.paint: paint(points_N3 - by_3))
    if isinstance(part, Ellipsoid):
        return part._replace(centre_3=part.centre_3 + by_3, paint=paint)
    return part._replace(start_3=part.start_3 + by_3, end_3=part.end_3 + by_3, paint=paint)


def _ellipsoid(
    part: int, rgb: RGB, centre: Vector, semi: Vector, paint: Paint | None = None, tilt: float = 0.0
) -> Ellipsoid:
    """Build an ellipsoid with semi-axes along x, y and z, pitched up about x by `tilt` radians."""
    sin, cos = np.sin(tilt), np.cos(tilt)
    axes = np.array([[1.0, 0.0, 0.0], [0.0, cos, sin], [0.0, -sin, cos]]) * np.asarray(semi, dtype=np.float64)
    return Ellipsoid(part, rgb, np.array(centre, dtype=np.float64), axes, paint)


def _limb(
    part: int,
    rgb: RGB,
    start_3: Vector,
    end_3: Vector,
    radii: tuple[float, float],
    cut: float = 1.0,
    below: RGB | None = None,
) -> RoundCone:
    """Build a round cone of colour `rgb`.

    If `below` is given, it replaces `rgb` beyond the fraction `cut` of the length.
    """
    start_3, end_3 = np.asarray(start_3, dtype=np.float64), np.asarray(end_3, dtype=np.float64)
    paint = None
    if below is not None:
        axis_3 = (end_3 - start_3) / np.sum((end_3 - start_3) ** 2)

        def paint(points_N3: np.ndarray) -> np.ndarray:
            return np.where((((points_N3 - start_3) @ axis_3) < cut)[:, None], np.array(rgb), np.array(below))

    return RoundCone(part, rgb, start_3, end_3, radii[0], radii[1], paint)


def _limb_end(start_3: np.ndarray, length: float, angle: float, outwards: float = 0.0) -> np.ndarray:
    """Return the end point of a limb that hangs from `start_3` and is swung forward by `angle` radians."""
    return start_3 + length * np.array([outwards, -np.cos(angle), np.sin(angle)])


def _hip_height(appearance: Appearance) -> float:
    return HIP_HEIGHT * appearance.leg_ratio


def _legs(a: Appearance, phase: float) -> tuple[list[RoundCone | Ellipsoid], float]:
    """Build the hips, legs and feet, and compute the height of the lower sole."""
    hip, build = _hip_height(a), a.build
    hips_rgb = a.top if a.long_top else a.bottom
    parts: list[RoundCone | Ellipsoid] = [
        _ellipsoid(LEGS, hips_rgb, (0.0, hip + 0.01, 0.0), (0.16 * build, 0.12, 0.115 * build))
    ]
    if a.long_top:
        parts.append(_limb(TORSO, a.top, (0, hip, 0), (0, hip - 0.2, 0), (0.13 * build, 0.14 * build)))
    if a.bottom_kind == "skirt":
        parts.append(_limb(LEGS, a.bottom, (0, hip, 0), (0, hip - 0.32, 0), (0.13 * build, 0.14 * build)))
    lows = []
    for side in (1.0, -1.0):
        beat = phase if side > 0 else phase + np.pi
        angle = a.stride * np.sin(beat)
        bend = 0.08 + 0.7 * max(0.0, np.cos(beat))  # the knee bends while the leg swings forward
        hip_3 = np.array([side * 0.085 * build, hip, 0.0])
        knee_3 = _limb_end(hip_3, 0.43 * a.leg_ratio, angle)
        ankle_3 = _limb_end(knee_3, 0.42 * a.leg_ratio, angle - bend)
        radii = np.array([0.087, 0.062, 0.045]) * build
        if a.bottom_kind == "trousers":
            cut, shin, radii = 1.0, a.bottom, radii + np.array([0.006, 0.008, 0.012])
        else:
            cut, shin = 0.85, a.skin
        if a.bottom_kind == "skirt":
            mid_3 = hip_3 + 0.72 * (knee_3 - hip_3)
            parts.append(_limb(LEGS, a.bottom, hip_3, mid_3, (0.1 * build, 0.115 * build)))
        elif a.long_top:
            mid_3 = hip_3 + 0.55 * (knee_3 - hip_3)
            parts.append(_limb(TORSO, a.top, hip_3, mid_3, (0.105 * build, 0.105 * build)))
        elif a.bottom_kind == "shorts":
            parts.append(_limb(LEGS, a.bottom, hip_3, hip_3 + 0.8 * (knee_3 - hip_3), (0.1 * build, 0.085 * build)))
        parts.append(_limb(LEGS, a.bottom, hip_3, knee_3, (radii[0], radii[1]), cut, None if cut == 1.0 else a.skin))
        boots = a.shoes.kind == "boots"
        shin_radii = (radii[1], max(radii[2], 0.058) if boots else radii[2])
        parts.append(_limb(LEGS, shin, knee_3, ankle_3, shin_radii, 0.45, a.shoes.rgb if boots else None))
        tilt = 0.7 * (angle - bend) + 0.1
        toe_3 = ankle_3 + np.array([0.0, -0.03 + 0.055 * np.sin(tilt), 0.055 * np.cos(tilt)])
        foot = _ellipsoid(FEET, a.shoes.rgb, toe_3, (0.062, 0.058, 0.145), tilt=tilt)
        parts.append(foot)
        lows.append(float(np.min(foot.centre_3[1] - np.sqrt(np.sum(foot.axes_33[1] ** 2)))))
    return parts, min(lows)


def _arms(a: Appearance, phase: float) -> tuple[list[RoundCone | Ellipsoid], np.ndarray]:
    """Build the arms and hands, and compute the position of the right hand."""
    hip, build = _hip_height(a), a.build
    parts: list[RoundCone | Ellipsoid] = []
    hand_3 = np.zeros(3)
    for side in (1.0, -1.0):
        beat = phase + np.pi if side > 0 else phase  # arms swing in opposition to the legs
        angle = 0.9 * a.stride * np.sin(beat)
        if side < 0 and a.bag.kind == "handbag":
            angle *= 0.3
        shoulder_3 = np.array([side * 0.188 * build, hip + 0.435, 0.0])
        elbow_3 = _limb_end(shoulder_3, 0.29, angle, side * 0.13)
        wrist_3 = _limb_end(elbow_3, 0.24, angle + 0.2 + 0.4 * max(0.0, np.sin(beat)), side * 0.02)
        hand_3 = _limb_end(wrist_3, 0.05, angle + 0.2)
        short = a.sleeves.kind == "short"
        upper = (0.064 * build, 0.05 * build)
        parts += [
            _limb(ARMS, a.sleeves.rgb, shoulder_3, elbow_3, upper, 0.6, a.skin if short else None),
            _limb(ARMS, a.skin if short else a.sleeves.rgb, elbow_3, wrist_3, (0.047 * build, 0.038 * build)),
            _ellipsoid(ARMS, a.skin, hand_3, (0.035, 0.055, 0.045)),
        ]
    return parts, hand_3


def _torso(a: Appearance) -> list[RoundCone | Ellipsoid]:
    hip, build = _hip_height(a), a.build
    paint = _torso_paint(a)
    parts: list[RoundCone | Ellipsoid] = [
        _ellipsoid(TORSO, a.top, (0.0, hip + 0.33, 0.0), (0.185 * build, 0.21, 0.118 * build), paint),
        _ellipsoid(TORSO, a.top, (0.0, hip + 0.16, 0.0), (0.165 * build, 0.2, 0.112 * build), paint),
    ]
    for side in (1.0, -1.0):
        upper, lower = (side * 0.12 * build, hip + 0.4, 0.0), (side * 0.085 * build, hip + 0.06, 0.0)
        parts.append(RoundCone(TORSO, a.top, np.array(upper), np.array(lower), 0.078 * build, 0.076 * build, paint))
        neck, shoulder = (0.0, hip + 0.5, 0.0), (side * 0.165 * build, hip + 0.45, 0.0)
        parts.append(RoundCone(TORSO, a.top, np.array(neck), np.array(shoulder), 0.06, 0.062 * build, paint))
    return parts


def _torso_paint(a: Appearance) -> Paint:
    """Return the paint of the trunk, whose layers are the colour, open front, stripes, strap and logo."""
    hip, build = _hip_height(a), a.build

    def paint(points_N3: np.ndarray) -> np.ndarray:
        x, y, z = points_N3[:, 0] / build, points_N3[:, 1] - hip, points_N3[:, 2]
        rgb_N3 = np.tile(np.array(a.top), (len(x), 1))
        if a.inner is not None:
            rgb_N3[(z > 0) & (np.abs(x) < 0.025 + 0.09 * np.maximum(y, 0.0))] = a.inner
        if a.stripes.kind == "hoops":
            rgb_N3[(np.floor(y / 0.055) % 2 == 0) & (y < 0.44)] = a.stripes.rgb
        elif a.stripes.kind == "band":
            rgb_N3[(y > 0.19) & (y < 0.31)] = a.stripes.rgb
        if a.bag.kind == "shoulder bag":  # strap from the right shoulder to the left hip, front and back
            rgb_N3[np.abs(y - 0.26 + 1.25 * x) < 0.035] = a.bag.rgb
        front = z > 0
        if a.logo.kind == "square":
            rgb_N3[front & (np.abs(x) < 0.095) & (np.abs(y - 0.31) < 0.085)] = a.logo.rgb
        elif a.logo.kind == "disc":
            rgb_N3[front & (x**2 + (y - 0.31) ** 2 < 0.105**2)] = a.logo.rgb
        elif a.logo.kind == "back print":
            rgb_N3[~front & (np.abs(x) < 0.1) & (np.abs(y - 0.31) < 0.1)] = a.logo.rgb
        return rgb_N3

    return paint


def _head(a: Appearance) -> list[RoundCone | Ellipsoid]:
    centre_3, semi_3 = np.array([0.0, _hip_height(a) + 0.705, 0.015]), np.array([0.088, 0.122, 0.105])
    hair = a.hair

    def face(points_N3: np.ndarray) -> np.ndarray:
        x, y, z = ((points_N3 - centre_3) / semi_3).T
        rgb_N3 = np.tile(np.array(a.skin), (len(x), 1))
        rgb_N3[(z > 0) & (np.abs(np.abs(x) - 0.42) < 0.17) & (np.abs(y - 0.12) < 0.1)] = EYE
        if hair.kind != "bald":
            rgb_N3[y - 0.9 * z > 0.22] = hair.rgb
        return rgb_N3

    def shifted(*by: float) -> np.ndarray:
        return centre_3 + np.array(by)

    neck = (np.array([0.0, _hip_height(a) + 0.5, 0.0]), centre_3 + np.array([0.0, -0.06, -0.01]))
    parts: list[RoundCone | Ellipsoid] = [
        RoundCone(HEAD, a.skin, *neck, 0.05, 0.05),
        Ellipsoid(HEAD, a.skin, centre_3, np.diag(semi_3), face),
    ]
    if hair.kind != "bald":
        parts.append(_ellipsoid(HEAD, hair.rgb, shifted(0.0, 0.022, -0.02), semi_3 * (1.06, 1.0, 0.98)))
    if hair.kind == "long":
        parts.append(_ellipsoid(HEAD, hair.rgb, shifted(0.0, -0.1, -0.055), (0.105, 0.17, 0.075)))
    if hair.kind == "bun":
        parts.append(_ellipsoid(HEAD, hair.rgb, shifted(0.0, 0.11, -0.07), (0.055, 0.055, 0.055)))
    if a.hat.kind == "cap":
        parts.append(_ellipsoid(HEAD, a.hat.rgb, shifted(0.0, 0.062, -0.006), (0.1, 0.1, 0.118)))
        parts.append(_ellipsoid(HEAD, a.hat.rgb, shifted(0.0, 0.045, 0.11), (0.078, 0.014, 0.085)))
    elif a.hat.kind == "beanie":
        parts.append(_ellipsoid(HEAD, a.hat.rgb, shifted(0.0, 0.085, -0.012), (0.102, 0.11, 0.118)))
    elif a.hat.kind == "sunhat":
        parts.append(_ellipsoid(HEAD, a.hat.rgb, shifted(0.0, 0.075, 0.0), (0.094, 0.08, 0.108)))
        parts.append(_ellipsoid(HEAD, a.hat.rgb, shifted(0.0, 0.05, 0.0), (0.19, 0.022, 0.2)))
    return parts


def _carried(a: Appearance, right_hand_3: np.ndarray) -> list[RoundCone | Ellipsoid]:
    hip, build, rgb = _hip_height(a), a.build, a.bag.rgb
    darker = (0.6 * rgb[0], 0.6 * rgb[1], 0.6 * rgb[2])
    if a.bag.kind == "backpack":  # narrower than the trunk and below the shoulders, so it is hidden from the front
        radius = 0.075 * build
        pack: list[RoundCone | Ellipsoid] = []
        for x in (-0.06 * build, 0.0, 0.06 * build):
            low_3, high_3 = np.array([x, hip + 0.12, -0.165]), np.array([x, hip + 0.355, -0.155])
            pack.append(RoundCone(CARRIED, rgb, low_3, high_3, 1.1 * radius, 0.9 * radius))
        return [*pack, _ellipsoid(CARRIED, darker, (0.0, hip + 0.15, -0.235), (0.09 * build, 0.08, 0.045))]
    if a.bag.kind == "shoulder bag":
        return [_ellipsoid(CARRIED, rgb, (0.235 * build, hip - 0.03, 0.0), (0.065, 0.12, 0.15))]
    if a.bag.kind == "handbag":
        x, y, z = right_hand_3
        return [
            RoundCone(CARRIED, darker, right_hand_3, np.array([x, y - 0.1, z]), 0.022, 0.03),
            _ellipsoid(CARRIED, rgb, (x, y - 0.19, z), (0.065, 0.12, 0.16)),
        ]
    return []
