"""Modules of the model, in suggested reading order. Equation numbers refer to the paper.

attention.py            equations 2 to 4, implemented literally; the paper's pair stage calls only `affinity_scores` and
                        applies the ReLU in pair_stages/conditional/alignment.py
graph.py                equations 4 to 7, implemented literally: full graph, degrees and full conditional maps
pair_stages/base.py     the interface of a pair stage
pair_stages/conditional/pair.py        means of the conditional maps (equations 2-7) of one pair, computed
                                       exactly and without building the maps
pair_stages/conditional/batch_grid.py  the same for all pairs of a batch, used in training; Theta is applied in
                                       pair_stages/conditional/head.py
pair_stages/conditional/stored.py      the same for one image against many, used in retrieval
heads.py, pooling.py    embeddings of feature maps (section 3.2)
cacenet.py              backbone + individual head + one pair stage
backbones/              networks from images to feature maps, chosen by name
scoring.py              inference functions of a trained network, called by retrieval, export and figures

The losses (equations 1 and 8) are in ../losses.py. Equation 8 is `mixup_cross_entropy`; the training step computes it
row by row with `mixup_rows`.
"""

from cacenet_jax.models import backbones
from cacenet_jax.models.attention import Adjacency, correspondence
from cacenet_jax.models.graph import laplacian_conv
from cacenet_jax.models.pair_stages.conditional.pair import pooled_pair

__all__ = ["Adjacency", "backbones", "correspondence", "laplacian_conv", "pooled_pair"]
