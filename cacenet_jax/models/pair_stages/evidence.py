"""Local evidence: a learned comparison of aligned regions; ours, the second stage of configs/second_stage.py.

The graph's discrepancy is linear up to the encoder, so that the mean over positions is all that an embedding sees of it:
what a mean cancels is lost. Here each region is compared with what the other image shows of it, the comparison passes a
non-linearity before anything is pooled, and the regions that decide are chosen from both images:

    T_ij = softmax_j(tau k_i . k_j),   h'_i = sum_j T_ij h_j                           (what v shows of region i of u)
    e_i = w . relu(W [|h_i - h'_i|, h_i * h'_i] + b),   s_i = softmax_i(z . relu(Z [h_i, h'_i] + c))
    evidence(u | v) = sum_i s_i e_i,   score = evidence(u | v) + evidence(v | u),   distance = 1 - score / 8

with h = X H + d and k = X K / |X K| of nodes X that running statistics have standardised. The score is trained by the list
loss (losses.list_rows), in nats. That loss does not see a constant added to all scores, so the distance is linear in the
score: a bounded form would flatten whatever lies far from a zero that means nothing.

Legend: u target image, v contextual image, N and M nodes, D channels, E channels of a compared region, B images.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cacenet_jax.distributed.collectives import transpose_grid
from cacenet_jax.errors import UserError
from cacenet_jax.losses import GridLabels, LossWeights, RowLosses, list_rows
from cacenet_jax.models.heads import normalise
from cacenet_jax.models.pair_stages.base import Individual, PairStage, PairView
from cacenet_jax.models.pair_stages.grids import distance_grid

HIDDEN = 32  # hidden units of the comparison
CHOOSING = 16  # hidden units of the choice of regions
SHARPNESS = 8.0  # tau at the start
_NATS = 8.0  # of the score to a unit of the distance; eval.mix = 0.5 is then the best on synthetic identities held back


class Regions(NamedTuple):
    """Per-image terms of local evidence.

    Attributes:
        value_NE: compared features, h.
        key_NE: keys of the alignment, k, of norm 1 or 0.
    """

    value_NE: Array
    key_NE: Array


class EvidenceParameters(NamedTuple):
    """Parameters of the comparison of a pair.

    Attributes:
        log_tau: logarithm of the sharpness of the alignment, scalar.
        judge_kernel: W, (2 E, HIDDEN).
        judge_bias: b, (HIDDEN,).
        judge_out: w, (HIDDEN,).
        choose_kernel: Z, (2 E, CHOOSING).
        choose_bias: c, (CHOOSING,).
        choose_out: z, (CHOOSING,).
    """

    log_tau: Array
    judge_kernel: Array
    judge_bias: Array
    judge_out: Array
    choose_kernel: Array
    choose_bias: Array
    choose_out: Array


class LocalEvidence(nn.Module):
    """Layers that turn nodes into regions, and the parameters of their comparison.

    Attributes:
        channels: E.
        axis_name: device axis over which batch statistics are averaged, None on one device.
    """

    channels: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, nodes_BND: Float[Array, "B N D"], *, train: bool) -> tuple[Regions, EvidenceParameters]:
        """Return the regions of every image and the parameters of the comparison, at least float32."""
        wide = jnp.promote_types(nodes_BND.dtype, jnp.float32)
        nodes_BND = nodes_BND.astype(wide)
        norm = nn.BatchNorm(momentum=0.97, use_bias=False, use_scale=False, axis_name=self.axis_name, name="norm")
        if train:  # a batch of look-alikes has a mean of its own, so that its statistics count but do not normalise it
            norm(jax.lax.stop_gradient(nodes_BND), use_running_average=False)
        nodes_BND = norm(nodes_BND, use_running_average=True)
        value_BNE = nn.Dense(self.channels, name="value")(nodes_BND)
        key_BNE = nn.Dense(self.channels, use_bias=False, name="key")(nodes_BND)
        start, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        small = nn.initializers.normal(0.3 / HIDDEN**0.5)
        parameters = EvidenceParameters(
            self.param("log_tau", nn.initializers.constant(jnp.log(SHARPNESS)), ()),
            self.param("judge_kernel", start, (2 * self.channels, HIDDEN)),
            self.param("judge_bias", zeros, (HIDDEN,)),
            self.param("judge_out", small, (HIDDEN,)),
            self.param("choose_kernel", start, (2 * self.channels, CHOOSING)),
            self.param("choose_bias", zeros, (CHOOSING,)),
            self.param("choose_out", small, (CHOOSING,)),
        )
        return Regions(value_BNE, normalise(key_BNE)), parameters


def region_alignment(parameters: EvidenceParameters, u: Regions, v: Regions) -> Float[Array, "N M"]:
    """T: for each region of u, the share of each region of v in what v shows of it; rows sum to 1."""
    cosine_NM = jnp.einsum("ne,me->nm", u.key_NE, v.key_NE, preferred_element_type=parameters.judge_out.dtype)
    return jax.nn.softmax(jnp.exp(parameters.log_tau) * cosine_NM, axis=-1)


def evidence(parameters: EvidenceParameters, u: Regions, v: Regions) -> Float[Array, ""]:
    """Compute the evidence of u given v that both show one identity: each region of u beside its reconstruction from v.

    Args:
        parameters: of the comparison.
        u: regions of the target image.
        v: regions of the contextual image.

    Source: ours; the comparison with an aligned reconstruction follows He et al. 2018, "Deep spatial feature
        reconstruction", with a learned comparison in place of the norm of the residual.
    """
    wide = parameters.judge_out.dtype
    own_NE = u.value_NE.astype(wide)
    shown_NE = region_alignment(parameters, u, v) @ v.value_NE.astype(wide)
    compared = jnp.concatenate([jnp.abs(own_NE - shown_NE), own_NE * shown_NE], axis=-1)
    evidence_N = jax.nn.relu(compared @ parameters.judge_kernel + parameters.judge_bias) @ parameters.judge_out
    both = jnp.concatenate([own_NE, shown_NE], axis=-1)
    choice_N = jax.nn.relu(both @ parameters.choose_kernel + parameters.choose_bias) @ parameters.choose_out
    return jax.nn.softmax(choice_N) @ evidence_N


def evidence_distance(parameters: EvidenceParameters, u: Regions, v: Regions) -> Float[Array, ""]:
    """1 - score / 8, symmetric, of any sign; only differences between pairs mean something."""
    return 1 - (evidence(parameters, u, v) + evidence(parameters, v, u)) / _NATS


class EvidenceStage(PairStage, kw_only=True):
    """Local evidence as a pair stage; see the top of the file.

    Attributes:
        features: E, channels of a compared region.
    """

    features: int = 64

    def validate(self) -> None:
        """Check the values of the fields."""
        if self.features < 1:
            raise UserError(
                f"config.model.pair.features: found {self.features}, expected 1 or more channels of a region; raise it"
            )

    def setup(self) -> None:
        """Create the layers."""
        self.local_evidence = LocalEvidence(self.features, self.axis_name)

    @property
    def title(self) -> str:
        """Name of the stage's correspondences in figures."""
        return "local evidence"

    def terms(
        self,
        nodes_BND: Float[Array, "B N D"],
        parts_BN: Int[Array, "B N"] | None,
        individual: Individual,
        *,
        train: bool,
    ) -> Regions:
        """Regions of each image, leading axis B."""
        del parts_BN, individual
        return self.local_evidence(nodes_BND, train=train)[0]

    def constants(self, individual: Individual) -> EvidenceParameters:
        """Parameters of the comparison."""
        del individual
        params = self.local_evidence.variables["params"]
        return EvidenceParameters(**{name: params[name] for name in EvidenceParameters._fields})

    def distance(self, constants: EvidenceParameters, u: Regions, v: Regions) -> Float[Array, ""]:
        """Compute `evidence_distance` of two images."""
        return evidence_distance(constants, u, v)

    def view(self, u: Regions, v: Regions, nodes_u_ND: Array, nodes_v_MD: Array, individual: Individual) -> PairView:
        """The alignment of u's regions with those of v; rows sum to 1."""
        del nodes_u_ND, nodes_v_MD
        return PairView(region_alignment(self.constants(individual), u, v), None)

    def grid(
        self,
        nodes_RND: Float[Array, "R N D"],
        parts_RN: Int[Array, "R N"] | None,
        individual: Individual,
        *,
        train: bool,
    ) -> Float[Array, "R C"]:
        """Compute evidence(u | v) of every pair: half of a distance, the other half is that of the mirrored pair."""
        del parts_RN, individual
        rows, num_nodes = nodes_RND.shape[:2]
        regions, parameters = self.local_evidence(nodes_RND, train=train)
        block = self.columns_at_once(16 * rows * num_nodes * (num_nodes + 4 * self.features))  # with the backward pass
        return distance_grid(lambda u, v: evidence(parameters, u, v), regions, block, self.grid_axis(rows, train)[0])

    def losses(self, grid: Float[Array, "R C"], labels: GridLabels, weights: LossWeights) -> dict[str, RowLosses]:
        """List loss of the scores."""
        del weights
        score_RC = grid + transpose_grid(grid, self.axis_name)
        return {"evidence": list_rows(score_RC, *labels)}
