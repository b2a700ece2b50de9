"""Parity of the PyTorch step of torch_model.py with ours: equal losses and gradients for equal parameters.

python -m benchmarks.torch_step --parity
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import torch_model
from cacenet_jax.models import pair_stages
from cacenet_jax.models.backbones import resnet
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.train_step import LossWeights, loss_terms

STAGES, WIDTH, EMBED_DIM, IDENTITIES = (1, 1, 1, 1), 4, 16, 8
SHAPE, LABELS = (64, 32), np.array([3, 3, 0, 0, 5, 5, 0, 3])
TOLERANCE = 1e-9


class StepResult(NamedTuple):
    """Results of a training step of one implementation.

    Attributes:
        losses: the terms by name.
        gradients: by the name of the PyTorch parameter.
        updated: parameters after a step of SGD, likewise.
    """

    losses: dict[str, float]
    gradients: dict[str, np.ndarray]
    updated: dict[str, np.ndarray]


def torch_names(params: Any) -> dict[str, np.ndarray]:
    """Our parameters (or gradients) by the name of their PyTorch counterpart, in its layout."""
    found = {}
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        keys, value = [key.key for key in path], np.asarray(value)
        if keys[0] == "backbone":
            name = "backbone." + resnet.torch_name(keys[1:])
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        elif keys[-1] in ("intra_weight", "cross_weight", "theta"):
            name = keys[-1]
        else:  # a head: conv, bn, classifier
            name = ".".join((keys[0], keys[-2], "bias" if keys[-1] == "bias" else "weight"))
            value = value.T
        found[name] = value
    return found


@functools.cache  # it takes a compilation
def ours(rate: float, seed: int) -> tuple[StepResult, dict[str, np.ndarray], np.ndarray]:
    """Losses, gradients and update of a small network of ours in float64; its parameters; the images (B, H, W, 3)."""
    from benchmarks import problem

    rng = np.random.default_rng(seed)
    images = rng.standard_normal((len(LABELS), *SHAPE, 3))
    backbone = resnet.ResNet(STAGES, "bottleneck", WIDTH, dtype=np.float64)
    shared = {"num_identities": IDENTITIES, "embed_dim": EMBED_DIM, "dtype": np.float64}
    net = CACENet(backbone, pair_stage=pair_stages.build("conditional", channels=backbone.channels, **shared), **shared)
    variables = net.init(jax.random.key(seed), jnp.asarray(images), train=False)
    # Away from the start, where Theta is the identity and all affinities are positive; some nodes become isolated.
    moved = lambda x: np.asarray(x, np.float64) + 0.1 * rng.standard_normal(x.shape)
    params = jax.tree.map(moved, variables["params"])
    params["intra_weight"], params["cross_weight"] = rng.standard_normal((2, backbone.channels))
    params = jax.tree.map(jnp.asarray, params)
    stats = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables["batch_stats"])

    def loss_fn(params: Any) -> Any:
        tree = {"params": params, "batch_stats": stats}
        (individual, grid), _ = net.apply(tree, jnp.asarray(images), train=True, mutable=["batch_stats"])
        terms = loss_terms(net, individual, grid, jnp.asarray(LABELS), jnp.arange(len(LABELS)), LossWeights())
        return sum(terms.values()), terms

    (_, terms), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    optimizer = problem.optimizer(lambda _: rate)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    updated = jax.tree.map(lambda p, u: p + u, params, updates)
    losses = {name: float(value) for name, value in terms.items()}
    return StepResult(losses, torch_names(grads), torch_names(updated)), torch_names(params), images


def theirs(parameters: dict[str, np.ndarray], images: np.ndarray, pairs: str, chunk: int, rate: float) -> StepResult:
    """The same by PyTorch."""
    backbone = torch_model.Backbone(STAGES, WIDTH)
    model = torch_model.CACENet(backbone, EMBED_DIM, IDENTITIES, chunk).double().train()
    own = dict(model.named_parameters())
    if own.keys() != parameters.keys():
        raise SystemExit(f"parameters of one side only: {sorted(own.keys() ^ parameters.keys())}")
    with torch.no_grad():
        for name, value in parameters.items():
            own[name].copy_(torch.from_numpy(value.copy()))
    optimizer = torch_model.optimizer(model, rate)
    losses = torch_model.losses(*model(torch.from_numpy(images).permute(0, 3, 1, 2), pairs), torch.from_numpy(LABELS))
    sum(losses.values()).backward()
    gradients = {name: parameter.grad.numpy().copy() for name, parameter in own.items()}
    optimizer.step()
    updated = {name: parameter.detach().numpy() for name, parameter in own.items()}
    return StepResult({name: value.item() for name, value in losses.items()}, gradients, updated)


def difference(left: dict[str, Any], right: dict[str, Any]) -> tuple[float, str]:
    """The largest difference relative to the largest value of an entry (at least 1e-3), and where it is."""
    found = []
    for name, value in left.items():
        scale = max(np.abs(value).max(), 1e-3)
        apart = float(np.abs(value - right[name]).max() / scale)
        found.append((apart if np.isfinite(apart) else np.inf, name))
    return max(found)


def compare(pairs: str, chunk: int = 0, seed: int = 0) -> dict[str, tuple[float, str]]:
    """Largest differences of losses, gradients and updated parameters between ours and PyTorch's, in float64."""
    with jax.enable_x64(True):
        mine, parameters, images = ours(0.1, seed)
    other = theirs(parameters, images, pairs, chunk, 0.1)
    return {field: difference(getattr(mine, field), getattr(other, field)) for field in StepResult._fields}


def main() -> int:
    """Prints the differences; 1 if one is more than rounding."""
    code = 0
    for pairs, chunk in (("literal", 0), ("literal", 5), ("exact", 0)):
        for field, (value, where) in compare(pairs, chunk).items():
            print(
                f"{pairs}{f' in chunks of {chunk}' if chunk else ''}: {field} differ by {value:.1e} at most ({where})"
            )
            code |= not value <= TOLERANCE
    print("not the same step" if code else "the same step")
    return int(code)
