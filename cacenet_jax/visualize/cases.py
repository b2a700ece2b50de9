"""Figures of a single query: ranked lists, maps and correspondences."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, UInt8

from cacenet_jax.data.pipeline import evaluation_batches
from cacenet_jax.data.subsets import Subset
from cacenet_jax.experiment import Experiment
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.retrieval.rankings import RankedLists
from cacenet_jax.visualize import correspondences, maps, ranked_lists
from cacenet_jax.visualize.network import compare, cosine, look
from cacenet_jax.visualize.page import Case
from cacenet_jax.visualize.style import png

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
    pid, camid = int(query.pids[q]), int(query.camids[q])
    before_L, after_L = (ranking.order_QL[q] for ranking in (rankings.before, rankings.after))
    shown_lists = [_list(source, q, "individual", rankings.before), _list(source, q, rankings.name, rankings.after)]
    compared_G = compared(before_L, gallery.pids, gallery.camids, pid, camid, settings.evaluation.camera_filter)
    right_G = gallery.pids[compared_G] == pid
    captions = [f"rank {_rank(before_L, g)} \u2192 {_rank(after_L, g)}" for g in compared_G.tolist()]

    images_nHWC = np.concatenate([read(settings, query, np.array([q])), read(settings, gallery, compared_G)])
    query_HW3, gallery_GHW3 = images_nHWC[0, ..., :3], images_nHWC[1:, ..., :3]
    seen = look(source.net, source.variables, images_nHWC, settings.evaluation.flip)
    take = lambda i: jax.tree.map(lambda x: x[i], seen)
    one, *others = (take(i) for i in range(len(images_nHWC)))
    together = [compare(source.net, source.variables, one, other) for other in others]
    maps_nhwD = np.asarray(seen.maps_nhwD)
    grid = maps_nhwD.shape[1:3]

    maps_png = None
    if together[0].norm_N is not None:
        own_hw = np.linalg.norm(maps_nhwD[0], axis=-1)
        given_Ghw = np.stack([np.asarray(pair.norm_N).reshape(grid) for pair in together])
        maps_png = png(maps.figure(query_HW3, own_hw, gallery_GHW3, given_Ghw, right_G, captions))

    nodes_nND = maps_nhwD.reshape(len(maps_nhwD), -1, maps_nhwD.shape[-1])
    count = settings.visualization.lines
    pairs = []
    for g in (*np.flatnonzero(right_G)[:1], *np.flatnonzero(~right_G)[:2]):
        similar_NM = correspondences.most_similar(np.asarray(cosine(nodes_nND[0], nodes_nND[g + 1])))
        similar = correspondences.strongest(similar_NM, count, grid)
        learned = correspondences.strongest(np.asarray(together[g].correspondence_NM), count, grid)
        pairs.append(correspondences.ComparedPair(gallery_GHW3[g], bool(right_G[g]), captions[g], similar, learned))
    lines_png = png(correspondences.figure(query_HW3, pairs, grid, source.net.pair_title))
    lists_png = png(ranked_lists.figure(query_HW3, shown_lists))
    name = query.split.names[query.indices[q]]
    return Case(name, camid, query_HW3, shown_lists, grid, maps_png, lines_png, lists_png)


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
    return ranked_lists.ShownList(name, float(ranking.statistics.ap[q]), pictures, right_L)


def _rank(order_L: np.ndarray, image: int) -> str:
    places = np.flatnonzero(order_L == image)
    return str(places[0] + 1) if len(places) else f">{len(order_L)}"
