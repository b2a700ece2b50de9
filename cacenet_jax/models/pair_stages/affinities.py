"""Learned affinities between positions: keys and the weights w and w' of equations 2 and 3.

Affinities are products of keys, one key per position, weighted by channel: K_u diag(w) K_v^T. In the paper the keys are
the nodes themselves. With the other kinds of keys, affinities of both signs occur at initialisation, so the graph can
be selective (docs/conditional_gain.md).

Legend: B images, N nodes (positions) of a map, D channels, E channels of keys.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cacenet_jax.errors import UserError
from cacenet_jax.models.heads import normalise
from cacenet_jax.models.pair_stages.base import UNCONNECTED, Alarm, PairStage

Keys = Literal["raw", "l2", "standardised", "correlation"]
KEYS: tuple[str, ...] = ("raw", "l2", "standardised", "correlation")
Block = Literal["intra", "cross"]
_REMEDY = "lower config.optim.learning_rate or config.optim.attention_scale, or try config.model.pair.keys=correlation"


class AffinityStage(PairStage, kw_only=True):
    """Base class of stages with learned affinities.

    w and w' are stored in units of 1/D. With stored weights of 1, an affinity is a mean over channels.

    Attributes:
        keys: kind of keys. "raw" (the paper) uses the nodes of the map, "l2" normalises them, and "standardised"
            standardises them per channel with a batch norm without scale and shift. "correlation" also normalises the
            standardised nodes; its affinities are correlations minus a learned threshold, so that a node has few
            neighbours at initialisation.
        threshold: initial threshold for "correlation".
    """

    keys: Keys = "raw"
    threshold: float = 0.3

    def validate(self) -> None:
        """Validate the field values."""
        if self.keys not in KEYS:
            raise UserError(
                f"config.model.pair.keys: found {self.keys!r}, expected one of {', '.join(KEYS)}; choose one of them"
            )

    @property
    def learned_blocks(self) -> tuple[Block, ...]:
        """Graph blocks with learned weights."""
        return ("intra", "cross")

    @property
    def has_threshold(self) -> bool:
        """True if the keys end with a constant channel, whose weight is the negative threshold."""
        return self.keys == "correlation" and bool(self.learned_blocks)

    @property
    def attention_parameters(self) -> frozenset[str]:
        """Names of the affinity weights and thresholds; the normalised graph is invariant to their joint scale."""
        weights = {f"{block}_weight" for block in self.learned_blocks}
        return frozenset(weights | {f"{block}_threshold" for block in self.learned_blocks if self.has_threshold})

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Learned blocks without a positive affinity."""
        return (*super().alarms, *(UNCONNECTED[block]._replace(remedy=_REMEDY) for block in self.learned_blocks))

    def setup(self) -> None:
        """Create the weights, the thresholds and the batch norm for the keys."""
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
        """Compute the keys, or return None if the nodes themselves are the keys.

        L2-normalised keys are scaled by sqrt(D), so that weights of 1/D yield cosine similarities.
        """
        if self.keys == "raw":
            return None
        scale = nodes_BND.shape[-1] ** 0.5
        if self.keys == "l2":
            return normalise(nodes_BND).astype(nodes_BND.dtype) * scale
        keys_BND = self.key_norm(nodes_BND, use_running_average=not train)
        if self.keys == "standardised":
            return keys_BND
        keys_BND = normalise(keys_BND).astype(nodes_BND.dtype) * scale
        # Append a constant channel, weighted by the negative threshold.
        return jnp.concatenate([keys_BND, jnp.ones_like(keys_BND[..., :1])], axis=-1)

    def learned_weight(self, block: Block) -> Float[Array, "E"]:
        """Return the diagonal of W or W', one weight per key channel."""
        weight_D = getattr(self, f"{block}_weight")
        weight_D = weight_D / weight_D.shape[0]
        if self.has_threshold:
            weight_D = jnp.concatenate([weight_D, -getattr(self, f"{block}_threshold")])
        return weight_D
