"""Ranking metrics, conditional re-scoring, re-ranking and evaluation."""
