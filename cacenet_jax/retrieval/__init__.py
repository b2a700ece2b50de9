"""Rank a gallery, score it again by pairs, and measure the ranking; plain functions of arrays and of a network's functions.

Read metrics.py first (mAP, CMC and mINP of distances, from the ranks in match_ranks.py), then rankings.py (the individual,
conditional and mixed ranking), extract.py (embeddings and per-image terms of images), rescore.py and term_store.py
(pair distances of the best candidates in an evaluation), compare.py and ranked_list.py (the same for a few
queries), rerank.py (k-reciprocal re-ranking) and query_expansion.py.
"""

from cacenet_jax.retrieval.metrics import evaluate_ranking
from cacenet_jax.retrieval.rerank import k_reciprocal

__all__ = ["evaluate_ranking", "k_reciprocal"]
