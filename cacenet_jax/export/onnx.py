"""Conversion of an export to ONNX, run as a separate process in its own environment (requirements-onnx.txt).

python -m cacenet_jax.export.onnx WORKDIR/export

The network is built from the manifest and weights in the folder, converted with jax2onnx, and run with ONNX Runtime on
the stored images. The files are added to the folder only if their outputs match the model's. No checkpoint and no data
are read.

The extractor has the input `images`; the pair scorer has the inputs `query.<term>` and `candidates.<term>`. Outputs
have the same names as in the other artefacts.

Legend: b, c symbolic numbers of images.
"""

import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from cacenet_jax import experiment
from cacenet_jax.distributed.progress import shown, track
from cacenet_jax.errors import UserError
from cacenet_jax.export import check
from cacenet_jax.export.folder import (
    DISTANCE,
    EXTRACTOR,
    ONNX,
    PAIR_SCORER,
    WEIGHTS,
    describe_file,
    place,
    read_check_values,
    read_manifest,
    scratch_folder,
)  # fmt: skip
from cacenet_jax.export.functions import EMBEDDING, Named, functions, general
from cacenet_jax.run.completion import from_dict

_PACKAGES = ("jax2onnx", "onnx", "onnxruntime", "jax", "flax")


_Job = tuple[Callable[..., Any], Named, tuple[str, ...]]  # function, inputs, names of outputs


def convert(folder: Path) -> list[str]:
    """Write extractor.onnx and, with a pair stage, pair_scorer.onnx to the folder of an export.

    Args:
        folder: export folder, WORKDIR/export.

    Returns:
        Names of the written files.

    Raises:
        UserError: the export is incomplete or in progress, a package is missing, the network has an unsupported compute
            dtype or operation, or the outputs of a file do not match the model's. No file is written in these cases.
    """
    _packages()
    manifest = read_manifest(folder)
    dtype = manifest["dtype"]
    if dtype != "float32":
        raise UserError(
            f"{folder}: found a network that computes in {dtype}, expected float32, as ONNX Runtime does on a CPU; export "
            "again with --config.model.dtype=float32"
        )
    settings = experiment.read(from_dict(manifest["config"], f"{folder}/manifest.json"))
    net = general(settings.network.build(manifest["num_identities"]))
    variables = unflatten_dict(load_file(folder / WEIGHTS), sep="/")
    network = functions(net, variables, settings.data.image_size, settings.evaluation.flip)
    values = read_check_values(folder)
    terms = network.terms
    outputs = (EMBEDDING, *terms)

    def extractor(images: Any) -> tuple:
        named = network.extractor(images)
        return tuple(named[name] for name in outputs)

    pair_distance: Any = network.pair_scorer

    def pair_scorer(*arrays: Any) -> Any:
        half = len(terms)
        return pair_distance(dict(zip(terms, arrays[:half])), dict(zip(terms, arrays[half:])))

    with scratch_folder(folder) as scratch:
        images = jax.ShapeDtypeStruct(("b", *network.image), jnp.uint8)
        jobs: dict[str, _Job] = {EXTRACTOR + ONNX: (extractor, {"images": images}, outputs)}
        if network.pair_scorer is not None:
            query = {f"query.{name}": jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in terms.items()}
            others = {f"candidates.{name}": jax.ShapeDtypeStruct(("c", *x.shape), x.dtype) for name, x in terms.items()}
            jobs[PAIR_SCORER + ONNX] = (pair_scorer, query | others, (DISTANCE,))
        files = {}
        for name, (function, inputs, names) in track(jobs.items(), "converting", len(jobs), "files"):
            _write(scratch / name, function, inputs, names)
            worst = _differences(scratch / name, _feed(values, terms), values, names, network.selections)
            size = (scratch / name).stat().st_size / 2**20
            print(f"{name}: {size:.1f} MiB; {check.summary(worst)}", flush=True)
            check.require(name, worst, dtype, network.selections)
            files[name] = describe_file(scratch / name) | {
                "inputs": _signatures(inputs), "outputs": list(names), "largest_difference": worst,
            }  # fmt: skip
        manifest["files"] |= files
        manifest["versions_onnx"] = {name: version(name) for name in _PACKAGES}
        place(scratch, folder, tuple(files), manifest, ())
    return list(files)


def _packages() -> None:
    """Raise UserError if a required package is missing."""
    for name in ("jax2onnx", "onnx", "onnxruntime"):
        if find_spec(name) is None:
            raise UserError(
                f"found an environment without {name}, expected that of requirements-onnx.txt; make it: python -m venv "
                ".venv_onnx && .venv_onnx/bin/pip install -r requirements-onnx.txt"
            )


def _write(path: Path, function: Callable, inputs: Mapping[str, Any], outputs: Sequence[str]) -> None:
    """Convert a function of arrays to an ONNX file, with the given names of inputs and outputs."""
    import onnx  # imported late, so that `_packages` can report a missing one
    import onnx_ir
    from jax2onnx import to_onnx
    from onnx_ir.passes.common import DeduplicateHashedInitializersPass

    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # raised by jax2onnx itself
            names = {"input_names": list(inputs), "output_names": list(outputs)}
            graph = onnx_ir.from_proto(to_onnx(function, list(inputs.values()), model_name=path.stem, **names))
        # The passes for an image and its mirror image use the same weights; store these once.
        proto = onnx_ir.to_proto(DeduplicateHashedInitializersPass()(graph).model)
    except Exception as error:  # converter plugins can fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{path.name}: found a network that jax2onnx {version('jax2onnx')} does not convert ({reason}), expected one "
            "that it does; use the .jaxexport files"
        ) from error
    del proto.graph.value_info[:]  # some have stale axes, from before the converter moved the channels
    onnx.save_model(proto, path)


def _feed(values: Mapping[str, np.ndarray], terms: Collection[str]) -> Callable[[int], dict[str, np.ndarray]]:
    """Return a function of n that gives the inputs of both files for the first n stored images."""

    def feed(n: int) -> dict[str, np.ndarray]:
        query, others = check.one(values, terms), check.first(values, terms, n)
        pairs = {f"query.{name}": x for name, x in query.items()} | {
            f"candidates.{name}": x for name, x in others.items()
        }
        return {"images": values["images"][:n]} | pairs

    return feed


def _differences(
    path: Path, feed: Callable, values: Mapping[str, np.ndarray], outputs: Sequence[str], selections: Collection[str]
) -> dict[str, float]:
    """Compare the outputs of ONNX Runtime with the stored values, for one image and for all images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    known = {x.name for x in session.get_inputs()}
    by_count = []
    for n in sorted({1, len(values["images"])}):
        given = {name: x for name, x in feed(n).items() if name in known}
        results = session.run(list(outputs), given)
        by_count.append(check.differences(dict(zip(outputs, results)), check.first(values, outputs, n), selections))
    return check.worst(*by_count)


def _signatures(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"shape": list(x.shape), "dtype": str(x.dtype)} for name, x in inputs.items()}


def main(arguments: Sequence[str]) -> int:
    """Run the conversion and return the exit code; a UserError prints one line and returns 2."""
    words = [word for word in arguments if word != "--debug"]
    try:
        if len(words) != 1:
            raise UserError(f"found {len(words)} arguments, expected the folder of an export, WORKDIR/export; name it")
        folder = Path(words[0])
        with shown():
            files = convert(folder)
    except UserError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    print(f"{folder}: {', '.join(files)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
