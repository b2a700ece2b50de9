"""The paper's pair stage (sections 3.3 to 3.5): correspondence attention, graph convolution, conditional embeddings.

Legend: B images, R rows (local images) and C columns (images of all devices) of a grid of pairs, u target image,
v contextual image, N nodes (positions) of a map, D channels, E channels of keys.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cacenet_jax.errors import UserError
from cacenet_jax.losses import GridLabels, LossWeights, RowLosses, safe_sqrt
from cacenet_jax.models.attention import affinity_scores
from cacenet_jax.models.graph import Kind
from cacenet_jax.models.heads import Embedded
from cacenet_jax.models.pair_stages.affinities import AffinityStage, Block
from cacenet_jax.models.pair_stages.base import ISOLATED, Alarm, Individual, PairView
from cacenet_jax.models.pair_stages.conditional import stored
from cacenet_jax.models.pair_stages.conditional.alignment import STRATEGIES, Strategy, connect
from cacenet_jax.models.pair_stages.conditional.batch_grid import coefficients, encoded_grid
from cacenet_jax.models.pair_stages.conditional.clues import Clues, clue_distance, image_clues
from cacenet_jax.models.pair_stages.conditional.head import ConditionalHead
from cacenet_jax.models.pair_stages.conditional.memory_plan import make_plan
from cacenet_jax.models.pair_stages.conditional.pair import ImageTerms, conditional_maps, image_terms
from cacenet_jax.models.pair_stages.conditional.stored import PairConstants, StoredTerms
from cacenet_jax.models.pair_stages.embedding_pairs import EmbeddingPairStage
from cacenet_jax.models.pair_stages.grids import distance_grid

_CHOICES = {"kind": ("discrepancy", "normal"), "filters": ("tied", "untied")}


class Terms(NamedTuple):
    """Per-image terms.

    Attributes:
        image: terms of the graph convolution.
        clues: regions for the clue distance, or None if it is not used.
    """

    image: ImageTerms
    clues: Clues | None


class ConditionalGrid(NamedTuple):
    """Outputs for the training grid.

    Attributes:
        conditional: f(u|v) and its logits, shapes (R, C, F) and (R, C, I).
        clues: clue distance of each pair, shape (R, C), or None if it is not used.
        positive_intra: fraction of positive affinities within images, scalar.
        positive_cross: fraction of positive affinities across images, scalar.
        degree: mean node degree in the pair graphs, scalar.
    """

    conditional: Embedded
    clues: Array | None
    positive_intra: Array
    positive_cross: Array
    degree: Array


class ConditionalStage(EmbeddingPairStage, AffinityStage, kw_only=True):
    """Conditional embeddings computed by a graph convolution over two images.

    Attributes:
        alignment: name of the alignment strategy (table 2) or MODULE:NAME; the paper uses "attention".
        neighbours: K for a top-K alignment.
        kind: "discrepancy" (equation 7) or "normal" (equation 6).
        filters: "tied" (equation 7) or "untied" (equation 5).
        clue_weight: weight of the clue distance in the pair distance, from 0 (the paper's distance) to 1.
    """

    alignment: str = "attention"
    neighbours: int = 1
    kind: Kind = "discrepancy"
    filters: Literal["tied", "untied"] = "tied"
    clue_weight: float = 0.0

    def validate(self) -> None:
        """Validate the field values."""
        EmbeddingPairStage.validate(self)
        AffinityStage.validate(self)
        STRATEGIES.resolve(self.alignment)
        for field, choices in _CHOICES.items():
            if (value := getattr(self, field)) not in choices:
                raise UserError(
                    f"config.model.pair.{field}: found {value!r}, expected one of {', '.join(choices)}; choose one of them"
                )
        if self.neighbours < 1:
            raise UserError(f"config.model.pair.neighbours: found {self.neighbours}, expected 1 or more; raise it")
        if not 0 <= self.clue_weight <= 1:
            raise UserError(
                f"config.model.pair.clue_weight: found {self.clue_weight}, expected a value from 0 to 1; change it"
            )

    def setup(self) -> None:
        """Create w, w', Theta and the conditional head."""
        AffinityStage.setup(self)
        self.conditional_head = ConditionalHead(
            self.channels,
            self.embed_dim,
            self.num_identities,
            kind=self.kind,
            filters=self.filters,
            dtype=self.dtype,
            axis_name=self.axis_name,
            relu=self.relu,
            dropout=self.dropout,
        )

    # -- Properties ----------------------------------------------------------------------------------------------------

    @property
    def strategy(self) -> Strategy:
        """The alignment strategy."""
        return STRATEGIES.resolve(self.alignment)

    @property
    def nearest(self) -> int:
        """K for the top-K selection in `alignment.connect`, or 0 for the ReLU."""
        return self.neighbours if self.strategy.top_k else 0

    @property
    def title(self) -> str:
        """Title of the correspondences in figures."""
        return self.strategy.title

    @property
    def image_channels(self) -> int:
        """Number of image channels: three for colour, plus a label channel for alignment by body parts."""
        return 4 if self.strategy.needs_parts else 3

    @property
    def poolings(self) -> frozenset[str]:
        """Supported poolings: only the mean, because pooling is moved ahead of Theta and must therefore be linear."""
        return frozenset({"mean"})

    @property
    def scoring_fields(self) -> frozenset[str]:
        """Names of fields that an evaluation may override: only `clue_weight`."""
        return frozenset({"clue_weight"})

    @property
    def learned_blocks(self) -> tuple[Block, ...]:
        """Graph blocks with learned weights, as defined by the alignment strategy."""
        return self.strategy.learned

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Dead blocks, isolated nodes and equal embeddings."""
        return (*super().alarms, ISOLATED) if self.learned_blocks else super().alarms

    @property
    def selection_terms(self) -> frozenset[str]:
        """Names of the intra-image affinities and their row sums if the alignment is top-K, otherwise empty."""
        return frozenset({"intra_NN", "degree_N"}) if self.nearest else frozenset()

    # -- One image -----------------------------------------------------------------------------------------------------

    def _keys(self, nodes_BND: Array, parts_BN: Array | None, train: bool) -> Float[Array, "B N E"] | None:
        """Compute the keys, or return None if the nodes themselves are the keys."""
        if self.strategy.rule is not None:
            return self.strategy.rule(nodes_BND, parts_BN)
        return self.learned_keys(nodes_BND, train=train)

    def _weight(self, block: Block, channels: int, dtype: Any) -> Float[Array, "E"]:
        """Return the diagonal of W or W'.

        Weights that are not learned are ones for a fixed rule and otherwise zeros, which removes the edges.
        """
        if block in self.learned_blocks:
            return self.learned_weight(block)
        return jnp.full(channels, self.strategy.rule is not None, dtype)

    def _clues(self, nodes_BND: Array, individual: Individual) -> Clues | None:
        if self.clue_weight == 0:
            return None
        return image_clues(individual.head.embed_nodes(nodes_BND).astype(self.dtype))

    def terms(
        self,
        nodes_BND: Float[Array, "B N D"],
        parts_BN: Int[Array, "B N"] | None,
        individual: Individual,
        *,
        train: bool,
    ) -> Terms:
        """Compute the terms of each image, leading axis B."""
        keys_BNE = self._keys(nodes_BND, parts_BN, train)
        used_BNE = nodes_BND if keys_BNE is None else keys_BNE
        weight_E = self._weight("intra", used_BNE.shape[-1], used_BNE.dtype)
        graph = jax.vmap(lambda nodes, keys: image_terms(nodes, weight_E, keys, self.nearest))
        return Terms(graph(nodes_BND, keys_BNE), self._clues(nodes_BND, individual))

    def store(self, constants: PairConstants, terms: Terms, dtype: Any) -> StoredTerms:
        """Compute the storage form of the terms with `stored.store`."""
        return stored.store(
            constants, terms.image, terms.clues, dtype, nearest=self.nearest, has_threshold=self.has_threshold
        )

    # -- Two images ----------------------------------------------------------------------------------------------------

    def constants(self, individual: Individual) -> PairConstants:
        """Compose the head and split W', which is a single value for all channels if it is not learned."""
        del individual
        weight_E = self._weight("cross", 1 + self.has_threshold, jnp.float32)
        return PairConstants(self.conditional_head.composed(), stored.split_weight(weight_E, self.has_threshold))

    def distances(self, constants: PairConstants, u: StoredTerms, v: StoredTerms) -> Float[Array, "C"]:
        """Compute the distances between f(u|v) and f(v|u), mixed with the clue distances if these are used."""
        distance_C = self.between(*stored.embeddings(constants, u, v, self.nearest))
        if u.clues is None or v.clues is None:
            return distance_C
        return self._mixed(distance_C, jax.vmap(clue_distance, (None, 0))(u.clues, v.clues))

    def _mixed(self, distance: Array, clues: Array) -> Array:
        return (1 - self.clue_weight) * distance + self.clue_weight * clues

    def view(self, u: Terms, v: Terms, nodes_u_ND: Array, nodes_v_MD: Array, individual: Individual) -> PairView:
        """Return the cross block and the norms of the conditional map after Theta (equation 5, 6 or 7)."""
        del nodes_u_ND, nodes_v_MD, individual
        keys_u, keys_v = (x.nodes_ND if x.keys_NE is None else x.keys_NE for x in (u.image, v.image))
        weight_E = self._weight("cross", keys_u.shape[-1], keys_u.dtype)
        cross_NM = connect(affinity_scores(keys_u, keys_v, weight_E), self.nearest)
        own_ND = u.image.nodes_ND
        near_ND = conditional_maps(u.image, v.image, weight_E, self.kind, self.nearest)[0] - own_ND
        return PairView(cross_NM, jnp.linalg.norm(self.conditional_head.filter_map(own_ND, near_ND), axis=-1))

    # -- A batch -------------------------------------------------------------------------------------------------------

    def grid(
        self,
        nodes_RND: Float[Array, "R N D"],
        parts_RN: Int[Array, "R N"] | None,
        individual: Individual,
        *,
        train: bool,
    ) -> ConditionalGrid:
        """Compute f(u|v) exactly for all pairs, in bounded memory (batch_grid.py)."""
        if self.is_initializing():  # the head creates its parameters when called
            self.conditional_head(nodes_RND[:, 0], nodes_RND[:, 0], train=train)
        rows, num_nodes, channels = nodes_RND.shape
        axis_name, columns = self.grid_axis(rows, train)
        share = 1.0 if self.clue_weight == 0 else 0.5  # the other half is for the clue distances
        keys_RNE = self._keys(nodes_RND, parts_RN, train)
        keys_RNE = nodes_RND if keys_RNE is None else keys_RNE
        itemsize = keys_RNE.dtype.itemsize
        plan = make_plan(rows, columns, num_nodes, channels, self.memory_mib, itemsize, axis_name, share)
        plan = plan._replace(nearest=self.nearest)
        intra_E, cross_E = (self._weight(block, keys_RNE.shape[-1], keys_RNE.dtype) for block in ("intra", "cross"))
        weights = coefficients(plan, keys_RNE, intra_E, cross_E)
        encoded = encoded_grid(plan, nodes_RND, weights, self.conditional_head.encoder(rows * columns))
        clues = self._clues(nodes_RND, individual)
        if clues is not None:
            block = self.columns_at_once(12 * rows * num_nodes**2, share)  # bytes per column, including backward pass
            clues = distance_grid(clue_distance, clues, block, axis_name)
        conditional = self.conditional_head.finish(encoded, train=train)
        return ConditionalGrid(conditional, clues, weights.positive_intra, weights.positive_cross, weights.degree)

    def losses(self, grid: ConditionalGrid, labels: GridLabels, weights: LossWeights) -> dict[str, RowLosses]:
        """Compute the mix-up identity loss (equation 8) and the batch-hard triplet loss of the pair distances."""
        if grid.clues is None:
            return self.embedding_losses(grid.conditional, labels, weights)
        share, clues_RC = self.clue_weight, grid.clues
        # sqrt(2 d), where d is the mixed distance.
        combine = lambda metric_RC: safe_sqrt((1 - share) * metric_RC**2 + 2 * share * clues_RC)
        return self.embedding_losses(grid.conditional, labels, weights, combine)

    def diagnostics(self, grid: ConditionalGrid) -> dict[str, Array]:
        """Return the fractions of positive affinities, the mean degree and the spread of the embeddings."""
        graph = {name: getattr(grid, name) for name in ("positive_intra", "positive_cross", "degree")}
        return graph | self.embedding_diagnostics(grid.conditional)
