"""Learned affinities between positions: the weights w and w' of equations 2 and 3, and what they compare.

Affinities are products of keys, one key a position, weighted by channel: K_u diag(w) K_v^T. In the paper a key is the node
itself; the other keys make affinities start with both signs, so that a graph can select (docs/conditional_gain.md).

Legend: B images, N nodes (positions) of a map, D channels, E channels of keys.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cacenet_jax.errors import UserError
from cacenet_jax.models.heads import normalise
from cacenet_jax.models.pair_stages.base import PairStage

Keys = Literal["raw", "l2", "standardised", "correlation"]
KEYS: tuple[str, ...] = ("raw", "l2", "standardised", "correlation")
Block = Literal["intra", "cross"]


class AffinityStage(PairStage, kw_only=True):
    """Base of the stages with learned affinities.

    w and w' are kept in units of 1/D: a value of 1 makes an affinity a mean over channels.

    Attributes:
        keys: the map ("raw", the paper); its L2-normalised nodes ("l2"); its nodes standardised per channel by a batch norm
            without scale and shift ("standardised"); or those normalised too ("correlation"), whose affinities are
            correlations less a learned threshold, so that a node starts with few neighbours.
        threshold: initial threshold of "correlation".
    """

    keys: Keys = "raw"
    threshold: float = 0.3

    def validate(self) -> None:
        """Check the values of the fields."""
        if self.keys not in KEYS:
            raise UserError(
                f"config.model.pair.keys: found {self.keys!r}, expected one of {', '.join(KEYS)}; choose one of them"
            )

    @property
    def learned_blocks(self) -> tuple[Block, ...]:
        """Blocks of the graph whose weights are learned."""
        return ("intra", "cross")

    @property
    def has_threshold(self) -> bool:
        """True if the last channel of the keys is the constant one that the threshold weighs."""
        return self.keys == "correlation" and bool(self.learned_blocks)

    @property
    def attention_parameters(self) -> frozenset[str]:
        """Weights and thresholds of the affinities, whose scale a normalised graph does not see."""
        weights = {f"{block}_weight" for block in self.learned_blocks}
        return frozenset(weights | {f"{block}_threshold" for block in self.learned_blocks if self.has_threshold})

    def setup(self) -> None:
        """Create the weights, the thresholds and the batch norm of the keys."""
        for block in self.learned_blocks:
            weight = self.param(f"{block}_weight", nn.initializers.ones, (self.channels,))
            setattr(self, f"{block}_weight", weight)
            if self.has_threshold:
                start = nn.initializers.constant(self.threshold)
                setattr(self, f"{block}_threshold", self.param(f"{block}_threshold", start, (1,)))
        if self.learned_blocks and self.keys in ("standardised", "correlation"):
            self.key_norm = nn.BatchNorm(
                use_bias=False,
                use_scale=False,
                momentum=0.9,
                epsilon=1e-5,
                axis_name=self.axis_name,
                dtype=self.dtype,
            )

    def learned_keys(self, nodes_BND: Float[Array, "B N D"], *, train: bool) -> Float[Array, "B N E"] | None:
        """Compute the keys, at the scale of the nodes; None where these are the nodes themselves."""
        if self.keys == "raw":
            return None
        scale = nodes_BND.shape[-1] ** 0.5
        if self.keys == "l2":
            return normalise(nodes_BND).astype(nodes_BND.dtype) * scale
        keys_BND = self.key_norm(nodes_BND, use_running_average=not train)
        if self.keys == "standardised":
            return keys_BND
        keys_BND = normalise(keys_BND).astype(nodes_BND.dtype) * scale
        # One more channel, constant and weighted by minus the threshold.
        return jnp.concatenate([keys_BND, jnp.ones_like(keys_BND[..., :1])], axis=-1)

    def learned_weight(self, block: Block) -> Float[Array, "E"]:
        """Compute the diagonal of W or W' over the channels of the keys."""
        weight_D = getattr(self, f"{block}_weight")
        weight_D = weight_D / weight_D.shape[0]
        if self.has_threshold:
            weight_D = jnp.concatenate([weight_D, -getattr(self, f"{block}_threshold")])
        return weight_D
