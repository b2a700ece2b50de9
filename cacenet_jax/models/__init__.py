"""The model. Read it in this order; equations are the paper's.

attention.py            equations 2, 3, 4: the correspondence graph of two images, literal; training computes its scores
                        here and the ReLU in pair_stages/conditional/alignment.py
graph.py                equations 5, 6, 7 in their literal form: the whole graph and the whole conditional maps
pair_stages/base.py     the interface of a pair stage
pair_stages/conditional/pair.py        equations 2-7 for one pair, exact, with the mean taken first
pair_stages/conditional/batch_grid.py  the same for all pairs of a batch: the form that training runs, up to Theta,
                                       which head.py applies
pair_stages/conditional/stored.py      the same for one image and many: the form that retrieval runs
heads.py, pooling.py    from maps to embeddings (section 3.2)
cacenet.py              backbone + individual head + one pair stage
backbones/              networks from images to maps, chosen by name
scoring.py              the functions of a trained network that retrieval, export and figures call

Equations 1 and 8, the losses, stand in ../losses.py; training runs equation 8 as `mixup_rows`.
"""

from cacenet_jax.models import backbones
from cacenet_jax.models.attention import Adjacency, correspondence
from cacenet_jax.models.graph import laplacian_conv
from cacenet_jax.models.pair_stages.conditional.pair import pooled_pair

__all__ = ["Adjacency", "backbones", "correspondence", "laplacian_conv", "pooled_pair"]
