"""Serialisation of a network's functions with jax.export for several platforms, verified against the model.

Legend: b, c symbolic numbers of images.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export  # not part of `import jax`
import jax.numpy as jnp
import numpy as np

from cacenet_jax.distributed.progress import Progress
from cacenet_jax.errors import UserError
from cacenet_jax.export import check
from cacenet_jax.export.folder import DISTANCE, EXTRACTOR, JAX, PAIR_SCORER
from cacenet_jax.export.functions import EMBEDDING, Functions

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class Artefact(NamedTuple):
    """An artefact that was written, loaded again and run.

    Attributes:
        name: file name.
        signature: names, shapes and types of inputs and outputs, for the manifest.
        largest_difference: largest difference of each output from the model, from `check.differences`.
    """

    name: str
    signature: dict[str, Any]
    largest_difference: dict[str, float]


def parse_platforms(text: str) -> tuple[str, ...]:
    """Parse comma-separated platform names.

    Raises:
        UserError: unknown platform, or the current platform is not among them.
    """
    platforms = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise UserError(
            f"config.export.platforms: found {unknown[0]!r}, expected names of {', '.join(PLATFORMS)} with commas between; "
            "correct it"
        )
    here = jax.export.default_export_platform()
    if here not in platforms:
        raise UserError(
            f"config.export.platforms: found {text!r}, expected {here} among them: an artefact is checked where it is made; "
            f"add {here}"
        )
    return platforms


def write(
    folder: Path, functions: Functions, platforms: tuple[str, ...], values: dict[str, np.ndarray]
) -> list[Artefact]:
    """Write the artefacts of a network and compare them with the model; the caller checks the bounds.

    Args:
        folder: output folder.
        functions: functions of the network that suit all platforms.
        platforms: platforms to lower for, including the current one.
        values: check images and the model's outputs for them.
    """
    counts = sorted({1, len(values["images"])})
    artefacts = 1 if functions.pair_scorer is None else 2
    with Progress("exporting", artefacts * (1 + len(counts)), "compilations") as bar:
        return _write_all(folder, functions, platforms, values, counts, bar)


def _write_all(
    folder: Path,
    functions: Functions,
    platforms: tuple[str, ...],
    values: dict[str, np.ndarray],
    counts: list[int],
    bar: Progress,
) -> list[Artefact]:
    """Write the artefacts and compare them for each number of images."""
    (b,), (c,) = jax.export.symbolic_shape("b"), jax.export.symbolic_shape("c")
    images = jax.ShapeDtypeStruct((b, *functions.image), jnp.uint8)
    call = _write(folder / (EXTRACTOR + JAX), functions.extractor, (images,), platforms, bar)
    names = (EMBEDDING, *functions.terms)
    by_count = [
        check.differences(call(values["images"][:n]), check.first(values, names, n), functions.selections) for n in counts
    ]  # fmt: skip
    signature = {
        "inputs": {"images": _shape("b", images.shape[1:], images.dtype)},
        "outputs": {name: _shape("b", values[name].shape[1:], values[name].dtype) for name in names},
    }
    artefacts = [Artefact(EXTRACTOR + JAX, signature, check.worst(*by_count))]
    if functions.pair_scorer is None:
        return artefacts
    terms = functions.terms
    others = {name: jax.ShapeDtypeStruct((c, *x.shape), x.dtype) for name, x in terms.items()}
    call = _write(folder / (PAIR_SCORER + JAX), functions.pair_scorer, (terms, others), platforms, bar)
    score = lambda n: {DISTANCE: call(check.one(values, terms), check.first(values, terms, n))}
    by_count = [check.differences(score(n), check.first(values, [DISTANCE], n), functions.selections) for n in counts]
    signature = {
        "inputs": {
            "query": {name: _shape(None, x.shape, x.dtype) for name, x in terms.items()},
            "candidates": {name: _shape("c", x.shape, x.dtype) for name, x in terms.items()},
        },
        "outputs": {DISTANCE: _shape("c", (), values[DISTANCE].dtype)},
    }
    return [*artefacts, Artefact(PAIR_SCORER + JAX, signature, check.worst(*by_count))]


def _write(path: Path, function: Callable, arguments: tuple, platforms: tuple[str, ...], bar: Progress) -> Callable:
    """Export a function to a file and return the function loaded from it, whose calls count as progress too."""
    exported = jax.export.export(jax.jit(function), platforms=platforms)(*arguments)
    path.write_bytes(exported.serialize())
    bar.update()
    loaded = jax.export.deserialize(bytearray(path.read_bytes()))

    def call(*inputs: Any) -> Any:
        outputs = loaded.call(*inputs)
        bar.update()
        return outputs

    return call


def _shape(leading: str | None, shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
    return {"shape": [*([leading] if leading else []), *shape], "dtype": str(dtype)}


def load(path: Path) -> jax.export.Exported:
    """Load an artefact for the current platform.

    Raises:
        UserError: the artefact comes from an incompatible jax version or does not support the platform.
    """
    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # artefacts of other versions may fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path}: found an artefact that jax {jax.__version__} cannot read ({reason}), expected one of the last six "
            "months; run --mode=export again"
        ) from error
    platform = jax.export.default_export_platform()
    if platform not in exported.platforms:
        raise UserError(
            f"{path}: found an artefact for {', '.join(exported.platforms)}, expected one for {platform}; export again "
            f"with {platform} in --config.export.platforms, or set JAX_PLATFORMS"
        )
    return exported
