"""HTML report of the figures: a self-contained, responsive page that works offline."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from cacenet_jax.retrieval.rankings import METRICS
from cacenet_jax.visualize.document import document, escape, image_figure, image_uri
from cacenet_jax.visualize.ranked_lists import Change, ShownList
from cacenet_jax.visualize.style import MARKS, webp


class Case(NamedTuple):
    """A query and its figures.

    Attributes:
        name: name of the query's record.
        camera: camera of the query, -1 if unknown.
        query_HW3: the query image.
        lists: ranked lists before and after re-scoring.
        grid: numbers of rows and columns of the map.
        maps_png: figure 4 as PNG; None for a network without a graph convolution.
        lines_png: figure 5 as PNG.
        lists_png: figure 6 as PNG; not used by the page, which renders the lists in HTML.
    """

    name: str
    camera: int
    query_HW3: UInt8[np.ndarray, "H W 3"]
    lists: Sequence[ShownList]
    grid: tuple[int, int]
    maps_png: bytes | None
    lines_png: bytes
    lists_png: bytes


class Facts(NamedTuple):
    """Information about the run shown on the page.

    Attributes:
        data: name of the data set.
        step: step of the checkpoint.
        ranking: name of the re-scored ranking.
        distance: description of the distance used by the re-scored ranking.
        top_k: number of re-scored images per query.
        camera_filter: True if gallery images of the query's identity taken by its camera are excluded.
        learned: display name of the correspondences in the network's graph.
    """

    data: str
    step: int
    ranking: str
    distance: str
    top_k: int
    camera_filter: bool
    learned: str


_THUMBNAIL = 160  # height in pixels, about twice the display size on most screens


def html(cases: Sequence[Case], change: Change, facts: Facts, results: dict[str, Any] | None) -> str:
    """Render the page.

    Args:
        cases: queries to show, one section each, in this order.
        change: effect of re-scoring on all queries.
        facts: information about the run.
        results: contents of results.json, for the table; None if there is no such file.

    Returns:
        HTML without external references.
    """
    sections = "\n".join(_section(number, case, facts) for number, case in enumerate(cases, start=1))
    title = f"Why two images match: {facts.data}"
    total = change.better + change.worse + change.same
    filtered = " Gallery images of the query's person by its own camera are left out." if facts.camera_filter else ""
    body = f"""<p>CACE-Net looks at two images together. The individual ranking compares images one by one; the
{escape(facts.ranking)} ranking orders its first {facts.top_k} images again, by {escape(facts.distance)}. Checkpoint of step
{facts.step}.{filtered}</p>
{_table(results)}
<p>Average precision of {total} queries: <b>{change.better} rose, {change.worse} fell, {change.same} stayed</b>; the mean
changed by {100 * change.mean:+.2f} points. Below are the queries that changed most, both ways: first what gained, then what
lost.</p>
<p class="note">Frames: <span class="right">{MARKS[True]} solid green, the same person</span>;
<span class="wrong">{MARKS[False]} dashed orange, another person</span>.</p>
{sections}"""
    return document(title, body)


def _section(number: int, case: Case, facts: Facts) -> str:
    before, after = case.lists
    gain = 100 * (after.ap - before.ap)
    verdict = "better" if gain > 0 else "worse" if gain < 0 else "unchanged"
    camera = f", camera {case.camera}" if case.camera >= 0 else ""
    lists = "\n".join(_list(shown) for shown in case.lists)
    rows, columns = case.grid
    if case.maps_png is None:
        maps = '<p class="note">This network has no graph convolution, so there is no conditional map to show.</p>'
    else:
        words = (
            f"The query's map ({rows} x {columns} positions) depends on the image that it is compared with. Top: the "
            "gallery images, with their ranks before and after re-scoring. Middle: L2 norm of the query's conditional map, "
            "on the query. Bottom: how far it is from the mean over these images."
        )
        alt = f"Conditional maps of query {number} given different gallery images, as heat maps on the query"
        maps = f"<h3>What the network looks at (figure 4)</h3>\n{image_figure(case.maps_png, alt, words)}"
    words = (
        "Strongest correspondences. Top: each position's most similar position, by cosine of the maps. Bottom: "
        f"{facts.learned}, what the network's graph connects. The wider a line, the stronger, within each panel. The "
        "strongest are taken first, and their ends are kept apart."
    )
    lines = image_figure(case.lines_png, f"Lines between query {number} and three gallery images", words)
    return f"""<section id="query-{number}">
<h2>Query {number}: average precision {100 * before.ap:.1f} \u2192 {100 * after.ap:.1f}, {verdict}</h2>
<p class="note">{escape(case.name)}{camera}</p>
<h3>Ranked lists (figure 6)</h3>
<div class="lists">
<div class="query"><p>query</p><img src="{image_uri(webp(case.query_HW3, _THUMBNAIL))}" alt="Query {number}"></div>
<div>
{lists}
</div>
</div>
{maps}
<h3>What it connects (figure 5)</h3>
{lines}
</section>"""


def _list(shown: ShownList) -> str:
    items = []
    for rank, (picture, right) in enumerate(zip(shown.pictures, shown.right_L.tolist()), start=1):
        kind, words = ("right", "same person") if right else ("wrong", "another person")
        source = image_uri(webp(picture, _THUMBNAIL))
        items.append(
            f'<li class="{kind}"><img src="{source}" alt="Rank {rank}: {words}"><span>{rank} {MARKS[right]}</span></li>'
        )
    return f"<p>{escape(shown.name)}, average precision {100 * shown.ap:.1f}</p>\n<ol>{''.join(items)}</ol>"


def _table(results: dict[str, Any] | None) -> str:
    if results is None:
        return '<p class="note">No results of this network on these data yet: --mode=evaluate writes them.</p>'
    rankings = [name for name in ("individual", "conditional", "mixed") if isinstance(results.get(name), dict)]
    head = "".join(f"<th>{metric}</th>" for metric in METRICS)
    rows = "\n".join(
        f"<tr><th>{name}</th>" + "".join(f"<td>{_per_cent(results[name], metric)}</td>" for metric in METRICS) + "</tr>"
        for name in rankings
    )
    return (
        f'<div class="wide"><table><thead><tr><th>per cent</th>{head}</tr></thead><tbody>\n{rows}\n</tbody>'
        "</table></div>\n" + _of_the_table(results)
    )


def _of_the_table(results: dict[str, Any]) -> str:
    """Describe the evaluation shown in the table. Its step or mix may differ from that of the figures."""
    known = [f"{words} {results[key]}" for key, words in (("step", "step"), ("mix", "mix")) if key in results]
    counts = (("num_query", "queries"), ("num_gallery", "gallery images"))
    known += [f"{results[key]} {words}" for key, words in counts if key in results]
    return f'<p class="note">The last evaluation: {escape(", ".join(known))}.</p>'


def _per_cent(values: dict[str, Any], metric: str) -> str:
    value = values.get(metric)
    return f"{100 * value:.2f}" if isinstance(value, int | float) else "\u2013"
