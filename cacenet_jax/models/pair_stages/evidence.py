"""Local evidence: a learned comparison of aligned regions, the pair score of the "evidence" model.

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
from jaxtyping import Array, Float

from cacenet_jax.models.heads import normalise

HIDDEN = 32  # units that judge a comparison
CHOOSING = 16  # units that choose where to look
SHARPNESS = 8.0  # tau at the start
_NATS = 8.0  # of the score to a unit of the distance; eval.mix = 0.5 is then the best on synthetic identities held back


class Regions(NamedTuple):
    """What local evidence needs of an image.

    Attributes:
        value_NE: what is compared, h.
        key_NE: what regions are aligned by, k, of norm 1 or 0.
    """

    value_NE: Array
    key_NE: Array


class Judge(NamedTuple):
    """The parameters that a pair is judged with.

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
    """The parameters of local evidence: what makes regions of nodes, and the judge of a pair.

    Attributes:
        channels: E.
        axis_name: device axis over which batch statistics are averaged, None on one device.
    """

    channels: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, nodes_BND: Float[Array, "B N D"], *, train: bool) -> tuple[Regions, Judge]:
        """Regions of every image and the judge of their pairs, in at least float32."""
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
        judge = Judge(
            self.param("log_tau", nn.initializers.constant(jnp.log(SHARPNESS)), ()),
            self.param("judge_kernel", start, (2 * self.channels, HIDDEN)),
            self.param("judge_bias", zeros, (HIDDEN,)),
            self.param("judge_out", small, (HIDDEN,)),
            self.param("choose_kernel", start, (2 * self.channels, CHOOSING)),
            self.param("choose_bias", zeros, (CHOOSING,)),
            self.param("choose_out", small, (CHOOSING,)),
        )
        return Regions(value_BNE, normalise(key_BNE)), judge


def region_alignment(judge: Judge, u: Regions, v: Regions) -> Float[Array, "N M"]:
    """T: for each region of u, the share of each region of v in what v shows of it; rows sum to 1."""
    cosine_NM = jnp.einsum("ne,me->nm", u.key_NE, v.key_NE, preferred_element_type=judge.judge_out.dtype)
    return jax.nn.softmax(jnp.exp(judge.log_tau) * cosine_NM, axis=-1)


def evidence(judge: Judge, u: Regions, v: Regions) -> Float[Array, ""]:
    """How much the regions of u, each beside what v shows of it, speak for one identity.

    Args:
        judge: parameters.
        u: regions of the target image.
        v: regions of the contextual image.

    Source: ours; the comparison with an aligned reconstruction follows He et al. 2018, "Deep spatial feature
        reconstruction", with a learned judge in place of the norm of the residual.
    """
    wide = judge.judge_out.dtype
    own_NE = u.value_NE.astype(wide)
    shown_NE = region_alignment(judge, u, v) @ v.value_NE.astype(wide)
    compared = jnp.concatenate([jnp.abs(own_NE - shown_NE), own_NE * shown_NE], axis=-1)
    evidence_N = jax.nn.relu(compared @ judge.judge_kernel + judge.judge_bias) @ judge.judge_out
    both = jnp.concatenate([own_NE, shown_NE], axis=-1)
    choice_N = jax.nn.relu(both @ judge.choose_kernel + judge.choose_bias) @ judge.choose_out
    return jax.nn.softmax(choice_N) @ evidence_N


def evidence_distance(judge: Judge, u: Regions, v: Regions) -> Float[Array, ""]:
    """1 - score / 8, symmetric, of any sign; only differences between pairs mean something."""
    return 1 - (evidence(judge, u, v) + evidence(judge, v, u)) / _NATS
