"""The paper's training step on random images: what train_step.py and scaling.py measure.

Built from the model's own parts, without configs or data sets, so that a machine with jax, flax and optax alone can
measure it; a test holds it equal to what configs/market1501.py builds.
"""

import argparse
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cacenet_jax.data.augment import Augment
from cacenet_jax.data.batch import Batch
from cacenet_jax.models import backbones, pair_stages
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.train_step import LossWeights, TrainState, create_state, make_train_step

IDENTITIES = 751  # of Market-1501's training split
WEIGHTS = LossWeights()
AUGMENT = Augment()


class Size(NamedTuple):
    """What decides how much work a step is.

    Attributes:
        backbone: a name of models/backbones.py.
        batch: images of the global batch, four of each identity.
        height: pixels.
        width: pixels.
        dtype: compute type.
        embed_dim: F.
        identities: training identities.
        pair_memory_mib: the network's bound on the memory of the pair grid's temporaries.
    """

    backbone: str = "resnet50"
    batch: int = 16
    height: int = 384
    width: int = 128
    dtype: str = "float32"
    embed_dim: int = 768
    identities: int = IDENTITIES
    pair_memory_mib: float = 1024.0

    def __str__(self) -> str:
        """The size in a line."""
        return f"{self.backbone}, {self.batch} images of {self.height} x {self.width}, {self.dtype}"


def add_size(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Adds the fields of `Size` as options."""
    size = Size(**defaults)
    parser.add_argument("--backbone", choices=backbones.NAMES, default=size.backbone, help="%(default)s")
    parser.add_argument("--batch", type=int, default=size.batch, help="images, a multiple of 4; %(default)s")
    parser.add_argument("--height", type=int, default=size.height, help="pixels; %(default)s")
    parser.add_argument("--width", type=int, default=size.width, help="pixels; %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=size.dtype, help="%(default)s")
    parser.add_argument("--embed-dim", type=int, default=size.embed_dim, help="F; %(default)s")
    parser.add_argument("--identities", type=int, default=size.identities, help="classes; %(default)s")
    memory = "model.pair_memory_mib; %(default)s"
    parser.add_argument("--pair-memory-mib", type=float, default=size.pair_memory_mib, help=memory)


def size_of(args: argparse.Namespace) -> Size:
    """The size that the options ask for; exits where the batch is impossible."""
    if args.batch % 4 or args.batch < 8:
        raise SystemExit(f"--batch: found {args.batch}, expected a multiple of 4, at least 8: identities have 4 images")
    return Size(**{field: getattr(args, field) for field in Size._fields})


def network(size: Size, axis_name: str | None = None, pairs: bool = True) -> CACENet:
    """The paper's network, or its individual baseline."""
    device = {"dtype": jnp.dtype(size.dtype), "axis_name": axis_name}
    backbone = backbones.build(size.backbone, **device)
    shared = {"num_identities": size.identities, "embed_dim": size.embed_dim, **device}
    stage = None
    if pairs:
        given = {"channels": backbone.channels, "memory_mib": size.pair_memory_mib}
        stage = pair_stages.build("conditional", **given, **shared)
    return CACENet(backbone=backbone, pair_stage=stage, **shared)


def optimizer(rate: optax.Schedule | None = None) -> optax.GradientTransformation:
    """The paper's: SGD with momentum, L2 decay on all but w and w'; the rate rises over five epochs unless given."""

    def decayed(params: Any) -> Any:
        is_attention = lambda path: getattr(path[-1], "key", "") in ("intra_weight", "cross_weight")
        return jax.tree_util.tree_map_with_path(lambda path, _: not is_attention(path), params)

    rate = rate or optax.linear_schedule(0.0, 6.25e-3, 5 * 808)
    return optax.chain(
        optax.add_decayed_weights(5e-4, mask=decayed), optax.trace(0.9), optax.scale_by_learning_rate(rate)
    )


def state_of(size: Size) -> TrainState:
    """Fresh parameters on one device."""
    return create_state(network(size), optimizer(), jax.random.key(0), (size.height, size.width))


def step_of(net: CACENet, augmentation: Augment | None = AUGMENT):
    """The training step, per device, as the trainer makes it."""
    return make_train_step(net, optimizer(), WEIGHTS, augmentation, jax.random.key(1), net.axis_name)


def batch_of(size: Size, seed: int = 0) -> Batch:
    """Random pixels of identities with four images each, on the host."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size.batch, size.height, size.width, 3), np.uint8)
    chosen = rng.permutation(size.identities)[: size.batch // 4]
    return Batch(images, np.repeat(chosen, 4).astype(np.int32))
