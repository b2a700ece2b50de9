"""Gallery ranking, re-scoring of image pairs, and ranking metrics.

This package is independent of the network, whose functions are passed as arguments.

Read metrics.py first (mAP, CMC and mINP from distances, using the ranks of match_ranks.py), then rankings.py
(individual, conditional and mixed rankings), extract.py (embeddings and per-image terms), rescore.py and term_store.py
(pair distances of the best candidates during evaluation), compare.py and ranked_list.py (pair distances and ranked
lists for a few queries), rerank.py (k-reciprocal re-ranking) and query_expansion.py.
"""

from cacenet_jax.retrieval.metrics import evaluate_ranking
from cacenet_jax.retrieval.rerank import k_reciprocal

__all__ = ["evaluate_ranking", "k_reciprocal"]
