"""--mode=visualize: from the checkpoint of a workdir to WORKDIR/figures, the figures and one page.

The whole gallery is ranked as in the evaluation; maps are computed again for the few images that are shown.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from cacenet_jax import build
from cacenet_jax.data.builders import open_split
from cacenet_jax.data.pipeline import evaluation_batches
from cacenet_jax.data.splits import Subset, whole
from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.evaluate import RankedLists, ranked_lists
from cacenet_jax.scoring import describe
from cacenet_jax.train import load
from cacenet_jax.visualize import correspondences, maps, page
from cacenet_jax.visualize import ranked_lists as lists
from cacenet_jax.visualize.network import compare, cosine, look
from cacenet_jax.visualize.style import png

_RIGHT, _WRONG = 2, 3  # gallery images that figure 4 compares; the first of the right and two of the wrong in figure 5
_CROSS = {
    "attention": "correspondence attention",
    "individual": "no cross-image graph",
    "none": "no alignment",
    "part": "part alignment",
    "similarity": "top-K similarity",
    "full": "fully connected",
    "semantic": "semantic alignment",
}


class Rankings(NamedTuple):
    """The two rankings that are compared.

    Attributes:
        before: the individual one.
        after: the re-scored one.
        name: of the re-scored one.
    """

    before: RankedLists
    after: RankedLists
    name: str


def visualize(config: ConfigDict, workdir: str | Path) -> Path:
    """Writes figure4_*.png, figure5_*.png, figure6_*.png and report.html into WORKDIR/figures.

    Args:
        config: the config of the run; eval, visualize and the data set may differ.
        workdir: of a run that has a checkpoint.

    Returns:
        The page.

    Raises:
        UserError: a network without the pair stage, several processes, or as in `cacenet_jax.train.load`.
    """
    if not config.model.pairs:
        raise UserError(
            "config.model.pairs: found False, expected True: the figures show what a network makes of two images together; "
            "name the workdir and the config of a network with the pair stage"
        )
    if jax.process_count() > 1:
        raise UserError(
            f"--mode=visualize: found {jax.process_count()} processes, expected one; leave out --distributed"
        )
    trained = load(config, workdir)
    query, gallery = (whole(open_split(trained.prepared, split)) for split in ("query", "gallery"))
    shown, wanted = config.visualize, max(config.visualize.ranks, config.eval.top_k)
    found = ranked_lists(*describe(config, trained.net, trained.state, query, gallery), wanted)
    name = "mixed" if config.eval.mix > 0 else "conditional"
    rankings = Rankings(found["individual"], found[name], name)
    chosen, change = lists.changed(rankings.before.statistics.ap, rankings.after.statistics.ap, shown.num_queries)
    folder = Path(workdir) / "figures"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("figure[456]_*.png"):
        old.unlink()
    variables = jax.device_get({"params": trained.state.params, "batch_stats": trained.state.batch_stats})
    cases = []
    for number, q in enumerate(chosen.tolist(), start=1):
        case = draw(config, trained.net, variables, query, gallery, rankings, q)
        for kind, data in ((4, case.maps_png), (5, case.lines_png), (6, case.lists_png)):
            if data is not None:
                (folder / f"figure{kind}_{number}.png").write_bytes(data)
        cases.append(case)
    path = folder / "report.html"
    path.write_text(page.html(cases, change, _facts(config, trained.step, name), _results(Path(workdir))), "utf-8")
    count = len(list(folder.glob("figure[456]_*.png")))
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB, self-contained; beside it {count} figures as PNG", flush=True)
    return path


def draw(
    config: ConfigDict, net: Any, variables: Any, query: Subset, gallery: Subset, rankings: Rankings, q: int
) -> page.Case:
    """All figures of one query.

    Args:
        config: data, eval.flip and visualize are read.
        net: the network.
        variables: its parameters and statistics.
        query: query images.
        gallery: gallery images.
        rankings: of all queries.
        q: which query.
    """
    shown, pid, camid = config.visualize, int(query.pids[q]), int(query.camids[q])
    orders = [ranking.order_QL[q] for ranking in (rankings.before, rankings.after)]
    names = ("individual", rankings.name)
    shown_lists = []
    for name, order_L, ranking in zip(names, orders, rankings[:2]):
        first_L = order_L[: shown.ranks]
        first_L = first_L[first_L >= 0]
        pictures = list(read(config, gallery, first_L)[..., :3])
        shown_lists.append(
            lists.ShownList(name, float(ranking.statistics.ap[q]), pictures, gallery.pids[first_L] == pid)
        )
    compared_G = compared(orders[0], gallery.pids, gallery.camids, pid, camid, config.eval.camera_filter)
    right_G = gallery.pids[compared_G] == pid
    captions = [f"rank {_rank(orders[0], g)} \u2192 {_rank(orders[1], g)}" for g in compared_G.tolist()]

    query_HWC, gallery_GHWC = read(config, query, np.array([q]))[0], read(config, gallery, compared_G)
    seen = look(net, variables, np.concatenate([query_HWC[None], gallery_GHWC]), config.eval.flip)
    one = lambda i: jax.tree.map(lambda x: x[i], seen.terms)
    together = [compare(net, variables, one(0), one(g + 1)) for g in range(len(compared_G))]
    query_HW3, gallery_GHW3 = query_HWC[..., :3], gallery_GHWC[..., :3]
    grid, maps_nhwD = seen.maps_nhwD.shape[1:3], seen.maps_nhwD

    maps_png = None
    if together[0].norm_N is not None:
        own_hw = np.linalg.norm(maps_nhwD[0], axis=-1)
        given_Ghw = np.stack([np.asarray(pair.norm_N).reshape(grid) for pair in together])
        maps_png = png(maps.figure(query_HW3, own_hw, gallery_GHW3, given_Ghw, right_G, captions))

    nodes_nND = np.asarray(maps_nhwD).reshape(len(maps_nhwD), -1, maps_nhwD.shape[-1])
    of_figure_5 = [*np.flatnonzero(right_G)[:1], *np.flatnonzero(~right_G)[:2]]
    pairs = [
        correspondences.ComparedPair(
            gallery_GHW3[g], bool(right_G[g]), captions[g],
            correspondences.strongest(
                correspondences.most_similar(np.asarray(cosine(nodes_nND[0], nodes_nND[g + 1]))), shown.lines, grid
            ),
            correspondences.strongest(np.asarray(together[g].cross_NM), shown.lines, grid),
        )
        for g in of_figure_5
    ]  # fmt: skip
    lines_png = png(correspondences.figure(query_HW3, pairs, grid, learned_name(config)))
    lists_png = png(lists.figure(query_HW3, shown_lists))
    name = query.split.names[query.indices[q]]
    return page.Case(name, camid, query_HW3, shown_lists, grid, maps_png, lines_png, lists_png)


def read(config: ConfigDict, subset: Subset, positions: Int[np.ndarray, "n"]) -> UInt8[np.ndarray, "n H W C"]:
    """Images of a subset at the network's size, with part labels as a fourth channel where the network needs them."""
    some = subset._replace(indices=subset.indices[positions])
    size = {"height": config.data.height, "width": config.data.width, "batch_size": len(positions)}
    return next(evaluation_batches(some, **size, parts=build.part_labels(config)))[0]


def compared(
    order_L: Int[np.ndarray, "L"],
    gallery_pids: Int[np.ndarray, "G"],
    gallery_camids: Int[np.ndarray, "G"],
    pid: int,
    camid: int,
    camera_filter: bool,
) -> Int[np.ndarray, "n"]:
    """Gallery images that a query is looked at together with: the best ranked of its person, then look-alikes.

    Two of the query's person, and the best ranked image of each of the three other people that come first. Where the list
    holds none of its person, the first of the gallery stands in.

    Args:
        order_L: the query's individual ranking, -1 past its end.
        gallery_pids: identities.
        gallery_camids: cameras.
        pid: the query's identity.
        camid: the query's camera.
        camera_filter: whether images of its person by its camera are left out.
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


def learned_name(config: ConfigDict) -> str:
    """What figure 5 calls the network's own correspondences."""
    return "key-point pairs" if config.model.pair_score == "keypoints" else _CROSS[config.model.alignment]


def _rank(order_L: np.ndarray, image: int) -> str:
    places = np.flatnonzero(order_L == image)
    return str(places[0] + 1) if len(places) else f">{len(order_L)}"


def _facts(config: ConfigDict, step: int, ranking: str) -> page.Facts:
    how = f"{config.eval.mix:g} of the pair distance" if ranking == "mixed" else "the pair distance alone"
    learned = learned_name(config)
    return page.Facts(config.data.name, step, ranking, how, config.eval.top_k, config.eval.camera_filter, learned)


def _results(workdir: Path) -> dict[str, Any] | None:
    """What the last evaluation wrote; None where there was none."""
    try:
        return json.loads((workdir / "results.json").read_text())
    except (OSError, ValueError):
        return None
