"""--mode=compare: distances of two images, the probability that they show one person, and a page that shows why."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from cacenet_jax import retriever
from cacenet_jax.data.images import ListedImages, batches
from cacenet_jax.decide import page
from cacenet_jax.errors import UserError, printable
from cacenet_jax.retrieval.calibration import PRIOR, RATE, Calibration, check_prior, per_cent
from cacenet_jax.retrieval.ranked_list import Comparison
from cacenet_jax.run.workdir import check_writable, write_file
from cacenet_jax.visualize import why
from cacenet_jax.visualize.document import document

UNCALIBRATED = (
    "This network is not calibrated, so the distances have no probability: a distance that means one person for one network "
    "and set of cameras means another for others. Calibrate it with --mode=calibrate, on the validation split of its run or "
    "on labelled photographs of your own (--images=MANIFEST.csv)."
)


def compare(
    config: ConfigDict | None, workdir: str, images: list[str], output: str | None, prior: float | None
) -> Comparison:
    """Compare two images and print the result.

    Args:
        config: config of the run in the workdir; None for an export or a published checkpoint.
        workdir: workdir, export folder or published checkpoint.
        images: paths of the two images.
        output: folder for compare.html, compare.json and correspondences.png; None writes nothing.
        prior: share of matching pairs among those that are asked about; that of the calibration if None.

    Raises:
        UserError: there are not two images, one cannot be read, there is no network, its calibration is one of another
            network, or the folder cannot be written.
    """
    if len(images) != 2:
        raise UserError(
            f"--mode=compare: found {len(images)} images, expected two; name them after the flags, A.jpg B.jpg"
        )
    if prior is not None:
        check_prior(prior)
    if jax.process_count() > 1:
        raise UserError(f"--mode=compare: found {jax.process_count()} processes, expected one; leave out --distributed")
    if output is not None:
        check_writable(Path(output).expanduser())
    reid = retriever.load(workdir, batch_size=2, config=config)
    comparison = reid.compare(images[0], images[1], prior)
    rows = table(comparison, reid.calibration, prior)
    names = [printable(image) for image in images]
    print("\n".join([*names, *_lines(rows), *verdict(comparison, reid.calibration, prior)]), flush=True)
    if output is None:
        print("--output=DIR writes a page that shows why", flush=True)
        return comparison
    folder = Path(output).expanduser()
    pixels = next(batches(ListedImages.of(images, "image"), reid.image_size, 2))
    seen = why.draw(reid, pixels)
    body = page.body(names, pixels, rows, verdict(comparison, reid.calibration, prior), seen)
    text = document(page.TITLE, body, page.STYLE)
    if seen.lines_png is not None:
        write_file(folder / "correspondences.png", seen.lines_png)
    numbers = {name: None if x is None or np.isnan(x) else x for name, x in dataclasses.asdict(comparison).items()}
    write_file(folder / "compare.json", json.dumps({"images": images, **numbers}, indent=2) + "\n")
    write_file(folder / "compare.html", text)
    print(f"{folder / 'compare.html'}: {len(text) / 1024:.0f} KiB, self-contained", flush=True)
    return comparison


def table(comparison: Comparison, calibration: Calibration | None, prior: float | None = None) -> list[page.Row]:
    """Return each distance with its probability and threshold, where they are known."""
    distances = {"individual": comparison.individual, "pair": comparison.pair, "mixed": comparison.mixed}
    if np.isnan(comparison.pair):
        distances = {"individual": comparison.individual}
    rows = []
    for kind, distance in distances.items():
        probability = threshold = None
        if calibration is not None and kind in calibration.curves:
            probability = float(calibration.probability(distance, kind, prior))
            curve = calibration.curves[kind]
            threshold = calibration.threshold(kind) if curve.rates[0] <= RATE else None
        rows.append(page.Row(kind, distance, probability, threshold))
    return rows


def verdict(comparison: Comparison, calibration: Calibration | None, prior: float | None = None) -> list[str]:
    """Return sentences on whether the images show one person, and on the data that they hold for."""
    if calibration is None or comparison.probability is None:
        return [UNCALIBRATED]
    prior = calibration.prior if prior is None else prior
    equal = "as many matching pairs as others" if prior == PRIOR else f"{100 * prior:g} % matching pairs"
    sentences = [f"Probability that both show one person: {per_cent(comparison.probability)}, given {equal}."]
    kind, distance = ("individual" if np.isnan(comparison.pair) else "mixed"), comparison.mixed
    if calibration.curve(kind).rates[0] <= RATE:
        threshold = calibration.threshold(kind)
        side = "below" if distance < threshold else "not below"
        answer = "they match" if distance < threshold else "they do not match"
        sentences.append(
            f"At one false match in {round(1 / RATE)} pairs of different people {answer}: the {kind} distance "
            f"{distance:.4f} is {side} {threshold:.4f}."
        )
    return [*sentences, calibration.caution()]


def _lines(rows: list[page.Row]) -> list[str]:
    lines = [f"{'':<10}  {'distance':>8}  {'probability':>11}  {'threshold':>9}"]
    for kind, distance, probability, threshold in rows:
        known = "-" if probability is None else per_cent(probability)
        limit = "-" if threshold is None else f"{threshold:.4f}"
        lines.append(f"{kind:<10}  {distance:>z8.4f}  {known:>11}  {limit:>9}")
    return lines
