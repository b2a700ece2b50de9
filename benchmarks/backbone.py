"""Benchmark of a backbone: forward pass in test mode, forward and backward in training mode, in each implementation.

    python -m benchmarks.backbone --backbone=efficientnet_lite0 --batch=64 --height=128 --width=64

`fast` is the implementation for this device, `plain` XLA's own convolutions (the same on accelerators). Also prints
processor seconds, which other jobs on the machine disturb less. One core: `taskset -c 0` before the command.
`--torch` measures an OSNet in PyTorch too, in its layout for CPUs (channels last), by the network of
tests/golden/make_osnet.py.
"""

import argparse
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import problem, timing
from cacenet_jax.models import backbones

TORCH_NETWORKS = Path(__file__).parents[1] / "tests/golden/make_osnet.py"
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


def torch_passes(name: str, images_BHWC: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return the same passes of torchreid's OSNet in PyTorch, float32 and channels last."""
    import torch

    network = runpy.run_path(str(TORCH_NETWORKS))["published_network"](name).float()
    network = network.to(memory_format=torch.channels_last)
    x_BCHW = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def last_map() -> Any:
        outputs = network(x_BCHW)
        return outputs["conv5"] if isinstance(outputs, dict) else outputs

    def forward() -> np.ndarray:
        network.eval()
        with torch.no_grad():
            return last_map().numpy()

    def step() -> np.ndarray:
        network.train()
        network.zero_grad()
        maps_BDHW = last_map()
        weights_D11 = torch.linspace(-1, 1, maps_BDHW.shape[1])[:, None, None]
        (maps_BDHW * weights_D11).mean().backward()
        return np.stack([parameter.grad.sum().item() for parameter in network.parameters()])

    return {"forward": forward, "forward and backward": step}


def measure(size: problem.Size, repeats: int, plain: bool, beside_torch: bool = False) -> dict[str, timing.Timed]:
    """Time each pass in the fast and, optionally, the plain implementation and PyTorch's."""
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
    if beside_torch:
        functions |= {f"PyTorch, {name}": run for name, run in torch_passes(size.backbone, images_BHWC).items()}
    return timing.interleaved(functions, jax.block_until_ready, repeats=repeats, queue=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    problem.add_size(parser)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; %(default)s")
    parser.add_argument("--no-plain", dest="plain", action="store_false", help="leave out the plain form")
    parser.add_argument("--torch", action="store_true", help="measure an OSNet in PyTorch too")
    args = parser.parse_args(argv)
    size = problem.size_of(args)
    print(f"{size}, {jax.default_backend()}")
    for name, timed in measure(size, args.repeats, args.plain, args.torch).items():
        print(f"{name:28} {timed}, processor {1e3 * timed.cpu:.4g} ms")


if __name__ == "__main__":
    main()
