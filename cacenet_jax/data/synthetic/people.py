"""Identities of synthetic_pedestrians: their clothes, and the clues that distinguish look-alikes.

The members of a look-alike group share their build, skin colour and main clothes, and differ in clues_per_group clues.
Each clue takes one of a few values. Every member has a unique combination of values, so any two members differ in at
least one clue.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from cacenet_jax.data.synthetic.specification import MAX_CLUE_VALUES, SyntheticSpec

RGB = tuple[float, float, float]

CLOTHES: tuple[RGB, ...] = (
    (0.09, 0.09, 0.10),  # black
    (0.82, 0.81, 0.78),  # white
    (0.42, 0.43, 0.45),  # grey
    (0.12, 0.17, 0.36),  # navy
    (0.62, 0.13, 0.14),  # red
    (0.66, 0.56, 0.40),  # beige
    (0.20, 0.37, 0.25),  # green
    (0.38, 0.55, 0.76),  # light blue
    (0.36, 0.23, 0.15),  # brown
    (0.80, 0.65, 0.20),  # mustard
    (0.42, 0.22, 0.44),  # purple
    (0.76, 0.48, 0.52),  # pink
)
ACCENTS: tuple[RGB, ...] = (
    (0.86, 0.12, 0.12),  # red
    (0.93, 0.92, 0.90),  # white
    (0.10, 0.30, 0.78),  # blue
    (0.95, 0.80, 0.12),  # yellow
    (0.06, 0.06, 0.07),  # black
    (0.10, 0.58, 0.28),  # green
    (0.95, 0.48, 0.10),  # orange
)
SKINS: tuple[RGB, ...] = ((0.87, 0.68, 0.57), (0.74, 0.54, 0.41), (0.55, 0.37, 0.26), (0.36, 0.24, 0.17))
DARK_HAIR, BROWN_HAIR, FAIR_HAIR, GREY_HAIR = (
    (0.07, 0.06, 0.06),
    (0.27, 0.16, 0.09),
    (0.74, 0.58, 0.32),
    (0.6, 0.6, 0.6),
)
CLUE_NAMES = ("hat", "hair", "bag", "shoes", "logo", "stripes", "sleeves")
ONE_SIDED = ("logo", "bag")

# Last entry of the seed sequence, different for each kind of stream. It keeps these streams independent of each other
# and of the image streams, whose seed sequence is shorter.
GROUP_STREAM, CAMERA_STREAM, SCHEDULE_STREAM = 1, 2, 3


class Clue(NamedTuple):
    """Value of a clue: kind and colour."""

    kind: str
    rgb: RGB


@dataclasses.dataclass(frozen=True)
class Appearance:
    """Appearance of an identity. All fields up to `varied` are shared by the group; only clues differ between members.

    Attributes:
        build: width of the trunk and limbs relative to the average.
        leg_ratio: length of the legs relative to the average.
        stride: largest forward swing of a leg, in radians.
        skin, top, bottom: colours of the skin, top and bottom.
        inner: colour of the shirt under an open jacket; None if the jacket is closed.
        long_top: True if the top reaches the thighs, like a coat.
        bottom_kind: "trousers", "shorts" or "skirt".
        varied: names of the clues in which the group's members may differ.
        hat, hair, bag, shoes, logo, stripes, sleeves: clues.
    """

    build: float
    leg_ratio: float
    stride: float
    skin: RGB
    top: RGB
    bottom: RGB
    inner: RGB | None
    long_top: bool
    bottom_kind: str
    varied: tuple[str, ...]
    hat: Clue
    hair: Clue
    bag: Clue
    shoes: Clue
    logo: Clue
    stripes: Clue
    sleeves: Clue


def stream(seed: int, number: int, kind: int) -> np.random.Generator:
    """Return the random stream for group, camera or identity `number`; `kind` is one of the *_STREAM constants."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number, 0, kind])))


def group_of(spec: SyntheticSpec, pid: int) -> int:
    """Return the index of an identity's look-alike group. Groups never mix training and test identities."""
    return (pid - 1) // spec.group_size


def appearance_of(spec: SyntheticSpec, pid: int) -> Appearance:
    """Return the appearance of an identity."""
    return group_appearances(spec, group_of(spec, pid))[(pid - 1) % spec.group_size]


@functools.lru_cache(maxsize=1024)
def group_appearances(spec: SyntheticSpec, group: int) -> tuple[Appearance, ...]:
    """Draw the appearances of all members of a look-alike group."""
    rng = stream(spec.seed, group, GROUP_STREAM)
    top = CLOTHES[rng.integers(spec.palette_size)]
    bottom = _draw_colours(rng, CLOTHES[: spec.palette_size], top, 1, least=0.25)[0]
    bottom_kind = ("trousers", "shorts", "skirt")[rng.choice(3, p=(0.66, 0.2, 0.14))]
    varied = _choose_clues(rng, spec.clues_per_group, spec.one_sided_rate)
    inner = _draw_colours(rng, CLOTHES[: spec.palette_size], top, 1, least=0.5)[0]
    shared = Appearance(
        build=float(rng.uniform(0.88, 1.2)),
        leg_ratio=float(rng.uniform(0.94, 1.05)),
        stride=float(rng.uniform(0.3, 0.5)),
        skin=SKINS[rng.choice(len(SKINS), p=(0.4, 0.3, 0.15, 0.15))],
        top=top,
        bottom=bottom,
        inner=inner if rng.random() < 0.25 and "logo" not in varied and "stripes" not in varied else None,
        long_top=bool(rng.random() < 0.2 and bottom_kind == "trousers"),
        bottom_kind=bottom_kind,
        varied=varied,
        hat=Clue("none", top),
        hair=Clue(("short", "long")[rng.integers(2)], (DARK_HAIR, BROWN_HAIR, FAIR_HAIR)[rng.integers(3)]),
        bag=Clue("none", top),
        shoes=Clue("shoes", (ACCENTS[4], CLOTHES[1], CLOTHES[8])[rng.integers(3)]),
        logo=Clue("none", top),
        stripes=Clue("none", top),
        sleeves=Clue(("long", "short")[int(rng.random() < 0.3)], top),
    )
    values = {name: _clue_values(rng, name, shared) for name in CLUE_NAMES}  # draw all, so the number of draws is fixed
    extras = rng.random(3)
    # In some groups, everyone has the same bag, hat or stripes, so having one does not by itself identify a person.
    for name, chance in zip(("bag", "hat", "stripes"), extras):
        blocked = (name == "hat" and "hair" in varied) or (name == "stripes" and "logo" in varied)
        if chance < 0.22 and name not in varied and not blocked and shared.inner is None:
            worn = next(clue for clue in values[name] if clue.kind != "none")
            shared = dataclasses.replace(shared, **dict[str, Any]({name: worn}))
    count = _values_per_clue(spec.group_size, len(varied))
    order = rng.permutation(count ** len(varied))[: spec.group_size]
    members = []
    for combination in order:
        picks: dict[str, Any] = {}
        for name in varied:
            combination, which = divmod(int(combination), count)
            picks[name] = values[name][which]
        members.append(dataclasses.replace(shared, **picks))
    return tuple(members)


def describe(appearance: Appearance) -> str:
    """Describe the clues that distinguish an identity from its look-alikes."""
    words = []
    for name in appearance.varied:
        clue = getattr(appearance, name)
        kind = "" if clue.kind == name else f"{clue.kind} "
        words.append(f"no {name}" if clue.kind == "none" else f"{name}: {kind}{_colour_name(clue.rgb)}".rstrip())
    return ", ".join(words)


def _values_per_clue(group_size: int, clues: int) -> int:
    """Return the number of values per clue.

    It is one more than necessary, so members often differ in several clues.
    """
    if group_size == 1:
        return 1
    return min(MAX_CLUE_VALUES, 1 + next(n for n in range(2, MAX_CLUE_VALUES + 1) if n**clues >= group_size))


def _choose_clues(rng: np.random.Generator, count: int, one_sided_rate: float) -> tuple[str, ...]:
    """Choose distinct clues. Hat excludes hair, and logo excludes stripes, because one would hide the other."""
    first_one_sided = rng.random() < one_sided_rate
    chosen = [ONE_SIDED[rng.integers(2)] if first_one_sided else CLUE_NAMES[rng.integers(len(CLUE_NAMES))]]
    for index in rng.permutation(len(CLUE_NAMES)):
        name = CLUE_NAMES[index]
        clash = {"hat": "hair", "hair": "hat", "logo": "stripes", "stripes": "logo"}.get(name)
        if len(chosen) < count and name not in chosen and clash not in chosen:
            chosen.append(name)
    return tuple(chosen)


def _clue_values(rng: np.random.Generator, name: str, shared: Appearance) -> list[Clue]:
    """Draw MAX_CLUE_VALUES values of a clue, given a group's shared appearance.

    Groups with fewer values per clue use the first ones.
    """
    surface = {"shoes": shared.bottom, "hat": shared.hair.rgb}.get(name, shared.top)
    one, two, three, four = _draw_colours(rng, ACCENTS, surface, 4, least=0.6)
    shuffled = rng.permutation(4)
    none = Clue("none", shared.top)
    if name == "hat":
        values = [none, Clue("cap", one), Clue("beanie", two), Clue("sunhat", three)]
    elif name == "hair":
        other = FAIR_HAIR if shared.hair.rgb != FAIR_HAIR else DARK_HAIR
        values = [
            Clue("short", shared.hair.rgb),
            Clue("long", other),
            Clue("bald", shared.skin),
            Clue("bun", GREY_HAIR),
        ]
    elif name == "bag":
        values = [none, Clue("backpack", one), Clue("shoulder bag", two), Clue("handbag", three)]
    elif name == "shoes":
        values = [Clue("shoes", one), Clue("shoes", two), Clue("boots", three), Clue("shoes", four)]
    elif name == "logo":
        # By default, groups of four use only the first three values, which do not differ from the back.
        return [none, Clue("square", one), Clue("disc", two), Clue("back print", three)]
    elif name == "stripes":
        values = [none, Clue("hoops", one), Clue("band", two), Clue("hoops", three)]
    else:
        values = [Clue("long", shared.top), Clue("short", shared.top), Clue("long", one), Clue("long", two)]
    if name == "bag":  # "none" and "backpack" come first, because a backpack is hidden from the front
        return values if shuffled[0] < 2 else [values[1], values[0], values[3], values[2]]
    return [values[i] for i in shuffled]


def _draw_colours(rng: np.random.Generator, palette: tuple[RGB, ...], base: RGB, count: int, least: float) -> list[RGB]:
    """Draw `count` distinct colours, preferring those at an L1 distance of at least `least` from `base`."""
    order = [palette[i] for i in rng.permutation(len(palette))]
    far = [c for c in order if sum(abs(p - q) for p, q in zip(c, base)) >= least]
    return (far + [c for c in order if c not in far])[:count]


def _colour_name(rgb: RGB) -> str:
    names = {
        **dict(zip(CLOTHES, ("black", "white", "grey", "navy", "red", "beige", "green", "light blue", "brown"))),
        **dict(zip(ACCENTS, ("red", "white", "blue", "yellow", "black", "green", "orange"))),
        **{DARK_HAIR: "dark", BROWN_HAIR: "brown", FAIR_HAIR: "fair", GREY_HAIR: "grey"},
        **dict(zip(CLOTHES[9:], ("mustard", "purple", "pink"))),
    }
    return names.get(rgb, "")
