"""Figures of a trained network: the paper's figures 4, 5 and 6, and one page that shows why two images match.

The figures are functions from arrays to a matplotlib Figure, without global state, for notebooks too; `report.visualize`
is the mode of the command line.
"""
