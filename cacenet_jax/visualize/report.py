"""--mode=visualize: figures and an HTML report from the checkpoint of a workdir, written to WORKDIR/figures.

The full gallery is ranked as in the evaluation. Maps are recomputed only for the images shown.
"""

import tempfile
from pathlib import Path

import jax
from ml_collections import ConfigDict

from cacenet_jax.config import NO_PAIR_STAGE
from cacenet_jax.distributed.progress import track
from cacenet_jax.errors import UserError
from cacenet_jax.experiment import Experiment
from cacenet_jax.run.fingerprint import matching_results, of_data, of_network
from cacenet_jax.run.workdir import write_file
from cacenet_jax.train import load
from cacenet_jax.visualize import page
from cacenet_jax.visualize.browse import rank
from cacenet_jax.visualize.cases import Rankings, Source, draw
from cacenet_jax.visualize.ranked_lists import changed


def visualize(config: ConfigDict, workdir: str | Path) -> Path:
    """Write figure4_*.png, figure5_*.png, figure6_*.png and report.html to WORKDIR/figures.

    Args:
        config: config of the run. The eval and visualize fields and the data set may differ from those of the training.
        workdir: workdir with a checkpoint.

    Returns:
        Path of report.html.

    Raises:
        UserError: the network has no pair stage, config.eval.data is set, the figures folder is not writable, there are
            several processes, or `cacenet_jax.train.load` raises it.
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
    folder = _folder(workdir)
    _, query, gallery, lists = rank(trained, max(settings.visualization.ranks, settings.evaluation.top_k))
    name = "mixed" if settings.evaluation.mix > 0 else "conditional"
    rankings = Rankings(lists["individual"], lists[name], name)
    before, after = rankings.before.statistics.ap, rankings.after.statistics.ap
    chosen, change = changed(before, after, settings.visualization.num_queries)
    variables = jax.device_get({"params": trained.state.params, "batch_stats": trained.state.batch_stats})
    source = Source(settings, trained.net, variables, query, gallery, rankings)
    cases = [draw(source, q) for q in track(chosen.tolist(), "drawing", len(chosen), "queries")]

    for old in folder.glob("figure[456]_*.png"):
        old.unlink()
    pictures = {
        f"figure{kind}_{number}.png": data
        for number, case in enumerate(cases, start=1)
        for kind, data in ((4, case.maps_png), (5, case.lines_png), (6, case.lists_png))
        if data is not None
    }
    for picture, data in pictures.items():
        write_file(folder / picture, data)
    path = folder / "report.html"
    results = matching_results(workdir, of_data(trained.prepared), of_network(trained.state))
    facts = _facts(settings, trained.step, name, len(gallery.indices), trained.net.pair_title)
    write_file(path, page.html(cases, change, facts, results))
    size = path.stat().st_size / 1024
    print(f"{path}: {size:.0f} KiB, self-contained; beside it {len(pictures)} figures as PNG", flush=True)
    return path


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
