"""Ranked lists of individual queries, for notebooks.

Legend: L length of a ranked list.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from cacenet_jax.data.builders import open_split
from cacenet_jax.data.subsets import Subset, all_records
from cacenet_jax.errors import UserError
from cacenet_jax.evaluate import describe
from cacenet_jax.experiment import Experiment
from cacenet_jax.retrieval.rankings import RankedLists, ranked_lists
from cacenet_jax.train import Trained
from cacenet_jax.visualize.cases import read, record_name
from cacenet_jax.visualize.ranked_lists import ShownList, figure
from cacenet_jax.visualize.scores import ranked_scores


class Ranked(NamedTuple):
    """Rankings of the gallery for every query of a test split.

    Attributes:
        settings: experiment settings.
        query: query images.
        gallery: gallery images.
        lists: ranked lists by name: "individual" and, with a pair stage, "conditional" and "mixed".
    """

    settings: Experiment
    query: Subset
    gallery: Subset
    lists: Mapping[str, RankedLists]


def rank(trained: Trained, length: int = 10) -> Ranked:
    """Rank the gallery of the test split for every query, as in the evaluation.

    Args:
        trained: network and data, from `cacenet_jax.train.load`.
        length: L, length of the ranked lists.
    """
    query, gallery = (all_records(open_split(trained.prepared, split)) for split in ("query", "gallery"))
    lists = ranked_lists(*describe(trained.settings, trained.net, trained.state, query, gallery), length)
    return Ranked(trained.settings, query, gallery, lists)


def ranked_list(ranked: Ranked, query: int, *names: str) -> Figure:
    """Draw a query and its ranked lists as in figure 6.

    Args:
        ranked: result of `rank`.
        query: index of the query, starting at 0.
        *names: names of rankings; all rankings if omitted.

    Raises:
        UserError: the query or ranking does not exist.
    """
    count, known = len(ranked.query.pids), tuple(ranked.lists)
    if not 0 <= query < count:
        raise UserError(f"query: found {query}, expected 0 to {count - 1}; choose one of the {count} queries")
    for name in names:
        if name not in known:
            raise UserError(f"ranking: found {name!r}, expected one of {', '.join(known)}; choose one of them")
    shown = []
    for name in names or known:
        ranking = ranked.lists[name]
        order_L = ranking.order_QL[query]
        order_L = order_L[order_L >= 0]
        right_L = ranked.gallery.pids[order_L] == ranked.query.pids[query]
        pictures = list(read(ranked.settings, ranked.gallery, order_L)[..., :3])
        scores = ranked_scores(ranking, query, ranked.settings.evaluation.mix)
        shown.append(
            ShownList(
                name, float(ranking.statistics.ap[query]), pictures, right_L,
                [record_name(ranked.gallery, g) for g in order_L.tolist()], [scores[g] for g in order_L.tolist()],
            )
        )  # fmt: skip
    picture_HW3 = read(ranked.settings, ranked.query, np.array([query]))[0, ..., :3]
    return figure(picture_HW3, shown, record_name(ranked.query, query))
