"""HTML report of the figures: a self-contained, responsive page that works offline."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from cacenet_jax.retrieval.rankings import METRICS
from cacenet_jax.visualize.document import document, escape, image_figure, image_uri
from cacenet_jax.visualize.ranked_lists import Change, ShownList
from cacenet_jax.visualize.scores import Compared, Scores
from cacenet_jax.visualize.style import MARKS, webp


class Drawn(NamedTuple):
    """A figure.

    Attributes:
        png: the figure as PNG.
        narrow: the same for a narrow screen, as PNG; None if it is narrow anyway.
    """

    png: bytes
    narrow: bytes | None = None


class Case(NamedTuple):
    """A query and its figures.

    Attributes:
        name: name of the query's record.
        camera: camera of the query, -1 if unknown.
        query_HW3: the query image.
        lists: ranked lists before and after re-scoring.
        compared: gallery images of figures 4 and 5.
        grid: numbers of rows and columns of the map.
        maps: figure 4; None for a network without a graph convolution.
        lines: figure 5.
        lists_png: figure 6 as PNG; not used by the page, which renders the lists in HTML.
    """

    name: str
    camera: int
    query_HW3: UInt8[np.ndarray, "H W 3"]
    lists: Sequence[ShownList]
    compared: Sequence[Compared]
    grid: tuple[int, int]
    maps: Drawn | None
    lines: Drawn
    lists_png: bytes


class PairCase(NamedTuple):
    """A chosen pair of images and its figures.

    Attributes:
        names: names of the images.
        pixels_2HW3: the images.
        same: True if both show one person; None if that is unknown.
        scores: distances of the images.
        maps: maps of both images; None for a network without a graph convolution.
        lines_png: correspondences as PNG.
    """

    names: Sequence[str]
    pixels_2HW3: UInt8[np.ndarray, "2 H W 3"]
    same: bool | None
    scores: Scores
    maps: Drawn | None
    lines_png: bytes


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


def html(
    cases: Sequence[Case],
    change: Change | None,
    facts: Facts,
    results: dict[str, Any] | None,
    curves: Drawn | None,
    pair: PairCase | None = None,
    chosen: bool = False,
) -> str:
    """Render the page.

    Args:
        cases: queries to show, one section each, in this order.
        change: effect of re-scoring on all queries; None if no query was ranked.
        facts: information about the run.
        results: contents of results.json, for the table; None if there is no such file.
        curves: learning curves; None if the run has none.
        pair: chosen pair of images.
        chosen: True if the user chose the queries.

    Returns:
        HTML without external references.
    """
    parts = [_pair(pair, facts)] if pair is not None else []
    parts += [_section(number, case, facts) for number, case in enumerate(cases, start=1)]
    parts.append(_curves(curves))
    sections = "\n".join(parts)
    title = f"Why two images match: {facts.data}"
    filtered = " Gallery images of the query's person by its own camera are left out." if facts.camera_filter else ""
    body = f"""<p>CACE-Net looks at two images together. The individual ranking compares images one by one; the
{escape(facts.ranking)} ranking orders its first {facts.top_k} images again, by {escape(facts.distance)}. Checkpoint of step
{facts.step}.{filtered}</p>
{_table(results)}
{_summary(change, chosen)}
<p class="note">Frames: <span class="right">{MARKS[True]} solid green, the same person</span>;
<span class="wrong">{MARKS[False]} dashed orange, another person</span>. Distances: smaller is more alike; a dash stands for
images that the pair stage did not compare. Every figure is also a PNG beside this page.</p>
{sections}"""
    return document(title, body)


def _summary(change: Change | None, chosen: bool) -> str:
    if change is None:
        return ""
    total = change.better + change.worse + change.same
    below = (
        "Below are the queries that were chosen by name."
        if chosen
        else "Below are the queries that changed most, both ways: first what gained, then what lost."
    )
    return f"""<p>Average precision of {total} queries: <b>{change.better} rose, {change.worse} fell,
{change.same} stayed</b>; the mean changed by {100 * change.mean:+.2f} points. {below}</p>"""


def _section(number: int, case: Case, facts: Facts) -> str:
    before, after = case.lists
    gain = 100 * (after.ap - before.ap)
    verdict = "better" if gain > 0 else "worse" if gain < 0 else "unchanged"
    score = f"average precision {100 * before.ap:.1f} \u2192 {100 * after.ap:.1f}, {verdict}"
    if np.isnan(gain):
        score = "no match in the gallery"
    camera = f", camera {case.camera}" if case.camera >= 0 else ""
    lists = "\n".join(_list(shown) for shown in case.lists)
    rows, columns = case.grid
    if case.maps is None:
        maps = '<p class="note">This network has no graph convolution, so there is no conditional map to show.</p>'
    else:
        words = (
            f"The query's map ({rows} x {columns} positions) depends on the image that it is compared with. From the top: "
            "the gallery images, with their ranks before and after re-scoring and their distances; the norm of the query's "
            "own map and of its conditional maps, on the query; how far each is from its own map; how far from the "
            "mean over these images."
        )
        alt = f"Conditional maps of query {number} given different gallery images, as heat maps on the query"
        maps = f"<h3>What the network looks at (figure 4)</h3>\n{image_figure(case.maps.png, alt, words, case.maps.narrow)}"
    alt = f"Lines between query {number} and gallery images"
    lines = image_figure(case.lines.png, alt, _words_of_lines(facts), case.lines.narrow)
    picture = image_uri(webp(case.query_HW3, _THUMBNAIL))
    return f"""<section id="query-{number}">
<h2>Query {number}: {score}</h2>
<p class="note">{escape(case.name)}{camera}</p>
<h3>Ranked lists (figure 6)</h3>
<div class="lists">
<div class="query"><p>query</p><img src="{picture}" alt="Query {number}"></div>
<div>
{lists}
</div>
</div>
<h3>Images compared with the query</h3>
{_compared(case.compared)}
{maps}
<h3>What it connects (figure 5)</h3>
{lines}
</section>"""


def _words_of_lines(facts: Facts) -> str:
    return (
        "Strongest correspondences. Top: each position's most similar position, by cosine of the maps. Bottom: "
        f"{facts.learned}, what the network's graph connects. The strongest are taken first, and their ends are kept apart."
    )


def _list(shown: ShownList) -> str:
    items = []
    own = {"individual": 0, "conditional": 1, "mixed": 2}.get(shown.name, 0)
    for rank, (picture, right, name, scores) in enumerate(
        zip(shown.pictures, shown.right_L.tolist(), shown.names, shown.scores, strict=True), start=1
    ):
        kind, words = ("right", "same person") if right else ("wrong", "another person")
        source = image_uri(webp(picture, _THUMBNAIL))
        items.append(
            f'<li class="{kind}"><img src="{source}" alt="Rank {rank}: {words}"><span>{rank} {MARKS[right]}</span> '
            f"<small>{scores.words()[own]}</small> <small>{escape(name)}</small></li>"
        )
    distance = ("individual", "pair", "mixed")[own]
    return f"<p>{escape(shown.title())}; below each image its {distance} distance</p>\n<ol>{''.join(items)}</ol>"


def _compared(compared: Sequence[Compared]) -> str:
    rows = "\n".join(
        f"<tr><th>{escape(one.name)}</th><td>{_person(one.right)}</td><td>{escape(one.ranks.removeprefix('rank '))}</td>"
        + "".join(f"<td>{words}</td>" for words in one.scores.words())
        + "</tr>"
        for one in compared
    )
    head = "".join(f"<th>{words}</th>" for words in ("image", "person", "ranks", *Scores._fields))
    return (
        f'<div class="wide"><table class="names"><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    )


def _person(right: bool | None) -> str:
    if right is None:
        return "\u2013"
    return f'<span class="{"right" if right else "wrong"}">{MARKS[right]} {"same" if right else "other"}</span>'


def _pair(pair: PairCase, facts: Facts) -> str:
    images = "".join(
        f'<li><img src="{image_uri(webp(picture_HW3, 2 * _THUMBNAIL))}" alt="Image {letter}"> '
        f"<small>{letter}: {escape(name)}</small></li>"
        for letter, name, picture_HW3 in zip("AB", pair.names, pair.pixels_2HW3)
    )
    verdict = "" if pair.same is None else f": {MARKS[pair.same]} {'same person' if pair.same else 'another person'}"
    head = "".join(f"<th>{words}</th>" for words in Scores._fields)
    cells = "".join(f"<td>{words}</td>" for words in pair.scores.words())
    maps = '<p class="note">This network has no graph convolution, so there is no conditional map to show.</p>'
    if pair.maps is not None:
        words = (
            "Norm of each image's own map and of its conditional map, given the other image, and the change from one to the "
            "other."
        )
        maps = image_figure(pair.maps.png, "Maps of both images, as heat maps on them", words, pair.maps.narrow)
    lines = image_figure(pair.lines_png, "Lines between the two images", _words_of_lines(facts), pair.lines_png)
    return f"""<section id="pair">
<h2>Chosen pair{verdict}</h2>
<ol class="two">{images}</ol>
<div class="wide"><table><thead><tr><th>distance</th>{head}</tr></thead><tbody>
<tr><th>A and B</th>{cells}</tr>
</tbody></table></div>
<h3>What the network looks at</h3>
{maps}
<h3>What it connects</h3>
{lines}
</section>"""


def _curves(curves: Drawn | None) -> str:
    if curves is None:
        words = (
            "None: metrics.jsonl of this workdir has no training losses, learning rates or validation mAP. An imported "
            "network was trained elsewhere."
        )
        shown = f'<p class="note">{words}</p>'
    else:
        words = (
            "As in metrics.jsonl of this run, from its first step to its last: the total training loss and its weighted "
            "terms, the learning rate and, if identities are held out, the mAP on them. Of a step that was repeated, the "
            "last values are shown; gaps are values that are no numbers."
        )
        shown = image_figure(curves.png, "Learning curves against the training step", words, curves.narrow)
    return f'<section id="curves">\n<h2>Learning curves</h2>\n{shown}\n</section>'


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
