"""The ranked list of any query of a trained network, for notebooks.

Legend: L places of a list.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from cacenet_jax.data.builders import open_split
from cacenet_jax.data.subsets import Subset, all_records
from cacenet_jax.errors import UserError
from cacenet_jax.evaluate import describe
from cacenet_jax.retrieval.rankings import RankedLists, ranked_lists
from cacenet_jax.train import Trained, load
from cacenet_jax.visualize.cases import read
from cacenet_jax.visualize.ranked_lists import ShownList, figure


class Ranked(NamedTuple):
    """The test split of a data set, ranked.

    Attributes:
        config: data and model are read.
        query: query images.
        gallery: gallery images.
        lists: by name, "individual" and, with the pair stage, "conditional" and "mixed".
    """

    config: ConfigDict
    query: Subset
    gallery: Subset
    lists: Mapping[str, RankedLists]


def rank(config: ConfigDict, workdir: str | Path, length: int = 10) -> Ranked:
    """Ranks the gallery for every query by the network in a workdir, as the evaluation does.

    Args:
        config: the config of the run; eval and the data set may differ.
        workdir: of a run that has a checkpoint.
        length: L.

    Raises:
        UserError: as `cacenet_jax.train.load`.
    """
    return rank_by(config, load(config, workdir), length)


def rank_by(config: ConfigDict, trained: Trained, length: int) -> Ranked:
    """`rank` by a network that is loaded."""
    query, gallery = (all_records(open_split(trained.prepared, split)) for split in ("query", "gallery"))
    lists = ranked_lists(*describe(config, trained.net, trained.state, query, gallery), length)
    return Ranked(config, query, gallery, lists)


def ranked_list(ranked: Ranked, query: int, *names: str) -> Figure:
    """The query and the first places of its lists, as figure 6 draws them.

    Args:
        ranked: what `rank` gives.
        query: position among the queries, from 0.
        names: of rankings; all that there are where none is given.

    Raises:
        UserError: no such query or ranking.
    """
    count, known = len(ranked.query.pids), tuple(ranked.lists)
    if not 0 <= query < count:
        raise UserError(f"query: found {query}, expected 0 to {count - 1}; choose one of the {count} queries")
    for name in names:
        if name not in known:
            raise UserError(f"ranking: found {name!r}, expected one of {', '.join(known)}; choose one of them")
    shown = []
    for name in names or known:
        found = ranked.lists[name]
        order_L = found.order_QL[query]
        order_L = order_L[order_L >= 0]
        right_L = ranked.gallery.pids[order_L] == ranked.query.pids[query]
        pictures = list(read(ranked.config, ranked.gallery, order_L)[..., :3])
        shown.append(ShownList(name, float(found.statistics.ap[query]), pictures, right_L))
    return figure(read(ranked.config, ranked.query, np.array([query]))[0, ..., :3], shown)
