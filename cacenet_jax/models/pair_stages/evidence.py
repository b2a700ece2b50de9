"""Local evidence: a learned comparison of aligned regions, used as the second stage in configs/second_stage.py.

This stage is not part of the paper. In the paper's graph convolution, all steps up to the encoder are linear, so the
embedding depends only on a mean over positions, in which local differences can cancel. Here each region is compared
with its reconstruction from the other image, a non-linearity is applied before pooling, and the pooling weights depend
on both images:

    T_ij = softmax_j(tau k_i . k_j),   h'_i = sum_j T_ij h_j                   (reconstruction of region i of u from v)
    e_i = w . relu(W [|h_i - h'_i|, h_i * h'_i] + b),   s_i = softmax_i(z . relu(Z [h_i, h'_i] + c))
    evidence(u | v) = sum_i s_i e_i,   score = evidence(u | v) + evidence(v | u),   distance = 1 - score / 8

where h = X H + d and k = X K / |X K| for nodes X standardised with running statistics. The score, in nats, is trained
with the list loss (losses.list_rows). The loss is invariant to adding a constant to all scores, so the zero of the
score is arbitrary. The distance is linear in the score, because a bounded function would saturate for scores far from
zero.

Legend: u target image, v contextual image, N and M nodes, D channels, E channels of a region, B images.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cacenet_jax.distributed.collectives import transpose_grid
from cacenet_jax.errors import UserError
from cacenet_jax.losses import GridLabels, LossWeights, RowLosses, list_rows
from cacenet_jax.models.heads import normalise, spread
from cacenet_jax.models.pair_stages.base import Alarm, Individual, PairStage, PairView
from cacenet_jax.models.pair_stages.grids import distance_grid

HIDDEN = 32  # hidden units of the comparison MLP
CHOOSING = 16  # hidden units of the region weighting
SHARPNESS = 8.0  # initial tau
_NATS = 8.0  # nats of score per unit of distance; makes eval.mix = 0.5 optimal on held-out synthetic identities
_CONSTANT_EVIDENCE = Alarm(
    "evidence_spread", "all pairs have the same evidence, so re-scoring cannot order them",
    "lower config.optim.learning_rate, or raise config.model.pair.features", at_most=1e-6,
)  # fmt: skip


class Regions(NamedTuple):
    """Per-image terms of local evidence.

    Attributes:
        value_NE: h, the features that are compared.
        key_NE: k, the alignment keys, with norm 1 or 0.
    """

    value_NE: Array
    key_NE: Array


class EvidenceParameters(NamedTuple):
    """Parameters of the pair comparison.

    Attributes:
        log_tau: logarithm of the alignment sharpness tau, scalar.
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
    """Layers that map nodes to regions, and the parameters of the pair comparison.

    Attributes:
        channels: E, number of channels of a region.
        axis_name: device axis over which batch statistics are averaged, or None on a single device.
    """

    channels: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, nodes_BND: Float[Array, "B N D"], *, train: bool) -> tuple[Regions, EvidenceParameters]:
        """Return the regions of each image and the comparison parameters, in at least float32."""
        wide = jnp.promote_types(nodes_BND.dtype, jnp.float32)
        nodes_BND = nodes_BND.astype(wide)
        norm = nn.BatchNorm(momentum=0.97, use_bias=False, use_scale=False, axis_name=self.axis_name, name="norm")
        if train:  # only update the running statistics: the mean of a batch of look-alikes is not representative
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
    """Compute T, the weight of each region of v in the reconstruction of each region of u; rows sum to 1."""
    cosine_NM = jnp.einsum("ne,me->nm", u.key_NE, v.key_NE, preferred_element_type=parameters.judge_out.dtype)
    return jax.nn.softmax(jnp.exp(parameters.log_tau) * cosine_NM, axis=-1)


def evidence(parameters: EvidenceParameters, u: Regions, v: Regions) -> Float[Array, ""]:
    """Compute the evidence of u given v that both images show the same identity.

    Each region of u is compared with its reconstruction from v.

    Args:
        parameters: comparison parameters.
        u: regions of the target image.
        v: regions of the contextual image.

    Source: not in the paper. The comparison with an aligned reconstruction follows He et al. 2018, "Deep spatial
        feature reconstruction", with a learned comparison instead of the norm of the residual.
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
    """Compute 1 - score / 8, which is symmetric and may be negative; only differences between pairs are meaningful."""
    return 1 - (evidence(parameters, u, v) + evidence(parameters, v, u)) / _NATS


class EvidenceStage(PairStage, kw_only=True):
    """Pair stage that computes local evidence; see the module docstring.

    Attributes:
        features: E, number of channels of a region.
    """

    features: int = 64

    def validate(self) -> None:
        """Validate the field values."""
        if self.features < 1:
            raise UserError(
                f"config.model.pair.features: found {self.features}, expected 1 or more channels of a region; raise it"
            )

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Equal evidence for all pairs."""
        return (_CONSTANT_EVIDENCE,)

    def setup(self) -> None:
        """Create the layers."""
        self.local_evidence = LocalEvidence(self.features, self.axis_name)

    @property
    def title(self) -> str:
        """Title of the correspondences in figures."""
        return "local evidence"

    def terms(
        self,
        nodes_BND: Float[Array, "B N D"],
        parts_BN: Int[Array, "B N"] | None,
        individual: Individual,
        *,
        train: bool,
    ) -> Regions:
        """Compute the regions of each image, leading axis B."""
        del parts_BN, individual
        return self.local_evidence(nodes_BND, train=train)[0]

    def constants(self, individual: Individual) -> EvidenceParameters:
        """Return the comparison parameters."""
        del individual
        params = self.local_evidence.variables["params"]
        return EvidenceParameters(**{name: params[name] for name in EvidenceParameters._fields})

    def distance(self, constants: EvidenceParameters, u: Regions, v: Regions) -> Float[Array, ""]:
        """Compute `evidence_distance` between two images."""
        return evidence_distance(constants, u, v)

    def view(self, u: Regions, v: Regions, nodes_u_ND: Array, nodes_v_MD: Array, individual: Individual) -> PairView:
        """Return the alignment of u's regions with those of v; rows sum to 1."""
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
        """Compute evidence(u | v) for every ordered pair; a score is the sum over both orders."""
        del parts_RN, individual
        rows, num_nodes = nodes_RND.shape[:2]
        regions, parameters = self.local_evidence(nodes_RND, train=train)
        block = self.columns_at_once(16 * rows * num_nodes * (num_nodes + 4 * self.features))  # including backward pass
        return distance_grid(lambda u, v: evidence(parameters, u, v), regions, block, self.grid_axis(rows, train)[0])

    def losses(self, grid: Float[Array, "R C"], labels: GridLabels, weights: LossWeights) -> dict[str, RowLosses]:
        """Compute the list loss of the scores."""
        del weights
        score_RC = grid + transpose_grid(grid, self.axis_name)
        return {"evidence": list_rows(score_RC, *labels)}

    def diagnostics(self, grid: Float[Array, "R C"]) -> dict[str, Array]:
        """Return the spread of the evidence over the pairs of all devices."""
        return {"evidence_spread": spread(grid[..., None], self.axis_name)}
