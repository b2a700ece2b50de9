"""--mode=visualize: figures and an HTML report from the checkpoint of a workdir, written to WORKDIR/figures.

The full gallery is ranked as in the evaluation. Maps are recomputed only for the images shown.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from cacenet_jax.config import NO_PAIR_STAGE
from cacenet_jax.data.builders import open_split
from cacenet_jax.data.json_files import number
from cacenet_jax.data.subsets import Subset, all_records
from cacenet_jax.distributed.progress import track
from cacenet_jax.errors import UserError
from cacenet_jax.experiment import Experiment, Visualization
from cacenet_jax.run.fingerprint import matching_results, of_data, of_network
from cacenet_jax.run.workdir import recorded_data, write_file
from cacenet_jax.train import load
from cacenet_jax.visualize import page
from cacenet_jax.visualize.browse import rank
from cacenet_jax.visualize.cases import Rankings, Source, draw, draw_pair
from cacenet_jax.visualize.chosen import chosen_pair, chosen_queries
from cacenet_jax.visualize.curves import figure, read_curves
from cacenet_jax.visualize.ranked_lists import changed
from cacenet_jax.visualize.style import png


def visualize(config: ConfigDict, workdir: str | Path) -> Path:
    """Write figure4_*.png, figure5_*.png, figure6_*.png, curves.png and report.html to WORKDIR/figures.

    With a chosen pair and no chosen queries, no query is drawn and the gallery is not ranked.

    Args:
        config: config of the run. The eval and visualize fields and the data set may differ from those of the training.
        workdir: workdir with a checkpoint.

    Returns:
        Path of report.html.

    Raises:
        UserError: the network has no pair stage, config.eval.data is set, a chosen image does not exist, the figures
            folder is not writable, there are several processes, or `cacenet_jax.train.load` raises it.
    """
    if config.model.pair_stage == NO_PAIR_STAGE:
        raise UserError(
            "config.model.pair_stage: found none, expected a pair stage: the figures compare two images by it; name the "
            "workdir of a network that has one"
        )
    if config.eval.data:
        raise UserError(
            f"config.eval.data: found {config.eval.data!r}, expected none: --mode=visualize shows the data of the run; "
            "leave it out"
        )
    if jax.process_count() > 1:
        raise UserError(
            f"--mode=visualize: found {jax.process_count()} processes, expected one; leave out --distributed"
        )
    trained = load(config, workdir)
    settings, workdir = trained.settings, Path(workdir).expanduser()
    query, gallery = (all_records(open_split(trained.prepared, split)) for split in ("query", "gallery"))
    chosen_Q, pair = _chosen(settings.visualization, query, gallery)
    folder = _folder(workdir)
    variables = jax.device_get({"params": trained.state.params, "batch_stats": trained.state.batch_stats})
    pair_case = None if pair is None else draw_pair(settings, trained.net, variables, pair)
    name = "mixed" if settings.evaluation.mix > 0 else "conditional"
    cases, change = [], None
    if pair is None or chosen_Q is not None:
        *_, lists = rank(trained, max(settings.visualization.ranks, settings.evaluation.top_k))
        rankings = Rankings(lists["individual"], lists[name], name)
        before, after = rankings.before.statistics.ap, rankings.after.statistics.ap
        changed_Q, change = changed(before, after, settings.visualization.num_queries)
        shown_Q = changed_Q if chosen_Q is None else chosen_Q
        source = Source(settings, trained.net, variables, query, gallery, rankings)
        cases = [draw(source, q) for q in track(shown_Q.tolist(), "drawing", len(shown_Q), "queries")]
    curves = _curves(workdir, settings)

    for old in (*folder.glob("figure[456]_*.png"), *folder.glob("curves.png")):
        old.unlink()
    pictures = _pictures(cases, pair_case, curves)
    for picture, data in pictures.items():
        write_file(folder / picture, data)
    path = folder / "report.html"
    results = matching_results(workdir, of_data(trained.prepared), of_network(trained.state))
    facts = _facts(settings, trained.step, name, len(gallery.indices), trained.net.pair_title)
    write_file(path, page.html(cases, change, facts, results, curves, pair_case, chosen_Q is not None))
    size = path.stat().st_size / 1024
    print(f"{path}: {size:.0f} KiB, self-contained; beside it {len(pictures)} figures as PNG", flush=True)
    return path


def _chosen(
    shown: Visualization, query: Subset, gallery: Subset
) -> tuple[Int[np.ndarray, "n"] | None, tuple[tuple[Subset, int], ...] | None]:
    """Return the queries and the pair of images that the user chose by name; None for what was not chosen.

    Raises:
        UserError: names are wrong; one line for each field.
    """
    subsets = {"query": query, "gallery": gallery}
    names = [[subset.split.names[i] for i in subset.indices] for subset in subsets.values()]
    mistakes: list[str] = []
    chosen_Q, pair = None, None
    try:
        chosen_Q = chosen_queries(shown.queries, *names) if shown.queries.strip(" ,") else None
    except UserError as error:
        mistakes.append(str(error))
    try:
        if shown.pair:
            pair = tuple((subsets[place.split], place.position) for place in chosen_pair(shown.pair, *names))
    except UserError as error:
        mistakes.append(str(error))
    if mistakes:
        raise UserError("\n".join(mistakes))
    return chosen_Q, pair


def _curves(workdir: Path, settings: Experiment) -> page.Drawn | None:
    """Draw the learning curves of a workdir, for a wide and for a narrow screen; None if it has none."""
    curves = read_curves(workdir / "metrics.jsonl")
    if not curves:
        return None
    images = number((recorded_data(workdir) or {}).get("images"))  # an imported network has none
    steps = max(int(images) // settings.data.batch_size, 1) if images else None
    return page.Drawn(*(png(figure(curves, steps, columns)) for columns in (2, 1)))


def _pictures(cases: Sequence[page.Case], pair: page.PairCase | None, curves: page.Drawn | None) -> dict[str, bytes]:
    """Return all figures as PNG, by file name."""
    drawn = {
        f"figure{kind}_{number}.png": data
        for number, case in enumerate(cases, start=1)
        for kind, data in ((4, case.maps and case.maps.png), (5, case.lines.png), (6, case.lists_png))
    }
    if pair is not None:
        drawn |= {"figure4_pair.png": pair.maps and pair.maps.png, "figure5_pair.png": pair.lines_png}
    drawn["curves.png"] = curves and curves.png
    return {name: data for name, data in drawn.items() if data is not None}


def _facts(settings: Experiment, step: int, ranking: str, num_gallery: int, title: str) -> page.Facts:
    evaluation = settings.evaluation
    distance = "how much the two differ when looked at together"
    if ranking == "mixed":
        distance = f"the individual distance and, with weight {evaluation.mix:g}, {distance}"
    top_k = min(evaluation.top_k, num_gallery)
    return page.Facts(settings.data.name, step, ranking, distance, top_k, evaluation.camera_filter, title)


def _folder(workdir: Path) -> Path:
    """Create the figures folder and check that it is writable, before the expensive ranking."""
    folder = workdir / "figures"
    try:
        folder.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        obstacle = f"no folder that can be written ({error.strerror})"
        raise UserError(
            f"{folder}: found {obstacle}, expected one; move away what is there, or make it writable"
        ) from error
    return folder
