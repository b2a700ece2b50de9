"""A trained network as functions for inference, loaded from a workdir, an export or a published checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from cacenet_jax.errors import UserError
from cacenet_jax.experiment import Experiment
from cacenet_jax.export import jax_artefacts
from cacenet_jax.export.folder import EXTRACTOR, JAX, MANIFEST, PAIR_SCORER, WEIGHTS, read_manifest
from cacenet_jax.models.cacenet import CACENet, Described
from cacenet_jax.models.scoring import scoring
from cacenet_jax.pretrained.sources import HUB, PACKAGE


class Inference(NamedTuple):
    """A trained network and its retrieval settings.

    Attributes:
        describe: function from `variables` and uint8 images (n, H, W, 3) to features.
        variables: first argument of `describe`, a tree of arrays.
        distance: function from `constants`, the terms of one image and the terms of C other images to C distances; None
            without a pair stage.
        constants: first argument of `distance`, a tree of arrays.
        image_size: (H, W).
        top_k: K.
        mix: weight of the pair distance.
        batch_size: number of images per batch.
        memory_gib: host memory for the terms, in GiB; larger terms are stored in temporary files.
        flip: True if the features of an image and its mirror image are averaged.
        fingerprint: hash of the weights, the same for a workdir and its export.
        net: the network, whose weights are `variables[0]`; None for an export, which holds functions alone.
    """

    describe: Callable[[Any, Any], Described]
    variables: Any
    distance: Callable[[Any, Any, Any], Any] | None
    constants: Any
    image_size: tuple[int, int]
    top_k: int
    mix: float
    batch_size: int
    memory_gib: float
    flip: bool
    fingerprint: str
    net: CACENet | None


def load_inference(place: str, config: ConfigDict | None = None) -> Inference:
    """Load a trained network.

    Args:
        place: workdir of a run with a checkpoint, folder of an export, or a published checkpoint.
        config: config of the run in a workdir, with other values of config.eval; None for the recorded one.

    Raises:
        UserError: there is none of these, its files are inconsistent, the artefacts do not support this platform, the
            network needs part labels, or the checkpoint is of no known kind.
    """
    folder = Path(place).expanduser()
    if folder.is_file() or place.startswith((HUB, PACKAGE)):
        return _from_published(place)
    if (folder / "config.json").is_file():
        return _from_workdir(folder, config)
    if (folder / MANIFEST).is_file():
        return _from_export(folder)
    state = "a folder without config.json or manifest.json" if folder.is_dir() else "no folder"
    raise UserError(
        f"{place}: found {state}, expected the workdir of a run, the folder of an export or a published checkpoint; train "
        "one with --mode=train, or correct the path"
    )


def _from_workdir(folder: Path, config: ConfigDict | None) -> Inference:
    """Load the checkpoint of a run with the settings of its config.json, or of `config`."""
    # Imported here because loading an export needs neither checkpoints nor the data-set readers.
    from cacenet_jax import experiment
    from cacenet_jax.run.completion import complete, read_config
    from cacenet_jax.train import load_network

    config = read_config(folder, "workdir") if config is None else complete(config)
    config.devices = 0  # all devices of this machine, not the number used in training
    net, _, state = load_network(config, folder)
    _check_channels(net.image_channels, folder)
    return _with_settings(net, {"params": state.params, "batch_stats": state.batch_stats}, experiment.read(config))


def _from_published(source: str) -> Inference:
    """Load a published checkpoint with the settings of the packaged config of its kind."""
    from cacenet_jax import experiment
    from cacenet_jax.pretrained.reading import read
    from cacenet_jax.pretrained.sources import locate
    from cacenet_jax.run.import_checkpoint import load_published
    from cacenet_jax.run.published import config_of

    arrays = read(locate(source))
    settings = experiment.read(config_of(arrays, source))
    net, variables = load_published(settings.network, arrays, source)
    return _with_settings(net, variables, settings)


def _with_settings(net: CACENet, variables: Any, settings: Experiment) -> Inference:
    """Combine a network, its variables and its retrieval settings."""
    from cacenet_jax.run.fingerprint import of_weights

    evaluation = settings.evaluation
    functions = scoring(net, evaluation.flip, evaluation.map_dtype)
    constants = functions.compose(variables) if functions.compose else None
    return Inference(
        functions.describe, (variables, constants), functions.distance, constants, settings.data.image_size,
        evaluation.top_k, evaluation.mix, evaluation.batch_size, evaluation.memory_gib, evaluation.flip,
        of_weights(variables), net,
    )  # fmt: skip


def _from_export(folder: Path) -> Inference:
    """Load the artefacts of an export with the settings of its manifest."""
    manifest = read_manifest(folder)
    images, settings = manifest["images"], manifest["config"]["eval"]
    _check_channels(len(images["channels"]), folder)
    extractor = jax_artefacts.load(folder / (EXTRACTOR + JAX))
    has_pairs = PAIR_SCORER + JAX in manifest["files"]
    scorer = jax_artefacts.load(folder / (PAIR_SCORER + JAX)) if has_pairs else None

    def describe(variables: Any, images: jax.Array) -> Described:
        terms = dict(extractor.call(images))
        return Described(terms.pop("embedding"), terms if has_pairs else None)

    distance = None if scorer is None else lambda constants, one, others: scorer.call(one, others)
    size = (images["height"], images["width"])
    # Exports of earlier versions do not record the network; the hash of their weights file stands for it.
    fingerprint = manifest.get("network") or manifest["files"][WEIGHTS]["sha256"]
    return Inference(
        describe, None, distance, None, size, settings["top_k"], settings["mix"], settings["batch_size"],
        settings["memory_gib"], settings["flip"], fingerprint, None,
    )  # fmt: skip


def _check_channels(channels: int, folder: Path) -> None:
    """Raise UserError if the network needs a fourth input channel."""
    if channels != 3:
        raise UserError(
            f"{folder}: found a network of {channels} channels, which reads the body part of each pixel (semantic "
            "alignment), expected one of colours alone; evaluate it on a data set with part labels, or load another"
        )
