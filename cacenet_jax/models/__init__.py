"""The model, in suggested reading order. Equation numbers refer to the paper.

attention.py            equations 2 and 3, the affinities of equation 4's blocks, written literally; training uses the
                        scores from here and applies the ReLU in pair_stages/conditional/alignment.py
graph.py                equations 4 to 7, written literally, with the full graph, its degrees and full conditional maps
pair_stages/base.py     the interface of a pair stage
pair_stages/conditional/pair.py        equations 2-7 for one pair, exact, with the mean taken first
pair_stages/conditional/batch_grid.py  the same for all pairs of a batch, used in training; stops before Theta, which
                                       pair_stages/conditional/head.py applies
pair_stages/conditional/stored.py      the same for one image against many, used in retrieval
heads.py, pooling.py    from maps to embeddings (section 3.2)
cacenet.py              backbone + individual head + one pair stage
backbones/              networks from images to feature maps, chosen by name
scoring.py              inference functions of a trained network, called by retrieval, export and figures

The losses, equations 1 and 8, are in ../losses.py: equation 8 is `mixup_cross_entropy`, and training computes its terms
with `mixup_rows`.
"""

from cacenet_jax.models import backbones
from cacenet_jax.models.attention import Adjacency, correspondence
from cacenet_jax.models.graph import laplacian_conv
from cacenet_jax.models.pair_stages.conditional.pair import pooled_pair

__all__ = ["Adjacency", "backbones", "correspondence", "laplacian_conv", "pooled_pair"]
