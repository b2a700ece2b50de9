"""Pages of a search and of groups: one HTML file each, which refers to nothing outside itself."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from cacenet_jax.data.images import read, resize
from cacenet_jax.errors import UserError, printable
from cacenet_jax.index.groups import Groups
from cacenet_jax.index.index import Index
from cacenet_jax.index.search import SearchMatch, SearchResult
from cacenet_jax.retrieval.calibration import per_cent
from cacenet_jax.visualize.document import document, escape, image_uri
from cacenet_jax.visualize.style import webp
from cacenet_jax.visualize.why import STYLE as WHY_STYLE
from cacenet_jax.visualize.why import Why, render

SIZE = (192, 96)  # height and width of a thumbnail, in pixels
_HOVER = (
    " Point at one of the best matches, tap it, or reach it with the tab key: its map given the query, from dark blue, the "
    "smallest norm, to yellow, the largest."
)
_SHOWN_GROUPS, _SHOWN_IN_GROUP = 200, 12
STYLE = (
    WHY_STYLE
    + """
ol.matches { gap: 1rem; } ol.matches li { width: 9rem; font-weight: 400; overflow-wrap: anywhere; text-align: left; }
ol.matches img { width: 6rem; } .name { display: block; font-weight: 600; font-size: .85em; }
@media (max-width: 30rem) { ol.matches { display: block; } ol.matches li { width: auto; display: flex; gap: .75rem;
  margin-bottom: 1rem; } ol.matches img, .over { flex: none; } }
.over { position: relative; display: block; width: 6rem; align-self: flex-start; }
.over img + img { position: absolute; inset: 0; height: 100%; opacity: 0; }
.over:hover img + img, .over:focus img + img { opacity: 1; }
.right .over img + img, .wrong .over img + img { border: 0; }
details { margin: .75rem 0; } summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
"""
)


def search_page(
    result: SearchResult, index: Index, query: Sequence[Path], known: str | None = None,
    itself: Collection[str] = (), reasons: Mapping[str, Why] = MappingProxyType({}),
) -> str:  # fmt: skip
    """Render the result of a search as a page of its own.

    Args:
        result: result of `Index.search`.
        index: the index, from which the pictures are read.
        query: paths of the query's images.
        known: see `search_body`.
        itself: see `search_body`.
        reasons: see `search_body`.

    Returns:
        HTML without scripts and external references.
    """
    shown = [(path.name, _pixels(path)) for path in query]
    return document("Search", search_body(result, index, shown, known, itself, reasons), STYLE)


def search_body(
    result: SearchResult, index: Index, query: Sequence[tuple[str, np.ndarray]], known: str | None = None,
    itself: Collection[str] = (), reasons: Mapping[str, Why] = MappingProxyType({}),
    below: Callable[[SearchMatch], str] = lambda match: "",
) -> str:  # fmt: skip
    """Render the result of a search.

    Args:
        result: result of `Index.search`.
        index: the index, from which the pictures are read.
        query: names and RGB pixels of the query's images.
        known: identity of the query where it is known; matches of known identities then get a tick or a cross.
        itself: names in the index of the query's own images, which get neither.
        reasons: drawn reasons for matches, by name; those of the query's first image.
        below: returns HTML to add to a match.
    """
    shown = "".join(
        f'<li><img src="{_uri(pixels)}" alt="Query {i}"><span class="name">{escape(name)}</span></li>'
        for i, (name, pixels) in enumerate(query, start=1)
    )
    items = "".join(
        _match(
            rank,
            match,
            index,
            None if match.id in itself else known,
            match.id in itself,
            reasons.get(match.id),
            below(match),
        )
        for rank, match in enumerate(result, start=1)
    )
    answer = ""
    if result.unknown:
        answer = (
            "<p><strong>Unknown:</strong> even the best match is no better than that of people who are not there.</p>"
        )
    together = " Its images are taken for those of one person." if len(query) > 1 else ""
    return f"""<h2>Query</h2>
<ol class="matches">{shown}</ol>
<p>{len(result)} of {result.searched:,} images, best first.{together}</p>
{answer}<p class="note">{escape(result.caution)}</p>
<section><h2>Matches</h2>
<ol class="matches">{items}</ol>
<p class="note">Smaller distances are more alike. The individual distance compares the embeddings, the pair distance looks at
both images together, the mixed distance is their weighted mean.{_HOVER if _has_maps(reasons) else ""}</p></section>
{_why(result, reasons, len(query))}"""


def group_page(groups: Groups, index: Index) -> str:
    """Render groups of photographs, the largest first.

    Args:
        groups: groups of `Index.groups`.
        index: the index, from which the pictures are read.

    Returns:
        HTML without scripts and external references.
    """
    sections = []
    for number in range(min(groups.best, _SHOWN_GROUPS)):
        names = groups[number]
        items = "".join(f"<li>{_picture(index, name)}</li>" for name in names[:_SHOWN_IN_GROUP])
        more = f"<p>and {len(names) - _SHOWN_IN_GROUP} more</p>" if len(names) > _SHOWN_IN_GROUP else ""
        count = "1 photograph" if len(names) == 1 else f"{len(names)} photographs"
        sections.append(f'<section><h2>Group {number}: {count}</h2>\n<ol class="matches">{items}</ol>{more}</section>')
    rest = (
        f"<p>{groups.best - _SHOWN_GROUPS:,} smaller groups are not shown.</p>" if groups.best > _SHOWN_GROUPS else ""
    )
    body = f"""<p>{len(groups.ids):,} photographs in {groups.best:,} groups, {groups.low:,} to {groups.high:,} at other
cuts.</p>
<p class="note">{escape(groups.reason)}.</p>
{"".join(sections)}{rest}"""
    return document("Groups", body, STYLE)


def _why(result: SearchResult, reasons: Mapping[str, Why], images: int) -> str:
    """Render the reasons for the best matches, each of which opens on a click."""
    if not reasons:
        return ""
    if all(why.lines_png is None for why in reasons.values()):
        return f"<section><h2>Why</h2><p>{escape(next(iter(reasons.values())).note)}</p></section>"
    parts = [
        f"<details{' open' if name == next(iter(reasons)) else ''}><summary>{rank}. {escape(name)}</summary>\n"
        f"{render(reasons[name], ('the query', f'match {rank}'))}</details>"
        for rank, name in enumerate((match.id for match in result), start=1)
        if name in reasons
    ]
    first = " They are drawn for the query's first image." if images > 1 else ""
    return f"<section><h2>Why</h2><p>Query and match, looked at together.{first}</p>\n{''.join(parts)}</section>"


def _has_maps(reasons: Mapping[str, Why]) -> bool:
    return any(why.maps for why in reasons.values())


def _match(
    rank: int, match: SearchMatch, index: Index, known: str | None, is_query: bool, why: Why | None, below: str
) -> str:
    """Render a match; its conditional map given the query, if there is one, is shown in place of it on hover and focus."""
    distances = {"individual": match.individual, "pair": match.pair, "mixed": match.mixed}
    lines = [f"{name} {value:z.4f}" for name, value in distances.items() if not np.isnan(value)]
    if match.probability is not None:
        lines.append(f"probability {per_cent(match.probability)}")
    mark = kind = ""
    identity = match.row.get("identity")
    if known is not None and identity is not None:
        is_right = str(identity) == known
        mark, kind = (" \u2713", ' class="right"') if is_right else (" \u2717", ' class="wrong"')
    if is_query:
        lines.insert(0, "the query itself")
    text = "".join(f"<div>{escape(line)}</div>" for line in lines)
    over = _uri(why.maps[1].given_HW3) if why is not None and why.maps else ""
    return f"<li{kind}>{_picture(index, match.id, f'{rank}.{mark} ', over, text + below)}</li>"


def _picture(index: Index, name: str, before: str = "", over: str = "", below: str = "") -> str:
    """Render a photograph of the index with its name; a file that is gone has no picture.

    Args:
        index: the index.
        name: name of the photograph.
        before: text before the name.
        over: URI of a picture that takes its place on hover, focus and touch; empty for none.
        below: HTML below the name.
    """
    caption = f'<div><span class="name">{escape(before + name)}</span>{below}</div>'
    try:
        pixels = np.asarray(index.read_image(name))
    except UserError:
        return f"<span>(its file cannot be read)</span>{caption}"
    image = f'<img src="{_uri(pixels)}" alt="{escape(name)}">'
    if over:
        image += f'<img src="{over}" alt="Map of {escape(name)} given the query">'
        image = f'<span class="over" tabindex="0">{image}</span>'
    return f"{image}{caption}"


def _pixels(path: Path) -> np.ndarray:
    """Return the thumbnail of an image file."""
    out_HW3 = np.empty((*SIZE, 3), np.uint8)
    read(path, out_HW3, printable(str(path)))
    return out_HW3


def thumbnail(pixels: np.ndarray) -> bytes:
    """Return RGB pixels of any size as a small WebP image."""
    return webp(resize(pixels, np.empty((*SIZE, 3), np.uint8)))


def _uri(pixels: np.ndarray) -> str:
    return image_uri(thumbnail(pixels))
