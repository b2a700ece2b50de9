"""CACE-Net: a backbone, an individual head and one pair stage in a single Linen module.

Legend: B images, H x W pixels, h x w positions of a map (N = h w nodes), D channels, F embedding size, I training
identities.
"""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from cacenet_jax.errors import UserError
from cacenet_jax.models.heads import CONSTANT, Embedded, EmbeddingHead, normalise
from cacenet_jax.models.pair_stages.base import Alarm, Individual, PairStage, PairView
from cacenet_jax.models.part_positions import part_positions
from cacenet_jax.models.pooling import GeneralisedMean, generalised_mean

_CONSTANT_EMBEDDINGS = Alarm(
    "embedding_spread",
    "all images of the batch have the same embedding, so the network tells nobody apart",
    "lower config.optim.learning_rate, set config.optim.clip_norm, or start from pretrained weights (config.pretrained)",
    CONSTANT,
)
INDIVIDUAL_PARAMETERS = ("backbone", "gemp", "individual_head")  # parameters not trained if `frozen`


class Described(NamedTuple):
    """Image descriptors used in retrieval.

    Attributes:
        embedding: f(I), (B, F), L2-normalised unless asked otherwise.
        terms: per-image terms of the pair stage, leading axis B; None without a pair stage.
    """

    embedding: Array
    terms: Any


class CACENet(nn.Module):
    """The complete network.

    Attributes:
        backbone: module from images (B, H, W, 3) to maps (B, h, w, D).
        num_identities: I, number of training identities.
        pair_stage: module that compares two images (pair_stages/base.py); None for the individual baseline of table 1.
        embed_dim: F, embedding size.
        pooling: pooling before the individual head, "mean" or "gem" (generalised mean with a learned exponent).
        relu: apply a ReLU to the embedding before the classifier and the triplet loss.
        dropout: dropout rate before the classifier.
        head_bias: `bias` of the individual head.
        embedding_relu: `embedding_relu` of the individual head.
        frozen: freeze the backbone and the individual head and train only the pair stage. Feature maps are then
            computed as in retrieval, with running statistics, and averaged over each image and its mirror image.
        dtype: compute dtype; parameters, statistics, node degrees, embeddings and logits are float32.
        axis_name: device axis for collectives in training, None on one device.
    """

    backbone: nn.Module
    num_identities: int
    pair_stage: PairStage | None = None
    embed_dim: int = 768
    pooling: Literal["mean", "gem"] = "mean"
    relu: bool = False
    dropout: float = 0.0
    head_bias: bool = False
    embedding_relu: bool = False
    frozen: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def setup(self) -> None:
        """Create the layers. The pair stage shares this module's scope, so its parameters sit at the top level."""
        self.individual_head = EmbeddingHead(
            self.embed_dim,
            self.num_identities,
            dtype=self.dtype,
            axis_name=self.axis_name,
            relu=self.relu,
            dropout=self.dropout,
            shared=self.pair_stage is not None and self.pair_stage.shares_encoder,
            bias=self.head_bias,
            embedding_relu=self.embedding_relu,
        )
        if self.pooling == "gem":
            self.gemp = GeneralisedMean()
        if self.pair_stage is not None:
            nn.share_scope(self, self.pair_stage)

    def validate(self) -> None:
        """Check that the parts are compatible. The module need not be bound.

        Raises:
            UserError: the pair stage does not support the pooling, the individual head or a frozen network.
        """
        if self.pair_stage is None:
            return
        name = type(self.pair_stage).__name__
        if self.pooling not in self.pair_stage.poolings:
            raise UserError(
                f"config.model.pooling: found {self.pooling!r}, expected {' or '.join(sorted(self.pair_stage.poolings))} "
                f"with {name}; change it or config.model.pair_stage"
            )
        for field in ("head_bias", "embedding_relu"):
            if getattr(self, field) and self.pair_stage.shares_encoder:
                raise UserError(
                    f"config.model.{field}: found True, expected False with {name}, which encodes pairs with the individual "
                    "head; change it or config.model.pair_stage"
                )
        if self.frozen and not self.pair_stage.supports_frozen:
            raise UserError(
                f"config.model.frozen: found True, expected False with {name}, which shares parameters with the individual "
                "head; change it or config.model.pair_stage"
            )

    @property
    def image_channels(self) -> int:
        """Number of image channels: three colours, plus a body-part label if the pair stage needs one."""
        return 3 if self.pair_stage is None else self.pair_stage.image_channels

    @property
    def selection_terms(self) -> frozenset[str]:
        """Names of the stored terms that depend on a top-K selection."""
        return frozenset() if self.pair_stage is None else self.pair_stage.selection_terms

    @property
    def pair_title(self) -> str:
        """Title of the pair stage's correspondences in figures; empty without a pair stage."""
        return "" if self.pair_stage is None else self.pair_stage.title

    @property
    def scoring_fields(self) -> frozenset[str]:
        """Names of the pair stage's fields that an evaluation may override."""
        return frozenset() if self.pair_stage is None else self.pair_stage.scoring_fields

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Values of the training metrics that show a dead part of the network."""
        return (_CONSTANT_EMBEDDINGS, *(() if self.pair_stage is None else self.pair_stage.alarms))

    def astype(self, dtype: Any) -> "CACENet":
        """Return a copy whose head and pair stage use another compute dtype; the backbone keeps its own."""
        stage = None if self.pair_stage is None else self.pair_stage.clone(dtype=dtype)
        return self.clone(dtype=dtype, pair_stage=stage)

    def maps(self, images_BHWC: Float[Array, "B H W 3"], *, train: bool) -> Float[Array, "B h w D"]:
        """Compute the feature maps of normalised images."""
        return self.backbone(images_BHWC, train=train)

    def mirrored_maps(self, images_BHWC: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        """Compute inference-mode maps, averaged over each image and its mirror image.

        The maps of the mirror images are flipped back before averaging.
        """
        mirrored_BHWD = self.maps(images_BHWC[:, :, ::-1], train=False)
        return (self.maps(images_BHWC, train=False) + mirrored_BHWD[:, :, ::-1]) / 2

    def individual(self, maps_BHWD: Float[Array, "B h w D"], *, train: bool) -> Embedded:
        """Compute f(I) by global pooling and the individual head."""
        if self.pooling == "gem":
            return self.individual_head(generalised_mean(_nodes(maps_BHWD), self.gemp()), train=train)
        acc_dtype = jnp.promote_types(maps_BHWD.dtype, jnp.float32)
        return self.individual_head(maps_BHWD.mean(axis=(1, 2), dtype=acc_dtype), train=train)

    def _stage(self) -> PairStage:
        if self.pair_stage is None:
            raise ValueError("a network without a pair stage compares no images")
        return self.pair_stage

    def _branch(self) -> Individual:
        return Individual(self.individual_head, self.gemp() if self.pooling == "gem" else None)

    def parts(self, images_BHWC: Shaped[Array, "B H W C"], height: int, width: int) -> Int[Array, "B N"] | None:
        """Return the body part of each position of a height x width map, or None if the images have no labels."""
        return part_positions(images_BHWC[..., 3], height, width) if images_BHWC.shape[-1] > 3 else None

    def __call__(self, images_BHWC: Float[Array, "B H W C"], *, train: bool) -> tuple[Embedded, Any]:
        """Compute the individual embeddings and the pair grid.

        Args:
            images_BHWC: normalised images with `image_channels` channels.
            train: use batch statistics and update the running ones. In training, the rows of the grid are the images
                of this device, and the columns are the images of all devices along `axis_name`.

        Returns:
            f(I) with its logits, and the pair grid (None without a pair stage).
        """
        if self.frozen:
            maps_BHWD = jax.lax.stop_gradient(self.mirrored_maps(images_BHWC[..., :3]))
        else:
            maps_BHWD = self.maps(images_BHWC[..., :3], train=train)
        individual = self.individual(maps_BHWD, train=train and not self.frozen)
        if self.frozen:  # frozen parameters must not contribute to the gradient norm
            individual = jax.lax.stop_gradient(individual)
        if self.pair_stage is None:
            return individual, None
        parts_BN = self.parts(images_BHWC, *maps_BHWD.shape[1:3])
        return individual, self.pair_stage.grid(_nodes(maps_BHWD), parts_BN, self._branch(), train=train)

    # -- Test mode -----------------------------------------------------------------------------------------------------

    def describe(
        self, maps_BHWD: Float[Array, "B h w D"], parts_BN: Int[Array, "B N"] | None = None, *, unit: bool = True
    ) -> Described:
        """Compute f(I), L2-normalised if `unit`, and the pair stage's terms for each image."""
        embedding_BF = self.individual(maps_BHWD, train=False).embedding
        if unit:
            embedding_BF = normalise(embedding_BF)
        if self.pair_stage is None:
            return Described(embedding_BF, None)
        return Described(embedding_BF, self.pair_stage.terms(_nodes(maps_BHWD), parts_BN, self._branch(), train=False))

    def pair_constants(self) -> Any:
        """Compute the constants of the pair stage (`PairStage.constants`)."""
        return self._stage().constants(self._branch())

    def view(self, u: Any, v: Any, map_u_hwD: Float[Array, "h w D"], map_v_hwD: Float[Array, "h w D"]) -> PairView:
        """Compute the correspondences and map norms shown in figures, from the terms and maps of two images."""
        nodes_u_ND, nodes_v_MD = (x.reshape(-1, x.shape[-1]) for x in (map_u_hwD, map_v_hwD))
        return self._stage().view(u, v, nodes_u_ND, nodes_v_MD, self._branch())


def _nodes(maps_BHWD: Float[Array, "B h w D"]) -> Float[Array, "B N D"]:
    return maps_BHWD.reshape(maps_BHWD.shape[0], -1, maps_BHWD.shape[-1])
