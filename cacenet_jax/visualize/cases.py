"""Figures of a single query: ranked lists, maps and correspondences; figures of a chosen pair.

Legend: n images, H x W pixels, C channels, h x w positions of a map (N = h w), G compared gallery images, L length of a
ranked list.
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from cacenet_jax.data.pipeline import evaluation_batches
from cacenet_jax.data.subsets import Subset
from cacenet_jax.errors import UserError, printable
from cacenet_jax.experiment import Experiment
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.models.pair_stages.base import PairView
from cacenet_jax.retrieval.rankings import RankedLists
from cacenet_jax.visualize import correspondences, maps, ranked_lists
from cacenet_jax.visualize.network import compare, cosine, distances, look
from cacenet_jax.visualize.page import Case, Drawn, PairCase
from cacenet_jax.visualize.scores import NO_SCORES, Compared, Scores, ranked_scores
from cacenet_jax.visualize.style import png, stacked

_NARROW = 2  # gallery images side by side in figure 4 on a narrow screen
_RIGHT, _WRONG = 2, 3  # correct and wrong gallery images in figure 4; figure 5 shows one correct and two wrong ones


class Rankings(NamedTuple):
    """Rankings before and after re-scoring.

    Attributes:
        before: individual ranking.
        after: re-scored ranking.
        name: name of the re-scored ranking.
    """

    before: RankedLists
    after: RankedLists
    name: str


class Source(NamedTuple):
    """A ranked test split and the network that ranked it.

    Attributes:
        settings: experiment settings.
        net: a network with a pair stage.
        variables: parameters and batch statistics of the network.
        query: query images.
        gallery: gallery images.
        rankings: rankings for all queries.
    """

    settings: Experiment
    net: CACENet
    variables: Any
    query: Subset
    gallery: Subset
    rankings: Rankings


def draw(source: Source, q: int) -> Case:
    """Draw all figures of the query at index q."""
    settings, query, gallery, rankings = source.settings, source.query, source.gallery, source.rankings
    pid, camid, name = int(query.pids[q]), int(query.camids[q]), record_name(query, q)
    before_L, after_L = (ranking.order_QL[q] for ranking in (rankings.before, rankings.after))
    shown_lists = [_list(source, q, "individual", rankings.before), _list(source, q, rankings.name, rankings.after)]
    compared_G = compared(before_L, gallery.pids, gallery.camids, pid, camid, settings.evaluation.camera_filter)
    if not len(compared_G):
        raise UserError(
            f"config.visualize.queries: found {printable(name)!r}, for which the gallery has no image that counts, expected "
            "one to compare it with; leave it out, or set config.eval.camera_filter=False"
        )
    images_nHWC = np.concatenate([read(settings, query, np.array([q])), read(settings, gallery, compared_G)])
    scores = _scores(source, q, compared_G, images_nHWC)
    ranks = [f"rank {_rank(before_L, g)} \u2192 {_rank(after_L, g)}" for g in compared_G.tolist()]
    right_G = gallery.pids[compared_G] == pid
    others = [
        Compared(record_name(gallery, g), right, words, one)
        for g, right, words, one in zip(compared_G.tolist(), right_G.tolist(), ranks, scores)
    ]  # fmt: skip

    query_HW3, gallery_GHW3 = images_nHWC[0, ..., :3], images_nHWC[1:, ..., :3]
    views = Views(source.net, source.variables, images_nHWC, settings.evaluation.flip)
    together = [views.compare(0, g) for g in range(1, len(images_nHWC))]
    drawn_maps = None
    if together[0].norm_N is not None:
        given_Ghw = np.stack([views.norm(pair) for pair in together])
        rows = maps.rows_of(views.own_nhw[0], given_Ghw)
        narrow = [
            png(
                maps.figure(
                    query_HW3, rows.part(some), gallery_GHW3[some], others[some], name, some.stop >= len(others)
                )
            )
            for some in (slice(start, start + _NARROW) for start in range(0, len(others), _NARROW))
        ]
        drawn_maps = Drawn(png(maps.figure(query_HW3, rows, gallery_GHW3, others, name)), stacked(narrow))

    pairs = [
        views.lines(0, g + 1, together[g], settings.visualization.lines, others[g])
        for g in (*np.flatnonzero(right_G)[:1].tolist(), *np.flatnonzero(~right_G)[:2].tolist())
    ]
    learned = source.net.pair_title
    narrow = [
        png(correspondences.figure(query_HW3, [pair], views.grid, learned, name, pair is pairs[-1])) for pair in pairs
    ]
    drawn_lines = Drawn(png(correspondences.figure(query_HW3, pairs, views.grid, learned, name)), stacked(narrow))
    lists_png = png(ranked_lists.figure(query_HW3, shown_lists, name))
    return Case(name, camid, query_HW3, shown_lists, others, views.grid, drawn_maps, drawn_lines, lists_png)


class Views:
    """Maps of a few images, and the comparisons of any two of them.

    Attributes:
        own_nhw: L2 norm of each position of the images' own maps.
        grid: h and w, numbers of rows and columns of a map.
    """

    def __init__(self, net: CACENet, variables: Any, images_nHWC: np.ndarray, flip: bool):
        """Compute the maps; arguments as in `network.look`."""
        self._net, self._variables, self._images_nHWC = net, variables, images_nHWC
        self._seen = look(net, variables, images_nHWC, flip)
        maps_nhwD = np.asarray(self._seen.maps_nhwD)
        self.own_nhw, self.grid = np.linalg.norm(maps_nhwD, axis=-1), (maps_nhwD.shape[1], maps_nhwD.shape[2])
        self._nodes_nND = maps_nhwD.reshape(len(maps_nhwD), -1, maps_nhwD.shape[-1])

    def compare(self, u: int, v: int) -> PairView:
        """Compare target image u with image v."""
        one, other = (jax.tree.map(operator.itemgetter(i), self._seen) for i in (u, v))
        return compare(self._net, self._variables, one, other)

    def norm(self, pair: PairView) -> Float[np.ndarray, "h w"]:
        """Return the norm of a conditional map, which must exist, by position."""
        return np.asarray(pair.norm_N).reshape(self.grid)

    def lines(self, u: int, v: int, pair: PairView, count: int, other: Compared) -> correspondences.ComparedPair:
        """Return image v, described as `other`, with the strongest correspondences of u and v.

        Args:
            u: first image.
            v: second image.
            pair: comparison of both.
            count: maximum number of lines.
            other: name and distances of v.
        """
        similar_NM = correspondences.most_similar(np.asarray(cosine(self._nodes_nND[u], self._nodes_nND[v])))
        similar, learned = (
            correspondences.strongest(affinity_NM, count, self.grid)
            for affinity_NM in (similar_NM, np.asarray(pair.correspondence_NM))
        )
        picture_HW3 = self._images_nHWC[v, ..., :3]
        return correspondences.ComparedPair(picture_HW3, other.right, other.caption(), similar, learned)


def record_name(subset: Subset, position: int) -> str:
    """Return the name of an image of a subset."""
    return subset.split.names[subset.indices[position]]


def score(net: CACENet, variables: Any, images_nHWC: np.ndarray, settings: Experiment) -> list[Scores]:
    """Compute the distances of the first image to each of the others, with the settings of the evaluation."""
    evaluation = settings.evaluation
    return distances(
        net, variables, images_nHWC, evaluation.flip, evaluation.map_dtype, evaluation.distance, evaluation.mix
    )


def _scores(source: Source, q: int, compared_G: np.ndarray, images_nHWC: np.ndarray) -> list[Scores]:
    """Return the distances that ranked the images; of images that were not ranked or re-scored, compute them."""
    known = ranked_scores(source.rankings.before, q, source.settings.evaluation.mix)
    scores = [known.get(g, NO_SCORES) for g in compared_G.tolist()]
    if any(np.isnan(one.pair) for one in scores):
        computed = score(source.net, source.variables, images_nHWC, source.settings)
        scores = [new if np.isnan(one.pair) else one for one, new in zip(scores, computed, strict=True)]
    return scores


def draw_pair(settings: Experiment, net: CACENet, variables: Any, pair: Sequence[tuple[Subset, int]]) -> PairCase:
    """Draw all figures of a pair of images.

    Args:
        settings: settings of the experiment.
        net: a network with a pair stage.
        variables: parameters and batch statistics of the network.
        pair: subset and position of each of the two images.
    """
    images_2HWC = np.concatenate([read(settings, subset, np.array([place])) for subset, place in pair])
    (scores,) = score(net, variables, images_2HWC, settings)
    names = [record_name(subset, place) for subset, place in pair]
    first, second = (int(subset.pids[place]) for subset, place in pair)
    other = Compared(names[1], first == second if min(first, second) >= 0 else None, "", scores)
    views = Views(net, variables, images_2HWC, settings.evaluation.flip)
    together, reverse = views.compare(0, 1), views.compare(1, 0)
    lines = views.lines(0, 1, together, settings.visualization.lines, other)
    pixels_2HW3, drawn_maps = images_2HWC[..., :3], None
    lines_png = png(correspondences.figure(pixels_2HW3[0], [lines], views.grid, net.pair_title, names[0]))
    if together.norm_N is not None and reverse.norm_N is not None:
        given_2hw = np.stack([views.norm(together), views.norm(reverse)])
        drawn_maps = Drawn(
            *(png(maps.pair_figure(pixels_2HW3, views.own_nhw, given_2hw, names, scores, count)) for count in (4, 2))
        )
    return PairCase(names, pixels_2HW3, other.right, scores, drawn_maps, lines_png)


def read(settings: Experiment, subset: Subset, positions: Int[np.ndarray, "n"]) -> UInt8[np.ndarray, "n H W C"]:
    """Load images of a subset at the network's input size, with part labels as a fourth channel if needed."""
    some = subset._replace(indices=subset.indices[positions])
    size = {"height": settings.data.height, "width": settings.data.width, "batch_size": len(positions)}
    return next(evaluation_batches(some, **size, parts=settings.part_labels()))[0]


def compared(
    order_L: Int[np.ndarray, "L"],
    gallery_pids: Int[np.ndarray, "G"],
    gallery_camids: Int[np.ndarray, "G"],
    pid: int,
    camid: int,
    camera_filter: bool,
) -> Int[np.ndarray, "n"]:
    """Select the gallery images to compare with a query: correct matches first, then look-alikes.

    These are the two highest-ranked images of the query's identity and the highest-ranked image of each of the first
    three other identities. If the ranking contains no correct match, the first one in gallery order is used.

    Args:
        order_L: individual ranking of the query, padded with -1.
        gallery_pids: gallery identities.
        gallery_camids: gallery cameras.
        pid: identity of the query.
        camid: camera of the query.
        camera_filter: exclude gallery images of the query's identity taken by its camera.

    Returns:
        Indices of gallery images.
    """
    order_L = order_L[order_L >= 0]
    own_L = gallery_pids[order_L] == pid
    right = order_L[own_L][:_RIGHT]
    if not len(right):
        matches_G = (gallery_pids == pid) & ~(camera_filter & (gallery_camids == camid))
        right = np.flatnonzero(matches_G)[:1]
    others = order_L[~own_L]
    first = np.sort(np.unique(gallery_pids[others], return_index=True)[1])[:_WRONG]
    return np.concatenate([right, others[first]])


def _list(source: Source, q: int, name: str, ranking: RankedLists) -> ranked_lists.ShownList:
    first_L = ranking.order_QL[q, : source.settings.visualization.ranks]
    first_L = first_L[first_L >= 0]
    pictures = list(read(source.settings, source.gallery, first_L)[..., :3])
    right_L = source.gallery.pids[first_L] == source.query.pids[q]
    scores = ranked_scores(ranking, q, source.settings.evaluation.mix)
    names = [record_name(source.gallery, g) for g in first_L.tolist()]
    ap = float(ranking.statistics.ap[q])
    return ranked_lists.ShownList(name, ap, pictures, right_L, names, [scores[g] for g in first_L.tolist()])


def _rank(order_L: np.ndarray, image: int) -> str:
    places = np.flatnonzero(order_L == image)
    return str(places[0] + 1) if len(places) else f">{len(order_L)}"
