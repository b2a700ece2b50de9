"""Figures of a trained network: the paper's figures 4, 5 and 6, and an HTML page that shows why two images match.

Each figure is a function from arrays to a matplotlib Figure, without global state, so it can also be used in notebooks.
`report.visualize` implements --mode=visualize.
"""
