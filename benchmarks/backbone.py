"""Benchmark of a backbone: forward pass in test mode, forward and backward in training mode, in each implementation.

    python -m benchmarks.backbone --backbone=efficientnet_lite0 --batch=64 --height=128 --width=64

`fast` is the implementation for this device, `plain` XLA's own convolutions (the same on accelerators). Also prints
processor seconds, which other jobs on the machine disturb less. One core: `taskset -c 0` before the command.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import problem, timing
from cacenet_jax.models import backbones

FORMS = ("matmul_1x1", "cpu_stem", "cpu_depthwise")  # fields that change the speed alone


def passes(backbone: Any, images_BHWC: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Compile functions without arguments: the maps of a batch, and the gradient of their weighted mean."""
    x_BHWC = jnp.asarray(images_BHWC)
    variables = jax.jit(backbone.init)(jax.random.key(0), x_BHWC[:1])

    def loss(params: Any, others: Any, x_BHWC: jax.Array) -> jax.Array:
        given = {**others, "params": params}
        maps_BHWD, _ = backbone.apply(given, x_BHWC, train=True, mutable=["batch_stats"])
        return (maps_BHWD * jnp.linspace(-1, 1, maps_BHWD.shape[-1])).mean()

    # Images and variables are arguments: XLA would compute what depends on constants alone while it compiles.
    others = {name: tree for name, tree in variables.items() if name != "params"}
    forward_args, step_args = (variables, x_BHWC), (variables["params"], others, x_BHWC)
    forward = jax.jit(backbone.apply).lower(*forward_args).compile()
    step = jax.jit(jax.grad(loss)).lower(*step_args).compile()
    return {"forward": lambda: forward(*forward_args), "forward and backward": lambda: step(*step_args)}


def measure(size: problem.Size, repeats: int, plain: bool) -> dict[str, timing.Timed]:
    """Time each pass in the fast and, optionally, the plain implementation."""
    shared = {"dtype": jnp.dtype(size.dtype)}
    forms = {"fast": backbones.build(size.backbone, **shared)}
    if plain:
        fields = {field: False for field in FORMS if hasattr(forms["fast"], field)}
        forms["plain"] = backbones.build(size.backbone, **shared, **fields)
    shape = (size.batch, size.height, size.width, 3)
    images_BHWC = np.random.default_rng(0).standard_normal(shape, np.float32)
    functions = {
        f"{form}, {name}": run
        for form, backbone in forms.items()
        for name, run in passes(backbone, images_BHWC).items()
    }
    return timing.interleaved(functions, jax.block_until_ready, repeats=repeats, queue=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    problem.add_size(parser)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; %(default)s")
    parser.add_argument("--no-plain", dest="plain", action="store_false", help="leave out the plain form")
    args = parser.parse_args(argv)
    size = problem.size_of(args)
    print(f"{size}, {jax.default_backend()}")
    for name, timed in measure(size, args.repeats, args.plain).items():
        print(f"{name:28} {timed}, processor {1e3 * timed.cpu:.4g} ms")


if __name__ == "__main__":
    main()
