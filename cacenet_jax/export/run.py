"""--mode=export: export of a checkpoint to WORKDIR/export, with every file checked before it is moved there."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from safetensors.numpy import save

from cacenet_jax import __version__, experiment
from cacenet_jax.errors import UserError
from cacenet_jax.experiment import Experiment
from cacenet_jax.export import check, jax_artefacts
from cacenet_jax.export.calibration import of_workdir
from cacenet_jax.export.folder import CHECK, DISTANCE, OURS, WEIGHTS, describe_file, place, scratch_folder
from cacenet_jax.export.functions import Functions, functions, general
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.models.pair_stages.conditional.alignment import NUM_LABELS
from cacenet_jax.run.choices import to_dict
from cacenet_jax.run.completion import complete
from cacenet_jax.run.fingerprint import of_network
from cacenet_jax.run.validation import validate
from cacenet_jax.train import load_network

_CONVERT = "python -m cacenet_jax.export.onnx"
_STRIPES = 4  # body parts in the check images, from top to bottom
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "safetensors")


def export(config: ConfigDict, workdir: str | Path) -> Path:
    """Write the extractor and pair scorer, their weights, check values and manifest.json.

    Args:
        config: config of the run; eval and export fields may differ.
        workdir: workdir with a checkpoint. No data set is needed.

    Returns:
        Path of the export folder, WORKDIR/export.

    Raises:
        UserError: a config value is invalid, there are several processes, the checkpoint is missing or does not match
            the config, the folder is not writable, another export to it is in progress, or an artefact differs from the
            model. Nothing is written in these cases, and an earlier export is kept.
    """
    workdir, config = Path(workdir).expanduser(), complete(config)
    validate(config)
    settings = experiment.read(config)
    platforms = jax_artefacts.parse_platforms(settings.export.platforms)
    if jax.process_count() > 1:
        raise UserError(f"--mode=export: found {jax.process_count()} processes, expected one; leave out --distributed")
    net, step, state = load_network(config, workdir)
    variables = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    folder = workdir / "export"
    evaluation, network = settings.evaluation, of_network(state)
    facts = {"step": step, "num_identities": net.num_identities, "network": network, "config": to_dict(config)}
    if (calibration := of_workdir(workdir, network, evaluation.mix, evaluation.flip)) is not None:
        facts["calibration"] = calibration.to_dict()
    with scratch_folder(folder) as scratch:
        _export(settings, net, variables, facts, platforms, scratch, folder)
    return folder


def _export(
    settings: Experiment,
    net: CACENet,
    variables: Any,
    facts: dict[str, Any],
    platforms: tuple[str, ...],
    scratch: Path,
    folder: Path,
) -> None:
    image_size, flip = settings.data.image_size, settings.evaluation.flip
    evaluated = functions(net, variables, image_size, flip)  # as in evaluation on this machine
    values = check_values(evaluated, settings.export.check_images)
    exported = functions(general(net), variables, image_size, flip)
    artefacts = jax_artefacts.write(scratch, exported, platforms, values)
    if exported.pair_scorer is None:
        print("no pair scorer: config.model.pair_stage is none", flush=True)
    for name, _, difference in artefacts:
        size = (scratch / name).stat().st_size / 2**20
        print(f"{name}: {size:.1f} MiB for {', '.join(platforms)}; {check.summary(difference)}", flush=True)
        check.require(name, difference, settings.network.dtype, exported.selections)
    flat = flatten_dict(variables, sep="/")
    # Written as bytes, because safetensors creates files that only their owner can read.
    (scratch / WEIGHTS).write_bytes(save({name: np.array(x, order="C") for name, x in flat.items()}))
    arrays: Any = values  # one keyword argument per array
    np.savez(scratch / CHECK, **arrays)
    more = {
        name: {"platforms": platforms, **signature, "largest_difference": difference}
        for name, signature, difference in artefacts
    }
    files = {name: describe_file(scratch / name) | more.get(name, {}) for name in (*more, WEIGHTS, CHECK)}
    manifest = describe_network(settings, net, evaluated) | {
        **facts,
        "versions": {"cacenet_jax": __version__, **{name: version(name) for name in _PACKAGES}},
        "files": files,
    }
    place(scratch, folder, tuple(files), manifest, OURS)
    print(f"{folder}: {', '.join(files)}, manifest.json; step {facts['step']}", flush=True)
    print(f"for ONNX, in an environment of requirements-onnx.txt: {_CONVERT} {folder}", flush=True)


def check_values(model: Functions, count: int) -> dict[str, np.ndarray]:
    """Generate random images and compute the model's outputs for them; the first image is the query of all pairs.

    Args:
        model: functions of the network as used in evaluation.
        count: number of images.

    Returns:
        Images, outputs of the extractor and distances, by name.
    """
    rng = np.random.default_rng(0)
    images_BHWC = rng.integers(0, 256, (count, *model.image), np.uint8)
    # Pure noise images all look alike to a network; random colour scales make them as different as real images.
    images_BHWC = (images_BHWC * rng.uniform(0.2, 1, (count, 1, 1, model.image[2]))).astype(np.uint8)
    stripes_H1 = np.arange(model.image[0])[:, None] * _STRIPES // model.image[0]
    labels_BHW = stripes_H1 + rng.integers(0, 2, (count, 1, 1))
    images_BHWC[..., 3:] = labels_BHW[..., None]  # body-part labels, if the network uses them
    values = {"images": images_BHWC, **jax.device_get(jax.jit(model.extractor)(images_BHWC))}
    if model.pair_scorer is not None:
        pairs = check.one(values, model.terms), check.first(values, model.terms, count)
        values[DISTANCE] = jax.device_get(jax.jit(model.pair_scorer)(*pairs))
    return values


def describe_network(settings: Experiment, net: CACENet, model: Functions) -> dict[str, Any]:
    """Return the manifest entries on images, embedding and distances, for users of the artefacts."""
    height, width, channels = model.image
    mean, std = ([round(255 * x, 6) for x in given] for given in (net.backbone.pixel_mean, net.backbone.pixel_std))
    labels = [f"body part of the pixel, 0 to {NUM_LABELS - 1}, 0 for none"][: channels - 3]
    return {
        "images": {
            "height": height,
            "width": width,
            "channels": ["red", "green", "blue", *labels],
            "dtype": "uint8",
            "resized": "the whole image, bilinear, whatever its proportions",
            "normalised": {"where": "inside the artefact", "mean": mean, "std": std},
            "averaged_with_mirror_image": settings.evaluation.flip,
        },
        "embedding": {"size": settings.network.embed_dim, "norm": 1},
        "distance": {
            "individual": "1 - embedding . embedding",
            "pair": settings.network.pair_stage if model.pair_scorer else None,
            "weight_of_pair_in_mixed": settings.evaluation.mix if model.pair_scorer else None,
        },
        "dtype": settings.network.dtype,
        "bound": check.BOUNDS[settings.network.dtype],
    }
