"""Reasons for a comparison: the strongest correspondences of two images, and how their maps depend on each other.

Legend: H x W pixels, h x w positions of a map.
"""

import operator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import Normalize

from cacenet_jax.retriever import Retriever
from cacenet_jax.visualize import correspondences
from cacenet_jax.visualize.document import escape, image_uri
from cacenet_jax.visualize.maps import DIFFERENCES, NORMS, overlay
from cacenet_jax.visualize.network import compare, cosine, look
from cacenet_jax.visualize.style import DPI, png, webp

_LINES = 12
_EXPORT = (
    "An export holds the network as functions from images to distances and keeps no maps, so there is nothing to draw. "
    "Compare with the workdir of the run to see why."
)
_NO_STAGE = "This network has no pair stage: it describes each image alone, and neither changes with the other."
_NO_MAPS = "This network has no graph convolution, so there is no conditional map to show."
_SHARP = 2  # factor of the resolution


class Maps(NamedTuple):
    """Maps of one image as colours on it.

    Attributes:
        own_HW3: norm of its own map.
        given_HW3: norm of its conditional map, given the other image.
        change_HW3: difference of the two.
    """

    own_HW3: UInt8[np.ndarray, "H W 3"]
    given_HW3: UInt8[np.ndarray, "H W 3"]
    change_HW3: UInt8[np.ndarray, "H W 3"]


class Why(NamedTuple):
    """Drawn reasons.

    Attributes:
        lines_png: correspondences of the two images as PNG; None if `note` says why there are none.
        learned: display name of the correspondences in the network's graph.
        maps: maps of both images; empty if there are no conditional maps.
        scales: limits of the colours of `maps`: smallest norm, largest norm, largest difference.
        note: sentence on what cannot be drawn, or an empty string.
    """

    lines_png: bytes | None
    learned: str
    maps: tuple[Maps, ...]
    scales: tuple[float, float, float]
    note: str


def draw(reid: Retriever, pixels_2HW3: UInt8[np.ndarray, "2 H W 3"]) -> Why:
    """Draw the correspondences and maps of two images, as far as the network has them.

    Args:
        reid: the network.
        pixels_2HW3: images at the network's input size.
    """
    network = reid.network
    if network.net is None or network.distance is None:
        return Why(None, "", (), (0.0, 0.0, 0.0), _EXPORT if network.net is None else _NO_STAGE)
    net, variables = network.net, network.variables[0]
    seen = look(net, variables, pixels_2HW3, network.flip)
    first, second = (jax.tree.map(operator.itemgetter(i), seen) for i in range(2))
    together, reverse = compare(net, variables, first, second), compare(net, variables, second, first)
    maps_2hwD = np.asarray(seen.maps_nhwD)
    grid = maps_2hwD.shape[1:3]
    nodes_2ND = maps_2hwD.reshape(2, -1, maps_2hwD.shape[-1])
    similar_NM = correspondences.most_similar(np.asarray(cosine(nodes_2ND[0], nodes_2ND[1])))
    lines = [
        correspondences.strongest(affinity_NM, _LINES, grid)
        for affinity_NM in (similar_NM, np.asarray(together.correspondence_NM))
    ]
    pair = correspondences.ComparedPair(pixels_2HW3[1], None, "", *lines)
    figure = correspondences.figure(pixels_2HW3[0], [pair], grid, net.pair_title)
    figure.set_dpi(_SHARP * DPI)
    lines_png = png(figure)
    if together.norm_N is None or reverse.norm_N is None:
        return Why(lines_png, net.pair_title, (), (0.0, 0.0, 0.0), _NO_MAPS)
    own_2hw = _relative(np.linalg.norm(maps_2hwD, axis=-1))
    given_2hw = _relative(np.stack([np.asarray(x.norm_N).reshape(grid) for x in (together, reverse)]))
    change_2hw = given_2hw - own_2hw
    low, high = (float(f([own_2hw, given_2hw])) for f in (np.min, np.max))
    most = max(float(np.abs(change_2hw).max()), 1e-6)
    norms, changes = Normalize(low, high), Normalize(-most, most)
    maps = tuple(
        Maps(
            overlay(pixels_HW3, own_hw, norms, NORMS), overlay(pixels_HW3, given_hw, norms, NORMS),
            overlay(pixels_HW3, change_hw, changes, DIFFERENCES),
        )
        for pixels_HW3, own_hw, given_hw, change_hw in zip(pixels_2HW3, own_2hw, given_2hw, change_2hw)
    )  # fmt: skip
    return Why(lines_png, net.pair_title, maps, (low, high, most), "")


def render(why: Why, names: tuple[str, str] = ("image A", "image B")) -> str:
    """Render the reasons as HTML, with legends.

    Args:
        why: drawn reasons.
        names: the two images in the text.
    """
    parts = []
    if why.lines_png is not None:
        caption = (
            f"Strongest correspondences, {names[0]} left and {names[1]} right. Top: each position's most similar position, "
            f"by cosine of the maps. Bottom: {why.learned}, what the network's graph connects. The wider and more "
            "opaque a line, the stronger. The strongest are taken first, and their ends are kept apart."
        )
        alt = escape(f"Lines between {names[0]} and {names[1]}")
        image = f'<img src="{image_uri(webp(why.lines_png))}" alt="{alt}">'
        parts.append(f'<figure class="lines">{image}<figcaption>{escape(caption)}</figcaption></figure>')
    if why.maps:
        low, high, most = why.scales
        for name, other, maps in zip(names, reversed(names), why.maps):
            titles = ("its own map", f"given {other}", "change")
            items = "".join(
                f'<li><img src="{image_uri(webp(pixels))}" alt="{escape(f"{_capital(name)}: {title}")}">'
                f"<span>{escape(title)}</span></li>"
                for title, pixels in zip(titles, maps)
            )
            parts.append(f'<h3>{escape(_capital(name))}</h3>\n<ol class="maps">{items}</ol>')
        parts.append(
            '<p class="note">L2 norm of the map at each position, divided by its mean over the image: dark blue is '
            f"{low:.2f}, yellow {high:.2f}. The conditional map depends on the image that it is compared with. Change: "
            f"the conditional map less its own; orange is -{most:.2f}, white 0, purple +{most:.2f}.</p>"
        )
    if why.note:
        parts.append(f"<p>{escape(why.note)}</p>")
    return "\n".join(parts)


STYLE = """
.maps li { width: 7rem; font-weight: 400; }
.lines img { display: block; width: 100%; max-width: 34rem; height: auto; }
@media (max-width: 40rem) { .maps li { width: 4.9rem; font-size: .8rem; } }
"""  # of what `render` returns


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _relative(norm_2hw: Float[np.ndarray, "2 h w"]) -> Float[np.ndarray, "2 h w"]:
    """Divide each map by its mean, so that maps of different layers compare."""
    return norm_2hw / np.maximum(norm_2hw.mean(axis=(1, 2), keepdims=True), 1e-12)
